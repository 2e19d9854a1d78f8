// Package secret holds the one type in which key material, seeds and
// passwords travel through the guest.
//
// A Secret's bytes live outside the Go heap, in anonymous pages between two
// guard pages, that are locked into memory, left out of core dumps and empty in
// a forked child, so that the garbage collector neither copies nor keeps them.
// Every way of printing a Secret yields "[secret]". Its owner, named in the
// comment of the field that holds it, calls Wipe.
//
// What is not promised: a value that a library needs as a string (a registry
// password, a container's environment) is copied to the heap at that call. The
// host tool takes memory that cannot be locked, too; the guest calls
// RequireLock.
package secret
