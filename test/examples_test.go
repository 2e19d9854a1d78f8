package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hpcr/test/peers"
)

// Whoever follows docs/examples must get a contract that a guest takes: what
// hpcrctl lints is what the guest's own contract child runs.
func TestExampleIsAContractThatGuestsTake(t *testing.T) {
	ca, err := peers.NewCA("example authority")
	if err != nil {
		t.Fatal(err)
	}
	client, err := ca.Client("guest")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{
		"REGISTRY": "registry.example.com:5000", "REGISTRY_USER": "puller", "REGISTRY_PASSWORD": "password",
		"REGISTRY_CA": peers.Base64(ca.PEM), "WEB_DIGEST": "sha256:" + strings.Repeat("12", 32),
		"WORKLOAD_SEED": "workload-seed-0001", "ENV_SEED": "deployer-seed-0001", "SYSLOG_PORT": "6514",
		"SYSLOG_CA": peers.Base64(ca.PEM), "SYSLOG_CERT": peers.Base64(client.Cert), "SYSLOG_KEY": peers.Base64(client.Key),
	}
	tool := filepath.Join(t.TempDir(), "hpcrctl")
	if out, err := exec.Command("go", "build", "-o", tool, "../cmd/hpcrctl").CombinedOutput(); err != nil {
		t.Fatalf("build hpcrctl: %v: %s", err, out)
	}
	lint := func(values map[string]string) (string, error) {
		text, err := peers.Example("../docs/examples/web", values)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "contract.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "contract", "lint", file).CombinedOutput()
		return string(out), err
	}
	if out, err := lint(values); err != nil {
		t.Errorf("the example is refused: %v: %s", err, out)
	}
	values["WEB_DIGEST"] = "latest"
	if out, err := lint(values); err == nil || !strings.Contains(out, "HPL06") {
		t.Errorf("the example without a digest passed: %v: %s", err, out)
	}
}
