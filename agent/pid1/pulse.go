package pid1

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// BeatEvery is how often the agent beats, and how often init looks.
	BeatEvery = time.Second / 2
	// hangLimit is how many of init's wake-ups without a beat mean that the
	// agent hangs: with the one that took the last beat, and the verdict,
	// within 5 s of the hang.
	hangLimit = 7
	// startLimit holds until the first beat: the agent is a large program, and
	// emulated machines start it slowly.
	startLimit = 60
	// heartFile is the agent's end of the line.
	heartFile = 3
)

// pulse is init's end of a pipe into which the agent writes a byte whenever
// its main loop turns.
//
// It counts init's own wake-ups, not time. A guest that its host has paused
// wakes up once, whatever the clock says; one without processor time wakes up
// rarely, and with every wake-up the agent gets its turn too.
type pulse struct {
	fd     int
	silent int // wake-ups since the last beat
	limit  int
}

// newPulse makes the pipe; heart is the agent's end of it.
func newPulse() (p *pulse, heart uintptr, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, 0, fmt.Errorf("pipe: %w", err)
	}
	return &pulse{fd: fds[0], limit: startLimit}, uintptr(fds[1]), nil
}

// lost is called at each wake-up and says whether the agent must be given up.
func (p *pulse) lost() bool {
	var buf [64]byte
	if n, err := unix.Read(p.fd, buf[:]); err == nil && n > 0 {
		p.silent, p.limit = 0, hangLimit
		return false
	}
	p.silent++
	return p.silent >= p.limit
}

// Heart is the agent's end of the line to PID 1.
type Heart struct{ fd int }

// NewHeart takes the line that init has opened. Children do not inherit it.
func NewHeart() (*Heart, error) {
	var st unix.Stat_t
	if err := unix.Fstat(heartFile, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, errors.New("PID 1 has opened no line for the beat")
	}
	unix.CloseOnExec(heartFile)
	return &Heart{heartFile}, nil
}

// ErrInitHangs is said of a PID 1 that has not listened for initLimit.
var ErrInitHangs = errors.New("PID 1 does not respond")

// initLimit is how many beats may wait for init: 10 s of them.
const initLimit = 20

// Beat shows init that the caller runs. It never blocks.
func (h *Heart) Beat() error {
	waiting, err := unix.IoctlGetUint32(h.fd, unix.TIOCINQ) // FIONREAD: octets in the pipe
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	if waiting >= initLimit {
		return ErrInitHangs
	}
	if _, err := unix.Write(h.fd, []byte{0}); err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	return nil
}
