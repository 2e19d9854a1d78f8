package initramfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Some versions of the parser make of one rule several, of which the last lets
// more be mounted than was written. What the kernel gets must name a file
// system, or be one of the commands that mount none.
func TestProfileMountsNoMoreThanItSays(t *testing.T) {
	dir := t.TempDir()
	features := filepath.Join(dir, "features")
	if err := os.WriteFile(features, apparmorFeatures, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool("apparmor_parser"), "-QKS", "--config-file", "/dev/null", "--policy-features", features, "--kernel-features", features, "-D", "rule-exprs")
	cmd.Stdin = strings.NewReader(string(containerProfile))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Source, target, type and flags of a mount, between zeroes.
	rule := regexp.MustCompile(`(?m)^rule: \\x07\[\^\\000\]\*\\x00\[\^\\000\]\*\\x00(.*)\\x00(\S*)  ->`)
	// bind is 0d, move 0e, recursive 0f, then unbindable, private, slave, shared.
	command := regexp.MustCompile(`^(\\x0d|\\x0d\\x0f|\\x0e|(\\x0f)?(\\x12|\\x13|\\x14|\\x15))$`)
	rules := rule.FindAllStringSubmatch(string(out), -1)
	if len(rules) < 12 {
		t.Fatalf("only %d mount rules are seen in\n%s", len(rules), out)
	}
	// The network class, then family 40 and the three types that it has.
	for _, kind := range []string{"01", "02", "05"} {
		if !strings.Contains(string(out), `rule: \x0e\x00\x28\x00\x`+kind+` `) || !regexp.MustCompile(`\\x0e\\x00\\x28\\x00\\x`+kind+` .* deny `).Match(out) {
			t.Errorf("vsock's sockets of type %s are not denied", kind)
		}
	}
	for _, r := range rules {
		switch fstype, flags := r[1], r[2]; {
		case fstype == "(sysfs)" && strings.HasPrefix(flags, `\x01`):
		case strings.HasPrefix(fstype, "(tmpfs|") && !strings.Contains(fstype, "sysfs") && !strings.Contains(fstype, "devtmpfs"):
		case fstype == `[^\000]*` && command.MatchString(flags):
		default:
			t.Errorf("a mount of type %s with flags %s is allowed", fstype, flags)
		}
	}
}

func TestProfileIsReproducible(t *testing.T) {
	var last string
	for range 3 {
		b, err := compileProfile(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if sum := hashBytes(b); last == "" {
			last = sum
		} else if sum != last {
			t.Error("the compiled profile differs from run to run")
		}
	}
}
