package trust

import "fmt"

// How far a signature got before it was refused: of several the one that got
// furthest says best what is wrong.
type rank int

const (
	rankNone rank = iota
	rankFormat
	rankKey
	rankWeak
	rankExpired
	rankPayload
	rankDigest
	rankReference
)

// Error says why no signature makes an image fit to run.
type Error struct {
	Detail string // one sentence with what to change; fit for the host's eyes
	Err    error  // for the owner; may be nil
	rank   rank
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s (%v)", e.Detail, e.Err)
	}
	return e.Detail
}

func (e *Error) Unwrap() error { return e.Err }

// Unsigned is an image without a signature.
func Unsigned() *Error {
	return refuse(rankNone, "the registry has no signature for the image: sign it, and push the signature", nil)
}

func refuse(r rank, detail string, err error) *Error { return &Error{detail, err, r} }

// Closest is the error of the signature that got furthest.
func Closest(a, b *Error) *Error {
	if a == nil || b != nil && b.rank > a.rank {
		return b
	}
	return a
}
