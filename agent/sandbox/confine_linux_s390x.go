package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_S390X

var archAllowed = []uintptr{unix.SYS_EPOLL_WAIT, unix.SYS_SIGRETURN}
