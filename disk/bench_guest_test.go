//go:build guest

package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

// The tests of this file measure, for make bench; see bench_vm_test.go. Their
// guest's clock counts instructions, and the figures are of its processor: while
// that waits for the disk, the time is the machine's.

// benchSizes are the blocks that are read and written, and how much of them.
var benchSizes = map[string]struct{ block, all int64 }{
	"32 MiB":                 {mib, 32 * mib},
	"8 MiB, 4 KiB at a time": {4096, 8 * mib},
}

// figureLine prints medians of both sides, and their ratio, as make bench reads
// them.
func figureLine(t *testing.T, name, peer string, ours, theirs []float64, most float64) {
	t.Helper()
	slices.Sort(ours)
	slices.Sort(theirs)
	v, p := ours[len(ours)/2], theirs[len(theirs)/2]
	line, err := json.Marshal(map[string]any{"name": name, "unit": "s", "value": v, "peer": peer, "peerValue": p, "ratio": v / p, "most": most})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("figure: " + string(line))
}

// TestBenchTable maps one disk with our table, with that of a default luksFormat
// on it, and with others that were not chosen, in turns. cryptsetup takes the
// disk's physical block for a sector, which of virtio-blk is 512 bytes.
func TestBenchTable(t *testing.T) {
	d := benchDisk(t, "table")
	block, err := os.ReadFile(filepath.Join(sysBlock, d.name, "queue/physical_block_size"))
	if err != nil || strings.TrimSpace(string(block)) != "512" {
		t.Fatalf("physical block of %q bytes, %v", block, err)
	}
	const chosen = 4096 // by luks2.Format
	tables := []struct {
		name       string
		sectorSize int
		options    []string
		most       float64
	}{
		{"luksFormat's default, sectors of 512 bytes", 512, nil, 0},
		{"ours", chosen, nil, 1},
		{"ours without the write queue", chosen, []string{"no_write_workqueue"}, 0},
		{"ours without both queues", chosen, []string{"no_read_workqueue", "no_write_workqueue"}, 0},
	}
	took := map[string][]float64{}
	for range benchTurns {
		for _, tt := range tables {
			for size, s := range benchSizes {
				for verb, write := range benchVerbs {
					key := verb + size + tt.name
					took[key] = append(took[key], mapped(t, d, tt.sectorSize, tt.options, write, s.block, s.all))
				}
			}
		}
	}
	for _, tt := range tables[1:] {
		for size := range benchSizes {
			for verb := range benchVerbs {
				figureLine(t, fmt.Sprintf("volume: %s %s, table: %s", verb, size, tt.name), tables[0].name, took[verb+size+tt.name],
					took[verb+size+tables[0].name], tt.most)
			}
		}
	}
}

var benchVerbs = map[string]bool{"write": true, "read": false}

func benchDisk(t *testing.T, serial string) *found {
	t.Helper()
	all, err := scan(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.serial == serial {
			return &found{blockDevice: d}
		}
	}
	t.Fatalf("no disk %s", serial)
	return nil
}

