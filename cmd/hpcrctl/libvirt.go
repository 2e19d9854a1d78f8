package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"libvirt.org/go/libvirtxml"

	"hpcr/initramfs"
)

func init() { commands = append(commands, newLibvirtXMLCmd) }

// domainOptions are the flags of hpcrctl libvirt-xml.
type domainOptions struct {
	image, cidata, name, memory, network string
	disks                                []string
	cpus                                 uint
}

func newLibvirtXMLCmd() *cobra.Command {
	var o domainOptions
	cmd := &cobra.Command{
		Use:   "libvirt-xml --image DIR --cidata ISO",
		Short: "Print the libvirt domain for an image",
		Long: `Print domain XML for 'virsh define' or 'virsh create': the image by direct
kernel boot, cidata and data disks with their serials, console, network, vsock
for health, and nothing else.

A folder with se.img gives a Secure Execution guest (launchSecurity s390-pv).
Whatever ends the guest, power-off, reboot or crash, destroys the domain:
nothing starts it again but you.

--disk names raw files or block devices; they need not be there yet. Paths
become absolute.`,
		Example: `  hpcrctl libvirt-xml --image image --cidata cidata.iso --disk data=/dev/vg/data --name shop > shop.xml
  virsh define shop.xml && virsh start shop --console`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			domain, err := o.domain()
			if err != nil {
				return err
			}
			text, err := domain.Marshal()
			if err != nil {
				return err
			}
			return emit(cmd, []byte(text+"\n"))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "image folder")
	f.StringVar(&o.cidata, "cidata", "", "cidata volume ('hpcrctl cidata' makes it)")
	f.StringArrayVar(&o.disks, "disk", nil, "SERIAL=FILE, may be repeated")
	f.StringVar(&o.name, "name", "hpcr", "the domain's name")
	f.StringVar(&o.memory, "memory", "2G", "the guest's memory")
	f.UintVar(&o.cpus, "cpus", 1, "the guest's processors")
	f.StringVar(&o.network, "network", "default", "libvirt network of the guest's card")
	return cmd
}

