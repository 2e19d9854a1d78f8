// Package sandbox runs the agent's short-lived children: the contract child
// and the signer. The parent side (Spawn) gives a child empty namespaces, no
// user, a cgroup with a memory limit, a time limit and only the files it
// names; the child side (Confine) takes away what is left by a seccomp
// allow-list before the child reads its first byte. When the child has given
// its answer (Finish), the parent wipes its memory and ends it.
//
// It also divides the guest: KeepForAgent gives the agent and containerd their
// share of memory and processor, LimitWorkload gives all containers together
// what is left, and keeps them from the kernel's settings.
//
// It trusts its caller and the kernel. It does not promise that a child's
// output is honest: the reader checks it. A child that ends by itself or is
// killed is not wiped.
package sandbox
