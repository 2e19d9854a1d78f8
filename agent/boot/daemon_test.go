package boot

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDaemonIsStartedAgainAndStopped(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "child")
	// The first two lives end at once, the third stays.
	text := "#!/bin/sh\necho x >> " + dir + "/lives\n[ $(wc -l < " + dir + "/lives) -ge 3 ] && exec sleep 1000\nexit 3\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 8)
	d := daemon{path: script, log: slog.New(slog.DiscardHandler), ended: func(err error) { ends <- err }}
	stop := d.start(t.Context())
	for range 2 {
		select {
		case err := <-ends:
			if err == nil || !strings.Contains(err.Error(), "exit status 3") {
				t.Errorf("got %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the child was not started again")
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for lives := ""; len(lives) < 6; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "lives"))
		if err != nil || time.Now().After(deadline) {
			t.Fatal("no third life", err)
		}
		lives = string(b)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > stopGrace {
		t.Errorf("stopping took %v", took)
	}
	if len(ends) != 0 {
		t.Error("an asked-for end was reported as a death")
	}
}
