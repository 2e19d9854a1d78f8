//go:build vm

package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var hungDiskScenarios = []scenario.Scenario{
	{
		Name:     "a disk that stops answering does not keep the guest from powering off",
		Attacker: "a host that lets a data disk hang while the guest runs",
		Claim:    "Asked to stop, the guest gives up on the volume after its limits and powers off; health answers until then.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     90 * time.Second,
		Run:      hung,
	},
	{
		Name:     "a disk that hangs while it is opened ends the boot at its limit",
		Attacker: "a host that answers nothing from the moment at which the guest looks at the volume's disk",
		Claim: "A child hangs in the kernel, beyond every signal. Health answers meanwhile; at the phase's limit the agent says HPL02120E, " +
			"and no other code of its own, and the guest powers off around the child.",
		Tier:  scenario.Full,
		Archs: []string{scenario.AMD64},
		Cost:  1240 * time.Second,
		Run:   hungOpening,
	},
	{
		Name:     "a disk that hangs does not keep a guest whose agent died from powering off",
		Attacker: "a host that lets the disk hang and then hits upon a way to crash the agent",
		Claim:    "PID 1 gives the closing of the volumes 5 s, in a child, and powers off around it; it gives its verdict.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     40 * time.Second,
		Run:      hungAgent,
	},
}

// hung lets the disk hang while the guest is ready, and then asks it to stop.
func hung(t *testing.T, lab *scenario.Lab) {
	server, args := servedDisk(t, lab)
	var stopped time.Time
	var off <-chan time.Time
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, lab.Contract(t)), Publish: []int{8080}, Limit: 4 * time.Minute, Args: args,
		While: func(g *scenario.Guest) {
			fetch(t, "http://"+g.Address(8080)+"/")
			hang(t, server)
			healthy(t, lab, g)
			stopped = time.Now()
			off = poweredOff(lab, server)
		},
	})
	if off == nil {
		t.Fatal("the guest did not get ready")
	}
	offWithin(t, off, stopped, 90*time.Second) // PID 1's own limit for an orderly stop
	if r.Verdict != "ready" {
		t.Errorf("verdict %s", r.Verdict)
	}
	if !strings.Contains(r.Console, "stopped, but not everything could be closed") {
		t.Errorf("the console does not say that something is left:\n%s", r.Console)
	}
}

// hungOpening lets the disk hang when the guest is about to look at it.
func hungOpening(t *testing.T, lab *scenario.Lab) {
	served, args := servedDisk(t, lab)
	free, err := peers.ClosedPort()
	if err != nil {
		t.Fatal(err)
	}
	health := net.JoinHostPort(peers.Loopback, fmt.Sprint(free))
	start := time.Now()
	off := poweredOff(lab, served)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if !awaitLine(lab, ": logging done", 3*time.Minute) {
			t.Error("the guest did not get as far as its disks")
			return
		}
		hang(t, served)
		// Long enough for the child to be stuck: health answers all the same.
		time.Sleep(2 * time.Minute)
		if body := fetch(t, "http://"+health+"/livez"); body == "" {
			t.Error("health says nothing while the disk hangs")
		}
	}()
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, lab.Contract(t)), Limit: 25 * time.Minute,
		Args: append(args, "--publish", health+":9080"),
	})
	<-asked
	// Not Failed: the guest cannot close what hangs, and so does not stop in order.
	if r.Verdict != "failed" || len(r.Codes) != 2 || r.Codes[0] != "HPL02120E" {
		t.Errorf("verdict %s, codes %v: %s", r.Verdict, r.Codes, r.Message)
	}
	r.ConsoleCodes(t, []string{"HPL02120E", "HPL10000E"})
	offWithin(t, off, start, 21*time.Minute) // the phase has 20
}

// hungAgent lets the disk of a mounted volume hang, and then the agent die.
func hungAgent(t *testing.T, lab *scenario.Lab) {
	server, args := servedDisk(t, lab)
	c := lab.Contract(t) // whose container leaves the volume alone
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s\n    command: [idle]\n", lab.Web(t)))
	off, died := poweredOff(lab, server), make(chan time.Time, 1)
	go func() {
		defer close(died)
		if !awaitLine(lab, ": disks done", 3*time.Minute) {
			t.Error("the guest did not get as far as its volume")
			return
		}
		hang(t, server)
		if awaitLine(lab, "killed by SIGKILL", 3*time.Minute) {
			died <- time.Now()
		}
	}()
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c), Limit: 5 * time.Minute,
		Args: append(args, "--kill", "ready:agent"),
	})
	powersOff(t, r, "ready", "killed by SIGKILL")
	at, ok := <-died
	if !ok {
		t.Fatal("the agent was not killed")
	}
	offWithin(t, off, at, 10*time.Second) // of which PID 1's last child has 5
}

// poweredOff gives the time at which the guest was off. Only then does the disk
// answer again, for QEMU itself waits for it before it ends.
func poweredOff(lab *scenario.Lab, server *os.Process) <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		defer close(at)
		if awaitLine(lab, "reboot: Power down", 24*time.Minute) {
			at <- time.Now()
		}
		_ = server.Signal(syscall.SIGCONT) // it may have ended
	}()
	return at
}

func offWithin(t *testing.T, off <-chan time.Time, since time.Time, limit time.Duration) {
	t.Helper()
	var at time.Time
	select {
	case at = <-off:
	case <-time.After(5 * time.Second): // the machine has ended
	}
	if at.IsZero() {
		t.Fatal("the guest did not power off")
	}
	t.Logf("off after %s", at.Sub(since))
	if took := at.Sub(since); took > limit {
		t.Errorf("the guest took %s to power off, want %s at most", took, limit)
	}
}

// servedDisk is an empty disk for the volume, as served gives it.
func servedDisk(t *testing.T, lab *scenario.Lab) (server *os.Process, args []string) {
	t.Helper()
	return served(t, sparse(t, lab, "data.img", diskSize), scenario.Volume)
}

// served is a disk that a process of its own gives to QEMU, and the arguments of
// hpcrctl run that attach it.
func served(t *testing.T, disk, serial string) (server *os.Process, args []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("qemu-nbd", "--format=raw", "--persistent", "--shared=4", "--socket="+socket, disk)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT) // it may have ended with the guest
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return cmd.Process, []string{
		"--qemu-arg=-drive", "--qemu-arg=if=none,id=slow,format=raw,cache=none,file=nbd+unix:///?socket=" + socket,
		"--qemu-arg=-device", "--qemu-arg=virtio-blk-pci,drive=slow,serial=" + serial,
	}
}

// hang lets the disk answer nothing from here on.
func hang(t *testing.T, server *os.Process) {
	t.Helper()
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Errorf("the disk does not hang: %v", err)
	}
}

// awaitLine waits for a text on the console of the scenario's first boot.
func awaitLine(lab *scenario.Lab, text string, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(lab.Dir, "console-1.log"))
		if err == nil && strings.Contains(string(b), text) {
			return true
		}
	}
	return false
}
