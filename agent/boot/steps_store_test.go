package boot

import "testing"

// A full store in memory leaves agent and daemon what they are promised.
func TestStoreSize(t *testing.T) {
	const mib = 1 << 20
	for name, tt := range map[string]struct{ total, free, want uint64 }{
		"a large guest gives its share":          {total: 10000 * mib, free: 9000 * mib, want: 6000 * mib},
		"a small guest keeps the reserve":        {total: 480 * mib, free: 340 * mib, want: 212 * mib},
		"the share and the reserve just fit":     {total: 1000 * mib, free: 728 * mib, want: 600 * mib},
		"next to nothing is free":                {total: 480 * mib, free: 130 * mib, want: 32 * mib},
		"less than the reserve is free":          {total: 480 * mib, free: 100 * mib, want: 32 * mib},
		"a number that must not wrap around":     {total: 480 * mib, free: 0, want: 32 * mib},
		"a guest of which all seems to be free":  {total: 2000 * mib, free: 2000 * mib, want: 1200 * mib},
		"a machine with terabytes stays in step": {total: 4 << 40, free: 4 << 40, want: (4 << 40) / 100 * 60},
	} {
		t.Run(name, func(t *testing.T) {
			if got := storeSize(tt.total, tt.free); got != tt.want {
				t.Errorf("%d MiB, want %d", got/mib, tt.want/mib)
			}
		})
	}
}
