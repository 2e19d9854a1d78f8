// Package initramfs turns this repository and Debian's packages into a bootable
// image folder: kernel, initrd, parmfile, manifest and SBOM.
//
// The initrd is two newc archives, one behind the other: the base, which holds
// no key and is the same byte for byte wherever it is built from the same
// inputs, and the keys of one image. Everything that goes in is taken by hash
// and named in the manifest.
//
// It trusts the machine that builds: its Go toolchain, its C compiler for runc,
// the keyring that apt is configured with, and its own cache folder, where what
// was unpacked or compiled is not checked again. It does not promise that two
// machines resolve the same Debian versions on different days, unless they
// build from the lock; the manifest says which were used. It runs on the host
// only, never in the guest.
package initramfs
