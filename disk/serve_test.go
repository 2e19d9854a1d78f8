//go:build guest

package disk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
)

// TestServe opens what the host asks for, as often as it asks: one boot for
// many disks. What is right, the host knows.
func TestServe(t *testing.T) {
	events := dmEvents(t)
	in := bufio.NewScanner(port)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		if c.Stop {
			return
		}
		a := serve(t, c)
		a.Mappings = events(t)
		line, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(answerMark + string(line))
	}
	t.Error(in.Err())
}

func serve(t *testing.T, c command) answer {
	t.Helper()
	s := spec(c.Name, c.Passphrases...)
	s.Existing, s.MinGeneration, s.Integrity = c.Existing, c.MinGeneration, c.Integrity
	o := patient(t)
	o.Log = nil
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	vols, err := OpenAll(t.Context(), []Spec{s}, o)
	a := answer{Ms: time.Since(start).Milliseconds()}
	runtime.ReadMemStats(&after)
	a.Alloc = after.TotalAlloc - before.TotalAlloc
	defer none(t)
	if err != nil {
		a.Code, a.Error = string(hpl.From(err).Code), err.Error()
		return a
	}
	v := vols[0]
	a.Created, a.Kind = v.Created, v.Kind
	sectors, target, params, err := liveTable(v.Table.Mapping)
	a.Tables = append(a.Tables, fmt.Sprintf("0 %d %s %s", sectors, target, params))
	b, ferr := os.ReadFile(v.Mount + "/file")
	a.File = string(b)
	if c.Write != "" {
		err = errors.Join(err, os.WriteFile(v.Mount+"/written", bytes.Repeat([]byte(c.Write), 100), 0o600))
	}
	unix.Sync()
	err = errors.Join(err, v.Check()) // its data changed, its header did not
	if err = errors.Join(err, ferr, CloseAll(context.Background(), time.Second)); err != nil {
		a.Error = err.Error()
	}
	return a
}

// dmEvents counts, call for call, the device-mapper devices that the kernel
// told of.
func dmEvents(t *testing.T) func(*testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) int {
		t.Helper()
		n, buf := 0, make([]byte, 8<<10)
		for {
			size, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				return n
			}
			if err != nil { // lost ones would make the count wrong
				t.Fatal(err)
			}
			if bytes.HasPrefix(buf[:size], []byte("add@/devices/virtual/block/dm-")) {
				n++
			}
		}
	}
}
