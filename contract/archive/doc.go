// Package archive unpacks the base64 tgz of a contract's compose or play
// section into memory.
//
// It trusts nothing: the archive may come from an author who is not the
// image's owner, or from a host that guesses. Size, ratio, entry count and
// names are bounded before anything is kept; only regular files and
// directories pass.
//
// It does not promise that a file makes sense, nor that names are safe on a
// case-insensitive file system.
package archive
