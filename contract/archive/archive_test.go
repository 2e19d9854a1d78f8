package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
)

// pack makes a tgz out of headers; a file's content is its Linkname slot.
func pack(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var raw bytes.Buffer
	zw := gzip.NewWriter(&raw)
	tw := tar.NewWriter(zw)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body, h.Linkname = h.Linkname, ""
			h.Size = int64(len(body))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return raw.Bytes()
}

func file(name, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: body, Mode: 0o644}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// The documented command, run by the real tar, with its "./" names.
func TestUnpackTar(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"docker-compose.yaml": 0o600, "conf/app.ini": 0o640, "run.sh": 0o4755} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode&0o777|fs.ModeSetuid*fs.FileMode(mode>>11&1)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("bash", "-c", `tar --sort=name -czf - -C "$0" . | base64 -w0`, dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unpack(string(out))
	if err != nil {
		t.Fatal(err)
	}
	want := []File{
		{Name: "conf", Dir: true, Mode: 0o755},
		{Name: "conf/app.ini", Mode: 0o644, Data: []byte("conf/app.ini")},
		{Name: "docker-compose.yaml", Mode: 0o644, Data: []byte("docker-compose.yaml")},
		{Name: "run.sh", Mode: 0o755, Data: []byte("run.sh")},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUnpackBareDirectory(t *testing.T) {
	got, err := Unpack(b64(pack(t, tar.Header{Typeflag: tar.TypeDir, Name: "sub", Mode: 0o755}, file("sub/a", "x"))))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !got[0].Dir || got[0].Name != "sub" || got[1].Name != "sub/a" {
		t.Errorf("got %+v", got)
	}
}

func TestUnpackRefuses(t *testing.T) {
	good := pack(t, file("a", "x"))
	many := make([]tar.Header, MaxEntries+1)
	for i := range many {
		many[i] = file(fmt.Sprintf("f%d", i), "")
	}
	hostile, err := os.ReadFile("../testdata/vectors/archives/compose-hostile.tgz")
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(good)
	damaged[len(damaged)-6] ^= 1 // the checksum at the end
	tests := map[string]struct {
		b64  string
		code hpl.Code
	}{
		"not base64":              {"a b", "HPL06006E"},
		"not gzip":                {b64([]byte("hello, world")), "HPL06006E"},
		"gzip cut off":            {b64(good[:len(good)-9]), "HPL06006E"},
		"wrong gzip checksum":     {b64(damaged), "HPL06006E"},
		"garbage behind gzip":     {b64(append(bytes.Clone(good), "garbage"...)), "HPL06006E"},
		"gzip of no tar":          {b64(zip(t, bytes.Repeat([]byte("x"), 1024))), "HPL06007E"},
		"tar cut off":             {b64(zip(t, unzip(t, good)[:512])), "HPL06007E"},
		"empty tar":               {b64(pack(t)), "HPL06007E"},
		"only the root":           {b64(pack(t, tar.Header{Typeflag: tar.TypeDir, Name: "./"})), "HPL06007E"},
		"vector compose-hostile":  {b64(hostile), "HPL06007E"},
		"symbolic link":           {b64(pack(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"})), "HPL06007E"},
		"hard link":               {b64(pack(t, file("b", ""), tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"})), "HPL06007E"},
		"FIFO":                    {b64(pack(t, tar.Header{Typeflag: tar.TypeFifo, Name: "a"})), "HPL06007E"},
		"character device":        {b64(pack(t, tar.Header{Typeflag: tar.TypeChar, Name: "a"})), "HPL06007E"},
		"block device":            {b64(pack(t, tar.Header{Typeflag: tar.TypeBlock, Name: "a"})), "HPL06007E"},
		"absolute name":           {b64(pack(t, file("/a", "x"))), "HPL06007E"},
		"name that leaves":        {b64(pack(t, file("../a", "x"))), "HPL06007E"},
		"name that leaves inside": {b64(pack(t, file("a/../../b", "x"))), "HPL06007E"},
		"name with a dot-dot":     {b64(pack(t, file("a/../b", "x"))), "HPL06007E"},
		"name with a control":     {b64(pack(t, file("a\nb", "x"))), "HPL06007E"},
		"segment of 256 bytes":    {b64(pack(t, file(strings.Repeat("n", 256), "x"))), "HPL06007E"},
		"name of 4097 bytes":      {b64(pack(t, file(strings.Repeat("n/", 2048)+"n", "x"))), "HPL06007E"},
		"the same name twice":     {b64(pack(t, file("a", "x"), file("./a", "y"))), "HPL06007E"},
		"file and folder":         {b64(pack(t, file("a", "x"), file("a/b", "y"))), "HPL06007E"},
		"too many entries":        {b64(pack(t, many...)), "HPL06007E"},
		"bomb":                    {b64(zip(t, make([]byte, 32<<20))), "HPL06007E"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			files, err := Unpack(tt.b64)
			if err == nil {
				t.Fatalf("accepted: %d files", len(files))
			}
			if e := hpl.From(err); e.Code != tt.code || e.Detail == "" {
				t.Errorf("got %v, want %s", err, tt.code)
			}
		})
	}
}

func TestUnpackKeepsWhatIsAllowed(t *testing.T) {
	names := []string{strings.Repeat("n", 255), "ünï", ".env", "a b"}
	var headers []tar.Header
	for _, n := range names {
		headers = append(headers, file(n, n))
	}
	got, err := Unpack(b64(pack(t, headers...)))
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range names {
		if got[i].Name != n || string(got[i].Data) != n {
			t.Errorf("got %q", got[i].Name)
		}
	}
	// Small and very regular: over 100:1, but below the floor.
	if _, err := UnpackGzip(pack(t, file("zeroes", string(make([]byte, 3<<20))))); err != nil {
		t.Errorf("a small archive of zeroes: %v", err)
	}
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	if _, err := zw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unzip(t testing.TB, b []byte) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(zr); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Property: no panic; what comes out is clean, relative, unique and bounded.
func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, file("docker-compose.yaml", "services: {}")), false)
	f.Add(unzip(f, pack(f, file("./a/b", "x"), tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"})), true)
	f.Fuzz(func(t *testing.T, data []byte, raw bool) {
		if raw {
			data = zip(t, data)
		}
		files, err := UnpackGzip(data)
		if err != nil {
			return
		}
		seen, total := map[string]bool{}, 0
		for _, f := range files {
			if !fs.ValidPath(f.Name) || f.Name == "." || seen[f.Name] || f.Mode != 0o644 && f.Mode != 0o755 || f.Dir && f.Data != nil {
				t.Fatalf("%+v", f)
			}
			seen[f.Name] = true
			total += len(f.Data)
		}
		if total > MaxTotal || len(files) > MaxEntries {
			t.Fatalf("%d bytes in %d files", total, len(files))
		}
	})
}
