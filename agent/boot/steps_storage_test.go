package boot

import (
	"testing"

	"hpcr/disk"
)

func TestVolumeFact(t *testing.T) {
	for want, v := range map[string]*disk.Volume{
		"data created sealed generation 2":  {Name: "data", Kind: disk.Ours, Generation: 2},
		"data created foreign generation 0": {Name: "data", Kind: disk.ForeignLUKS},
	} {
		if f := volumeFact(v, "created"); f.Name != "Volume" || f.Text != want {
			t.Errorf("%+v, want %q", f, want)
		}
	}
}
