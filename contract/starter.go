package contract

import "embed"

//go:embed starter
var starters embed.FS

// Starter is a contract to begin with, "compose" or "play": every field that
// this version knows, explained, and FillIn where the author has to decide.
func Starter(kind string) ([]byte, bool) {
	b, err := starters.ReadFile("starter/" + kind + ".yaml")
	return b, err == nil
}

// FillIn stands in starters where a value is missing. Guest and lint refuse
// it wherever text is read: a seed or a password that is in print is none.
const FillIn = "FILL-IN"

// fillIns says what belongs into the fields that starters leave open.
var fillIns = map[string]string{
	"archive":   "give the base64 of a tgz on one line: tar -czC DIR . | base64 -w0",
	"hostname":  "give the log server's name or address",
	"server":    "give the certificate of the log server's authority: base64 -w0 ca.crt",
	"cert":      "give the certificate of this client: base64 -w0 client.crt",
	"key":       "give the client's private key, unprotected, as PKCS#8: openssl pkcs8 -topk8 -nocrypt -in client.key | base64 -w0",
	"seed":      "give at least 15 letters and digits that nobody knows: openssl rand -hex 16",
	"username":  "give the registry's user name",
	"password":  "give the registry's password",
	"publicKey": "give base64 of the armored GPG key: gpg -a --export KEY | base64 -w0",
	"image":     "give the image with its digest: registry/path@sha256:DIGEST",
}
