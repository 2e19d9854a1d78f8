// Package compose turns the files of a contract's compose archive into a
// typed project that the guest can run.
//
// It trusts nothing: files and environment are the workload provider's and the
// deployer's text. It works on bytes in memory only: no file system, no
// network, no host environment. What the guest does not support is refused by
// name, never left out.
//
// Every image must carry a literal sha256 digest; whether a registry really
// delivers those bytes is agent/workload's to check. Paths of bind mounts are
// checked here as text only; links in them are agent/workload's to check.
//
// Not promised: byte-for-byte agreement with docker compose on malformed
// input, and wiping: values end up in Go strings, because a container's
// environment and arguments are strings in every library that takes them.
package compose
