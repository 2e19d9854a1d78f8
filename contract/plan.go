package contract

import (
	"net/netip"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// Plan is what one boot is to do. All secrets in it belong to the Verified
// that it came from; Verified.Wipe ends them.
type Plan struct {
	Hostname        string // RFC 1123, at most 64 bytes; "" = none given
	TokensDecrypted int    // top-level and nested
	TokensIgnored   int    // look like tokens, do not open, are not needed
	Network         *Network
	Time            Time
	DNS             []DNSServer // asked by TLS, in this order; none = the network's, in plain text
	Syslog          *Syslog     // nil, and the other two as well = no logging configured, and the policy allowed it
	LogRouter       *LogRouter
	LogDNA          *LogDNA
	Volumes         []Volume // document order of workload.volumes
	Auths           []Auth   // sorted by host
	CACerts         [][]byte // PEM, further trust anchors for registries
	TLS             TLS
	Trust           trust.Policy     // signatures that images must have; no rule but one that an image needs
	Lookaside       []Lookaside      // where registries' signatures lie
	Env             []Var            // merged, sorted by name; not sent to the agent, whose services have theirs
	Compose         *compose.Project // the pods of a play workload too
	Digests         []Digest         // lines of the attestation record, in its order

	AttestationPublicKey  []byte         // PEM "PUBLIC KEY", nil = record in clear
	UserDataMasked        *secret.Secret // user-data.decrypted (§1.1), every seed 15 asterisks; the agent's, if a container mounts it
	WorkloadDataDecrypted *secret.Secret // env and workload as real mappings, seeds masked; the agent's, if a container mounts it

	MetaData   []byte // as delivered
	VendorData []byte

	Signed          bool
	SignerNotBefore time.Time // zero = a bare key, which has no dates
	SignerNotAfter  time.Time
	Warnings        []Warning
}

// Network is network-config or env.x-hpcr.network; a nil Network means DHCP
// everywhere, and no IPv6.
type Network struct {
	FromContract bool   `json:"fromContract,omitempty"` // env.x-hpcr.network
	Links        []Link `json:"links"`                  // cards, then VLANs
}

// Link is one interface: "enc1" and so on, or "vlan1" and so on.
type Link struct {
	Name        string         `json:"name"`
	VLAN        int            `json:"vlan,omitempty"`   // 802.1Q; 0 = a card
	Parent      string         `json:"parent,omitempty"` // a VLAN's card
	DHCP        bool           `json:"dhcp"`
	DHCP6       bool           `json:"dhcp6,omitempty"`
	AcceptRA    bool           `json:"acceptRA,omitempty"` // addresses from router advertisements
	MTU         int            `json:"mtu,omitempty"`      // 0 = the device's own
	Addresses   []netip.Prefix `json:"addresses,omitempty"`
	Gateway     netip.Addr     `json:"gateway,omitzero"`
	Routes      []Route        `json:"routes,omitempty"`
	Nameservers []netip.Addr   `json:"nameservers,omitempty"`
	Search      []string       `json:"search,omitempty"`
}

// Route is one static route; the default route has To 0.0.0.0/0 or ::/0.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// Syslog is env.logging.syslog. The two PEM texts are in normal form.
type Syslog struct {
	Host string         // name or IP address
	Port int            // default 6514
	CA   []byte         // PEM, one or more certificates
	Cert []byte         // PEM, the client's certificate first
	Key  *secret.Secret // PEM, PKCS#8
}

// LogRouter is env.logging.logRouter, and env.x-hpcr.logging.
type LogRouter struct {
	Host   string         // name or IP address of the ingress
	Port   int            // default 443
	APIKey *secret.Secret // printable ASCII
	IAM    string         // https URL of the service that gives tokens for it
}

// LogDNA is env.logging.logDNA.
type LogDNA struct {
	Host string
	Port int            // default 6514
	Key  *secret.Secret // 32 lower-case letters and digits
	Tags []string       // words, at most 32 of at most 64 octets
}

// Volume is one data volume, both halves of the contract joined.
type Volume struct {
	Name        string           // the contract's key: for the owner's log and disk matching only
	Path        string           // "/workload/volumes/#1", for messages
	Mount       string           // absolute, clean
	Filesystem  string           // ext4, xfs, btrfs
	Passphrases []*secret.Secret // 64 hex digits each, in order of trial; the first creates
	Previous    []*secret.Secret // likewise, of the seeds before: a volume that opens with one of them is rolled to Passphrases[0]
	MayCreate   bool             // false: a seed follows only the rule of older images; refuse to create with HPL02002E

	// From workload.x-hpcr.volumes.
	Existing      bool   // the volume was made in an earlier boot: never create it
	Integrity     bool   // create it with dm-integrity, open it with nothing less
	MinGeneration uint64 // refuse a volume whose header was written fewer times, and an empty disk; 0 = any
}

// Auth is a registry's credentials.
type Auth struct {
	Host     string // "docker.io" for Docker Hub
	Username string
	Password *secret.Secret
}

// Lookaside is a server that holds the simple signatures of a registry's
// images. It is trusted with nothing: it can only withhold them.
type Lookaside struct {
	Host string `json:"host"` // of the registry
	URL  string `json:"url"`  // https
}

// Var is one variable of the merged environment.
type Var struct {
	Name  string
	Value *secret.Secret
}

// Digest is one line of the attestation record.
type Digest struct {
	Name   string `json:"name"`   // "cidata/user-data", "contract:workload"
	SHA256 string `json:"sha256"` // 64 lower-case hex digits
}

// Warning is a finding that does not stop the boot. It is fit for the host's
// eyes.
type Warning struct {
	Code   hpl.Code `json:"code,omitempty"`
	Path   string   `json:"path,omitempty"`
	Detail string   `json:"detail"`
}
