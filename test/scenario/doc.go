// Package scenario is the frame for tests that boot guests: what a scenario
// declares, how they are chosen and run two at a time, what they share, and
// how they read what a guest did.
//
// The oracle is the JSON that hpcrctl run makes of the guest's own events, its
// exit status second, the console third: a guest that says nothing has failed.
//
// It trusts hpcrctl run to report what the guest sent. Not promised: measured
// costs that hold on another machine; the declared ones are upper bounds for
// two shared cores without KVM.
package scenario