// domain describes the machine that package qemu starts for hpcrctl run, in
// libvirt's words (https://libvirt.org/formatdomain.html).
func (o *domainOptions) domain() (*libvirtxml.Domain, error) {
	switch {
	case o.image == "":
		return nil, usage("--image DIR is missing (make one with 'hpcrctl image build')")
	case o.cidata == "":
		return nil, usage("--cidata ISO is missing (make one with 'hpcrctl cidata')")
	case o.name == "" || strings.ContainsAny(o.name, "/\n"):
		return nil, usage("--name: a domain's name has no slash and no line feed, and is not empty")
	case o.cpus == 0:
		return nil, usage("--cpus: at least 1")
	}
	memory, err := parseMiB(o.memory)
	if err != nil {
		return nil, usage("--memory: %w", err)
	}
	image, err := filepath.Abs(o.image)
	if err != nil {
		return nil, usage("%w", err)
	}
	m, err := initramfs.ReadManifest(filepath.Join(image, initramfs.ManifestFile))
	if err != nil {
		return nil, environment(err)
	}
	d := &libvirtxml.Domain{
		Type:   "kvm",
		Name:   o.name,
		Memory: &libvirtxml.DomainMemory{Value: uint(memory), Unit: "MiB"},
		VCPU:   &libvirtxml.DomainVCPU{Value: o.cpus},
		OS: &libvirtxml.DomainOS{
			Type:   &libvirtxml.DomainOSType{Type: "hvm"},
			Kernel: filepath.Join(image, initramfs.KernelFile), Initrd: filepath.Join(image, initramfs.InitrdFile), Cmdline: m.CommandLine,
		},
		Clock:      &libvirtxml.DomainClock{Offset: "utc"},
		OnPoweroff: "destroy", OnReboot: "destroy", OnCrash: "destroy",
		Devices: &libvirtxml.DomainDeviceList{
			// What libvirt would add by itself, and the guest has no use for.
			Controllers: []libvirtxml.DomainController{{Type: "usb", Model: "none"}},
			MemBalloon:  &libvirtxml.DomainMemBalloon{Model: "none"},
		},
	}
	switch m.Arch {
	case "s390x":
		d.OS.Type.Arch, d.OS.Type.Machine = "s390x", "s390-ccw-virtio"
		d.CPU = &libvirtxml.DomainCPU{Mode: "host-model"}
		d.Devices.Consoles = []libvirtxml.DomainConsole{{Source: pty(), Target: &libvirtxml.DomainConsoleTarget{Type: "sclp"}}}
		d.Devices.Panics = []libvirtxml.DomainPanic{{Model: "s390"}} // a kernel that stops dead: on_crash
	case "amd64":
		port := uint(0)
		d.OS.Type.Arch, d.OS.Type.Machine = "x86_64", "q35"
		d.CPU = &libvirtxml.DomainCPU{Mode: "host-passthrough"}
		d.Features = &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}} // virsh shutdown is its power button
		d.Devices.Serials = []libvirtxml.DomainSerial{{Source: pty(), Target: &libvirtxml.DomainSerialTarget{Port: &port}}}
		d.Devices.Consoles = []libvirtxml.DomainConsole{{Source: pty(), Target: &libvirtxml.DomainConsoleTarget{Type: "serial", Port: &port}}}
	default:
		return nil, fmt.Errorf("the image is for %q: no machine for that", m.Arch)
	}
	iommu := "" // of virtio devices: protected memory is reached by bounce buffers only
	if _, err := os.Stat(filepath.Join(image, initramfs.SecureImageFile)); err == nil {
		d.OS.Kernel, d.OS.Initrd, d.OS.Cmdline = filepath.Join(image, initramfs.SecureImageFile), "", ""
		d.LaunchSecurity = &libvirtxml.DomainLaunchSecurity{S390PV: &libvirtxml.DomainLaunchSecurityS390PV{}}
		iommu = "on"
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, usage("%w", err)
	}
	if d.Devices.Disks, err = o.domainDisks(iommu); err != nil {
		return nil, err
	}
	card := libvirtxml.DomainInterface{
		Source: &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: o.network}},
		Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
	}
	d.Devices.VSock = &libvirtxml.DomainVSock{Model: "virtio", CID: &libvirtxml.DomainVSockCID{Auto: "yes"}}
	if iommu != "" {
		card.Driver = &libvirtxml.DomainInterfaceDriver{IOMMU: iommu}
		d.Devices.VSock.Driver = &libvirtxml.DomainVSockDriver{IOMMU: iommu}
	}
	d.Devices.Interfaces = []libvirtxml.DomainInterface{card}
	return d, nil
}

func pty() *libvirtxml.DomainChardevSource {
	return &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}
}

// domainDisks are cidata and the data disks, in order.
func (o *domainOptions) domainDisks(iommu string) ([]libvirtxml.DomainDisk, error) {
	const most = 25 // vda to vdz
	if len(o.disks) > most {
		return nil, usage("--disk: at most %d", most)
	}
	disk := func(file, serial string) (libvirtxml.DomainDisk, error) {
		path, err := filepath.Abs(file)
		if err != nil {
			return libvirtxml.DomainDisk{}, usage("%w", err)
		}
		source := &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
		if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeDevice != 0 || strings.HasPrefix(path, "/dev/") {
			source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: path}}
		}
		return libvirtxml.DomainDisk{
			Device: "disk", Serial: serial, Source: source,
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw", IOMMU: iommu},
		}, nil
	}
	cidata, err := disk(o.cidata, "")
	if err != nil {
		return nil, err
	}
	cidata.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	disks := []libvirtxml.DomainDisk{cidata}
	for _, s := range o.disks {
		serial, file, ok := strings.Cut(s, "=")
		if !ok || serial == "" || file == "" || len(serial) > 20 {
			return nil, usage("--disk %s: want SERIAL=FILE, the serial at most 20 characters", s)
		}
		d, err := disk(file, serial)
		if err != nil {
			return nil, err
		}
		disks = append(disks, d)
	}
	for i := range disks {
		disks[i].Target = &libvirtxml.DomainDiskTarget{Dev: "vd" + string(rune('a'+i)), Bus: "virtio"}
	}
	return disks, nil
}
