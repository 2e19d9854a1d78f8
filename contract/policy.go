package contract

import (
	"errors"
	"fmt"
	"strconv"
)

// Policy is what the image demands of every contract; it is measured with the
// image.
type Policy struct {
	RequireEncryption       bool     `json:"requireEncryption"`
	RequireSignature        bool     `json:"requireSignature"`
	SigningKeys             [][]byte `json:"signingKeys,omitempty"`   // PEM public keys or certificates; given, one of them must have signed
	StrictPassword          bool     `json:"strictPassword"`          // refuse tokens whose password openssl cut at LF or NUL
	AcceptStrippedSignature bool     `json:"acceptStrippedSignature"` // signatures over newline-less plain sections
	Privileged              bool     `json:"privileged"`              // containers may have power beyond their own (compose.Service.Powers); recorded
	LoggingRequired         bool     `json:"loggingRequired"`
	KDF                     KDF      `json:"kdf"`
	MinMemoryMiB            int      `json:"minMemoryMiB"`
}

// KDF is the cost of Argon2id for new volumes.
type KDF struct {
	MemoryKiB uint32 `json:"memoryKiB"`
	Time      uint32 `json:"time"`
	Parallel  uint32 `json:"parallel"`
}

// DefaultPolicy is an image's policy without a policy file.
func DefaultPolicy(dev bool) Policy {
	return Policy{
		Privileged:      true,
		LoggingRequired: !dev,
		KDF:             KDF{MemoryKiB: 262144, Time: 4, Parallel: 2},
		MinMemoryMiB:    512,
	}
}

// ParsePolicy reads a policy file over the defaults. Unknown keys are
// refused. Its errors name key and line: the file is the builder's own.
func ParsePolicy(text []byte, dev bool) (Policy, error) {
	p := DefaultPolicy(dev)
	n, yerr := parseYAML("policy", text)
	if yerr != nil {
		return p, fmt.Errorf("policy, line %d: %w", yerr.line, yerr)
	}
	if n == nil {
		return p, nil
	}
	if n.kind != mapNode {
		return p, errors.New("policy: must be a mapping of keys and values")
	}
	for i, k := range n.keys {
		if err := p.set(k.text, n.vals[i]); err != nil {
			line := k.line
			if inner := (*placed)(nil); errors.As(err, &inner) {
				line = inner.line
			}
			return p, fmt.Errorf("policy, line %d: %s: %w", line, k.text, err)
		}
	}
	return p, nil
}

// placed is an error below a key of the policy, with a line of its own.
type placed struct {
	line int
	error
}

func (p *placed) Unwrap() error { return p.error }

func (p *Policy) set(key string, v *node) error {
	switch key {
	case "requireEncryption":
		return setBool(&p.RequireEncryption, v)
	case "requireSignature":
		return setBool(&p.RequireSignature, v)
	case "strictPassword":
		return setBool(&p.StrictPassword, v)
	case "acceptStrippedSignature":
		return setBool(&p.AcceptStrippedSignature, v)
	case "privileged":
		if v.kind == scalarNode && v.tag == "!!bool" { // true and false read as allow and refuse
			return setBool(&p.Privileged, v)
		}
		return setWord(&p.Privileged, v, "allow", "refuse")
	case "logging":
		return setWord(&p.LoggingRequired, v, "required", "optional")
	case "signingKeys":
		return p.setSigningKeys(v)
	case "kdf":
		return p.KDF.set(v)
	case "minMemoryMiB":
		return setInt(&p.MinMemoryMiB, v, 1, 1<<24)
	default:
		return errors.New("unknown key")
	}
}

func (p *Policy) setSigningKeys(v *node) error {
	// "any" stands for the default: whoever the contract names.
	if v.isString() && v.text == "any" {
		p.SigningKeys = nil
		return nil
	}
	if v.kind != listNode || len(v.vals) == 0 {
		return errors.New(`must be "any" or a list of PEM public keys or certificates`)
	}
	p.SigningKeys = nil
	for _, k := range v.vals {
		key, err := signingKey(k)
		if err != nil {
			return &placed{k.line, err}
		}
		p.SigningKeys = append(p.SigningKeys, key)
	}
	return nil
}

// signingKey is one key of the list, in normal form.
func signingKey(v *node) ([]byte, error) {
	if !v.isString() {
		return nil, errors.New("each signing key is PEM text")
	}
	text, _, err := pemText(v.text)
	if err != nil {
		return nil, err
	}
	key, _, err := rsaPublic(pemBlocks(text))
	if err != nil {
		return nil, err
	}
	return publicPEM(key)
}

func (k *KDF) set(v *node) error {
	if v.kind != mapNode {
		return errors.New("must be a mapping of memoryKiB, time and parallel")
	}
	for i, key := range v.keys {
		var (
			n   int
			err error
		)
		switch key.text {
		case "memoryKiB":
			err = setInt(&n, v.vals[i], 8192, 4<<20)
			k.MemoryKiB = uint32(n)
		case "time":
			err = setInt(&n, v.vals[i], 1, 1000)
			k.Time = uint32(n)
		case "parallel":
			err = setInt(&n, v.vals[i], 1, 4)
			k.Parallel = uint32(n)
		default:
			err = errors.New("unknown key")
		}
		if err != nil {
			return &placed{key.line, fmt.Errorf("%s: %w", key.text, err)}
		}
	}
	return nil
}

func setBool(to *bool, v *node) error {
	if v.kind != scalarNode || v.tag != "!!bool" {
		return errors.New("must be true or false")
	}
	*to = v.text == "true" || v.text == "True" || v.text == "TRUE"
	return nil
}

// setWord takes one of two words.
func setWord(to *bool, v *node, yes, no string) error {
	if !v.isString() || v.text != yes && v.text != no {
		return fmt.Errorf("must be %q or %q", yes, no)
	}
	*to = v.text == yes
	return nil
}

func setInt(to *int, v *node, low, high int) error {
	if v.kind != scalarNode || v.tag != "!!int" {
		return errors.New("must be a whole number")
	}
	n, err := strconv.Atoi(v.text)
	if err != nil || n < low || n > high {
		return fmt.Errorf("must be a whole number from %d to %d", low, high)
	}
	*to = n
	return nil
}
