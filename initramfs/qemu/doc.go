// Package qemu starts an image folder as a virtual machine under QEMU: for
// hpcrctl run and for tests alike. It knows the machine (devices, firmware,
// workarounds), the monitor (QMP) and the dev images' event port; what the
// events mean is its caller's business.
//
// It trusts the image folder and QEMU; it reads what the guest writes within
// bounds. It promises no confidentiality: under emulation the host sees all.
package qemu
