//go:build !linux

package secret

// Only the host tool runs here: its secrets are the user's own files.
func alloc(n int) []byte { return make([]byte, n) }
