// Package luks2 reads LUKS headers behind a gate, and formats, opens and
// seals one LUKS2 profile of our own. It needs no kernel: it works on any
// io.ReaderAt, so the guest, the host's tool and the tests share it.
//
// It trusts nothing of what it reads. Read takes header and key material into
// memory once; the gate (gate.go) then refuses everything but an exact list
// of forms before any key derivation runs; nothing that the header says as
// text ever leaves the package. Offsets, sector size and costs leave it as
// numbers inside fixed bounds.
//
// What is promised for our profile: a volume that Unlock opens was formatted
// or last written by a holder of its volume key, under the same volume name,
// and each header and key slot byte is what was written then. That rests on
// the seal (seal.go).
//
// What is not promised: freshness. A host that replays a whole old disk is
// found out only by the generation number, which the caller records. Volumes
// of a foreign make carry no seal: their header is gated, not authenticated.
// argon2 and XTS come from golang.org/x/crypto: their scratch memory, with
// traces of passphrase and key, is on the Go heap until it is reused.
package luks2
