//go:build !race

package boot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hpcr/contract"
)

// A contract of 14 MiB, whose text a container mounts, is read within
// 4 × contract + 32 MiB, the answer included.
func TestAppletMemory(t *testing.T) {
	device, size, key := largeContract(t)
	dir := t.TempDir()
	for name, data := range map[string][]byte{"device": device, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	peak := 0
	answer, status := applet(t, filepath.Join(dir, "device"), filepath.Join(dir, "key"),
		order{Policy: contract.DefaultPolicy(false), Now: time.Now(), Keys: 1}, func(pid int) { peak = highest(t, pid) })
	if status != 0 || len(answer) < size {
		t.Fatalf("status %d, an answer of %d bytes: %.500q", status, len(answer), answer)
	}
	used, limit := peak+len(answer), 4*size+32<<20
	t.Logf("%d MiB of %d", used>>20, limit>>20)
	if used > limit {
		t.Errorf("a contract of %d MiB takes %d MiB, want at most %d", size>>20, used>>20, limit>>20)
	}
}

// highest is a process's greatest resident size without the pages of files.
func highest(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kib := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+):\s+(\d+) kB$`).FindAllStringSubmatch(string(status), -1) {
		if kib[m[1]], err = strconv.Atoi(m[2]); err != nil {
			t.Fatal(err)
		}
	}
	if kib["VmHWM"] == 0 {
		t.Fatal("the kernel does not tell a process's memory")
	}
	return (kib["VmHWM"] - kib["RssFile"] - kib["RssShmem"]) << 10
}

// largeContract is the good contract of the bad ones with a large archive,
// both sections encrypted.
func largeContract(t *testing.T) (device []byte, size int, key []byte) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	filler := make([]byte, 8<<20)
	if _, err := rand.Read(filler); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	tw := tar.NewWriter(zw)
	for name, data := range map[string]string{
		"docker-compose.yml": "services: {a: {image: docker.io/library/x@sha256:" + strings.Repeat("a", 64) + ", volumes: ['/var/hyperprotect:/r:ro']}}\n",
		"filler":             string(filler),
	} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	var userData []byte
	for _, name := range []string{"workload", "env"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "contract", "testdata", "bad", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`archive: .*`).ReplaceAll(text, []byte("archive: "+base64.StdEncoding.EncodeToString(packed.Bytes())))
		token, err := contract.Seal(contract.PrefixHPCR, &private.PublicKey, text)
		if err != nil {
			t.Fatal(err)
		}
		userData = fmt.Appendf(userData, "%s: %s\n", name, token)
	}
	device, err = contract.WriteCidata(contract.Files{UserData: userData, MetaData: []byte("local-hostname: a\n")})
	if err != nil {
		t.Fatal(err)
	}
	return device, len(userData), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
