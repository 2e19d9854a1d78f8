// Package health tells the host whether the guest is live and ready, and
// nothing else. The host reads every byte, so answers come from a fixed
// vocabulary, have a fixed size and round time to ten seconds.
//
// It trusts nothing that a client sends: the only words looked at are method
// and path. On vsock only the host itself (CID 2) is answered.
//
//	/livez    200 while the agent runs and beats, else 503
//	/readyz   200 from "ready" until the guest fails or stops, else 503
//	/healthz  the status of /readyz with the JSON of hpcrctl health
//
// Not promised: that a host which holds all connections open cannot keep
// another client of the same host waiting for a few seconds.
package health
