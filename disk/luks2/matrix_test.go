package luks2

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestDerive: derivations of one size lie in one place, one of another size
// takes the last one's, and in the end nothing is left. The collector runs as
// in the guest's disk child: only when it is called.
func TestDerive(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	Release()
	resident := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return (m.HeapSys - m.HeapReleased) >> 20
	}
	before := resident()
	var kept []byte // what else is allocated between two derivations
	for _, tt := range []struct {
		name        string
		mib, most   uint64
		held, times uint32
	}{
		{"as often as there are volumes", 32, 32, 32, 16},
		{"a larger one", 48, 48, 48, 4},
		{"a smaller one", 16, 16, 16, 3},
		{"one without a matrix", 0, 16, 16, 1},
		{"as large as at first", 32, 32, 32, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range tt.times {
				Derive(uint32(tt.mib<<10), func() {
					matrix := make([]byte, tt.mib<<20)
					for i := 0; i < len(matrix); i += 4096 {
						matrix[i] = 1
					}
				})
				kept = append(kept, make([]byte, 100<<10)...)
				if got := resident(); got > before+tt.most+matrixSlack>>20+8 {
					t.Errorf("%d MiB resident, %d before, want %d more at most", got, before, tt.most)
				}
			}
			if got := Held(); got != tt.held<<10 {
				t.Errorf("%d KiB held, want %d", got, tt.held<<10)
			}
		})
	}
	runtime.KeepAlive(kept)
	Release()
	if got := resident(); got > before+8 || Held() != 0 {
		t.Errorf("%d MiB resident after the end, %d before, %d KiB held", got, before, Held())
	}
}
