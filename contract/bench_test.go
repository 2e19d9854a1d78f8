package contract

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// bigContract has an archive of about size bytes that do not compress.
func bigContract(t testing.TB, size int) map[string]string {
	t.Helper()
	body := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		body[i] = byte(rng.Uint32())
	}
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	tw := tar.NewWriter(zw)
	for name, data := range map[string][]byte{
		"docker-compose.yml": []byte("services: {a: {image: docker.io/library/x@sha256:" + strings.Repeat("a", 64) + "}}\n"),
		"big":                body,
	} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	s := baseSections(t)
	s["workload"] = strings.Replace(s["workload"], encodedArchive(t), base64.StdEncoding.EncodeToString(packed.Bytes()), 1)
	return map[string]string{"workload": seal(t, s["workload"]), "env": seal(t, s["env"])}
}

func BenchmarkProcess(b *testing.B) {
	for _, kib := range []int{32, 8192} {
		b.Run(fmt.Sprintf("archive-%dKiB", kib), func(b *testing.B) {
			data := userData(b, bigContract(b, kib<<10))
			device, err := WriteCidata(Files{UserData: data, MetaData: []byte("local-hostname: a\n")})
			if err != nil {
				b.Fatal(err)
			}
			keys := []*secret.Secret{keyFile(b, "encrypt.key")}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				v, err := Process(Input{Cidata: device, Keys: keys, Policy: DefaultPolicy(false), Now: now})
				if err != nil {
					b.Fatal(err)
				}
				v.Wipe()
			}
		})
	}
}

func TestContractSize(t *testing.T) {
	for size, want := range map[int]bool{15 << 20: true, 17 << 20: false} {
		data := append([]byte("# "), bytes.Repeat([]byte("x"), size)...)
		data = append(data, '\n')
		for section, text := range baseSections(t) {
			data = append(data, section+": |\n  "+strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ")+"\n"...)
		}
		r, err := newRun(nil, DefaultPolicy(false), now)
		if err != nil {
			t.Fatal(err)
		}
		r.files.UserData = data
		_, err = r.verdict()
		if (err == nil) != want || err != nil && hpl.From(err).Code != "HPL11001E" {
			t.Errorf("%d bytes: %v", len(data), err)
		}
	}
}
