package network

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run executes a tool and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip is ip(8) with its arguments in one string.
func ip(t *testing.T, args string) string {
	t.Helper()
	return run(t, "ip", strings.Fields(args)...)
}

// namespace makes a named network namespace and returns its path.
func namespace(t *testing.T, name string) string {
	t.Helper()
	ip(t, "netns add "+name)
	t.Cleanup(func() { ip(t, "netns del "+name) })
	ip(t, "-n "+name+" link set lo up")
	return filepath.Join("/run/netns", name)
}

// wire puts a namespace at the other end of a cable from the guest and
// returns the guest's card.
func wire(t *testing.T, peer, cardName, addr string) card {
	t.Helper()
	namespace(t, peer)
	t.Cleanup(func() { // a deleted namespace lets go of its cables only later
		for _, name := range []string{cardName, "enc1", "enc2", "enc61", "enc62", "enc63"} { // 6x: Go remembers for a minute which card a zone names
			if err := deleteLink(name); err != nil {
				t.Error(err)
			}
		}
	})
	ip(t, fmt.Sprintf("link add %s type veth peer name out netns %s", cardName, peer))
	nodad := ""
	if strings.Contains(addr, ":") {
		nodad = " nodad"
	}
	ip(t, fmt.Sprintf("-n %s addr add %s dev out%s", peer, addr, nodad))
	ip(t, fmt.Sprintf("-n %s link set out up", peer))
	return card{name: cardName, target: "enc1"}
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// up is Up with cards of the test's choice.
func up(t *testing.T, cfg Config, cards ...card) (*Net, error) {
	t.Helper()
	n, err := start(testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n, n.up(t.Context(), cfg, cards, 10*time.Second)
}

// background starts a tool inside a namespace and ends it with the test.
func background(t *testing.T, ns, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Pdeathsig is sent at the end of the thread that started the child.
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		<-ended
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer close(ended)
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("end %s: %v", name, err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%s ended by itself", name)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, out.String())
		}
	})
}

// inNS runs f with the thread in a namespace; sockets it opens stay there.
func inNS(t *testing.T, name string, f func() error) error {
	t.Helper()
	if name == "" {
		return f()
	}
	ns, err := nsHandle(name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return inNetns(ns, f)
}

// listen answers each TCP connection, and each UDP datagram, with its word.
func listen(t *testing.T, ns, proto, addr, word string) {
	t.Helper()
	err := inNS(t, ns, func() error {
		if proto == "udp" {
			pc, err := net.ListenPacket("udp"+family(addr), addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { pc.Close() })
			go func() {
				b := make([]byte, 64)
				for {
					_, from, err := pc.ReadFrom(b)
					if err != nil {
						return
					}
					if _, err := pc.WriteTo([]byte(word), from); err != nil {
						return
					}
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp"+family(addr), addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", word, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ask returns what listens at addr as seen from a namespace.
func ask(t *testing.T, ns, proto, addr string) (string, error) {
	t.Helper()
	var got string
	err := inNS(t, ns, func() error {
		c, err := net.DialTimeout(proto+family(addr), addr, 700*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(700 * time.Millisecond)); err != nil {
			return err
		}
		if proto == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		b := make([]byte, 64)
		n, err := c.Read(b)
		got = string(b[:n])
		return err
	})
	return got, err
}

// family is the suffix that keeps a socket to one family of addresses.
func family(addr string) string {
	if strings.HasPrefix(addr, "[") {
		return "6"
	}
	return "4"
}

func reaches(t *testing.T, ns, proto, addr, want string) {
	t.Helper()
	got, err := ask(t, ns, proto, addr)
	if err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("from %q to %s/%s: got %q, %v; want %q", ns, addr, proto, got, err, want)
	}
}

// blocked: silence, not a refusal, is what the firewall gives.
func blocked(t *testing.T, ns, proto, addr string) {
	t.Helper()
	got, err := ask(t, ns, proto, addr)
	var timeout net.Error
	if err == nil || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("from %q to %s/%s: got %q, %v; want silence", ns, addr, proto, got, err)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s: not within ten seconds", what)
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
