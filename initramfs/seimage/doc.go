// Package seimage writes Secure Execution images for IBM Z and LinuxONE, and
// reads the host key documents that say which machines may run them.
//
// An image is a memory image from address 0: a clear loader (stage3a, which
// asks the Ultravisor to unpack), the SE header, and kernel, initrd, command
// line and second loader (stage3b), each encrypted in pages of 4 KiB. The
// header carries the digests of all pages, addresses and tweaks, and the page
// key, encrypted for each machine's host key. The layout is that of IBM's
// pvimg (s390-tools), whose image our tests open.
//
// The keys of an image are random, live in this process, and are overwritten
// when it is written: nobody can open it but the Ultravisor of a machine that
// was named. So two builds of the same input differ, and what is reproducible
// is the input.
//
// It trusts its caller for the loaders, the clock, and the root certificate.
// It does not promise that no copy of a key stays in the builder's memory: Go's
// ciphers keep their round keys until they are collected.
package seimage
