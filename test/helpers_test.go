//go:build vm

package test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/scenario"
)

// fetch gets a page from a guest that may still be starting what serves it:
// QEMU accepts before the guest listens, and then resets.
func fetch(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		resp, err := client.Get(url)
		if err != nil {
			last = err
			continue
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			last = err
			continue
		}
		if resp.StatusCode == http.StatusOK {
			return string(body)
		}
		last = fmt.Errorf("status %s: %s", resp.Status, body)
	}
	t.Fatalf("no answer from %s: %v", url, last)
	return ""
}

// logged waits for a message of this scenario's guest that holds text.
func logged(t *testing.T, lab *scenario.Lab, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	line, err := lab.LogHost.WaitFor(ctx, func(m string) bool {
		return strings.Contains(m, " "+lab.Hostname()+" ") && strings.Contains(m, text)
	})
	if err != nil {
		t.Errorf("the log host never got %q of this guest: %v", text, err)
	}
	return line
}

// sum is a disk's content; the guest must be off.
func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// sparse makes a disk of zeros.
func sparse(t *testing.T, lab *scenario.Lab, name string, size int64) string {
	t.Helper()
	path := lab.File(t, name, nil)
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// dataPartition copies the second partition of a disk into a file of its own,
// as sfdisk finds it.
func dataPartition(t *testing.T, lab *scenario.Lab, disk string) string {
	t.Helper()
	var table struct {
		PartitionTable struct {
			Label      string `json:"label"`
			Partitions []struct {
				Start int64  `json:"start"`
				Size  int64  `json:"size"`
				Name  string `json:"name"`
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(lab.Command(t, "sfdisk", "--json", disk), &table); err != nil {
		t.Fatalf("sfdisk's JSON: %v", err)
	}
	parts := table.PartitionTable.Partitions
	if table.PartitionTable.Label != "gpt" || len(parts) != 2 || parts[0].Name != "metadata" || parts[1].Name != "data" {
		t.Fatalf("the disk's layout is %+v, want GPT with metadata and data", table.PartitionTable)
	}
	from, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(lab.Dir, "data-partition")
	to, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const sector, chunk = 512, 1 << 20
	zero := make([]byte, chunk)
	buf := make([]byte, chunk)
	in := io.NewSectionReader(from, parts[1].Start*sector, parts[1].Size*sector)
	for at := int64(0); at < in.Size(); at += chunk {
		n, err := in.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if string(buf[:n]) == string(zero[:n]) {
			continue // stays a hole
		}
		if _, err := to.WriteAt(buf[:n], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(to.Truncate(in.Size()), to.Close(), from.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}
