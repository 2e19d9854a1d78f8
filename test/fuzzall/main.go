// Command fuzzall runs every fuzz target of the module for a short time, one
// after the other: go test takes one target of one package at a time.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

func main() {
	budget := flag.Duration("time", 5*time.Second, "time for each target")
	flag.Parse()
	n, err := run(*budget)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzzall:", err)
		os.Exit(1)
	}
	fmt.Printf("%d targets, none failed\n", n)
}

func run(budget time.Duration) (int, error) {
	out, err := exec.Command("go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}", "./...").Output()
	if err != nil {
		return 0, fmt.Errorf("list packages: %w", err)
	}
	n := 0
	for pkg := range strings.FieldsSeq(string(out)) {
		list, err := exec.Command("go", "test", "-list", "^Fuzz", pkg).CombinedOutput()
		if err != nil {
			return n, fmt.Errorf("%s: %w\n%s", pkg, err, list)
		}
		for target := range strings.FieldsSeq(string(list)) {
			if !strings.HasPrefix(target, "Fuzz") {
				continue
			}
			begin := time.Now()
			cmd := exec.Command("go", "test", "-run", "^$", "-fuzz", "^"+target+"$", "-fuzztime", budget.String(), pkg)
			var text bytes.Buffer
			cmd.Stdout, cmd.Stderr = &text, &text
			if err := cmd.Run(); err != nil {
				return n, fmt.Errorf("%s in %s: %w\n%s", target, pkg, err, text.String())
			}
			n++
			fmt.Printf("ok   %-34s %-28s %s\n", target, pkg, time.Since(begin).Round(100*time.Millisecond))
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("no fuzz target was found")
	}
	return n, nil
}
