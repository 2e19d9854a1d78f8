package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"hpcr/initramfs"
)

// Disk is one raw file as a virtio-blk device.
type Disk struct {
	Serial   string // "" = none
	File     string
	ReadOnly bool
	Log      string // a file that gets every write and flush in turn, in dm-log-writes' form; "" = none
}

// Port is one TCP port of the host that leads into the guest.
type Port struct {
	HostIP      string
	Host, Guest int
}

// Options describe one virtual machine.
type Options struct {
	Image   string // image folder
	Cidata  string // ISO file; "" = no such disk
	Disks   []Disk
	Publish []Port
	Memory  int // MiB; 0 = 2048
	CPUs    int // 0 = 1
	RTC     time.Time
	Accel   string   // "" = tcg
	Args    []string // appended to QEMU's own
	Dir     string   // an empty folder with a short path: sockets, console
	Keep    bool     // the machine outlives this process
	Vsock   bool     // a vsock device for DialVsock; not with Keep
	Bare    bool     // the guest's memory is a file, for VM.RAM
	Typing  bool     // a console that Type can type on
}

// Files of Options.Dir.
const (
	consoleFile = "console"
	monitorSock = "qmp"
	watchSock   = "watch" // a monitor of our own: a socket has room for one
	eventSock   = "events"
	errorFile   = "qemu.err"
	vsockSock   = "vsock"
	typeSock    = "type"
)

// memoryBackend is a file without a name that holds the guest's memory.
const memoryBackend = "memory-backend-memfd"

// eventPort is the virtio-serial port of dev images.
const eventPort = "org.hpcr.events"

// arguments builds QEMU's command line.
func arguments(o Options, m *initramfs.Manifest) ([]string, error) {
	if m.SecureExecution != nil {
		return nil, fmt.Errorf("%s is a Secure Execution image: only a machine whose host key it was built for can start it", o.Image)
	}
	bus := "pci"
	var args []string
	switch m.Arch {
	case "amd64":
		// cx16 off: QEMU 7.2 emulates cmpxchg16b with a wrong EFLAGS, over which
		// one boot of a 6.12 kernel in ten dies in its allocator.
		args = []string{"-M", "q35", "-cpu", "max,-cx16"}
	case "s390x":
		bus = "ccw"
		args = []string{"-M", "s390-ccw-virtio", "-cpu", "max"}
	default:
		return nil, fmt.Errorf("no machine for architecture %q", m.Arch)
	}
	accel := o.Accel
	if accel == "" || accel == "tcg" {
		accel = "tcg,thread=single"
	}
	parm, err := os.ReadFile(filepath.Join(o.Image, initramfs.ParmFile))
	if err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(o.Dir, name) }
	console := "file,id=console,path=" + escape(in(consoleFile))
	if o.Typing {
		console = "socket,id=console,server=on,wait=off,path=" + escape(in(typeSock)) + ",logfile=" + escape(in(consoleFile))
	}
	args = append(args,
		"-accel", accel, "-smp", strconv.Itoa(max(1, o.CPUs)), "-m", strconv.Itoa(orElse(o.Memory, 2048)),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", filepath.Join(o.Image, initramfs.KernelFile), "-initrd", filepath.Join(o.Image, initramfs.InitrdFile),
		"-append", strings.TrimSpace(string(parm)),
		"-chardev", console, "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,server=on,wait=off,path="+escape(in(monitorSock)), "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=watch,server=on,wait=off,path="+escape(in(watchSock)), "-mon", "chardev=watch,mode=control",
		"-device", "virtio-serial-"+bus,
		"-chardev", "socket,id=events,server=on,wait=off,path="+escape(in(eventSock)),
		"-device", "virtserialport,chardev=events,name="+eventPort,
		"-netdev", netdev(o.Publish), "-device", nic(bus),
	)
	if o.Vsock || o.Bare { // the backend of vsock reads the guest's memory too
		args[1] += ",memory-backend=mem"
		args = append(args, "-object", fmt.Sprintf("%s,id=mem,size=%dM,share=on", memoryBackend, orElse(o.Memory, 2048)))
	}
	if o.Vsock {
		// There is no -ccw variant; on s390x the device rides on zPCI.
		args = append(args,
			"-chardev", "socket,id=vsock,path="+escape(in(vsockSock)), "-device", "vhost-user-vsock-pci,chardev=vsock",
		)
	}
	if o.Cidata != "" {
		args = append(args, disk(bus, "cidata", Disk{File: o.Cidata, ReadOnly: true})...)
	}
	for i, d := range o.Disks {
		args = append(args, disk(bus, fmt.Sprintf("disk%d", i), d)...)
	}
	if !o.RTC.IsZero() {
		args = append(args, "-rtc", "base="+o.RTC.UTC().Format("2006-01-02T15:04:05"))
	}
	return append(args, o.Args...), nil
}

// nic gives s390x the device number of the documents' examples: enc1.
func nic(bus string) string {
	d := "virtio-net-" + bus + ",netdev=net"
	if bus == "ccw" {
		d += ",devno=fe.0.0001"
	}
	return d
}

func netdev(ports []Port) string {
	var b strings.Builder
	b.WriteString("user,id=net")
	for _, p := range ports {
		fmt.Fprintf(&b, ",hostfwd=tcp:%s:%d-:%d", p.HostIP, p.Host, p.Guest)
	}
	return b.String()
}

func disk(bus, id string, d Disk) []string {
	drive := "if=none,format=raw,id=" + id + ",file=" + escape(d.File)
	if d.Log != "" {
		drive = "if=none,driver=blklogwrites,id=" + id + ",file.driver=file,file.filename=" + escape(d.File) +
			",log.driver=file,log.filename=" + escape(d.Log)
	}
	if d.ReadOnly {
		drive += ",readonly=on"
	}
	device := "virtio-blk-" + bus + ",drive=" + id
	if d.Serial != "" {
		device += ",serial=" + escape(d.Serial)
	}
	return []string{"-drive", drive, "-device", device}
}

// escape doubles the commas of a value in QEMU's option syntax.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func orElse(v, def int) int {
	if v == 0 {
		return def
	}
	return v
}
