//go:build vm

package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs/qemu"
	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var logScenarios = []scenario.Scenario{{
	Name:     "a log host that is away for 20 seconds costs nothing, and a flood meanwhile costs its own container an exact number",
	Attacker: "a container that writes far more than the spool holds while the collector is down, and writes what looks like the agent's codes",
	Claim: "Counted at rsyslog, from numbers that the containers wrote: every line of the steady container arrives, in order; " +
		"of the flood, arrived lines and the counts of the records of loss make up what was written. " +
		"Lines carry the documented fields; kernel, agent and containers are told apart; no code of the container's arrives whole.",
	Tier:  scenario.Core,
	Archs: []string{scenario.AMD64},
	Cost:  55 * time.Second,
	Run:   outage,
}, {
	Name:     "a log host that is away for 20 seconds costs nothing on s390x",
	Attacker: "as on amd64",
	Claim:    "As on amd64.",
	Tier:     scenario.Full,
	Archs:    []string{scenario.S390X},
	Cost:     110 * time.Second,
	Run:      outage,
}, {
	Name:     "with a scratch disk a flood while the log host is away costs nobody a line",
	Attacker: "a container that writes twice what memory holds for the log while the collector is down, and a host that reads the disk",
	Claim:    "Counted at rsyslog, from numbers that the containers wrote: every line of both containers arrives, and none is counted as lost. The disk shows none of them.",
	Tier:     scenario.Full,
	Archs:    []string{scenario.AMD64},
	Cost:     90 * time.Second,
	Run: func(t *testing.T, lab *scenario.Lab) {
		disk := filepath.Join(lab.Dir, "scratch.img")
		f, err := os.Create(disk)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(500<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		outageOn(t, lab, qemu.Options{Disks: []qemu.Disk{{Serial: "scratch", File: disk}}}, false)
		lacks(t, disk, []byte("canaryflood"), []byte("flood=29999"))
	},
}, {
	Name:     "a log host that is away when the guest stops hears all of it from the next boot",
	Attacker: "a host that cuts the way to the log host before it stops the guest",
	Claim:    "With a volume for it, every line that a container wrote before and while it was stopped arrives, marked as an earlier boot's; counted at rsyslog, from numbers that the container wrote. The disk shows none of them.",
	Tier:     scenario.Full,
	Archs:    []string{scenario.AMD64, scenario.S390X},
	Cost:     80 * time.Second,
	Run:      keptLog,
}, {
	Name:     "a contract with logRouter reports to IBM Cloud Logs' ingestion service",
	Attacker: "a service that forgets its tokens and is away for some seconds",
	Claim:    "Boot, kernel, agent and container are told apart by the documented fields; of the container every line arrives, in order, counted from its own numbers.",
	Tier:     scenario.Full,
	Archs:    []string{scenario.AMD64, scenario.S390X},
	Cost:     50 * time.Second,
	Run:      cloudLog,
}, {
	Name:     "a container that writes as fast as it can slows neither the boot of others nor health",
	Attacker: "a container that writes without end, beside the guest's start and on one processor",
	Claim:    "The guest is ready within twice the time that it takes without, health answers within a second each time, and the other container's lines all arrive.",
	Tier:     scenario.Full,
	Archs:    scenario.Both,
	Cost:     80 * time.Second,
	Run:      floodedBoot,
}}

func floodedBoot(t *testing.T, lab *scenario.Lab) {
	boot := func(command string) (*scenario.Direct, time.Duration) {
		c := lab.Small(t)
		c.Env.Logging = peers.SyslogTo(lab.LogHost.Port(), lab.LogCA, lab.LogClient)
		c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryfirst:
    image: %[1]s
    entrypoint: [/bin/busybox, %[2]s, '1000000']
    stop_grace_period: 100ms
  canarysecond:
    image: %[1]s
    depends_on: [canaryfirst]
    entrypoint: [/bin/busybox, sh, -c, "n=0; while [ $$n -lt 300 ]; do n=$$((n+1)); echo %[2]s=$$n; done; exec /bin/busybox sleep 1000000"]
    stop_grace_period: 100ms
`, lab.Web(t), command))
		begin := time.Now()
		d := lab.Direct(t, lab.Encrypt(t, c), 9080)
		return d, time.Since(begin)
	}
	d, quiet := boot("sleep")
	d.Stop(t)
	d, loud := boot("yes")
	slowest := time.Duration(0)
	for range 20 {
		begin := time.Now()
		answers(t, d, "while a container floods the log")
		slowest = max(slowest, time.Since(begin))
		time.Sleep(100 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := lab.LogHost.WaitFor(ctx, func(m string) bool { return strings.HasSuffix(m, "] yes=300") }); err != nil {
		t.Fatal(err)
	}
	d.Stop(t)
	messages, err := lab.LogHost.Messages()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, m := range messages {
		if _, text, ok := strings.Cut(m, "] yes="); ok && strings.Contains(m, " canarysecond ") && strings.Contains(m, lab.Hostname()) {
			got[text] = true
		}
	}
	t.Logf("ready after %v, with the flood after %v; the slowest answer of 20 took %v; %d lines of the other container", quiet, loud, slowest, len(got))
	if loud > 2*quiet {
		t.Errorf("ready after %v without a flood, after %v with one", quiet, loud)
	}
	if slowest > time.Second {
		t.Errorf("an answer took %v", slowest)
	}
	if len(got) != 300 {
		t.Errorf("%d of 300 lines of the other container arrived", len(got))
	}
}

func cloudLog(t *testing.T, lab *scenario.Lab) {
	const key = scenario.Canary + "-api-key"
	service, err := peers.StartIngestion(lab.RegistryCA, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Close(); err != nil {
			t.Error(err)
		}
	})
	c := lab.Small(t)
	c.Env.Logging = peers.LogRouterTo(service.Port(), key)
	c.Env.XHPCR = peers.LogRouterIAM(service.Port())
	c.Workload.Compose = lab.Compose(t, counting(lab.Web(t)))
	seen := func(ok func(peers.IngestionEntry) bool) func() bool {
		return func() bool { return slices.ContainsFunc(service.Entries(), ok) }
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not come; there are %d messages", what, len(service.Entries()))
			}
		}
	}
	line := func(text string) func() bool {
		return seen(func(e peers.IngestionEntry) bool { return e.Text["message"] == text })
	}
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), While: func(*scenario.Guest) {
		until("line 40", line("n=40"))
		begin := time.Now()
		service.Change(func(n int, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case n == 1:
				w.WriteHeader(http.StatusUnauthorized)
			case time.Since(begin) < 5*time.Second:
				w.WriteHeader(http.StatusServiceUnavailable)
			default:
				return false
			}
			return true
		})
		until("line 140", line("n=140"))
	}}).Ready(t)
	last, highest, kinds := 0, 0, map[string]int{}
	for _, e := range service.Entries() {
		if e.Application != "hpcr" || e.Computer == "" || e.Text["sequence"] == "" {
			t.Errorf("%+v", e)
		}
		kinds[e.Subsystem]++
		if e.Subsystem != "canarycount" {
			continue
		}
		if e.Text["service"] != "canarycount" || e.Text["stream"] != "stdout" || !strings.Contains(e.Text["image"], "@sha256:") || e.Severity != 3 {
			t.Errorf("%+v", e)
		}
		n := 0
		switch _, err := fmt.Sscanf(e.Text["message"], "n=%d", &n); {
		case err == nil && n > highest+1:
			t.Errorf("line %d came after %d", n, highest)
		case err == nil:
			highest = max(highest, n)
		default:
			if _, err := fmt.Sscanf(e.Text["message"], "last=%d", &last); err != nil {
				t.Errorf("%q", e.Text["message"])
			}
		}
	}
	t.Logf("%d lines written, the highest that arrived is %d; %d tokens; messages by subsystem: %v", last, highest, service.Tokens(), kinds)
	if last < 140 || highest != last || kinds["kernel"] == 0 || kinds["hpcr-agent"] == 0 || service.Tokens() < 2 {
		t.Errorf("%d lines were written, %d arrived; %d tokens; messages by subsystem: %v", last, highest, service.Tokens(), kinds)
	}
}

// counting is a project whose container numbers its lines, 20 a second, and
// says at its end how many there were.
func counting(image string) string {
	return "services:\n" + countingService(image)
}

func countingService(image string) string {
	return fmt.Sprintf(`  canarycount:
    image: %s
    entrypoint: [/bin/busybox, sh, -c]
    command:
      - |
        trap 'echo "last=$$n"; exit 0' TERM
        n=0
        while :; do
          n=$$((n + 1)); echo "n=$$n"
          [ $$((n %% 20)) = 0 ] && /bin/busybox sleep 1
        done
`, image)
}

const logVolume = scenario.Canary + "log"

func keptLog(t *testing.T, lab *scenario.Lab) {
	host := collector(t, lab)
	disk := filepath.Join(lab.Dir, "log.img")
	c := lab.Small(t)
	c.Env.Logging = peers.SyslogTo(host.Port(), lab.LogCA, lab.LogClient)
	c.Workload.Volumes = map[string]peers.WorkloadVolume{logVolume: {Mount: "/var/lib/hpcr/log", Filesystem: "ext4", Seed: scenario.WorkloadSeed}}
	c.Env.Volumes = map[string]peers.EnvVolume{logVolume: {Seed: scenario.EnvSeed}}
	c.Workload.Compose = lab.Compose(t, counting(lab.Web(t)))
	wait := func(what string, from int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		seen := 0
		if _, err := host.WaitFor(ctx, func(m string) bool {
			if strings.Contains(m, what) {
				seen++
			}
			return seen > from
		}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	before := 0
	for n := 1; n <= 2; n++ {
		lab.Boot(t, scenario.Boot{
			UserData: lab.Encrypt(t, c), Disks: []string{logVolume + "=" + disk + ":300M"},
			While: func(*scenario.Guest) {
				if n == 2 {
					wait(" log.kept ", 0)
					wait("] last=", 0)
					return
				}
				wait(" n=40", 0)
				if err := host.Stop(); err != nil {
					t.Fatal(err)
				}
				messages, err := host.Messages()
				if err != nil {
					t.Fatal(err)
				}
				before = len(messages)
				time.Sleep(5 * time.Second)
			},
		}).Ready(t)
		if n == 1 {
			if err := host.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	messages, err := host.Messages()
	if err != nil {
		t.Fatal(err)
	}
	got, last, fresh := map[string]bool{}, 0, 0
	for i, m := range messages {
		earlier := strings.Contains(m, "][kept@32473][")
		if f := counted.FindStringSubmatch(m); f != nil && (i < before || earlier) {
			got[f[1]] = true
		} else if f != nil {
			fresh++
		}
		if _, n, ok := strings.Cut(m, "] last="); ok && earlier {
			if last, err = strconv.Atoi(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d lines written in the first boot, %d arrived, %d of them in its own time; %d of the second's", last, len(got), before, fresh)
	if last < 60 || len(got) != last || fresh == 0 {
		t.Errorf("%d lines were written, %d arrived", last, len(got))
	}
	lacks(t, disk, []byte("canarycount"), []byte("n=41"))
}

const (
	floodLines = 30000
	floodWidth = 900 // with the spool's costs more than twice what it holds
)

var (
	counted  = regexp.MustCompile(`^<14>1 \S+ \S+ canarycount - stdout \[meta sequenceId="\d+"\](?:\[kept@32473\])?\[hpcr@32473 service="canarycount" container="c\d" image="\S+@sha256:[0-9a-f]{64}" stream="stdout"\] n=(\d+)$`)
	flooded  = regexp.MustCompile(`^<14>1 \S+ \S+ canaryflood - stdout \[meta sequenceId="\d+"\]\[hpcr@32473 service="canaryflood" container="c2" [^\]]*\] flood=(\d+) `)
	lossNote = regexp.MustCompile(`^<44>1 \S+ \S+ hpcr-logging - log\.lost \[meta sequenceId="\d+"\]\[hpcr@32473 lost="(\d+)" source="([^"]+)"\] `)
	sequence = regexp.MustCompile(`^<\d+>1 \S+ \S+ \S+ \S+ \S+ \[meta sequenceId="(\d+)"\]`)
	anyCode  = regexp.MustCompile(`HPL\d+E`)
)

