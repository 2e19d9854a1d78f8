package secret

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mlockOnFault is MLOCK_ONFAULT (include/uapi/asm-generic/mman.h).
const mlockOnFault = 1

func lockOnFault(mem []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), mlockOnFault)
	if errno != 0 {
		return errno
	}
	return nil
}

// wholePages widens a slice of mapPages to the first page's beginning.
func wholePages(mem []byte) []byte {
	before := uintptr(unsafe.Pointer(&mem[0])) % uintptr(os.Getpagesize())
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&mem[0]), -int(before))), len(mem)+int(before))
}
