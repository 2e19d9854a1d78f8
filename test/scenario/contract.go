package scenario

import (
	"fmt"
	"path/filepath"
	"testing"

	"hpcr/test/peers"
)

// What the standard contract chooses; each holds the canary.
const (
	Volume       = Canary + "vol"
	Mount        = "/mnt/" + Canary
	EnvSeed      = Canary + "-env-seed-0001"
	WorkloadSeed = Canary + "-workload-seed-0001"
	Greeting     = Canary + " greeting"
)

// Contract is the standard one: a web server that counts its starts on an
// encrypted volume, behind a registry that wants a password and has a private
// authority, with its output going to the log host.
func (l *Lab) Contract(t *testing.T) peers.Contract {
	t.Helper()
	c := peers.Contract{
		Workload: peers.Workload{
			Auths:   map[string]peers.Auth{l.Registry.Guest(): {Username: l.Registry.User, Password: l.Registry.Password}},
			Volumes: map[string]peers.WorkloadVolume{Volume: {Mount: Mount, Filesystem: "ext4", Seed: WorkloadSeed}},
			Env:     map[string]string{"CANARY_GREETING": Greeting},
		},
		Env: peers.Env{
			Logging: peers.SyslogTo(l.LogHost.Port(), l.LogCA, l.LogClient),
			Volumes: map[string]peers.EnvVolume{Volume: {Seed: EnvSeed}},
			CACerts: peers.Trust(l.RegistryCA),
			Env:     map[string]string{"CANARY_GREETING": "the deployer's, which the workload's replaces"},
		},
	}
	c.Workload.Compose = l.Compose(t, fmt.Sprintf(`services:
  canaryweb:
    image: %s
    environment:
      DATA: %s
      GREETING: ${CANARY_GREETING}
    volumes: ["%s:%s"]
    ports: ["8080:8080"]
`, l.Web(t), Mount, Mount, Mount))
	return c
}

// Small is a contract without volume and log host: one container that waits.
func (l *Lab) Small(t *testing.T) peers.Contract {
	t.Helper()
	c := l.Contract(t)
	c.Workload.Volumes, c.Env.Volumes, c.Env.Logging = nil, nil, nil
	c.Workload.Compose = l.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s\n    command: [idle]\n", l.Web(t)))
	return c
}

// Compose packs the text of a docker-compose.yaml.
func (l *Lab) Compose(t *testing.T, text string) *peers.Compose {
	t.Helper()
	archive, err := peers.Archive(map[string]string{"docker-compose.yaml": text})
	must(t, err)
	return &peers.Compose{Archive: archive}
}

// Plain writes the contract without encrypting it and returns the user-data.
func (l *Lab) Plain(t *testing.T, c peers.Contract) string {
	t.Helper()
	text, err := c.YAML()
	must(t, err)
	return l.File(t, "contract.yaml", text)
}

// Encrypt encrypts both sections for the image and returns the user-data.
func (l *Lab) Encrypt(t *testing.T, c peers.Contract) string {
	t.Helper()
	return l.EncryptFor(t, c, l.Keys)
}

// EncryptFor encrypts for the image of a keys folder.
func (l *Lab) EncryptFor(t *testing.T, c peers.Contract, keys string) string {
	t.Helper()
	out := l.Hpcrctl(t, "contract", "encrypt", "--cert", filepath.Join(keys, "contract.crt"), l.Plain(t, c))
	return l.File(t, "user-data", out)
}

// Sign signs with the deployer's key, encrypts, and returns the user-data.
func (l *Lab) Sign(t *testing.T, c peers.Contract) string {
	t.Helper()
	out := l.Hpcrctl(t, "contract", "sign", "--signing-key", l.Signing, "--cert", filepath.Join(l.Keys, "contract.crt"), l.Plain(t, c))
	return l.File(t, "user-data", out)
}
