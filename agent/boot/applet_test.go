package boot

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/sandbox"
	"hpcr/contract"
)

// TestMain lets the test binary be the contract applet.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "contract" {
		ContractMain()
	}
	os.Exit(m.Run())
}

// The contract applet, confined as in a guest, says of each bad contract what
// lint says: code and path.
func TestAppletAgreesOnBadContracts(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil || testing.Short() {
		t.Skip("needs the go tool, and a minute")
	}
	dir := t.TempDir()
	make := exec.CommandContext(t.Context(), goTool, "test", "-count=1", "-run", "^TestWriteBadContracts$", "hpcr/contract")
	make.Env = append(os.Environ(), "HPCR_BAD_CONTRACTS="+dir)
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var cases []struct {
		Name, Cidata, Host string
		Code               hpl.Code
		Policy             contract.Policy
		Now                time.Time
	}
	b, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &cases); err != nil || len(cases) < 150 {
		t.Fatal(len(cases), err)
	}
	for _, c := range cases {
		answer, status := applet(t, filepath.Join(dir, c.Cidata), filepath.Join(dir, "key.pem"), order{Policy: c.Policy, Now: c.Now, Keys: 1}, nil)
		if status != 1 {
			t.Errorf("%s: status %d", c.Name, status)
			continue
		}
		if e := hpl.From(sandbox.ReadRefusal(answer, "HPL11001E", "")); e.Code != c.Code || e.Path != c.Host {
			t.Errorf("%s: %s at %s, want %s at %s", c.Name, e.Code, e.Path, c.Code, c.Host)
		}
	}
}

// applet runs one contract child, without the namespaces and the cgroup that
// only a guest gives it, and shows it before it ends.
func applet(t *testing.T, cidata, key string, o order, show func(pid int)) ([]byte, byte) {
	t.Helper()
	in, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	said, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = []string{"/bin/contract"}
	cmd.Env = []string{"GOGC=off", "GOMEMLIMIT=280MiB", "GOMAXPROCS=1"} // as the agent's
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(in), &out
	cmd.ExtraFiles = []*os.File{says}
	for _, name := range []string{cidata, key} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	says.Close()
	var status [1]byte
	if _, err := io.ReadFull(said, status[:]); err != nil {
		t.Fatal(err)
	}
	if show != nil {
		show(cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil { // it waits to be ended
		t.Fatal(err)
	}
	var ended *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return out.Bytes(), status[0]
}
