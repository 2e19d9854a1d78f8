package trust

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The vectors were made by gpg 2.2 and openssl 3.0, see testdata/make.sh.
const vectorDigest = "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"

func clock() time.Time { return time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC) }

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustImage(t testing.TB, ref string) Image {
	t.Helper()
	i, ok := ParseImage(ref)
	if !ok {
		t.Fatalf("%q is no reference", ref)
	}
	return i
}

func TestSimpleSigning(t *testing.T) {
	const app = "registry.example.com/team/app"
	for sentence, tt := range map[string]struct {
		key, signature string // files
		image          string // app:1
		cut            int    // bytes off the end
		now            time.Time
		want           string // part of the refusal; "" = accepted
	}{
		"a signature by the key, for the tag":                  {signature: "good"},
		"a message that gpg did not compress":                  {signature: "uncompressed"},
		"an Ed25519 key":                                       {key: "ed25519", signature: "ed25519"},
		"two signers, one of them ours":                        {signature: "two"},
		"a pinned image of the repository that was signed":     {signature: "good", image: app + "@" + vectorDigest},
		"a pinned image with another tag":                      {signature: "good", image: app + ":9@" + vectorDigest},
		"a host in capitals":                                   {signature: "good", image: "Registry.Example.com/team/app:1"},
		"a stranger's signature":                               {signature: "stranger", want: "not signed by the contract's key"},
		"a key that expired since it signed":                   {key: "expired", signature: "expired", want: "has expired"},
		"a key before it expires":                              {key: "expired", signature: "expired", now: time.Date(2026, 1, 20, 0, 0, 0, 0, time.UTC)},
		"a signature that expired":                             {signature: "short", want: "has expired"},
		"a signature from the future":                          {signature: "good", now: time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC), want: "clock is wrong"},
		"an RSA key of 1024 bits":                              {key: "small", signature: "small", want: "too weak"},
		"SHA-1":                                                {signature: "sha1", want: "too weak"},
		"another digest":                                       {signature: "other-digest", want: "for another digest"},
		"another tag":                                          {signature: "other-tag", want: "for another name or tag"},
		"another repository":                                   {signature: "other-name", want: "for another name or tag"},
		"another repository, and pinned":                       {signature: "other-name", image: app + "@" + vectorDigest, want: "for another name or tag"},
		"no tag, when one is asked for":                        {signature: "no-tag", want: "for another name or tag"},
		"the tag that was not written":                         {signature: "good", image: app, want: "for another name or tag"},
		"the payload of another kind of signature":             {signature: "other-type", want: "not an image's signature"},
		"a signed text that is no payload":                     {signature: "not-json", want: "not an image's signature"},
		"a message that is not signed":                         {signature: "unsigned", want: "cannot be read"},
		"a signature without its payload":                      {signature: "detached", want: "cannot be read"},
		"a text signature":                                     {signature: "clear", want: "cannot be read"},
		"an encrypted message":                                 {signature: "encrypted", want: "cannot be read"},
		"a payload of 200 kB in 741 bytes":                     {signature: "bomb", want: "cannot be read"},
		"a signature that breaks off":                          {signature: "uncompressed", cut: 20, want: "cannot be read"},
		"a signature whose last packet is cut away as a whole": {signature: "uncompressed", cut: 310, want: "cannot be read"},
	} {
		t.Run(sentence, func(t *testing.T) {
			if tt.key == "" {
				tt.key = "owner"
			}
			if tt.image == "" {
				tt.image = app + ":1"
			}
			if tt.now.IsZero() {
				tt.now = clock()
			}
			message := read(t, tt.signature+".gpg")
			message = message[:len(message)-tt.cut]
			r := Rule{Kind: RHS, Ref: app, Key: read(t, tt.key+".asc")}
			err := r.Verify(Signature{Signature: message}, mustImage(t, tt.image), vectorDigest, func() time.Time { return tt.now })
			expect(t, err, tt.want)
		})
	}
}

