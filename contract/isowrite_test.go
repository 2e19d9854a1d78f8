package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What we write is read by our own reader, by isoinfo through both kinds of
// names, by xorriso and by blkid.
func TestWriteCidata(t *testing.T) {
	device, err := WriteCidata(sample)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadCidata(device)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample, got); diff != "" {
		t.Error(diff)
	}
	path := filepath.Join(t.TempDir(), "cidata.iso")
	if err := os.WriteFile(path, device, 0o644); err != nil {
		t.Fatal(err)
	}
	info := string(tool(t, nil, "isoinfo", "-d", "-i", path))
	for _, want := range []string{"Volume id: cidata\n", "Joliet with UCS level 3", "Rock Ridge signatures version 1 found"} {
		if !strings.Contains(info, want) {
			t.Errorf("isoinfo misses %q:\n%s", want, info)
		}
	}
	for _, names := range []string{"-R", "-J"} {
		for _, w := range wanted {
			want := *w.get(&sample)
			if out := tool(t, nil, "isoinfo", names, "-i", path, "-x", "/"+w.name); !bytes.Equal(out, want) {
				t.Errorf("isoinfo %s reads %d bytes of %s, want %d", names, len(out), w.name, len(want))
			}
		}
	}
	dir := t.TempDir()
	tool(t, nil, "xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", dir)
	for _, w := range wanted {
		if out := readFile(t, dir, w.name); !bytes.Equal(out, *w.get(&sample)) {
			t.Errorf("xorriso extracts %d bytes of %s", len(out), w.name)
		}
	}
	if label := strings.TrimSpace(string(tool(t, nil, "blkid", "-p", "-s", "LABEL", "-o", "value", path))); label != "cidata" {
		t.Errorf("blkid reads the label %q", label)
	}
}

// The same files give the same bytes, today and tomorrow.
func TestWriteCidataIsReproducible(t *testing.T) {
	device, err := WriteCidata(Files{UserData: []byte("a"), MetaData: []byte("b"), VendorData: []byte{}})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(device)
	const want = "31b80c24ff409a0f2d00f4e559133e4335a8665e12b272baee76924daf72178c"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("got %s: the layout has changed; is that meant?", got)
	}
}

func TestWriteCidataRefuses(t *testing.T) {
	if _, err := WriteCidata(Files{MetaData: make([]byte, 1<<20+1)}); err == nil {
		t.Error("a meta-data that the guest refuses was written")
	}
}
