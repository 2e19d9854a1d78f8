package compose

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"hpcr/contract/archive"
	"hpcr/contract/trust"
)

// Dir is where the guest keeps the project's files, and its working directory.
const Dir = "/data1/compose"

// Root is the JSON path under which errors point into the compose file.
const Root = "/workload/compose"

// Project is one compose project, ready to run. It travels from the contract
// child to the agent as JSON, secrets included; printing it shows none.
type Project struct {
	Name     string         `json:"name"`
	Files    []archive.File `json:"files"`    // to be written below Dir; ".env" is the merged environment
	Services []Service      `json:"services"` // in an order that respects depends_on
	Networks []Network      `json:"networks,omitempty"`
	Volumes  []Volume       `json:"volumes,omitempty"`
	Unset    []string       `json:"unset,omitempty"` // variables that the file uses and nobody set; names for the owner only
}

// Service is one container of the project.
type Service struct {
	Index     int    `json:"index"`           // 1-based place in the document; Path is made of it
	Place     string `json:"place,omitempty"` // path of a pod's container, for Path; "" = of a compose project
	Pod       string `json:"pod,omitempty"`   // containers of one pod share network and IPC; "" = none
	Name      string `json:"name"`
	Container string `json:"container,omitempty"` // container_name
	Image     Image  `json:"image"`
	Platform  string `json:"platform,omitempty"` // "linux/s390x"; "" = the guest's

	// Command and Entrypoint: nil leaves the image's, empty clears it.
	Command    []string `json:"command"`
	Entrypoint []string `json:"entrypoint"`

	Env        Env      `json:"env,omitempty"` // sorted by name
	User       string   `json:"user,omitempty"`
	GroupAdd   []string `json:"groupAdd,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	Hostname   string   `json:"hostname,omitempty"`
	Domainname string   `json:"domainname,omitempty"`
	Labels     Env      `json:"labels,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	StdinOpen  bool     `json:"stdinOpen,omitempty"`
	Discard    bool     `json:"discard,omitempty"` // logging.driver "none"

	Mounts []Mount      `json:"mounts,omitempty"`
	Data   []Data       `json:"data,omitempty"` // secrets and configs
	Ports  []Port       `json:"ports,omitempty"`
	Join   []Membership `json:"join,omitempty"` // networks, when NetworkMode is ""

	NetworkMode string        `json:"networkMode,omitempty"` // "", "host", "none"
	Share       string        `json:"share,omitempty"`       // name of the service whose network this one uses; "" = none
	ExtraHosts  []Host        `json:"extraHosts,omitempty"`
	DNS         []netip.Addr  `json:"dns,omitempty"`
	DNSSearch   []string      `json:"dnsSearch,omitempty"`
	DNSOptions  []string      `json:"dnsOptions,omitempty"`
	Restart     Restart       `json:"restart"`
	DependsOn   []Dependency  `json:"dependsOn,omitempty"`
	Health      *Health       `json:"health,omitempty"`  // nil leaves the image's
	Startup     *Probe        `json:"startup,omitempty"` // of a pod's container
	Liveness    *Probe        `json:"liveness,omitempty"`
	Readiness   *Probe        `json:"readiness,omitempty"`
	StopSignal  string        `json:"stopSignal,omitempty"`
	StopGrace   time.Duration `json:"stopGrace"` // default 10 s

	Privileged    bool              `json:"privileged,omitempty"`
	ReadOnly      bool              `json:"readOnly,omitempty"`
	NewPrivileges bool              `json:"newPrivileges,omitempty"` // no-new-privileges:false: set-uid programs gain rights
	Unconfined    bool              `json:"unconfined,omitempty"`    // seccomp=unconfined
	CapAdd        []string          `json:"capAdd,omitempty"`        // "CAP_NET_ADMIN", "ALL"
	CapDrop       []string          `json:"capDrop,omitempty"`
	Devices       []Device          `json:"devices,omitempty"`
	Sysctls       map[string]string `json:"sysctls,omitempty"`
	PID           string            `json:"pid,omitempty"` // "", "host"
	IPC           string            `json:"ipc,omitempty"` // "", "none", "host"
	Ulimits       []Ulimit          `json:"ulimits,omitempty"`
	ShmSize       int64             `json:"shmSize,omitempty"` // bytes; 0 = 64 MiB
	Limits        Limits            `json:"limits"`
	OOMScoreAdj   *int              `json:"oomScoreAdj,omitempty"`
}

