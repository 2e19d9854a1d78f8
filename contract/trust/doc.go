// Package trust decides by whose signature an image may run: which of the
// contract's keys is for an image's reference, and whether a signature by that
// key is about the very digest that will be pulled. It is pure: bytes in,
// values out; lint, explain and the guest call the same functions.
//
// It trusts the contract's keys and nothing else. Signatures and payloads come
// from a registry, or from whoever stands in its place: each is bounded before
// it is parsed. What it does not promise: that an image is the newest one that
// the key's owner signed. Who answers for the registry can keep giving an
// older image with its older, valid signature; only a literal digest excludes
// that.
package trust
