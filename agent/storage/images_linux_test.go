package storage

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"hpcr/disk/images"
)

// talking is the agent's side of a conversation with a child that answer plays.
func talking(t *testing.T, answer func(questions io.Reader, answers io.WriteCloser)) *Images {
	t.Helper()
	asked, asks, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	i := &Images{asks: asks, answers: answers, cancel: func() {}, ended: make(chan struct{})}
	go func() {
		defer close(i.ended)
		answer(asked, says)
		asked.Close()
		says.Close()
	}()
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// TestImagesTalk: agent and child understand each other, several askers at
// once; what cannot be read is an error, and the last.
func TestImagesTalk(t *testing.T) {
	blobs := map[string][]byte{strings.Repeat("0a", 32): []byte("small"), strings.Repeat("f0", 32): bytes.Repeat([]byte("0123456789abcde"), 50_000)}
	l := &images.Layout{Blobs: map[string]images.Span{}, Names: map[string]string{"a/b:1": strings.Repeat("0a", 32)}}
	for key, b := range blobs {
		l.Blobs[key] = images.Span{Size: int64(len(b))}
	}
	bad := strings.Repeat("bd", 32)
	i := talking(t, func(q io.Reader, a io.WriteCloser) {
		err := serveImages(l, func(key string, p []byte, at int64) error {
			if key == bad {
				return errors.New("I/O error")
			}
			copy(p, blobs[key][at:])
			return nil
		}, q, a)
		if err != nil {
			t.Error(err)
		}
	})
	if err := i.listen(time.Minute); err != nil {
		t.Fatal(err)
	}
	if key, ok := i.Named("a/b:1"); !ok || key != strings.Repeat("0a", 32) {
		t.Errorf("a/b:1 is %q", key)
	}
	if _, ok := i.Size(bad); ok {
		t.Error("a blob that is not there has a size")
	}
	var all sync.WaitGroup
	for key, want := range blobs {
		for range 3 {
			all.Go(func() {
				size, _ := i.Size(key)
				got := make([]byte, size)
				for at := 0; at < len(got); {
					n, err := i.ReadBlob(key, got[at:], int64(at))
					if err != nil || n == 0 {
						t.Errorf("at %d: %d, %v", at, n, err)
						return
					}
					at += n
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s is another", key)
				}
			})
		}
	}
	all.Wait()
	for _, key := range []string{"", "0a", strings.Repeat("zz", 32), strings.Repeat("0a", 33)} {
		if _, err := i.ReadBlob(key, make([]byte, 1), 0); err == nil {
			t.Errorf("%q is read", key)
		}
	}
	if _, err := i.ReadBlob(bad, make([]byte, 1), 0); err == nil {
		t.Error("what cannot be read is read")
	}
	if _, err := i.ReadBlob(strings.Repeat("0a", 32), make([]byte, 1), 0); err == nil {
		t.Error("after an error the child is believed again")
	}
}

// TestImagesChildLies: the child has read hostile bytes.
func TestImagesChildLies(t *testing.T) {
	for sentence, tt := range map[string]struct {
		says  string
		first bool // the first answer is refused
	}{
		"nothing":                        {"", true},
		"half a length":                  {"\x00\x00", true},
		"a length and nothing":           {"\x00\x00\x00\x05", true},
		"more than fits":                 {"\xff\xff\xff\xff", true},
		"no JSON":                        {"\x00\x00\x00\x01x", true},
		"JSON of another shape":          {"\x00\x00\x00\x02[]", true},
		"a size below zero":              {"\x00\x00\x00\x14{\"blobs\":{\"0a\":-1 }}", true},
		"contents, and then nothing":     {"\x00\x00\x00\x02{}", false},
		"contents, and too much a piece": {"\x00\x00\x00\x02{}\x00\x04\x00\x01", false},
		"contents, and too little":       {"\x00\x00\x00\x02{}\x00\x00\x00\x01x", false},
	} {
		t.Run(sentence, func(t *testing.T) {
			i := talking(t, func(q io.Reader, a io.WriteCloser) {
				_, _ = io.WriteString(a, tt.says)
				a.Close()
			})
			err := i.listen(time.Minute)
			if tt.first {
				if err == nil {
					t.Error("it is believed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			key := hex.EncodeToString(make([]byte, 32))
			if n, err := i.ReadBlob(key, make([]byte, 2), 0); err == nil {
				t.Errorf("%d bytes are believed", n)
			}
		})
	}
}

// TestImagesSilent: a child that hangs with its disk does not hold the agent.
func TestImagesSilent(t *testing.T) {
	i := talking(t, func(q io.Reader, _ io.WriteCloser) { _, _ = io.Copy(io.Discard, q) })
	start := time.Now()
	if err := i.listen(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}
