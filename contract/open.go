package contract

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"hpcr/agent/secret"
)

// Opened is a contract with its tokens opened, not checked any further.
type Opened struct {
	UserData *secret.Secret            // the form of user-data.decrypted, seeds and tokens inside sections as they stand
	Sections map[string]*secret.Secret // top-level key → exact plaintext
}

// Wipe ends the opened contract.
func (o *Opened) Wipe() {
	o.UserData.Wipe()
	for _, s := range o.Sections {
		s.Wipe()
	}
}

// Open decrypts the top level of a contract for its owner. It does not ask
// whether a guest would accept it. The caller owns the result. Errors are
// *hpl.Error.
func Open(userData []byte, keys []*secret.Secret) (*Opened, error) {
	r, err := newRun(keys, Policy{}, time.Time{})
	if err != nil {
		return nil, err
	}
	r.plan = &Plan{}
	r.files.UserData = userData
	for _, step := range []func(){r.envelope, r.unseal} {
		step()
		if f := r.firstError(); f != nil {
			return nil, f.hplError()
		}
	}
	var cut runs
	text, err := r.userData(&cut, (*section).plainText)
	if err != nil {
		return nil, fmt.Errorf("write the contract out: %w", err)
	}
	out := &Opened{UserData: secret.FromString(cut.restore(string(text))), Sections: map[string]*secret.Secret{}}
	for i, k := range r.top.n.keys {
		var s string
		switch v := r.top.n.vals[i]; {
		case k.text == "workload":
			s, err = r.workload.plainText(nil)
		case k.text == "env":
			s, err = r.env.plainText(nil)
		case k.text == "attestationPublicKey":
			s = r.decryptedKey
		case v.isString():
			s = v.text
		default:
			s, err = dumpString(v)
		}
		if err != nil {
			out.Wipe()
			return nil, fmt.Errorf("write the contract out: %w", err)
		}
		out.Sections[k.text] = secret.FromString(s)
	}
	return out, nil
}

// OpenBare decrypts a token alone, of text or, if that fails, of any bytes.
func OpenBare(token string, keys []*secret.Secret) (*secret.Secret, error) {
	r, err := newRun(keys, Policy{}, time.Time{})
	if err != nil {
		return nil, err
	}
	if plain, err := OpenToken(token, r.keys, false, isText); err == nil {
		return plain, nil
	}
	return OpenToken(token, r.keys, false, func([]byte) bool { return true })
}

// Contract is a contract that a tool is about to change: its top level, values
// as they stand.
type Contract struct {
	top *node
}

// ParseContract reads the top level without looking into the sections.
func ParseContract(userData []byte) (*Contract, error) {
	n, yerr := parseYAML("user-data", userData)
	if yerr != nil {
		return nil, fmt.Errorf("line %d: %w", yerr.line, yerr)
	}
	if n == nil || n.kind != mapNode {
		return nil, errors.New("a contract is a mapping with workload and env as its keys")
	}
	return &Contract{top: n}, nil
}

// Value is a top-level value as text; a mapping is written out as YAML.
func (c *Contract) Value(key string) (string, bool, error) {
	n := c.top.get(key)
	switch {
	case n == nil:
		return "", false, nil
	case n.isString():
		return n.text, true, nil
	case n.kind == mapNode:
		s, err := dumpString(n)
		return s, true, err
	default:
		return "", false, fmt.Errorf("%s must be text", key)
	}
}

// Set replaces or adds a top-level value.
func (c *Contract) Set(key, value string) {
	v := stringNode(value)
	for i, k := range c.top.keys {
		if k.text == key {
			c.top.vals[i] = v
			return
		}
	}
	c.top.keys, c.top.vals = append(c.top.keys, stringNode(key)), append(c.top.vals, v)
}

// Encode writes the contract as YAML, keys in their order.
func (c *Contract) Encode() ([]byte, error) { return dump(c.top) }

// CheckSection says what is wrong with a section's plaintext before somebody
// encrypts it: not a YAML mapping, or the other section. Its fields are lint's
// to judge.
func CheckSection(name string, text []byte) error {
	n, yerr := parseYAML(name, text)
	switch {
	case yerr != nil:
		return fmt.Errorf("%s, line %d: %w", name, yerr.line, yerr)
	case n == nil || n.kind != mapNode:
		return fmt.Errorf("%s is not a YAML mapping", name)
	case n.get(name) != nil && n.get("type") == nil:
		return fmt.Errorf(`this looks like a whole contract: a section's text begins with "type: %s"`, name)
	case !n.get("type").isString() || n.get("type").text != name:
		return fmt.Errorf(`a section's text holds "type: %s"; this one does not`, name)
	}
	return nil
}

// WithSigningKey adds the key to env's text, which stays as it is otherwise,
// and says whether a key was there already.
func WithSigningKey(env, key string) (text string, had bool, err error) {
	n, yerr := parseYAML("env", []byte(env))
	if yerr != nil {
		return "", false, fmt.Errorf("env, line %d: %w", yerr.line, yerr)
	}
	if n == nil || n.kind != mapNode || len(n.keys) == 0 {
		return "", false, errors.New("env is not a YAML mapping")
	}
	for i, k := range n.keys {
		if k.text == "signingKey" {
			n.vals[i] = stringNode(key)
			text, err := dumpString(n)
			return text, true, err
		}
	}
	indent := strings.Repeat(" ", max(0, n.keys[0].col-1))
	text = strings.TrimRight(env, " \t\r\n") + "\n" + indent + "signingKey: " + key + "\n"
	n.keys, n.vals = append(n.keys, stringNode("signingKey")), append(n.vals, stringNode(key))
	if again, yerr := parseYAML("env", []byte(text)); yerr == nil && again.same(n) {
		return text, false, nil
	}
	// Flow style, or a last scalar that an added line would change.
	text, err = dumpString(n)
	return text, false, err
}

// same compares values, not places and styles.
func (n *node) same(o *node) bool {
	if n == nil || o == nil {
		return n == o
	}
	if n.kind != o.kind || n.tag != o.tag || n.text != o.text || len(n.keys) != len(o.keys) || len(n.vals) != len(o.vals) {
		return false
	}
	for i := range n.keys {
		if !n.keys[i].same(o.keys[i]) {
			return false
		}
	}
	for i := range n.vals {
		if !n.vals[i].same(o.vals[i]) {
			return false
		}
	}
	return true
}

// CheckAttestationKey says whether a text is a key that the record can be
// encrypted with, in PEM or base64 of it.
func CheckAttestationKey(text []byte) error {
	raw, _, err := pemText(string(text))
	if err != nil {
		return errors.New("this is neither a PEM public key nor base64 of one")
	}
	_, cert, err := rsaPublic(pemBlocks(raw))
	if err != nil || cert != nil {
		return errors.New("this is not a PEM public key of RSA with 2048 bits or more")
	}
	return nil
}
