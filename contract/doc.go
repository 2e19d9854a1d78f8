// Package contract turns the bytes of a cidata device into a verified plan of
// one boot, or into one error with a code, a path and what to change.
//
// It is pure: bytes in, values out; no system calls, no network. The guest's
// contract child and hpcrctl's lint call the same function.
//
// It trusts nothing but the private keys, the policy and the time it is
// given. Every byte of the device is the host's; every byte of a section is
// its author's. Sizes, depths and counts are bounded before they are used.
//
// It does not promise that a plain section comes from a friend: without a
// policy the contract decides for itself whether it is encrypted and signed.
// Secrets pass through YAML text on the heap while they are parsed; the
// process that parsed them is expected to end.
package contract
