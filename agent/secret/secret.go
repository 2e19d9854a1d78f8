package secret

import (
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
}

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
	return New(append([]byte(nil), s.Bytes()...))
}

// Wipe overwrites the bytes. Safe to call twice, and on nil.
func (s *Secret) Wipe() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.mem)
	s.mem = nil
}

func (s *Secret) String() string               { return Redacted }
func (s *Secret) GoString() string             { return Redacted }
func (s *Secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, Redacted) }
func (s *Secret) LogValue() slog.Value         { return slog.StringValue(Redacted) }
func (s *Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }
func (s *Secret) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
