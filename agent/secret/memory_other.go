//go:build !linux

package secret

import "io"

// Only the host tool runs here: its secrets are the user's own files.
func alloc(n int) []byte { return make([]byte, n) }

func release([]byte) {}

// RequireLock does nothing here.
func RequireLock() error { return nil }

// ReadAll reads up to limit bytes into a Secret.
func ReadAll(r io.Reader, limit int) (*Secret, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = ErrTooLong
	}
	if err != nil {
		clear(b)
		return nil, err
	}
	return New(b), nil
}
