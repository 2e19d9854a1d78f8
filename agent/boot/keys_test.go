package boot

import (
	"testing"

	"hpcr/initramfs"
)

// Claim: no image can be built with more keys than its guest would open.
func TestTheBuildKnowsHowManyKeysAGuestTakes(t *testing.T) {
	if initramfs.MaxKeys != maxKeys {
		t.Errorf("a build lets %d keys pass, a guest takes %d", initramfs.MaxKeys, maxKeys)
	}
}