// Path is where the service, or a field of it, stands in the contract, with
// the service's name replaced by its place: "/workload/compose/services/#1/image".
func (s *Service) Path(field string) string {
	switch {
	case s.Place == "":
		return servicePath(s.Index, field)
	case field == "":
		return s.Place
	}
	return s.Place + "/" + field
}

func servicePath(index int, field string) string {
	p := fmt.Sprintf("%s/services/#%d", Root, index)
	if field != "" {
		p += "/" + field
	}
	return p
}

// Image is what a container runs. Without a digest a signature must name one.
type Image struct {
	Name   string `json:"name"`          // normalised: "docker.io/library/nginx"
	Tag    string `json:"tag,omitempty"` // resolved if there is no digest; else for the owner's eyes only
	Digest string `json:"digest"`        // "sha256:<64 hex>"; "" = whichever the tag's signature names
}

// Ref is what is asked for: NAME@DIGEST, or NAME:TAG without one.
func (i Image) Ref() string {
	if i.Digest == "" {
		return i.Name + ":" + i.Tag
	}
	return i.Name + "@" + i.Digest
}

// Signed is the service's image as rules about signatures see it.
func (s *Service) Signed() trust.Image {
	return trust.NewImage(s.Image.Name, s.Image.Tag, s.Image.Digest, s.Pod != "")
}

// Var is one variable.
type Var struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Env is a list of variables whose values no printing shows.
type Env []Var

// Mount kinds.
const (
	Bind   = "bind"
	Named  = "volume"
	Memory = "tmpfs"
)

// Mount is a bind mount, a named or anonymous volume, or a tmpfs.
type Mount struct {
	Kind     string `json:"kind"`
	Source   string `json:"source,omitempty"` // bind: clean absolute path; volume: Volume.Key, "" = anonymous
	Target   string `json:"target"`           // clean absolute path
	ReadOnly bool   `json:"readOnly,omitempty"`
	Create   bool   `json:"create,omitempty"` // bind: make a missing source directory
	Slave    bool   `json:"slave,omitempty"`  // bind: propagation rslave instead of rprivate
	Device   string `json:"device,omitempty"` // volume: the folder that it is, clean absolute path; "" = one of the guest's own
	NoCopy   bool   `json:"noCopy,omitempty"` // volume: do not fill it from the image
	RAM      bool   `json:"ram,omitempty"`    // volume: a tmpfs that its containers share, with Size
	GID      int    `json:"gid,omitempty"`    // volume: group that it is made with
	Size     int64  `json:"size,omitempty"`   // tmpfs, RAM: bytes, 0 = kernel's default
	Mode     uint32 `json:"mode,omitempty"`   // tmpfs: permission bits, 0 = 01777; volume: 0 = 0755
	Options  string `json:"options,omitempty"`
}

// Data is a file that the contract itself provides (secret or config).
type Data struct {
	Target string `json:"target"`
	UID    int    `json:"uid,omitempty"`
	GID    int    `json:"gid,omitempty"`
	Mode   uint32 `json:"mode"`
	Data   []byte `json:"data"`
}

// Port is one published port.
type Port struct {
	HostIP        netip.Addr `json:"hostIP,omitzero"` // zero = all addresses
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
	Proto         string     `json:"proto"` // "tcp", "udp"
}

// Membership connects a service to a network.
type Membership struct {
	Network string   `json:"network"` // Network.Key
	Aliases []string `json:"aliases,omitempty"`
}

// Network is a bridge of the project.
type Network struct {
	Key      string `json:"key"`
	Internal bool   `json:"internal,omitempty"`
}

// Volume is a named volume; it lives as long as the boot.
type Volume struct {
	Key string `json:"key"`
}

