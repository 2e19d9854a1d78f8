package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	for name, tt := range map[string]struct {
		p    place
		want string // params; "" = refused
		n    uint64
	}{
		"4096":                 {place{254, 16, 102 * mib, 10*mib + 512, 4096, false}, "aes-xts-plain64 K 0 254:16 208896 1 sector_size:4096", 20480},
		"512":                  {place{254, 16, 102 * mib, 10*mib + 512, 512, false}, "aes-xts-plain64 K 0 254:16 208896", 20481},
		"with integrity":       {place{253, 3, 0, 10 * mib, 4096, true}, "capi:authenc(hmac(sha256),xts(aes))-plain64 K 0 253:3 0 2 integrity:32:aead sector_size:4096", 20480},
		"not aligned to 4 KiB": {place{254, 16, 102*mib + 512, mib, 512, false}, "", 0},
		"empty":                {place{254, 16, mib, 0, 512, false}, "", 0},
		"beyond the end":       {place{254, 16, mib, -5, 512, false}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tt.p.table()
			got.key = "K"
			if (err != nil) != (tt.want == "") || err == nil && (got.params() != tt.want || got.sectors != tt.n) {
				t.Errorf("%q %d, %v", got.params(), got.sectors, err)
			}
		})
	}
}

// TestKeyFromTable: the key is taken only from a table that is, in all the
// rest, the one that was asked for.
func TestKeyFromTable(t *testing.T) {
	key := bytes.Repeat([]byte{0xa5, 0x5a}, 32)
	digits := hex.EncodeToString(key)
	asked, err := place{254, 16, 16 * mib, 32 * mib, 4096, false}.table()
	if err != nil {
		t.Fatal(err)
	}
	good := "aes-xts-plain64 " + digits + " 0 254:16 32768 1 sector_size:4096"
	if got, err := keyFromTable(asked, asked.sectors, "crypt", []byte(good)); err != nil || !bytes.Equal(got.Bytes(), key) {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		sectors uint64
		target  string
		params  string
	}{
		"another cipher":  {asked.sectors, "crypt", strings.Replace(good, "aes-xts-plain64", "cipher_null-ecb", 1)},
		"another device":  {asked.sectors, "crypt", strings.Replace(good, "254:16", "254:0", 1)},
		"another offset":  {asked.sectors, "crypt", strings.Replace(good, "32768", "32776", 1)},
		"another tweak":   {asked.sectors, "crypt", strings.Replace(good, " 0 ", " 1 ", 1)},
		"discards":        {asked.sectors, "crypt", strings.Replace(good, "1 sector", "2 allow_discards sector", 1)},
		"another length":  {asked.sectors - 8, "crypt", good},
		"another target":  {asked.sectors, "linear", good},
		"a shorter key":   {asked.sectors, "crypt", strings.Replace(good, digits, digits[:64], 1)},
		"a key reference": {asked.sectors, "crypt", strings.Replace(good, digits, ":64:logon:x", 1)},
		"no hex":          {asked.sectors, "crypt", strings.Replace(good, digits, strings.Repeat("zz", 64), 1)},
		"empty":           {asked.sectors, "crypt", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := keyFromTable(asked, tt.sectors, tt.target, []byte(tt.params)); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestRunTool: a child that hangs, floods or fails is over in time, and its
// words are kept short.
func TestRunTool(t *testing.T) {
	start := time.Now()
	if err := runTool(t.Context(), 100*time.Millisecond, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if err := runTool(t.Context(), time.Minute, "no-such-program"); err == nil {
		t.Error("ran")
	}
	err := runTool(t.Context(), time.Minute, "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo end; exit 3")
	if err == nil || len(err.Error()) > 2*toolOutput || !strings.Contains(err.Error(), "end") {
		t.Errorf("%.100v", err)
	}
	check := filesystem{check: []string{"sh", "-c", "exit $1", "sh"}}
	for code, ok := range map[string]bool{"0": true, "1": true, "2": true, "4": false, "8": false, "127": false} {
		if err := check.repair(t.Context(), code, superblock{}, slog.New(slog.DiscardHandler)); (err == nil) != ok {
			t.Errorf("e2fsck's status %s: %v", code, err)
		}
	}
}

// TestTornSuperblock: power was cut in the middle of a superblock, so that its
// checksum is another's. The copy mends it, if the file system has one.
func TestTornSuperblock(t *testing.T) {
	for name, tt := range map[string]struct {
		size  int64
		block string
		grown bool // while it was mounted: its copy asks for the journal
		ok    bool
	}{
		"two groups":             {150 * mib, "4096", false, true},
		"two groups, 1 KiB":      {20 * mib, "1024", false, true},
		"two groups, has grown":  {150 * mib, "4096", true, true},
		"one group, so no copy":  {100 * mib, "4096", false, false},
		"a second, of no blocks": {128 * mib, "4096", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "fs")
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(tt.size); err != nil {
				t.Fatal(err)
			}
			if err := runTool(t.Context(), time.Minute, "mke2fs", "-q", "-F", "-t", "ext4", "-b", tt.block, file); err != nil {
				t.Fatal(err)
			}
			if tt.grown {
				// A file, of which the copies of the superblock and of the groups know nothing.
				if err := os.WriteFile(file+".kept", []byte("kept"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := runTool(t.Context(), time.Minute, "debugfs", "-w", "-R", "write "+file+".kept kept", file); err != nil {
					t.Fatal(err)
				}
				copied := make([]byte, 1024)
				_, err := f.ReadAt(copied, 128*mib)
				copied[0x3a] |= 1                                                                                               // s_state, clean
				copied[0x60] |= 4                                                                                               // s_feature_incompat, needs_recovery
				binary.LittleEndian.PutUint32(copied[1020:], ^crc32.Checksum(copied[:1020], crc32.MakeTable(crc32.Castagnoli))) // s_checksum
				if _, werr := f.WriteAt(copied, 128*mib); err != nil || werr != nil {
					t.Fatal(err, werr)
				}
			}
			if _, err := f.WriteAt([]byte{7}, 1024+0x34); err != nil { // s_mnt_count; the checksum is in the other half
				t.Fatal(err)
			}
			super, err := readSuperblock(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := filesystems["ext4"].repair(t.Context(), file, super, slog.New(slog.DiscardHandler)); (err == nil) != tt.ok {
				t.Errorf("repaired: %v", err)
			}
			if err := runTool(t.Context(), time.Minute, "e2fsck", "-fn", file); (err == nil) != tt.ok {
				t.Errorf("afterwards: %v", err)
			}
			if tt.grown {
				if got, err := exec.CommandContext(t.Context(), "debugfs", "-R", "cat kept", file).Output(); err != nil || string(got) != "kept" {
					t.Errorf("the file is %q: %v", got, err)
				}
			}
		})
	}
}

// Superblocks of the real tools: kind, size and block size are what they were
// told to make.
func TestReadSuperblock(t *testing.T) {
	const size = 320 * mib
	for name, tt := range map[string]struct {
		make []string
		want superblock
	}{
		"ext4":             {filesystems["ext4"].make, superblock{"ext4", size, 4096}},
		"ext4, 1 KiB":      {[]string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^64bit"}, superblock{"ext4", size, 1024}},
		"ext2":             {[]string{"mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096"}, superblock{"ext4", size, 4096}}, // the same driver
		"xfs":              {filesystems["xfs"].make, superblock{"xfs", size, 4096}},
		"btrfs":            {filesystems["btrfs"].make, superblock{"btrfs", size, 4096}},
		"another, refused": {[]string{"mkfs.vfat"}, superblock{}},
	} {
		t.Run(name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "fs")
			f, err := os.Create(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			run(t, tt.make[0], append(tt.make[1:len(tt.make):len(tt.make)], img)...)
			if got, err := readSuperblock(f); got != tt.want || (err != nil) != (tt.want.kind == "") {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
	for name, r := range map[string]ram{"too short": {make([]byte, 512)}, "zeros": {make([]byte, mib)}} {
		if _, err := readSuperblock(r); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}

// Property: no panic, and a size that the growing code can be trusted with.
func FuzzSuperblock(f *testing.F) {
	for at, text := range map[int]string{1080: "\x53\xef", 0: "XFSB\x00\x00\x10\x00", 0x10040: "_BHRfS_M"} {
		b := make([]byte, 68<<10)
		copy(b[at:], text)
		f.Add(b)
	}
	signatures(f, 68<<10, func(name string, image []byte) {
		if strings.HasPrefix(name, "fs/ext") || strings.HasPrefix(name, "fs/xfs") || strings.HasPrefix(name, "fs/btrfs") {
			f.Add(image)
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readSuperblock(bytes.NewReader(b))
		if err == nil && (s.size <= 0 || s.block < 512 || s.size%s.block != 0) {
			t.Fatalf("%+v", s)
		}
	})
}
