package initramfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMirrorsComeFromTheMachinesOwnConfiguration(t *testing.T) {
	dir := t.TempDir()
	sources := filepath.Join(dir, "debian.sources")
	list := filepath.Join(dir, "extra.list")
	for name, text := range map[string]string{
		sources: "Types: deb\nURIs: http://mirror.example/debian\nSigned-By: /keys/one.gpg\n\n# comment\n\nTypes: deb\nURIs: http://mirror.example/security\nSigned-By: /keys/two.gpg\n",
		list:    "# first\ndeb [arch=amd64 signed-by=/keys/three.gpg] http://mirror.example/debian bookworm main\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stanza := func(origin, label, component, uri, entry string) string {
		return "Origin: " + origin + "\nLabel: " + label + "\nComponent: " + component + "\nRepo-URI: " + uri + "\nSourcesentry: " + entry
	}
	for name, tc := range map[string]struct {
		targets   []string
		main, sec mirror
	}{
		"archive and security, each with its keyring": {
			[]string{
				stanza("Other", "Other", "main", "http://other.example/", sources+":1"),
				stanza("Debian", "Debian", "contrib", "http://mirror.example/contrib/", sources+":1"),
				stanza("Debian", "Debian", "main", "http://mirror.example/debian/", sources+":1"),
				stanza("Debian", "Debian-Security", "main", "http://mirror.example/security/", sources+":2"),
			},
			mirror{"http://mirror.example/debian/", "/keys/one.gpg"}, mirror{"http://mirror.example/security/", "/keys/two.gpg"},
		},
		"a one-line source": {
			[]string{stanza("Debian", "Debian", "main", "http://mirror.example/debian/", list+":2")},
			mirror{"http://mirror.example/debian/", "/keys/three.gpg"}, mirror{},
		},
		"no Debian at all": {[]string{stanza("Ubuntu", "Ubuntu", "main", "http://u.example/", list+":2")}, mirror{}, mirror{}},
	} {
		t.Run(name, func(t *testing.T) {
			gotMain, gotSec := pickMirrors(strings.Join(tc.targets, "\n\n"))
			if diff := cmp.Diff([]mirror{tc.main, tc.sec}, []mirror{gotMain, gotSec}, cmp.AllowUnexported(mirror{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnEntryWithoutAKeyringGetsDebians(t *testing.T) {
	for _, entry := range []string{"", "/no/such/file.sources:1", "x:y"} {
		if got := signedBy(entry); got != fallbackKeyring() {
			t.Errorf("%q: %q", entry, got)
		}
	}
}

func TestOnceMakesAFolderWholeOrNotAtAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "made")
	fail := os.ErrInvalid
	if err := once(dir, func(tmp string) error {
		if err := os.WriteFile(filepath.Join(tmp, "half"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return fail
	}); err != fail {
		t.Fatalf("got %v", err)
	}
	if exists(dir) {
		t.Error("a failed attempt left the folder")
	}
	calls := 0
	for range 2 {
		if err := once(dir, func(tmp string) error { calls++; return os.WriteFile(filepath.Join(tmp, "a"), nil, 0o644) }); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 1 || !exists(filepath.Join(dir, "a")) {
		t.Errorf("made %d times", calls)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
