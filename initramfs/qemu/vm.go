package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"hpcr/initramfs"
)

// VM is a running machine.
type VM struct {
	Manifest *initramfs.Manifest

	dir    string
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // of the process; after done
	events chan json.RawMessage
	vsock  *vsock // nil without Options.Vsock
	ending chan End

	mu   sync.Mutex
	port net.Conn
}

// maxEvent bounds one line of the event port.
const maxEvent = 1 << 20

// Start boots an image. The machine dies with ctx, unless Keep is set.
func Start(ctx context.Context, o Options) (*VM, error) {
	m, err := initramfs.ReadManifest(filepath.Join(o.Image, initramfs.ManifestFile))
	if err != nil {
		return nil, err
	}
	find := initramfs.QemuX86
	if m.Arch == "s390x" {
		find = initramfs.QemuS390x
	}
	q, err := find(ctx, io.Discard)
	if err != nil {
		return nil, err
	}
	args, err := arguments(o, m)
	if err != nil {
		return nil, err
	}
	stderr, err := os.Create(filepath.Join(o.Dir, errorFile))
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	// The console file is there before anybody looks for it.
	if err := os.WriteFile(filepath.Join(o.Dir, consoleFile), nil, 0o600); err != nil {
		return nil, err
	}
	v := &VM{Manifest: m, dir: o.Dir, done: make(chan struct{}), events: make(chan json.RawMessage, 256), ending: make(chan End, 1)}
	if o.Vsock {
		if o.Keep {
			return nil, errors.New("a machine that outlives this process cannot have its vsock")
		}
		if v.vsock, err = listenVsock(filepath.Join(o.Dir, vsockSock)); err != nil {
			return nil, err
		}
	}
	v.cmd = exec.Command(q.Path, append(append([]string{}, q.Args...), args...)...)
	v.cmd.Env = append(os.Environ(), q.Env...)
	v.cmd.Stdout, v.cmd.Stderr = stderr, stderr
	v.cmd.SysProcAttr = attributes(o.Keep)
	if err := v.launch(); err != nil {
		if v.vsock != nil {
			v.vsock.close()
		}
		return nil, fmt.Errorf("%w: start %s: %w", initramfs.ErrEnvironment, q.Path, err)
	}
	if err := v.connect(ctx); err != nil {
		v.Kill()
		return nil, err
	}
	if !o.Keep {
		context.AfterFunc(ctx, v.Kill)
	}
	return v, nil
}

// launch starts the process from a thread that lives as long as it does, since
// the death signal goes by thread.
func (v *VM) launch() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := v.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		v.err = v.cmd.Wait()
		if v.vsock != nil {
			v.vsock.close()
		}
		close(v.done)
	}()
	return <-started
}

// connect waits for QEMU to offer the event port's socket.
func (v *VM) connect(ctx context.Context) error {
	path := filepath.Join(v.dir, eventSock)
	for end := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("unix", path)
		if err == nil {
			v.port = conn
			go v.listen(conn)
			return v.watch()
		}
		select {
		case <-v.done:
			return fmt.Errorf("%w: QEMU ended at once: %s", initramfs.ErrEnvironment, v.complaint())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("QEMU does not offer its sockets: %w", err)
		}
	}
}

// complaint is what QEMU wrote to stderr, cut.
func (v *VM) complaint() string {
	b, err := os.ReadFile(filepath.Join(v.dir, errorFile))
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	return string(b[:min(len(b), 2000)])
}

func (v *VM) listen(conn net.Conn) {
	defer close(v.events)
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		if json.Valid(lines.Bytes()) {
			v.events <- json.RawMessage(bytes.Clone(lines.Bytes()))
		}
	}
}

// Events delivers what a dev image says, one JSON object each, until the
// machine is off. It must be read.
func (v *VM) Events() <-chan json.RawMessage { return v.events }

// Send gives a dev image a command, one JSON object.
func (v *VM) Send(command any) error {
	b, err := json.Marshal(command)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.port.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err = v.port.Write(append(b, '\n'))
	return err
}

// DialVsock connects to a vsock port of the guest, as the host (CID 2). It
// waits for a guest whose driver is not up yet; a port on which nobody listens
// is ECONNREFUSED. Needs Options.Vsock.
func (v *VM) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	if v.vsock == nil {
		return nil, errors.New("this machine has no vsock device")
	}
	return v.vsock.dial(ctx, port)
}

// Done is closed when the machine is off.
func (v *VM) Done() <-chan struct{} { return v.done }

// Err says how QEMU ended, once Done is closed: nil for a power-off.
func (v *VM) Err() error {
	if v.err == nil {
		return nil
	}
	return fmt.Errorf("QEMU: %w: %s", v.err, v.complaint())
}

// End says how the machine went off, once Done is closed.
func (v *VM) End() End {
	end := <-v.ending
	v.ending <- end
	return end
}

// watch follows the machine's end.
func (v *VM) watch() error {
	conn, err := net.Dial("unix", filepath.Join(v.dir, watchSock))
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	go func() {
		defer conn.Close()
		v.ending <- awaitEnd(conn)
	}()
	return nil
}

// PID is QEMU's process.
func (v *VM) PID() int { return v.cmd.Process.Pid }

// Kill pulls the plug.
func (v *VM) Kill() {
	// An error means that the process has ended already.
	if err := v.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return
	}
}

// Pause stops the machine's processors and its clock; Resume lets them go on.
func (v *VM) Pause(ctx context.Context) error { return execute(ctx, v.Monitor(), "stop", nil) }

// Resume ends a pause.
func (v *VM) Resume(ctx context.Context) error { return execute(ctx, v.Monitor(), "cont", nil) }

// Powerdown presses the power button: the guest stops in order.
func (v *VM) Powerdown(ctx context.Context) error { return Powerdown(ctx, v.Monitor()) }

// Type types on the guest's console, then sends a break. Needs Options.Typing.
func (v *VM) Type(ctx context.Context, keys []byte) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(v.dir, typeSock))
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write(keys); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	return execute(ctx, v.Monitor(), "chardev-send-break", map[string]string{"id": "console"})
}

// Monitor is the path of the QMP socket.
func (v *VM) Monitor() string { return filepath.Join(v.dir, monitorSock) }

// Console is the path of the file that the console goes to.
func (v *VM) Console() string { return filepath.Join(v.dir, consoleFile) }

// CopyConsole writes the console to w as it comes, until the machine is off
// and all is written, or ctx ends.
func (v *VM) CopyConsole(ctx context.Context, w io.Writer) error {
	f, err := os.Open(v.Console())
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		off := false
		select {
		case <-v.done:
			off = true // before the last copy, so that nothing is missed
		default:
		}
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		if off {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-v.done:
		case <-time.After(30 * time.Millisecond):
		}
	}
}
