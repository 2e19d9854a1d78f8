package contract

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"hpcr/agent/secret"
)

// Token prefixes: of HPCR, and of CCRT since June 2026.
const (
	PrefixHPCR = "hyper-protect-basic"
	PrefixCCRT = "contract-basic"
)

const (
	iterations = 10000
	keyIV      = 48 // PBKDF2 bytes: 32 of key, 16 of IV
	saltMagic  = "Salted__"
)

// ErrToken is the one error of every token that does not open. Which step
// failed is not told: the host may try tokens of its own and watch.
var ErrToken = errors.New("the token cannot be decrypted with this key")

var b64Group = `((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?)`

// tokenShape is matched on a token's short head; the rest goes by isBase64: a
// regular expression over 16 MiB is slow on a small machine.
var tokenShape = regexp.MustCompile(`^(` + PrefixHPCR + `|` + PrefixCCRT + `)\.` + b64Group + `\.$`)

// IsToken says whether s is a whole token and nothing else.
func IsToken(s string) bool {
	_, _, ok := splitToken(s)
	return ok
}

// looksLikeToken is for better words about one that is damaged.
func looksLikeToken(s string) bool {
	s = strings.TrimSpace(s)
	return strings.HasPrefix(s, PrefixHPCR+".") || strings.HasPrefix(s, PrefixCCRT+".")
}

func splitToken(s string) (rsaPart, aesPart string, ok bool) {
	dot := strings.LastIndexByte(s, '.')
	if dot < 0 || dot > 8192 { // an RSA-16384 token's head has 2.8 kB
		return "", "", false
	}
	m := tokenShape.FindStringSubmatch(s[:dot+1])
	if m == nil || !isBase64(s[dot+1:]) {
		return "", "", false
	}
	return m[2], s[dot+1:], true
}

// isBase64 is b64Group without its cost.
func isBase64(s string) bool {
	if len(s)%4 != 0 {
		return false
	}
	body := strings.TrimSuffix(strings.TrimSuffix(s, "="), "=")
	for i := range len(body) {
		if c := body[i]; !inRun[c] || c == '=' || c == '.' || c == '-' {
			return false
		}
	}
	return true
}

// OpenToken decrypts a token with the first key that fits. accept judges a
// plaintext: openssl's unpadding lets 1 of 256 wrong ones through. With
// strict, a password that openssl would have cut is refused. The caller owns
// the result. The only error is ErrToken.
func OpenToken(token string, keys []*rsa.PrivateKey, strict bool, accept func([]byte) bool) (*secret.Secret, error) {
	r, a, ok := splitToken(token)
	if !ok {
		return nil, ErrToken
	}
	sealed, err := base64.StdEncoding.DecodeString(r)
	if err != nil || len(sealed) == 0 {
		return nil, ErrToken
	}
	for _, key := range keys {
		if key.Size() != len(sealed) {
			continue
		}
		//lint:ignore SA1019 the format is PKCS#1 v1.5; every failure is one error, and a try costs a boot
		password, err := rsa.DecryptPKCS1v15(nil, key, sealed)
		if err != nil {
			continue
		}
		plain := openWith(password, a, strict, accept)
		clear(password)
		if plain != nil {
			return plain, nil
		}
	}
	return nil, ErrToken
}

// openWith applies the password as openssl reads it from a pipe: one line, as
// a C string. Producers that used all bytes are served by a second try, but
// only if its result makes sense.
func openWith(password []byte, data string, strict bool, accept func([]byte) bool) *secret.Secret {
	cut := CutPassword(password)
	if len(cut) == len(password) {
		return openSalted(cut, data, accept)
	}
	if strict {
		return nil
	}
	// openssl makes no token from a password that begins with NUL.
	if password[0] != 0 {
		if s := openSalted(cut, data, accept); s != nil {
			return s
		}
	}
	return openSalted(password, data, func(b []byte) bool { return utf8.Valid(b) && accept(b) })
}

