// Package pid1 is the guest's init: it mounts the kernel's file systems, moves
// the root so that containers can pivot, starts the agent, reaps every orphan
// and powers the machine off when the agent ends.
//
// It trusts the kernel and the initrd. It parses nothing from outside, opens
// no block device and takes no decision but one: when the agent ends, or
// hangs, without having given a verdict, init gives it. The agent shows that
// it runs by beating (Heart); init that does not listen is noticed by the
// agent in turn.
//
// Nothing that init does to end the guest can wait for ever: neither the
// console, nor a disk, nor the power-off. Not promised: that data reaches the
// disk when the agent dies. A child unmounts and closes for at most closeLimit; the journal
// does the rest.
package pid1
