package trust

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	pgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// MaxSignature bounds one signature, in bytes; real ones have a thousand.
const MaxSignature = 64 << 10

// Signature is one that a registry delivered. RHS: an OpenPGP message that
// holds its payload. Cosign: a signature over Payload.
type Signature struct{ Payload, Signature []byte }

var errNoKey = errors.New("no OpenPGP public key")

// keyRing reads one public key or several, armored or not. Private keys are
// refused: one in a contract is a mistake that its owner wants to hear of.
func keyRing(text []byte) (ring pgp.EntityList, err error) {
	defer recovered(&err)
	if len(text) > MaxKey {
		return nil, errNoKey
	}
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN")) {
		ring, err = pgp.ReadArmoredKeyRing(bytes.NewReader(text))
	} else {
		ring, err = pgp.ReadKeyRing(bytes.NewReader(text))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKey, err)
	}
	if len(ring) == 0 {
		return nil, errNoKey
	}
	for _, e := range ring {
		if e.PrivateKey != nil {
			return nil, errors.New("a private key")
		}
	}
	return ring, nil
}

// recovered turns a panic of the OpenPGP library into an error: it parses what
// a registry delivers.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("openpgp: %v", r)
	}
}

// openPGP verifies a signed message and returns what it holds. The key must be
// good now, not only when it signed: who stole a key that has expired would
// date the signature back.
func (r Rule) openPGP(message []byte, now func() time.Time) (text []byte, err error) {
	bad := func(err error) error {
		return refuse(rankFormat, "the image's signature cannot be read: sign the image again", err)
	}
	defer func() {
		if r := recover(); r != nil {
			text, err = nil, bad(fmt.Errorf("openpgp: %v", r))
		}
	}()
	ring, err := keyRing(r.Key)
	if err != nil {
		return nil, bad(err)
	}
	limit, strict := int64(maxPayload+1), true
	conf := &packet.Config{Time: now, MaxDecompressedMessageSize: &limit, CheckPacketSequence: &strict}
	md, err := pgp.ReadMessage(bytes.NewReader(message), ring, nil, conf)
	if err != nil {
		return nil, bad(err)
	}
	if md.IsEncrypted || !md.IsSigned {
		return nil, bad(errors.New("not a signed message in clear"))
	}
	if text, err = io.ReadAll(io.LimitReader(md.UnverifiedBody, maxPayload+1)); err != nil {
		return nil, bad(err)
	}
	if len(text) > maxPayload {
		return nil, bad(errors.New("payload of more than 16 KiB"))
	}
	var weak pgperrors.SignatureError
	var weakKey pgperrors.WeakAlgorithmError
	switch e := md.SignatureError; {
	case !md.IsVerified:
		return nil, bad(errors.New("the message does not end"))
	case e == nil && md.SignedBy != nil && md.Signature != nil:
	case e == pgperrors.ErrSignatureExpired, e == pgperrors.ErrKeyExpired, e == pgperrors.ErrKeyRevoked:
		return nil, expired(e)
	case errors.As(e, &weakKey), errors.As(e, &weak) && conf.RejectMessageHashAlgorithm(hashOf(md)):
		return nil, refuse(rankWeak, "the image's signature uses an algorithm that is too weak: sign it with SHA-256 or better, and no key of less than 2048 bits", e)
	default:
		return nil, refuse(rankKey, "the image is not signed by the contract's key: sign it with that key, or give the key that signed it", e)
	}
	if _, ok := md.SignedBy.Entity.SigningKeyById(now(), md.SignedBy.PublicKey.KeyId, conf); !ok {
		return nil, expired(errors.New("the key signs no more"))
	}
	return text, nil
}

func hashOf(md *pgp.MessageDetails) (h crypto.Hash) {
	if c := md.SelectedCandidate; c != nil {
		h = c.HashAlgorithm
	}
	return h
}

func expired(err error) error {
	return refuse(rankExpired, "the image's signature or its key has expired or is revoked, or the guest's clock is wrong: sign the image again with a key that is valid", err)
}

// Fingerprint names the rule's key for the record: OpenPGP's fingerprint of
// the first key, or SHA-256 of a cosign key's DER form, in hex.
func (r Rule) Fingerprint() string {
	if r.Kind == RHS {
		if ring, err := keyRing(r.Key); err == nil {
			return hex.EncodeToString(ring[0].PrimaryKey.Fingerprint)
		}
		return ""
	}
	return spkiSum(r.Key)
}