// Host is a line of /etc/hosts. Gateway stands for compose's "host-gateway".
type Host struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"addr,omitzero"`
	Gateway bool       `json:"gateway,omitempty"`
}

// Restart policies.
const (
	RestartNo            = "no"
	RestartAlways        = "always"
	RestartOnFailure     = "on-failure"
	RestartUnlessStopped = "unless-stopped"
)

// Restart is what happens when the container ends.
type Restart struct {
	Policy string `json:"policy"`
	Max    int    `json:"max,omitempty"` // on-failure: attempts, 0 = no limit
}

// Conditions of a dependency.
const (
	Started   = "service_started"
	Healthy   = "service_healthy"
	Completed = "service_completed_successfully"
)

// Dependency holds a service back until another one is so far.
type Dependency struct {
	Service   string `json:"service"`
	Condition string `json:"condition"`
	Required  bool   `json:"required"`
}

// Health is a check command. Zero durations and Retries mean the defaults of
// Docker: 30 s, 30 s, 0 s, 5 s, 3.
type Health struct {
	Disable       bool          `json:"disable,omitempty"`
	Test          []string      `json:"test,omitempty"` // "CMD", … or "CMD-SHELL", text; empty = the image's
	Interval      time.Duration `json:"interval,omitempty"`
	Timeout       time.Duration `json:"timeout,omitempty"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`
	StartInterval time.Duration `json:"startInterval,omitempty"`
	Retries       int           `json:"retries,omitempty"`
}

// Kinds of a probe.
const (
	ProbeExec = ""
	ProbeTCP  = "tcp"
	ProbeHTTP = "http"
	ProbeGRPC = "grpc"
)

// Probe is one of Kubernetes' three checks of a pod's container.
type Probe struct {
	Kind      string        `json:"kind,omitempty"`
	Exec      []string      `json:"exec,omitempty"`
	Port      uint16        `json:"port,omitempty"`
	Path      string        `json:"path,omitempty"` // http
	TLS       bool          `json:"tls,omitempty"`  // http
	Headers   Env           `json:"headers,omitempty"`
	Service   string        `json:"service,omitempty"` // grpc
	Delay     time.Duration `json:"delay,omitempty"`
	Period    time.Duration `json:"period"`
	Timeout   time.Duration `json:"timeout"`
	Successes int           `json:"successes"` // in a row
	Failures  int           `json:"failures"`  // in a row
}

// Device gives the container a device node of the guest.
type Device struct {
	Source      string `json:"source"`
	Target      string `json:"target"`
	Permissions string `json:"permissions"` // of "rwm"
}

// Ulimit is a resource limit of the container's processes; -1 = unlimited.
type Ulimit struct {
	Name string `json:"name"` // "nofile"
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Limits go to the container's cgroup; 0 = none.
type Limits struct {
	Memory            int64  `json:"memory,omitempty"`            // bytes
	MemoryReservation int64  `json:"memoryReservation,omitempty"` // bytes
	MemorySwap        int64  `json:"memorySwap,omitempty"`        // bytes of memory + swap, -1 = unlimited
	CPUQuota          int64  `json:"cpuQuota,omitempty"`          // µs of CPUPeriod
	CPUPeriod         uint64 `json:"cpuPeriod,omitempty"`         // µs
	CPUShares         uint64 `json:"cpuShares,omitempty"`
	CPUSet            string `json:"cpuSet,omitempty"`
	Pids              int64  `json:"pids,omitempty"`
}

// Printing a project, a service or its parts shows no value that the contract
// chose: arguments, environment, labels and files may all hold secrets.

func (p Project) String() string {
	return fmt.Sprintf("compose project of %d services", len(p.Services))
}
func (s Service) String() string { return fmt.Sprintf("service #%d", s.Index) }
func (e Env) String() string     { return fmt.Sprintf("%d variables", len(e)) }
func (v Var) String() string     { return "variable" }
func (d Data) String() string    { return fmt.Sprintf("%d bytes", len(d.Data)) }

func (p Project) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }
func (s Service) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }
func (e Env) Format(f fmt.State, _ rune)     { fmt.Fprint(f, e.String()) }
func (v Var) Format(f fmt.State, _ rune)     { fmt.Fprint(f, v.String()) }
func (d Data) Format(f fmt.State, _ rune)    { fmt.Fprint(f, d.String()) }

func (p Project) LogValue() slog.Value { return slog.StringValue(p.String()) }
func (s Service) LogValue() slog.Value { return slog.StringValue(s.String()) }
func (e Env) LogValue() slog.Value     { return slog.StringValue(e.String()) }
func (v Var) LogValue() slog.Value     { return slog.StringValue(v.String()) }
func (d Data) LogValue() slog.Value    { return slog.StringValue(d.String()) }
