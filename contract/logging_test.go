package contract

import (
	"encoding/base64"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"

	"hpcr/agent/hpl"
)

// openssl runs the real one in a folder.
func openssl(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v: %s", args[0], err, out)
	}
}

// TestLogPEMForms: every form that openssl and users write is either taken or
// refused with its code and a sentence of its own. The texts are openssl's.
func TestLogPEMForms(t *testing.T) {
	dir := t.TempDir()
	openssl(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=guest", "-days", "30")
	openssl(t, dir, "ec", "-in", "key.pem", "-out", "sec1.pem")
	openssl(t, dir, "ecparam", "-name", "prime256v1", "-out", "params.pem")
	openssl(t, dir, "req", "-new", "-key", "key.pem", "-subj", "/CN=guest", "-out", "request.pem")
	openssl(t, dir, "x509", "-in", "cert.pem", "-text", "-out", "text.pem")
	openssl(t, dir, "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
	openssl(t, dir, "pkcs8", "-topk8", "-in", "key.pem", "-passout", "pass:canary", "-out", "protected.pem")
	openssl(t, dir, "ec", "-in", "key.pem", "-aes128", "-passout", "pass:canary", "-out", "protected-old.pem")
	openssl(t, dir, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "rsa.pem", "-out", "rsacert.pem", "-subj", "/CN=guest", "-days", "30")
	openssl(t, dir, "rsa", "-in", "rsa.pem", "-traditional", "-out", "pkcs1.pem")
	read := func(name string) string { return string(readFile(t, dir, name)) }
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	wrapped := func(s string) string {
		s = b64(s)
		var lines []string
		for len(s) > 64 {
			lines, s = append(lines, s[:64]), s[64:]
		}
		return strings.Join(append(lines, s), "\n")
	}
	der := func(s string) string {
		b, _ := pem.Decode([]byte(s))
		return base64.StdEncoding.EncodeToString(b.Bytes)
	}
	cert, key := read("cert.pem"), read("key.pem")
	fails := func(code hpl.Code, field, words string) [3]string { return [3]string{string(code), field, words} }
	var taken [3]string
	for name, tt := range map[string]struct {
		server, cert, key string // "" = the good ones
		want              [3]string
	}{
		"PEM as a block":                {want: taken},
		"base64 of PEM":                 {b64(cert), b64(cert), b64(key), taken},
		"base64 in lines":               {wrapped(cert), wrapped(cert), wrapped(key), taken},
		"base64 of base64":              {b64(b64(cert)), b64(b64(cert)), b64(b64(key)), taken},
		"backslash and n for line ends": {strings.ReplaceAll(cert, "\n", `\n`), strings.ReplaceAll(cert, "\n", `\n`), strings.ReplaceAll(key, "\n", `\n`), taken},
		"lines that end as in Windows":  {strings.ReplaceAll(cert, "\n", "\r\n"), strings.ReplaceAll(cert, "\n", "\r\n"), strings.ReplaceAll(key, "\n", "\r\n"), taken},
		"no line end at the end":        {strings.TrimSpace(cert), strings.TrimSpace(cert), strings.TrimSpace(key), taken},
		"openssl x509 -text":            {read("text.pem"), read("text.pem"), "", taken},
		"a bundle of authorities":       {cert + read("rsacert.pem"), "", "", taken},
		"an EC key as before PKCS#8":    {"", "", read("sec1.pem"), taken},
		"an EC key after its curve":     {"", "", read("params.pem") + read("sec1.pem"), taken},
		"an RSA key in PKCS#1":          {"", read("rsacert.pem"), read("pkcs1.pem"), taken},
		"an RSA key in PKCS#8":          {"", read("rsacert.pem"), read("rsa.pem"), taken},

		"a certificate without PEM's lines":         {"", der(cert), "", fails("HPL01005E", "cert", "without the lines -----BEGIN")},
		"a key without PEM's lines":                 {"", "", der(key), fails("HPL01005E", "key", "without the lines -----BEGIN")},
		"an authority without PEM's lines":          {der(cert), "", "", fails("HPL01005E", "server", "without the lines -----BEGIN")},
		"a path to a file":                          {"", "", "/etc/ssl/canary.pem", fails("HPL01005E", "key", "no PEM text")},
		"certificate and key swapped":               {"", key, cert, fails("HPL01008E", "cert", "swapped")},
		"a certificate as key":                      {"", "", cert, fails("HPL01006E", "key", "swapped")},
		"a key as authority":                        {key, "", "", fails("HPL01007E", "server", "private key and not a certificate")},
		"a request as certificate":                  {"", read("request.pem"), "", fails("HPL01008E", "cert", "request for a certificate")},
		"the public key":                            {"", "", read("public.pem"), fails("HPL01006E", "key", "public key")},
		"a key with a passphrase":                   {"", "", read("protected.pem"), fails("HPL01006E", "key", "protected by a passphrase")},
		"a key with a passphrase, as before PKCS#8": {"", "", read("protected-old.pem"), fails("HPL01006E", "key", "protected by a passphrase")},
		"a key of ssh":                              {"", "", "-----BEGIN OPENSSH PRIVATE KEY-----\nY2FuYXJ5\n-----END OPENSSH PRIVATE KEY-----\n", fails("HPL01006E", "key", "form of ssh")},
		"a damaged certificate":                     {"", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n", "", fails("HPL01008E", "cert", "damaged")},
		"a damaged key":                             {"", "", "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----\n", fails("HPL01006E", "key", "cannot be read")},
		"an empty key":                              {"", "", " ", fails("HPL01009E", "key", "empty")},
		"the key of another":                        {"", "", read("rsa.pem"), fails("HPL01008E", "key", "do not belong together")},
	} {
		t.Run(name, func(t *testing.T) {
			s := baseSections(t)
			values := map[string]string{"hostname": "logs.example.com", "server": cert, "cert": cert, "key": key}
			for field, v := range map[string]string{"server": tt.server, "cert": tt.cert, "key": tt.key} {
				if v != "" {
					values[field] = v
				}
			}
			// Without volumes and registries, which are not what this is about.
			s["workload"], _, _ = strings.Cut(s["workload"], "volumes:\n")
			s["env"] = "type: env\nlogging:\n  syslog:\n"
			for _, field := range []string{"hostname", "server", "cert", "key"} {
				s["env"] += "    " + field + ": " + yamlText(values[field]) + "\n"
			}
			r := runSections(t, s, false)
			_, err := r.verdict()
			if tt.want == taken {
				if got := r.plan.Syslog; err != nil || got == nil || len(got.CA) == 0 || len(got.Cert) == 0 || got.Key.Len() == 0 {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			e := hpl.From(err)
			if string(e.Code) != tt.want[0] || e.Path != "/env/logging/syslog/"+tt.want[1] || !strings.Contains(e.Detail, tt.want[2]) || strings.Contains(e.Line(), "canary") {
				t.Errorf("got %v", e.Line())
			}
		})
	}
}

// yamlText is a YAML text in double quotes.
func yamlText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`).Replace(s) + `"`
}
