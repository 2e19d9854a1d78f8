package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
)

// End is how a machine went off, as QEMU saw it.
type End string

// What a guest does to itself. A kernel that panics stops dead on s390x, which
// is EndPanic, and resets on amd64.
const (
	EndPowerOff End = "guest-shutdown"
	EndReset    End = "guest-reset"
	EndPanic    End = "guest-panic"
	EndUnknown  End = "" // QEMU was killed, or died
)

// awaitEnd reads a monitor to its end (QEMU, qapi/run-state.json).
func awaitEnd(monitor io.ReadWriter) End {
	end := EndUnknown
	in := bufio.NewScanner(monitor)
	in.Buffer(nil, maxEvent)
	for in.Scan() {
		var m struct {
			QMP   json.RawMessage `json:"QMP"`
			Event string          `json:"event"`
			Data  struct {
				Reason End `json:"reason"`
			} `json:"data"`
		}
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			return end
		}
		switch {
		case m.QMP != nil:
			if _, err := fmt.Fprintln(monitor, `{"execute":"qmp_capabilities"}`); err != nil {
				return end
			}
		case m.Event == "GUEST_PANICKED":
			end = EndPanic
		case m.Event == "SHUTDOWN" && end == EndUnknown:
			end = m.Data.Reason
		}
	}
	return end
}
