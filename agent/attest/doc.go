// Package attest makes the guest's attestation record: the text file
// se-checksums.txt of HPCR (contract.md §4), its signature by the image's
// attestation key, and the files beside it in /var/hyperprotect.
//
// The record says which contract, volumes and image this guest runs; its
// signature says that a holder of the image's key wrote it.
//
// Not promised: freshness (there is no nonce) and evidence of the hardware.
package attest
