package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The documents' signing command over a file with both tokens, line ends and
// all; with the signing key in every form that they show.
func TestSignedByTheDocumentedCommand(t *testing.T) {
	dir := t.TempDir()
	for name, signingKey := range map[string]string{
		"literal block":  "signingKey: |\n" + indent(readKey(t, "sign.pub")),
		"base64":         "signingKey: " + strings.TrimSpace(sh(t, abs(t, filepath.Join(vectors, "keys")), `base64 -w0 sign.pub`)) + "\n",
		"awk's escapes":  `signingKey: "` + sh(t, abs(t, filepath.Join(vectors, "keys")), `awk -vRS="\n" -vORS="\\\\n" '1' sign.pub`) + "\"\n",
		"a certificate":  "signingKey: |\n" + indent(readKey(t, "sign-valid.crt")),
		"base64 of that": "signingKey: " + strings.TrimSpace(sh(t, abs(t, filepath.Join(vectors, "keys")), `base64 -w0 sign-valid.crt`)) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			// Tokens of ours, signed by openssl: the other half is TestSignForOpenssl.
			w := ok(t, workload(t), "contract", "encrypt", "--cert", key("encrypt.crt"), "--section", "workload", "-")
			e := ok(t, plain(t, "env-syslog.yaml")+signingKey, "contract", "encrypt", "--cert", key("encrypt.crt"), "--section", "env", "-")
			if err := os.WriteFile(filepath.Join(dir, "contract.txt"), []byte(w+"\n"+e+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			sig := sh(t, dir, `echo $(cat contract.txt | tr -d "\n\r" | openssl dgst -sha256 -sign "$KEY" -passin pass:vector-pass | openssl enc -base64) | tr -d ' '`, "KEY="+abs(t, key("sign-aes128.key")))
			signed := "workload: " + w + "\nenv: " + e + "\nenvWorkloadSignature: " + sig
			if r := hpcrctl(t, signed, "contract", "lint", "--key", key("encrypt.key"), "-"); r.code != 0 || strings.Contains(r.stdout, "warning") {
				t.Errorf("exit %d\n%s", r.code, r.stdout)
			}
		})
	}
}

// The published script keeps the password in a shell variable, which loses NUL
// bytes: our tokens survive it, each time.
func TestOpenedByTheShellVariableScript(t *testing.T) {
	const script = `PASSWORD="$(cut -d. -f2 <<<"$TOKEN" | base64 -d | openssl pkeyutl -decrypt -inkey encrypt.key)"
		echo -n "$PASSWORD" | openssl enc -aes-256-cbc -d -pbkdf2 -in <(cut -d. -f3 <<<"$TOKEN" | base64 -d) -pass stdin`
	for range 8 {
		token := ok(t, workload(t), "contract", "encrypt", "--cert", key("encrypt.crt"), "--prefix", "contract-basic", "--section", "workload", "-")
		if got := sh(t, abs(t, filepath.Join(vectors, "keys")), script, "TOKEN="+token); got != workload(t) {
			t.Fatalf("the script reads %d bytes", len(got))
		}
	}
}

// What is refused is refused in a sentence that says what to do.
func TestContractRefusals(t *testing.T) {
	good := goodContract(t)
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"an ended signing certificate":  {[]string{"sign", "--signing-key", key("sign.key"), "--signing-cert", key("sign-expired.crt"), "--cert", key("encrypt.crt"), "-"}, "ended on 2023-04-01T00:00:00Z, and every guest would refuse the contract: renew the certificate"},
		"one of the future":             {[]string{"sign", "--signing-key", key("sign.key"), "--signing-cert", key("sign-future.crt"), "--cert", key("encrypt.crt"), "-"}, "begins only on 2090"},
		"an ended image certificate":    {[]string{"encrypt", "--cert", key("sign-expired.crt"), "-"}, "take the one of a current image"},
		"a signing key with passphrase": {[]string{"sign", "--signing-key", key("sign-aes128.key"), "--cert", key("encrypt.crt"), "-"}, "give it with --passphrase-file"},
		"no signing key":                {[]string{"sign", "--cert", key("encrypt.crt"), "-"}, "openssl genrsa"},
	} {
		r := hpcrctl(t, good, append([]string{"contract"}, tt.args...)...)
		if r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, tt.says) {
			t.Errorf("%s: exit %d\n%s", name, r.code, r.stderr)
		}
	}
}
