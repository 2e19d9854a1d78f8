// Package workload runs a compose project on containerd: it pulls the pinned
// images, creates and starts the containers in order, keeps them running by
// their restart policies, and stops them.
//
// It trusts the typed project (compose.Load has checked it) and the guest's
// own containerd and runc. It does not trust registries: an image is what its
// digest says or it is not used, and a registry is spoken to over TLS only. It
// does not trust containers: their output is cut and never blocks them for
// long, links in their volumes lead nowhere outside, and they get Docker's
// default capabilities less CAP_MKNOD, containerd's default seccomp profile,
// and no new privileges unless the project says so. What a project may ask for
// beyond that ends at the guest: a privileged container has every power over
// itself and none over the kernel that it shares (docs/hardening.md).
//
// A container that ends is the project's business: its restart policy decides,
// as with docker compose up -d, and the guest stays up. Only what keeps a
// container from being created or started, and a dependency that fails, fails
// the boot.
//
// Not promised: that seccomp alone keeps AF_VSOCK out of reach on s390x. Go's
// own socket calls go through socketcall(2) there, whose arguments no filter
// can read; the AppArmor profile does it.
package workload