func outage(t *testing.T, lab *scenario.Lab) { outageOn(t, lab, qemu.Options{}, true) }

// outageOn is an outage of a guest on a machine; loses = memory alone takes the flood.
func outageOn(t *testing.T, lab *scenario.Lab, o qemu.Options, loses bool) {
	host := collector(t, lab)
	c := lab.Small(t)
	c.Env.Logging = peers.SyslogTo(host.Port(), lab.LogCA, lab.LogClient)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canarycount:
    image: %[1]s
    entrypoint: [/bin/busybox, sh, -c]
    command:
      - |
        trap 'echo "last=$$n"; exit 0' TERM
        echo 'HPL11000E: Internal error.' >&2
        n=0
        while :; do
          n=$$((n + 1)); echo "n=$$n"
          [ $$((n %% 20)) = 0 ] && /bin/busybox sleep 1
        done
  canaryflood:
    image: %[1]s
    entrypoint: [/bin/busybox, sh, -c]
    command:
      - |
        echo go | /bin/busybox nc -l -p 8080
        /bin/busybox awk 'BEGIN { pad = sprintf("%%%[2]ds", ""); gsub(/ /, "x", pad); for (i = 1; i <= %[3]d; i++) printf "flood=%%d %%s\n", i, pad }'
        echo over | /bin/busybox nc -l -p 8081
        echo 'flood is over'
        exec /bin/busybox sleep 1000000
    stop_grace_period: 1s
    ports: ["8080-8081:8080-8081"]
`, lab.Web(t), floodWidth, floodLines))
	d := lab.DirectMachine(t, lab.Encrypt(t, c), o, 8080, 8081)
	at := func(what string) func(string) bool {
		return func(m string) bool { return strings.Contains(m, what) }
	}
	wait := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if _, err := host.WaitFor(ctx, at(what)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	wait(" n=40")
	if err := host.Stop(); err != nil {
		t.Fatal(err)
	}
	// From here on nobody takes the log.
	says(t, d.Address(8080), "go")
	time.Sleep(outageLength())
	says(t, d.Address(8081), "over") // on a slow machine the flood takes longer
	if err := host.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait("flood is over")
	d.Stop(t)
	wait(" log.counters ")
	messages, err := host.Messages()
	if err != nil {
		t.Fatal(err)
	}
	countLines(t, messages, loses)
}

// outageLength is 20 s, and 10 minutes where hours are.
func outageLength() time.Duration {
	if os.Getenv("HPCR_SOAK") != "" {
		return 10 * time.Minute
	}
	return 20 * time.Second
}

// collector is an rsyslogd of the scenario's own, which it may stop and start.
func collector(t *testing.T, lab *scenario.Lab) *peers.Rsyslog {
	t.Helper()
	dir := filepath.Join(lab.Dir, "collector")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	host, err := peers.StartRsyslog(t.Context(), dir, lab.LogCA)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Stop(); err != nil {
			t.Error(err)
		}
	})
	return host
}

// countedAll expects every line of a counting container at the log host, in order.
func countedAll(t *testing.T, lab *scenario.Lab) {
	t.Helper()
	messages, err := lab.LogHost.Messages()
	if err != nil {
		t.Fatal(err)
	}
	highest, last := 0, 0
	for _, m := range messages {
		if !strings.Contains(m, " "+lab.Hostname()+" canarycount ") {
			continue
		}
		if f := counted.FindStringSubmatch(m); f != nil {
			if f[1] != strconv.Itoa(highest+1) {
				t.Errorf("line %s came after %d", f[1], highest)
			}
			highest++
		} else if _, n, ok := strings.Cut(m, "] last="); ok {
			if last, err = strconv.Atoi(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last == 0 || highest != last {
		t.Errorf("%d lines were written, %d arrived", last, highest)
	}
}

// says connects until somebody answers with the word. What forwards the port
// takes connections before the container does.
func says(t *testing.T, address, word string) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			continue
		}
		answer := make([]byte, len(word)+1)
		err = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err == nil {
			_, err = io.ReadFull(conn, answer)
		}
		if e := conn.Close(); err == nil && e == nil && string(answer) == word+"\n" {
			return
		}
	}
	t.Fatalf("nobody says %q", word)
}

// withoutRepeats drops what came again after a break, with its number. Nothing
// else may share a number.
func withoutRepeats(t *testing.T, messages []string) (once []string) {
	t.Helper()
	by := map[string]string{}
	for _, m := range messages {
		f := sequence.FindStringSubmatch(m)
		if f == nil {
			t.Errorf("a message without a number: %.300q", m)
			continue
		}
		switch before, again := by[f[1]]; {
		case !again:
			by[f[1]] = m
			once = append(once, m)
		case before != m:
			t.Errorf("two messages with one number: %.300q, %.300q", before, m)
		}
	}
	return once
}

// countLines counts what arrived.
func countLines(t *testing.T, messages []string, loses bool) {
	messages = withoutRepeats(t, messages)
	steady, flood, lost := map[int]bool{}, map[int]bool{}, map[string]int{}
	highest, last, kernel, agent, fake := 0, 0, 0, 0, 0
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, m := range messages {
		if f := counted.FindStringSubmatch(m); f != nil {
			n := number(f[1])
			if n <= highest {
				t.Errorf("line %d came after %d", n, highest)
			}
			highest = n
			steady[n] = true
			continue
		}
		if f := flooded.FindStringSubmatch(m); f != nil {
			n := number(f[1])
			if flood[n] {
				t.Errorf("line %d of the flood came under two numbers", n)
			}
			flood[n] = true
			continue
		}
		if f := lossNote.FindStringSubmatch(m); f != nil {
			lost[f[2]] += number(f[1])
			continue
		}
		switch {
		case strings.Contains(m, "] last="):
			last = number(m[strings.Index(m, "] last=")+len("] last="):])
		case strings.HasPrefix(m, "<") && strings.Contains(m, " kernel - - [meta ") && strings.Contains(m, "Linux version"):
			kernel++
		case strings.HasPrefix(m, "<29>1 ") && strings.Contains(m, " hpcr-agent ") && strings.Contains(m, " boot.verdict "):
			agent++
		case strings.HasPrefix(m, "<11>1 ") && strings.Contains(m, " canarycount - stderr ") && strings.Contains(m, `\u0048PL11000E: Internal error.`):
			fake++
		}
		if anyCode.MatchString(m) {
			t.Errorf("a code in the log of a guest without an error: %.300q", m)
		}
	}
	var missing []int
	for n := 1; n <= last; n++ {
		if !steady[n] {
			missing = append(missing, n)
		}
	}
	t.Logf("steady: %d lines written, %d arrived; flood: %d written, %d arrived, %v counted as lost", last, len(steady), floodLines, len(flood), lost)
	if last < 60 || len(steady) != last || len(missing) > 0 {
		t.Errorf("the steady container wrote %d lines, %d arrived; missing: %.300v", last, len(steady), missing)
	}
	if loses != (len(lost) > 0) || len(lost) > 1 || len(flood)+lost["canaryflood stdout"] != floodLines {
		t.Errorf("of %d lines of the flood %d arrived; counted as lost: %v", floodLines, len(flood), lost)
	}
	if kernel != 1 || agent != 1 || fake != 1 {
		t.Errorf("%d messages of the kernel's start, %d verdicts of the agent, %d broken codes of the container, want 1 each", kernel, agent, fake)
	}
	if !slices.ContainsFunc(messages, func(m string) bool {
		return strings.Contains(m, " log.counters ") && strings.Contains(m, fmt.Sprintf(`lost="%d"`, lost["canaryflood stdout"]))
	}) {
		t.Error("the last counters do not say how many were lost")
	}
}
