package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// Powerdown asks the machine behind a QMP socket to stop in order: ACPI power
// button on amd64, quiesce (Ctrl-Alt-Del for the guest) on s390x.
func Powerdown(ctx context.Context, socket string) error {
	return execute(ctx, socket, "system_powerdown", nil)
}

// execute runs one QMP command (QEMU, docs/interop/qmp-spec).
func execute(ctx context.Context, socket, command string, arguments map[string]string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, maxEvent)
	greeting := false
	steps := []string{"qmp_capabilities", command}
	for in.Scan() {
		var m struct {
			QMP    json.RawMessage `json:"QMP"`
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			return fmt.Errorf("monitor: %w", err)
		}
		switch {
		case m.Error != nil:
			return fmt.Errorf("monitor refuses %s: %s", command, m.Error.Desc)
		case m.QMP != nil && !greeting:
			greeting = true
		case m.Return != nil && greeting:
			if len(steps) == 0 {
				return nil
			}
		default:
			continue // an event
		}
		if len(steps) > 0 {
			line := map[string]any{"execute": steps[0]}
			if arguments != nil && len(steps) == 1 {
				line["arguments"] = arguments
			}
			if err := json.NewEncoder(conn).Encode(line); err != nil {
				return fmt.Errorf("monitor: %w", err)
			}
			steps = steps[1:]
		}
	}
	if len(steps) == 0 && in.Err() == nil {
		return nil // the machine went off before it answered
	}
	return fmt.Errorf("monitor closed: %v", in.Err())
}
