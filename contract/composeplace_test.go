package contract

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"strings"
	"testing"

	"hpcr/agent/hpl"
)

// withCompose puts one compose file into the base contract.
func withCompose(t testing.TB, name, text string) map[string]string {
	t.Helper()
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	s := baseSections(t)
	s["workload"] = strings.Replace(s["workload"], encodedArchive(t), base64.StdEncoding.EncodeToString(packed.Bytes()), 1)
	return s
}

func TestComposePlaces(t *testing.T) {
	const pinned = "docker.io/library/x@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c"
	tests := map[string]struct {
		file, text string
		code       hpl.Code
		host, path string
		doc        string
		line       int
	}{
		"image without a digest": {"docker-compose.yml", "services:\n  a:\n    image: " + pinned + "\n  web:\n    image: nginx\n",
			"HPL06010E", "/workload/compose/services/#2/image", "/workload/compose/services/web/image", "compose", 5},
		"the same in a folder": {"x/docker-compose.yaml", "services:\n  web:\n    image: nginx\n",
			"HPL06010E", "/workload/compose/services/#1/image", "/workload/compose/services/web/image", "compose", 3},
		"build": {"docker-compose.yml", "services:\n  web:\n    image: " + pinned + "\n    build: .\n",
			"HPL06009E", "/workload/compose/services/#1/build", "/workload/compose/services/web/build", "compose", 4},
		"not YAML":        {"docker-compose.yml", "services: [\n", "HPL06009E", "/workload/compose", "/workload/compose", "compose", 1},
		"no compose file": {"compose.yaml", "services: {}\n", "HPL06008E", "/workload/compose/archive", "/workload/compose/archive", "workload", 7},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := withCompose(t, tt.file, tt.text)
			_, err := runSections(t, s, false).verdict()
			if err == nil || hpl.From(err).Code != tt.code || hpl.From(err).Path != tt.host {
				t.Fatalf("guest: %v, want %s at %s", err, tt.code, tt.host)
			}
			lint := runSections(t, s, true)
			lint.lintReport()
			f := lint.firstError()
			if f.Code != tt.code || f.HostPath != tt.host || f.Path != tt.path || f.Document != tt.doc || f.Line != tt.line {
				t.Errorf("lint: %+v", f)
			}
		})
	}
}

func TestUnsetVariables(t *testing.T) {
	s := withCompose(t, "docker-compose.yml", "services:\n  web:\n    image: docker.io/library/x@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\n    environment: {X: '${NOBODY}', Y: '${A}'}\n")
	rep := runSections(t, s, true).lintReport()
	if f := rep.Findings; !rep.OK || len(f) != 1 || f[0].Severity != SeverityNote || f[0].Path != "/workload/compose/archive" {
		t.Errorf("findings %+v", f)
	}
}
