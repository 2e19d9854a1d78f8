// Package boot is the guest's boot: one slice of named phases (phases.go), the
// runner that times them and undoes them in reverse (runner.go), and a file
// for each group of steps.
//
// It trusts contract.Verified and what the image holds. It parses no host
// bytes itself: cidata goes unread from the disk room to the contract child.
//
// Not promised: that an undo succeeds. Each has a time limit; what is left
// then is the power-off's.
package boot
