package secret

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// Redacted is what every printing of a Secret shows.
const Redacted = "[secret]"

// Secret owns a byte string of fixed length. The zero value and nil are empty.
type Secret struct {
	mu  sync.Mutex
	mem []byte // nil after Wipe
	all []byte // what was mapped for mem, if it is more
}

// ErrTooLong is an input beyond ReadAll's limit.
var ErrTooLong = errors.New("longer than its limit")

// New moves b into locked memory and wipes b.
func New(b []byte) *Secret {
	s := &Secret{}
	if len(b) > 0 {
		s.mem = alloc(len(b))
		copy(s.mem, b)
		clear(b)
	}
	return s
}

// FromString copies text into a Secret. The string itself cannot be wiped:
// only for values that a parser already handed out as a string.
func FromString(text string) *Secret { return New([]byte(text)) }

// Bytes is the secret itself, not a copy: do not keep it beyond the Secret's
// life, do not convert it to a string unless a library leaves no choice.
func (s *Secret) Bytes() []byte {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mem
}

// Len is the length in bytes, 0 after Wipe.
func (s *Secret) Len() int { return len(s.Bytes()) }

// Clone is an independent copy with an owner of its own.
func (s *Secret) Clone() *Secret {
	c := &Secret{}
	if b := s.Bytes(); len(b) > 0 {
		c.mem = alloc(len(b))
		copy(c.mem, b)
	}
	return c
}

// Wipe overwrites the bytes. Safe to call twice, and on nil.
func (s *Secret) Wipe() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The compiler keeps these writes: they go to memory that it knows nothing of.
	clear(s.mem)
	if s.all != nil {
		s.mem = s.all
	}
	release(s.mem)
	s.mem, s.all = nil, nil
}

func (s *Secret) String() string               { return Redacted }
func (s *Secret) GoString() string             { return Redacted }
func (s *Secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, Redacted) }
func (s *Secret) LogValue() slog.Value         { return slog.StringValue(Redacted) }
func (s *Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }
func (s *Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
