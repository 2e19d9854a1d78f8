package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A flag that would be ignored is a mistake that somebody trusts.
func TestHostKeyFlagsThatMeanNothingAreRefused(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "host.crt")
	if err := os.WriteFile(doc, []byte("none"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		flags []string
		want  string
	}{
		"on amd64":                  {[]string{"--arch", "amd64", "--host-key-document", doc}, "only s390x"},
		"lists, but no certificate": {[]string{"--host-key-document", doc, "--host-key-crl", doc}, "--host-key-cert is missing"},
		"a root, but no signer":     {[]string{"--host-key-document", doc, "--host-key-root", doc}, "--host-key-cert is missing"},
		"certificates, but no key":  {[]string{"--host-key-cert", doc}, "--host-key-document is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "image")
			args := append([]string{"image", "build", "--arch", "s390x", "--dev", "--keys", t.TempDir(), "--out", out}, tc.flags...)
			r := hpcrctl(t, "", args...)
			if r.code != 2 || !strings.Contains(r.stderr, tc.want) {
				t.Errorf("%d %q, want %q", r.code, r.stderr, tc.want)
			}
		})
	}
}
