// Package peers runs the foreign programs that a guest talks to in tests and
// in the demo, each the real thing: an OCI registry behind TLS and basic auth,
// rsyslogd with mutual TLS, and the certificates for both. It also makes the
// small container image that they serve, from Debian's static busybox, and
// writes the plain text of contracts that point at them.
//
// Everything listens on the host's loopback, which a guest of hpcrctl run
// reaches as GuestHost. Trusted: this machine and its Debian packages. Not
// promised: any hardening; keys and passwords here are for one run.
package peers

// GuestHost is where a guest behind QEMU's user network finds the loopback of
// its host.
const GuestHost = "10.0.2.2"

// GuestHost6 is where a guest finds it behind a user network whose prefix is
// 2001:db8:5::/64, on [::1].
const GuestHost6 = "2001:db8:5::2"

// Loopback is where all peers listen.
const Loopback = "127.0.0.1"
