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
			text, err := fuzz(pkg, target, budget)
			if err != nil && endOfTime(text) {
				text, err = fuzz(pkg, target, budget)
			}
			if err != nil {
				return n, fmt.Errorf("%s in %s: %w\n%s", target, pkg, err, text)
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

func fuzz(pkg, target string, budget time.Duration) ([]byte, error) {
	return exec.Command("go", "test", "-run", "^$", "-fuzz", "^"+target+"$", "-fuzztime", budget.String(), "-fuzzminimizetime", "1x", pkg).CombinedOutput()
}

// endOfTime knows go test's own mistake of taking the end of -fuzztime for a
// failure of the target: no input is named then.
func endOfTime(text []byte) bool {
	return bytes.Contains(text, []byte("context deadline exceeded")) && !bytes.Contains(text, []byte("Failing input"))
}
