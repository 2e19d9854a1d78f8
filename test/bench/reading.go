package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"hpcr/initramfs"
	"hpcr/initramfs/qemu"
	"hpcr/test/scenario"
)

// nativeApplet is the guest's program, which this machine runs as well.
func nativeApplet(root string) string { return filepath.Join(root, "build", scenario.AMD64, "hpcr") }

// reading measures the contract's part: on this machine, or in a guest of
// another architecture, where a stand-in for the agent runs this very command.
func (s *setup) reading(ctx context.Context) ([]figure, error) {
	if s.arch == scenario.AMD64 {
		return contractCost(nativeApplet(s.root), s.dir)
	}
	fmt.Fprintln(os.Stderr, "reading contracts in a guest")
	if err := s.measuringImage(ctx); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hpcr-bench-") // short, for its sockets
	if err != nil {
		return nil, err
	}
	figures, err := measure(ctx, s.path("measuring"), dir)
	return figures, errors.Join(err, os.RemoveAll(dir))
}

// measuringImage is the image with bench in it, and a stand-in for the agent
// (package standin) that runs it.
func (s *setup) measuringImage(ctx context.Context) error {
	tree := initramfs.NewTree()
	for _, name := range []string{"standin", "bench"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", s.path(name), "./test/"+name)
		cmd.Dir, cmd.Stderr = s.root, os.Stderr
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+s.arch)
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
		data, err := os.ReadFile(s.path(name))
		if err != nil {
			return err
		}
		tree.File("bin/"+name, 0o755, data)
	}
	tree.Symlink("bin/agent", "/bin/standin")
	var more bytes.Buffer
	if err := tree.Write(&more, time.Unix(0, 0)); err != nil {
		return err
	}
	if err := os.CopyFS(s.path("measuring"), os.DirFS(s.path("image"))); err != nil {
		return err
	}
	return errors.Join(
		appendTo(filepath.Join(s.path("measuring"), initramfs.InitrdFile), more.Bytes()),
		appendTo(filepath.Join(s.path("measuring"), initramfs.ParmFile), []byte(" hpcr.test=bench")))
}

func appendTo(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// figuresMark is what the line of figures begins with, among a console's others.
const figuresMark = "figures: "

func printLine(figures []figure) error {
	text, err := json.Marshal(figures)
	if err != nil {
		return err
	}
	_, err = fmt.Println(figuresMark + string(text))
	return err
}

// measure boots the image and reads its line.
func measure(ctx context.Context, image, dir string) ([]figure, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	vm, err := qemu.Start(ctx, qemu.Options{Image: image, Dir: dir})
	if err != nil {
		return nil, err
	}
	<-vm.Done() // its agent ends without a verdict, which ends the guest
	console, err := os.ReadFile(vm.Console())
	if err != nil {
		return nil, err
	}
	_, line, found := strings.Cut(string(console), figuresMark)
	if !found {
		return nil, fmt.Errorf("no figures from the guest:\n%s", console)
	}
	line, _, _ = strings.Cut(line, "\n")
	var figures []figure
	if err := json.Unmarshal([]byte(line), &figures); err != nil {
		return nil, fmt.Errorf("the guest's figures: %w", err)
	}
	return figures, nil
}
