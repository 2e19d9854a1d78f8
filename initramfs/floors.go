package initramfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
)

// ErrBelowFloor is an input with a hole that is known and mended.
var ErrBelowFloor = errors.New("below the oldest version that is safe to ship")

// A floor gives the first mended version of each line that had a mend; the
// highest line's holds for all later ones, and a line not named is refused.
//
// The build is the only place that checks them. What the guest runs is what
// the build measured into its image: a check at start would ask the same
// bytes about themselves.
type floor struct {
	lines  []string // semver, ascending
	reason string
}

var floors = map[string]floor{
	"runc":       {[]string{"v1.2.8", "v1.3.3", "v1.4.0-rc.3"}, "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: writes past masked paths and /proc"},
	"containerd": {[]string{"v2.2.5", "v2.3.2"}, "CVE-2026-53488, CVE-2026-53492, CVE-2026-53489, CVE-2026-50195, CVE-2026-47262, CVE-2026-46680"},
	// 6.12 is the line of Debian's backports that both architectures boot.
	"kernel": {[]string{"v6.12.89", "v6.18.31", "v7.0.8"}, "CVE-2026-46333: processes that are ending can be inspected though they forbid it"},
	// go.mod asks for the same at least; a toolchain set by hand could be older.
	"go": {[]string{"v1.26.6"}, "the standard library's TLS and parsers are the guest's"},
}

// checkFloors refuses a toolchain or kernel below its floor.
func checkFloors(t Toolchain, kernel Package) error {
	runc, err := t.module(runcModule)
	if err != nil {
		return err
	}
	ctrd, err := t.module(ctrdModule)
	if err != nil {
		return err
	}
	upstream, _, _ := strings.Cut(kernel.Version, "-")
	return errors.Join(
		checkFloor("runc", runc.Version),
		checkFloor("containerd", ctrd.Version),
		checkFloor("kernel", "v"+upstream),
		checkFloor("go", goSemver(t.Go)),
	)
}

// goSemver turns go1.26, go1.26.8 and go1.27rc1 into semantic versions.
func goSemver(v string) string {
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "go"), " ") // "go1.26.8 X:experiment"
	if i := strings.IndexAny(v, "abcdefghijklmnopqrstuvwxyz"); i >= 0 {
		return "v" + v[:i] + ".0-" + v[i:]
	}
	return "v" + v
}

func checkFloor(what, version string) error {
	f := floors[what]
	if !semver.IsValid(version) {
		return fmt.Errorf("%w: %s %q is no version (%s)", ErrBelowFloor, what, version, f.reason)
	}
	line := semver.MajorMinor(version)
	want := f.lines[len(f.lines)-1]
	if i := slices.IndexFunc(f.lines, func(l string) bool { return semver.MajorMinor(l) == line }); i >= 0 {
		want = f.lines[i]
	}
	if semver.Compare(version, want) < 0 {
		return fmt.Errorf("%w: %s %s, want %s or later (%s)", ErrBelowFloor, what, version, want, f.reason)
	}
	return nil
}