func TestCosign(t *testing.T) {
	const app = "registry.example.com/team/app"
	for sentence, tt := range map[string]struct {
		key, signature, image string
		payload               string
		want                  string
	}{
		"a P-256 key, for the repository":  {signature: "cosign"},
		"an RSA key":                       {key: "rsa", signature: "cosign-rsa"},
		"an Ed25519 key":                   {key: "ed", signature: "cosign-ed"},
		"a signature for the tag":          {signature: "cosign-tag"},
		"a pinned image and another tag's": {signature: "cosign-other-tag", image: app + "@" + vectorDigest},
		"another tag":                      {signature: "cosign-other-tag", want: "another name or tag"},
		"another repository":               {signature: "cosign-other-name", want: "another name or tag"},
		"another digest":                   {signature: "cosign-other-digest", want: "another digest"},
		"another key":                      {key: "rsa", signature: "cosign", want: "not signed by the contract's key"},
		"SHA-1":                            {signature: "cosign-sha1", want: "not signed by the contract's key"},
		"the payload of simple signing":    {signature: "cosign-type", want: "not an image's signature"},
		"the signature of another payload": {signature: "cosign", payload: "cosign-tag", want: "not signed by the contract's key"},
		"a payload that grew by one blank": {signature: "cosign", payload: "+ ", want: "not signed by the contract's key"},
		"a payload larger than any":        {signature: "cosign", payload: "+" + strings.Repeat(" ", maxPayload), want: "too large"},
	} {
		t.Run(sentence, func(t *testing.T) {
			if tt.key == "" {
				tt.key = "p256"
			}
			if tt.image == "" {
				tt.image = app + ":1"
			}
			more, extend := strings.CutPrefix(tt.payload, "+")
			if tt.payload == "" || extend {
				tt.payload = tt.signature
			}
			s := Signature{Payload: read(t, tt.payload+".json"), Signature: read(t, tt.signature+".sig")}
			if extend {
				s.Payload = append(s.Payload, more...)
			}
			r := Rule{Kind: Cosign, Ref: app, Key: read(t, tt.key+".pem")}
			expect(t, r.Verify(s, mustImage(t, tt.image), vectorDigest, clock), tt.want)
		})
	}
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	var e *Error
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want == "":
	case !errors.As(err, &e):
		t.Errorf("got %v, want *Error %q", err, want)
	case !strings.Contains(e.Detail, want):
		t.Errorf("got %v, want %q", err, want)
	}
}

// Every bit of a signature counts: none can be turned without a refusal,
// except where the format has a freedom that changes nothing of what is signed.
func TestEveryBitOfTheSignatureCounts(t *testing.T) {
	r := Rule{Kind: Cosign, Key: read(t, "p256.pem")}
	s := Signature{read(t, "cosign.json"), read(t, "cosign.sig")}
	i := mustImage(t, "registry.example.com/team/app:1")
	for _, part := range [][]byte{s.Payload, s.Signature} {
		for n := range len(part) * 8 {
			part[n/8] ^= 1 << (n % 8)
			if r.Verify(s, i, vectorDigest, clock) == nil {
				t.Errorf("bit %d can be turned", n)
			}
			part[n/8] ^= 1 << (n % 8)
		}
	}
}

func TestKeys(t *testing.T) {
	for sentence, tt := range map[string]struct {
		rule Rule
		ok   bool
	}{
		"armored":                 {Rule{Kind: RHS, Key: read(t, "owner.asc")}, true},
		"a private key":           {Rule{Kind: RHS, Key: read(t, "private.asc")}, false},
		"PEM where GPG is meant":  {Rule{Kind: RHS, Key: read(t, "p256.pem")}, false},
		"nothing":                 {Rule{Kind: RHS}, false},
		"more than 64 KiB":        {Rule{Kind: RHS, Key: append(read(t, "owner.asc"), make([]byte, MaxKey)...)}, false},
		"P-256":                   {Rule{Kind: Cosign, Key: read(t, "p256.pem")}, true},
		"RSA-2048":                {Rule{Kind: Cosign, Key: read(t, "rsa.pem")}, true},
		"Ed25519":                 {Rule{Kind: Cosign, Key: read(t, "ed.pem")}, true},
		"RSA-1024":                {Rule{Kind: Cosign, Key: read(t, "short.pem")}, false},
		"P-521":                   {Rule{Kind: Cosign, Key: read(t, "p521.pem")}, false},
		"GPG where PEM is meant":  {Rule{Kind: Cosign, Key: read(t, "owner.asc")}, false},
		"two keys":                {Rule{Kind: Cosign, Key: append(read(t, "p256.pem"), read(t, "rsa.pem")...)}, false},
		"a kind that is not ours": {Rule{Kind: "images.dct", Key: read(t, "p256.pem")}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if err := tt.rule.CheckKey(); (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
			if tt.ok && len(tt.rule.Fingerprint()) < 40 {
				t.Errorf("fingerprint %q", tt.rule.Fingerprint())
			}
		})
	}
}

