// Package logship sends the guest's and the containers' log to the owner's
// log host, over TLS and in no other way, ever: RFC 5424 messages in RFC 5425
// frames to a syslog server (session.go), or JSON to IBM Cloud Logs (cloud.go).
// All else is common to them: sources, sanitising (text.go), numbers, the spool
// in memory (spool.go) and on a disk (backlog.go).
//
// It trusts the server only after its certificate has been verified for the
// contract's host name: a syslog server's by the contract's authority, a
// service's by the system's. Text from containers
// is not trusted: no control character of theirs reaches a frame, and no code
// of the agent's (HPLnnnnnE) does.
//
// Sending never blocks and memory is bounded. While the server is away
// messages wait; when the bound is reached, the source that holds most of it
// loses its oldest, and a record in their place says how many. Each message
// carries a sequence number ([meta sequenceId], RFC 5424 §7.3.1), so the
// receiver sees every loss and every repetition for itself.
//
// Not promised: RFC 5425 has no acknowledgement. Kept for repetition is what
// the server's kernel has not acknowledged, or has within the last seconds, up
// to a bound. What lies longer, or more of it, unread in the buffers of a server
// that then dies is lost, and shows as a hole in the numbers only. After a
// broken connection a message may arrive twice, with one number. Without a folder
// that lasts (Keep) the spool ends with the guest.
package logship
