package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestVolumePassphrase(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env, workload := file("env", "deployer-secret-0001\n"), file("workload", "provider-secret-0001")
	const text = `workload: |
  type: workload
  volumes:
    data: {mount: /mnt/data, filesystem: ext4, seed: provider-secret-0001}
    number: {seed: 123456789012345678}
env: |
  type: env
  volumes:
    data: {seed: deployer-secret-0001}
    number: {seed: abc}
`
	plain := file("contract", text)
	encrypted := file("encrypted", ok(t, text, "contract", "encrypt", "--cert", key("encrypt.crt"), "-"))
	// printf deployer-secret-0001provider-secret-0001 | sha256sum
	const want = "222441d3613b9ef531133f2a42bcb10eb21bbdf0827e69aed770aea0f3365780"
	for name, tt := range map[string]struct {
		args []string
		code int
		out  string
	}{
		"seed files":               {[]string{"--env-seed-file", env, "--workload-seed-file", workload}, 0, want},
		"a plain contract":         {[]string{"--contract", plain, "--volume", "data"}, 0, want},
		"an encrypted contract":    {[]string{"--contract", encrypted, "--key", key("encrypt.key"), "--volume", "data"}, 0, want},
		"a contract for another":   {[]string{"--contract", encrypted, "--key", key("other.key"), "--volume", "data"}, 1, ""},
		"encrypted, without a key": {[]string{"--contract", encrypted, "--volume", "data"}, 1, ""},
		"no such volume":           {[]string{"--contract", plain, "--volume", "other"}, 1, ""},
		"a seed that is no text":   {[]string{"--contract", plain, "--volume", "number"}, 1, ""},
		"both ways at once":        {[]string{"--contract", plain, "--volume", "data", "--env-seed-file", env}, 2, ""},
		"half a way":               {[]string{"--env-seed-file", env}, 2, ""},
		"no such file":             {[]string{"--env-seed-file", env, "--workload-seed-file", filepath.Join(dir, "none")}, 2, ""},
		"an empty seed":            {[]string{"--env-seed-file", env, "--workload-seed-file", file("empty", "\n")}, 1, ""},
		"both from standard input": {[]string{"--env-seed-file", "-", "--workload-seed-file", "-"}, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := hpcrctl(t, "seed", append([]string{"volume", "passphrase"}, tt.args...)...)
			if r.code != tt.code || r.stdout != tt.out {
				t.Errorf("%+v", r)
			}
		})
	}
}
