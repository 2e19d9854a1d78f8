package initramfs

import (
	"errors"
	"testing"
)

// Attack: an image is built from a runtime or kernel whose holes are known.
// Claim: the build refuses it, and says what for.
func TestBelowTheFloorNothingIsBuilt(t *testing.T) {
	for name, tc := range map[string]struct {
		what, version string
		ok            bool
	}{
		"runc below its line's mend":                 {"runc", "v1.2.7", false},
		"runc at its line's mend":                    {"runc", "v1.2.8", true},
		"runc above it":                              {"runc", "v1.2.9", true},
		"a line's mend does not hold for the next":   {"runc", "v1.3.2", false},
		"the next line's own does":                   {"runc", "v1.3.3", true},
		"a release candidate before the mend":        {"runc", "v1.4.0-rc.2", false},
		"the release candidate with the mend":        {"runc", "v1.4.0-rc.3", true},
		"the tenth release candidate is not the 1st": {"runc", "v1.4.0-rc.10", true},
		"the release after it":                       {"runc", "v1.4.0", true},
		"a line after the last with a mend":          {"runc", "v1.5.2", true},
		"a line that never got one":                  {"runc", "v1.1.15", false},
		"a pseudo version of a later line":           {"runc", "v1.5.0-rc.1.0.20260101000000-abcdefabcdef", true},
		"containerd below":                           {"containerd", "v2.2.4", false},
		"containerd at":                              {"containerd", "v2.2.5", true},
		"containerd's next line below":               {"containerd", "v2.3.1", false},
		"containerd of a line after":                 {"containerd", "v2.4.2", true},
		"containerd 1.7":                             {"containerd", "v1.7.99", false},
		"kernel below":                               {"kernel", "v6.12.88", false},
		"kernel at":                                  {"kernel", "v6.12.89", true},
		"kernel of a line between":                   {"kernel", "v6.16.12", false},
		"kernel of Debian 12":                        {"kernel", "v6.1.200", false},
		"go below":                                   {"go", goSemver("go1.26.5"), false},
		"go at":                                      {"go", goSemver("go1.26.6"), true},
		"go with experiments":                        {"go", goSemver("go1.26.8 X:jsonv2"), true},
		"go's release candidate of its line":         {"go", goSemver("go1.26rc1"), false},
		"go's release candidate of the next line":    {"go", goSemver("go1.27rc1"), true},
		"go of a developer":                          {"go", goSemver("devel go1.27-abc"), false},
		"no version at all":                          {"runc", "", false},
		"a tree of one's own instead of a version":   {"containerd", "(devel)", false},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkFloor(tc.what, tc.version)
			if tc.ok != (err == nil) || err != nil && !errors.Is(err, ErrBelowFloor) {
				t.Errorf("%s %s: %v", tc.what, tc.version, err)
			}
		})
	}
}

func TestEachInputHasItsFloor(t *testing.T) {
	good := Toolchain{Go: "go1.26.8", GoModules: []GoModule{{Path: runcModule, Version: "v1.5.2"}, {Path: ctrdModule, Version: "v2.4.2"}}}
	kernel := Package{Name: "linux-image-s390x", Version: "6.12.95-1~bpo12+1"}
	if err := checkFloors(good, kernel); err != nil {
		t.Fatal(err)
	}
	old := func(i int, version string) Toolchain {
		t := good
		t.GoModules = append([]GoModule{}, good.GoModules...)
		t.GoModules[i].Version = version
		return t
	}
	for name, tc := range map[string]struct {
		t      Toolchain
		kernel string
	}{
		"runc":       {old(0, "v1.3.2"), kernel.Version},
		"containerd": {old(1, "v2.2.4"), kernel.Version},
		"kernel":     {good, "6.12.73-1~bpo12+1"},
		"go":         {Toolchain{Go: "go1.25.9", GoModules: good.GoModules}, kernel.Version},
	} {
		t.Run(name, func(t *testing.T) {
			if err := checkFloors(tc.t, Package{Version: tc.kernel}); !errors.Is(err, ErrBelowFloor) {
				t.Errorf("got %v", err)
			}
		})
	}
}
