package storage

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"hpcr/agent/secret"
	"hpcr/disk"
)

// The child has read hostile bytes: an answer for other volumes is none.
func TestSound(t *testing.T) {
	specs := []disk.Spec{{Name: "data", Path: "/workload/volumes/#1", Mount: "/mnt/data"}}
	good := func() *disk.Volume {
		return &disk.Volume{Name: "data", Path: "/workload/volumes/#1", Mount: "/mnt/data", Kind: disk.Ours}
	}
	with := func(change func(*disk.Volume)) []*disk.Volume {
		v := good()
		change(v)
		return []*disk.Volume{v}
	}
	for name, tt := range map[string]struct {
		answer []*disk.Volume
		ok     bool
	}{
		"ours":              {with(func(*disk.Volume) {}), true},
		"foreign":           {with(func(v *disk.Volume) { v.Kind = disk.ForeignLUKS }), true},
		"nothing":           {nil, false},
		"null":              {[]*disk.Volume{nil}, false},
		"one too many":      {[]*disk.Volume{good(), good()}, false},
		"another name":      {with(func(v *disk.Volume) { v.Name = "logs" }), false},
		"another mount":     {with(func(v *disk.Volume) { v.Mount = "/etc" }), false},
		"another path":      {with(func(v *disk.Volume) { v.Path = "/x" }), false},
		"a kind of its own": {with(func(v *disk.Volume) { v.Kind = disk.Blank }), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := sound(tt.answer, specs); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What a child logs arrives line by line, within bounds; what is no line of
// slog's is dropped. A child that never closes its end does not hold the agent.
func TestListen(t *testing.T) {
	var out bytes.Buffer
	w, heard, err := listen(slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	child := slog.New(slog.NewJSONHandler(w, nil))
	child.Warn("creating a new volume", "volume", "data", "bytes", 5)
	if _, err := io.WriteString(w, "not JSON\n"); err != nil {
		t.Fatal(err)
	}
	child.Info("volume open", "cause", "two\nlines")
	heard()
	got := out.String()
	for _, want := range []string{`level=WARN msg="creating a new volume"`, "volume=data", `msg="volume open"`, `cause="two\nlines"`} {
		if !strings.Contains(got, want) {
			t.Errorf("the log lacks %s:\n%s", want, got)
		}
	}
	if strings.Contains(got, "not JSON") || strings.Count(got, "\n") != 2 {
		t.Errorf("got:\n%s", got)
	}
}

func TestSecretFile(t *testing.T) {
	pass := strings.Repeat("5e", 32)
	f, wipe, err := secretFile([]*secret.Secret{secret.FromString(pass), secret.FromString(pass)})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 200)
	if n, err := f.ReadAt(b, 0); err != io.EOF || string(b[:n]) != pass+pass {
		t.Errorf("%d bytes, %v", n, err)
	}
	wipe()
	if _, _, err := secretFile([]*secret.Secret{secret.FromString("short")}); err == nil {
		t.Error("a passphrase of another length was taken")
	}
}

// Close gives up with ctx, whatever its child does.
func TestCloseIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Close(ctx); err == nil {
		t.Error("closed without a child")
	}
}
