package peers

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"sort"

	"sigs.k8s.io/yaml"
)

// Contract is the plain text of a contract, in the shape of HPCR's fields. A
// scenario takes one, changes what it is about, and writes it. Encrypting and
// signing are hpcrctl's.
type Contract struct {
	Workload Workload
	Env      Env
}

// Workload is the provider's section.
type Workload struct {
	Type    string                    `json:"type"`
	Compose *Compose                  `json:"compose,omitempty"`
	Play    *Play                     `json:"play,omitempty"`
	Auths   map[string]Auth           `json:"auths,omitempty"`
	Volumes map[string]WorkloadVolume `json:"volumes,omitempty"`
	Env     map[string]string         `json:"env,omitempty"`
	Images  map[string]any            `json:"images,omitempty"`
	XHPCR   map[string]any            `json:"x-hpcr,omitempty"`
}

// Env is the deployer's section.
type Env struct {
	Type    string               `json:"type"`
	Logging *Logging             `json:"logging,omitempty"`
	Volumes map[string]EnvVolume `json:"volumes,omitempty"`
	CACerts []map[string]string  `json:"cacerts,omitempty"`
	Env     map[string]string    `json:"env,omitempty"`
	XHPCR   map[string]any       `json:"x-hpcr,omitempty"`
	// SigningKey is what 'hpcrctl contract sign' fills in.
	SigningKey string `json:"signingKey,omitempty"`
}

// Compose holds the archive of the compose project, see Archive.
type Compose struct {
	Archive string `json:"archive"`
}

// Play holds pods and ConfigMaps.
type Play struct {
	Resources []map[string]any `json:"resources,omitempty"`
}

// Auth is a registry's user.
type Auth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// WorkloadVolume is the provider's half of a volume.
type WorkloadVolume struct {
	Mount      string `json:"mount,omitempty"`
	Filesystem string `json:"filesystem,omitempty"`
	Seed       string `json:"seed"`
	Previous   string `json:"previousSeed,omitempty"`
}

// EnvVolume is the deployer's half.
type EnvVolume struct {
	Seed     string `json:"seed"`
	Previous string `json:"previousSeed,omitempty"`
}

// Logging names the log host.
type Logging struct {
	Syslog    *Syslog    `json:"syslog,omitempty"`
	LogRouter *LogRouter `json:"logRouter,omitempty"`
}

// LogRouter is IBM Cloud Logs.
type LogRouter struct {
	Hostname  string `json:"hostname"`
	Port      int    `json:"port,omitempty"`
	IAMAPIKey string `json:"iamApiKey"`
}

// Syslog is a log host over mutual TLS; certificates and key are base64 of PEM.
type Syslog struct {
	Hostname string `json:"hostname"`
	Port     int    `json:"port"`
	Server   string `json:"server"`
	Cert     string `json:"cert"`
	Key      string `json:"key"`
}

// SyslogTo is the logging of a guest that reports to a log host on this
// machine's loopback.
func SyslogTo(port int, ca *CA, client Identity) *Logging {
	return &Logging{Syslog: &Syslog{
		Hostname: GuestHost,
		Port:     port,
		Server:   Base64(ca.PEM),
		Cert:     Base64(client.Cert),
		Key:      Base64(client.Key),
	}}
}

// Trust is the value of env.cacerts for one authority.
func Trust(ca *CA) []map[string]string {
	return []map[string]string{{"certificate": Base64(ca.PEM)}}
}

// Base64 is the form that contracts take for PEM texts.
func Base64(pem []byte) string { return base64.StdEncoding.EncodeToString(pem) }

// Archive is what 'tar -cz -C DIR . | base64 -w0' makes of the files.
func Archive(files map[string]string) (string, error) {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	entries := []entry{{name: "./", mode: 0o755}}
	for _, name := range names {
		entries = append(entries, entry{name: "./" + name, mode: 0o644, data: []byte(files[name])})
	}
	packed, err := pack(entries)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(packed); err != nil {
		return "", fmt.Errorf("compress the archive: %w", err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("compress the archive: %w", err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// YAML is the contract's text with both sections plain.
func (c Contract) YAML() ([]byte, error) {
	c.Workload.Type, c.Env.Type = "workload", "env"
	workload, err := yaml.Marshal(c.Workload)
	if err != nil {
		return nil, fmt.Errorf("write the workload section: %w", err)
	}
	env, err := yaml.Marshal(c.Env)
	if err != nil {
		return nil, fmt.Errorf("write the env section: %w", err)
	}
	return Envelope(map[string]string{"workload": string(workload), "env": string(env)})
}

// Envelope is the outer document: each value a string, as the guest wants it.
func Envelope(sections map[string]string) ([]byte, error) {
	text, err := yaml.Marshal(sections)
	if err != nil {
		return nil, fmt.Errorf("write the contract: %w", err)
	}
	return text, nil
}

// Sections splits a contract into its top-level strings again.
func Sections(contract []byte) (map[string]string, error) {
	var m map[string]string
	if err := yaml.Unmarshal(contract, &m); err != nil {
		return nil, fmt.Errorf("read the contract: %w", err)
	}
	return m, nil
}