// CutPassword is what openssl's -pass stdin makes of a password: the bytes
// before the first LF or NUL.
func CutPassword(password []byte) []byte {
	if i := bytes.IndexAny(password, "\n\x00"); i >= 0 {
		return password[:i]
	}
	return password
}

// openSalted undoes openssl enc -aes-256-cbc -pbkdf2. nil = no. The base64 is
// decoded for each try, and decrypted in its place: there may be 16 MiB of it.
func openSalted(password []byte, text string, accept func([]byte) bool) *secret.Secret {
	const head = len(saltMagic) + 8
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(data) < head+aes.BlockSize || len(data)%aes.BlockSize != 0 || string(data[:8]) != saltMagic {
		return nil
	}
	block, iv := derive(password, data[8:head])
	if block == nil {
		return nil
	}
	plain := data[head:]
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, plain)
	n, ok := unpad(plain)
	if !ok || !accept(plain[:n]) {
		clear(plain)
		return nil
	}
	out := secret.New(plain[:n])
	clear(plain)
	return out
}

func derive(password, salt []byte) (cipher.Block, []byte) {
	// The password's type is a string by the library's wish.
	dk, err := pbkdf2.Key(sha256.New, string(password), salt, iterations, keyIV)
	if err != nil {
		return nil, nil
	}
	block, err := aes.NewCipher(dk[:32])
	if err != nil {
		return nil, nil
	}
	iv := bytes.Clone(dk[32:])
	clear(dk)
	return block, iv
}

// unpad removes PKCS#7 padding.
func unpad(b []byte) (int, bool) {
	n := int(b[len(b)-1])
	if n == 0 || n > aes.BlockSize {
		return 0, false
	}
	want := bytes.Repeat([]byte{byte(n)}, n)
	return len(b) - n, subtle.ConstantTimeCompare(b[len(b)-n:], want) == 1
}

// printable is what generated passwords are made of: no LF, no NUL, no blank,
// nothing that a shell or a YAML reader could bend. 62 letters and digits and
// two signs, so that one random byte in four gives an even choice.
const printable = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// NewPassword makes 32 printable characters, 192 bits.
func NewPassword() ([]byte, error) {
	p := make([]byte, 32)
	if _, err := rand.Read(p); err != nil {
		return nil, fmt.Errorf("random password: %w", err)
	}
	for i, b := range p {
		p[i] = printable[b&63]
	}
	return p, nil
}

// Seal makes a token that openssl's documented commands open.
func Seal(prefix string, key *rsa.PublicKey, plain []byte) (string, error) {
	if prefix != PrefixHPCR && prefix != PrefixCCRT {
		return "", fmt.Errorf("the token prefix is %s or %s", PrefixHPCR, PrefixCCRT)
	}
	password, err := NewPassword()
	if err != nil {
		return "", err
	}
	defer clear(password)
	//lint:ignore SA1019 the only padding that a contract's readers know
	sealed, err := rsa.EncryptPKCS1v15(rand.Reader, key, password)
	if err != nil {
		return "", fmt.Errorf("encrypt the password: %w", err)
	}
	out := make([]byte, 16, 16+len(plain)+aes.BlockSize)
	copy(out, saltMagic)
	if _, err := rand.Read(out[8:16]); err != nil {
		return "", fmt.Errorf("random salt: %w", err)
	}
	block, iv := derive(password, out[8:16])
	if block == nil {
		return "", errors.New("cannot derive the token's key: is GODEBUG=fips140=only set?")
	}
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	out = append(append(out, plain...), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(out[16:], out[16:])
	return prefix + "." + base64.StdEncoding.EncodeToString(sealed) + "." + base64.StdEncoding.EncodeToString(out), nil
}

// isText judges the plaintext of a token whose use is not known.
func isText(b []byte) bool { return utf8.Valid(b) }
