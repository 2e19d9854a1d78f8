# What no container of the guest may do, privileged or not, whichever way it
# asks: on s390x a socket can be made by socketcall(2), into which no seccomp
# filter can look, and a mount can be made under any name.
profile hpcr-container flags=(attach_disconnected,mediate_deleted) {
  file,

  network,
  deny network vsock,  # the way to the host

  capability,
  deny capability sys_module,
  deny capability sys_rawio,
  deny capability sys_boot,
  deny capability sys_time,
  deny capability sys_pacct,
  deny capability syslog,
  deny capability perfmon,
  deny capability bpf,
  deny capability mac_admin,
  deny capability mac_override,
  deny capability audit_control,
  deny capability audit_read,
  deny capability wake_alarm,
  deny capability block_suspend,

  # File systems that are the container's own, or show it no more than its
  # namespaces hold. devtmpfs, debugfs, securityfs and the like are the guest's;
  # sysfs is too, so it can be seen and not changed.
  mount fstype=(tmpfs,ramfs,proc,overlay,fuse,"fuse.*",devpts,mqueue,cgroup2),
  mount options=(ro) fstype=sysfs,
  mount options=(ro,nosuid,nodev,noexec) fstype=sysfs,
  mount options=(bind),
  mount options=(rbind),
  mount options=(move),
  mount options=(private),
  mount options=(rprivate),
  mount options=(slave),
  mount options=(rslave),
  mount options=(shared),
  mount options=(rshared),
  mount options=(unbindable),
  mount options=(runbindable),
  umount,
  pivot_root,

  # No remount: what is read-only stays so, and what a mount shares with others
  # stays as it is. The parser (3.0) would make of a rule that allows only some
  # remounts one that allows new mounts of every kind.

  # Other containers, and the runtime that stops this one; not the guest.
  signal peer=hpcr-container,
  signal (receive) peer=unconfined,
  ptrace peer=hpcr-container,
  ptrace (readby, tracedby) peer=unconfined,
}