func TestFor(t *testing.T) {
	p := Policy{
		{Kind: RHS, Ref: "registry.example.com/team/app"},
		{Kind: RHS, Ref: "registry.example.com/team/app:2"},
		{Kind: RHS, Ref: "docker.io/library/nginx"},
		{Kind: Cosign, Ref: "registry.example.com:5000/*"},
		{Kind: Cosign, Ref: "registry.example.com:5000/team/*"},
		{Kind: Cosign, Ref: "registry.example.com:5000/team/app"},
		{Kind: Cosign, Ref: "registry.example.com/team/app@" + vectorDigest},
	}
	for image, want := range map[string][]int{
		"registry.example.com/team/app":                 {0},
		"registry.example.com/team/app:1":               {0},
		"registry.example.com/team/app:2":               {1},
		"REGISTRY.example.com/team/app:2":               {1},
		"registry.example.com/team/app@" + vectorDigest: {6},
		"registry.example.com/team/app2:1":              nil,
		"registry.example.com/team/app/more:1":          nil,
		"registry.example.com:443/team/app:1":           nil,
		"nginx":                                         {2},
		"index.docker.io/library/nginx":                 {2},
		"registry.example.com:5000/other/app":           {3},
		"registry.example.com:5000/team/other":          {4},
		"registry.example.com:5000/team/app:9":          {5},
		"registry.example.com:5000/teams/app":           {3},
		"registry.example.com:5001/team/app":            nil,
	} {
		t.Run(image, func(t *testing.T) {
			var rules []Rule
			for _, n := range want {
				rules = append(rules, p[n])
			}
			if d := cmp.Diff(rules, p.For(mustImage(t, image))); d != "" {
				t.Error(d)
			}
		})
	}
	pod := mustImage(t, "registry.example.com/team/app@"+vectorDigest)
	pod.Pod = true
	if d := cmp.Diff([]Rule{p[0], p[6]}, p.For(pod)); d != "" {
		t.Errorf("of a pod: %s", d)
	}
}

func TestPolicyCheck(t *testing.T) {
	key, gpg := read(t, "p256.pem"), read(t, "owner.asc")
	many := Policy{}
	for range MaxRules + 1 {
		many = append(many, Rule{Cosign, "a.example/x", key})
	}
	for sentence, tt := range map[string]struct {
		policy Policy
		ok     bool
	}{
		"nothing":                            {nil, true},
		"one of each kind for one name":      {Policy{{Cosign, "a.example/x", key}, {RHS, "a.example/x", gpg}}, true},
		"one name twice":                     {Policy{{Cosign, "a.example/x", key}, {Cosign, "A.example/x", key}}, false},
		"a wildcard for simple signing":      {Policy{{RHS, "a.example/*", gpg}}, false},
		"a wildcard in the middle":           {Policy{{Cosign, "a.example/*/x", key}}, false},
		"a wildcard for the hub by its name": {Policy{{Cosign, "docker.io/*", key}}, true},
		"a wildcard for all the world":       {Policy{{Cosign, "*", key}}, false},
		"a wildcard for a name without host": {Policy{{Cosign, "team/*", key}}, false},
		"a wildcard behind a tag":            {Policy{{Cosign, "a.example/x:1/*", key}}, false},
		"more than 64 rules":                 {many, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			if err := tt.policy.Check(); (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestPayload(t *testing.T) {
	good := string(read(t, "cosign.json"))
	if _, err := parsePayload([]byte(good), cosignType); err != nil {
		t.Fatal(err)
	}
	for sentence, text := range map[string]string{
		"a digest that stands twice": strings.Replace(good, `"docker-manifest-digest"`, `"docker-manifest-digest":"`+vectorDigest+`","docker-manifest-digest"`, 1),
		"a key in capitals":          strings.Replace(good, `"docker-manifest-digest"`, `"Docker-manifest-digest"`, 1),
		"more in critical":           strings.Replace(good, `"critical":{`, `"critical":{"x":1,`, 1),
		"more beside critical":       strings.Replace(good, `{"critical"`, `{"x":1,"critical"`, 1),
		"more behind it":             good + "{}",
		"a digest of another kind":   strings.Replace(good, "sha256:", "sha512:", 1),
		"a digest that is a number":  strings.Replace(good, `"`+vectorDigest+`"`, "1", 1),
		"a digest that is null":      strings.Replace(good, `"`+vectorDigest+`"`, "null", 1),
		"a list":                     "[" + good + "]",
		"nothing":                    "",
		"half of it":                 good[:len(good)/2],
	} {
		t.Run(sentence, func(t *testing.T) {
			if p, err := parsePayload([]byte(text), cosignType); err == nil {
				t.Errorf("taken for %+v", p)
			}
		})
	}
}

func TestClosest(t *testing.T) {
	far, near := refuse(rankDigest, "far", nil), refuse(rankKey, "near", nil)
	for _, tt := range []struct{ a, b, want *Error }{{nil, near, near}, {near, far, far}, {far, near, far}, {near, nil, near}} {
		if got := Closest(tt.a, tt.b); got != tt.want {
			t.Errorf("Closest(%v, %v) = %v", tt.a, tt.b, got)
		}
	}
}
