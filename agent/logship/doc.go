// Package logship sends the guest's and the containers' log to the owner's
// syslog server: RFC 5424 messages in RFC 5425 frames over mutual TLS, and in
// no other way, ever.
//
// It trusts the server only after its certificate has been verified by the
// contract's authority and for the contract's host name. Text from containers
// is not trusted: no control character of theirs reaches a frame.
//
// Send never blocks and memory is bounded: when the server is away for long,
// the oldest messages go and a message in their place says how many. Each
// message carries a sequence number ([meta sequenceId], RFC 5424 §7.3.1), so
// the receiver sees every loss and every repetition for itself.
//
// Not promised: RFC 5425 has no acknowledgement. What was written within
// seconds before a connection broke is sent again, up to a bound, so after a
// broken connection a message may arrive twice, with one number.
package logship
