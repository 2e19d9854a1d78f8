// Package storage runs the guest's work on disks in short-lived children: a
// disk that a host does not answer holds whoever waits for it, in the kernel,
// beyond every signal. The agent and PID 1 only ever wait for a child, and for
// a bounded time.
//
// Open, Check, Close and OpenImages are the agent's side; OpenMain, CheckMain,
// CloseMain and ImagesMain are the applets of cmd/hpcr-disk. The child that opens holds seeds and keys:
// they come in a file in memory that is wiped, as is all of the child's own
// memory when it has answered. It keeps the few capabilities that mounting and
// mapping need.
//
// It trusts its caller. It does not promise that a child which hangs in the
// kernel ends: the guest powers off around it.
package storage
