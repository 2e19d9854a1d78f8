// Package disk finds the guest's data disks, formats or unlocks them, maps
// and mounts them, and closes them again.
//
// It trusts nothing on a disk and no word of the host about it. A serial
// number is a hint for which disk to look at; what the disk is, its content
// decides: our seal, or the passphrase that opens it. Only a disk that was
// read and found blank is ever formatted; a disk that could not be read, or
// holds anything else, is left as it is. Headers are judged by package luks2
// before any key derivation, and the kernel gets tables that are built from
// constants and compared with what it says is live.
//
// What is not promised: that a disk is the newest version of itself, or that
// a volume which the host blanked is missed, unless the contract says what
// must exist. XTS hides data but does not authenticate it; ext4 of a data
// volume is checked by e2fsck before it is mounted, and still is content
// that the host may have garbled in units of 16 bytes.
package disk
