package luks2

import (
	"runtime"
	"runtime/debug"
	"sync"
)

// matrix is what the last derivation by argon2id left on the heap: garbage as
// large as half the guest.
var matrix struct {
	sync.Mutex
	kib uint32
}

// matrixSlack is how much else may be on the heap while a derivation runs, in bytes.
const matrixSlack = 16 << 20

// Derive runs do, one derivation by argon2id that takes kib KiB, while no other
// runs. It is laid where the last one was: to fault its pages in anew costs as
// much as to fill them. Where it does not fit, as much as it takes elsewhere is
// given back, so the process never holds two. kib 0 is one that takes none.
func Derive(kib uint32, do func()) {
	if kib == 0 {
		do()
		return
	}
	matrix.Lock()
	defer matrix.Unlock()
	runtime.GC() // not sooner: what is allocated between two derivations would lie in its place
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	// What comes to lie above the limit, Go's allocator gives back elsewhere at once.
	most := int64(m.Sys-m.HeapIdle) + int64(kib)<<10 + matrixSlack
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(min(most, debug.SetMemoryLimit(-1))))
	matrix.kib = kib
	do()
}

// Held is how many KiB the process holds for its next derivation, of whatever
// size that is.
func Held() uint32 {
	matrix.Lock()
	defer matrix.Unlock()
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap) // the collector may have given some back, near the process's limit
	return uint32(min(uint64(matrix.kib), (heap.HeapSys-heap.HeapReleased)>>10))
}

// Release gives back what is held: no derivation follows soon.
func Release() {
	matrix.Lock()
	defer matrix.Unlock()
	if matrix.kib != 0 {
		debug.FreeOSMemory()
		matrix.kib = 0
	}
}
