package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attacks by name; each returns nil if it got what it wanted.
var attacks = map[string]func() error{}

// add registers a group of attacks.
func add(group map[string]func() error) {
	for name, f := range group {
		attacks[name] = f
	}
}

func main() {
	if len(os.Args) == 2 && helpers[os.Args[1]] != nil {
		helpers[os.Args[1]]()
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: walls serve PORT ATTACKS… | try ATTACKS…")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "try":
		report, err := json.Marshal(try(os.Args[2:]))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Printf("walls: %s\n", report)
		time.Sleep(time.Hour)
	case "serve":
		serve(os.Args[2], os.Args[3:])
	}
}

// try runs the attacks in order.
func try(names []string) map[string]string {
	got := map[string]string{}
	for _, name := range names {
		f := attacks[name]
		if f == nil {
			got[name] = "no such attack"
			continue
		}
		got[name] = class(f())
	}
	return got
}

// class is the errno's name, or the text of an error that has none.
func class(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// serve answers /ATTACK,ATTACK… with what came of these, tried when they are
// first asked for, and / with the attacks of the command line.
func serve(port string, names []string) {
	var mu sync.Mutex
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		wanted := names
		if path := strings.Trim(r.URL.Path, "/"); path != "" {
			wanted = strings.Split(path, ",")
		}
		w.Header().Set("Content-Type", "application/json")
		// A reader that went away is told nothing.
		_ = json.NewEncoder(w).Encode(try(wanted))
	})
	server := http.Server{Addr: ":" + port, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	fmt.Println(server.ListenAndServe())
	os.Exit(1)
}

// helpers are what the program plays for itself, by argument.
var helpers = map[string]func(){}

// write opens an existing file and writes to it.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// read wants at least one byte.
func read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 1))
	return err
}

// mount makes a mount of its own and leaves it to others to use.
func mount(fstype string, flags uintptr, data string) (string, error) {
	dir, err := os.MkdirTemp("/tmp", "walls-")
	if err != nil {
		return "", err
	}
	return dir, unix.Mount(fstype, dir, fstype, flags, data)
}

// inProc does something below a fresh /proc, where nothing is masked or
// read-only.
func inProc(do func(proc string) error) func() error {
	return func() error {
		dir, err := mount("proc", 0, "")
		if err != nil {
			return fmt.Errorf("fresh proc: %w", err)
		}
		return errors.Join(do(dir), unix.Unmount(dir, unix.MNT_DETACH))
	}
}

// call makes a bare system call.
func call(nr uintptr, args ...uintptr) func() error {
	args = append(slices.Clone(args), make([]uintptr, 6)...)
	return func() error {
		fd, _, e := unix.Syscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
		if e != 0 {
			return e
		}
		if fd > 2 {
			return unix.Close(int(fd))
		}
		return nil
	}
}

func missing(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return unix.ENOENT
	}
	return err
}