// mapped is how long reading or writing takes past the page cache.
func mapped(t *testing.T, d *found, sectorSize int, options []string, write bool, block, all int64) (seconds float64) {
	t.Helper()
	withMapping(t, d, sectorSize, options, func(node string) {
		fd, err := unix.Open(node, unix.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		buf, err := unix.Mmap(-1, 0, int(block), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Munmap(buf); err != nil {
				t.Error(err)
			}
		}()
		begin := worked(t)
		for at := int64(0); at < all; at += block {
			n, err := 0, error(nil)
			if write {
				n, err = unix.Pwrite(fd, buf, at)
			} else {
				n, err = unix.Pread(fd, buf, at)
			}
			if err != nil || n != len(buf) {
				t.Fatal(n, err)
			}
		}
		if err := unix.Fsync(fd); err != nil {
			t.Fatal(err)
		}
		seconds = worked(t) - begin
	})
	return seconds
}

// withMapping maps a disk as our table or luksFormat's would; options are those
// of dm-crypt's table besides the sector size.
func withMapping(t *testing.T, d *found, sectorSize int, options []string, do func(node string)) {
	t.Helper()
	f, p, err := openDisk(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.start, p.size, p.sectorSize = 16*mib, d.size-16*mib, sectorSize            // as luksFormat lays it
	key := secret.New(append(make([]byte, 32), slices.Repeat([]byte{1}, 32)...)) // halves that differ, as XTS wants
	defer key.Wipe()
	tab, err := p.table()
	if err != nil {
		t.Fatal(err)
	}
	const name, description = mappingPrefix + "bench", "hpcr:bench"
	tab.key = fmt.Sprintf(":%d:logon:%s", key.Len(), description)
	params := tab.params()
	if len(options) > 0 { // behind those that the table has
		params = fmt.Sprintf("%s %s 0 %d:%d %d %d", cipher, tab.key, tab.major, tab.minor, tab.start, len(options)+1)
		for _, o := range append(options, fmt.Sprintf("sector_size:%d", sectorSize)) {
			params += " " + o
		}
	}
	var m *mapping
	err = withKernelKey(description, key.Bytes(), func() error {
		var err error
		m, err = createMapping(name, "crypt", tab.sectors, params)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := removeMapping(name); err != nil {
			t.Error(err)
		}
	}()
	do(m.node)
}

// TestBenchFormat makes a volume, less its derivation, and the plain file system
// that is the least one could do, on a disk and in a default luksFormat's
// mapping, in turns on disks of one size.
func TestBenchFormat(t *testing.T) {
	var ours, plain, encrypted []float64
	for i := range benchTurns {
		raw := benchDisk(t, fmt.Sprint("plain", i))
		plain = append(plain, made(t, raw.node()))
		withMapping(t, benchDisk(t, fmt.Sprint("stock", i)), 512, nil, func(node string) { encrypted = append(encrypted, made(t, node)) })

		s := spec(fmt.Sprint("new", i), guestPass)
		s.Filesystem = "ext4"
		d := benchDisk(t, s.Name)
		begin := worked(t)
		op := &opener{Options: options(t)}
		v := &Volume{Name: s.Name, Mount: s.Mount, Table: Table{Mapping: mappingPrefix + "1"}, log: op.Log}
		if err := op.create(t.Context(), s, v, d); err != nil {
			t.Fatal(err)
		}
		whole := worked(t) - begin
		luks2.Release()
		begin = worked(t)
		luks2.Derive(cheap.MemoryKiB, func() {
			argon2.IDKey([]byte(guestPass), make([]byte, 32), cheap.Time, cheap.MemoryKiB, uint8(cheap.Parallel), 64)
		})
		ours = append(ours, whole-(worked(t)-begin))
		luks2.Release()
		if err := CloseAll(context.Background(), time.Second); err != nil {
			t.Fatal(err)
		}
	}
	const name = "volume: make one on 64 GiB, less the derivation"
	figureLine(t, name, "mke2fs, lazy, and fsync on a default luksFormat's mapping", ours, encrypted, 1.3)
	figureLine(t, name, "the same on the bare disk", ours, plain, 0)
}

// made is how long a file system of ours takes until it is durable.
func made(t *testing.T, node string) float64 {
	t.Helper()
	begin := worked(t)
	if err := filesystems["ext4"].create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return worked(t) - begin
}

// worked is how many seconds the guest's one processor has worked: user, nice,
// system, irq and softirq of proc_stat(5), in hundredths.
func worked(t *testing.T) (seconds float64) {
	t.Helper()
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	var user, nice, system, idle, iowait, irq, softirq float64
	if _, err := fmt.Sscan(strings.TrimPrefix(line, "cpu"), &user, &nice, &system, &idle, &iowait, &irq, &softirq); err != nil {
		t.Fatal(err)
	}
	return (user + nice + system + irq + softirq) / 100
}
