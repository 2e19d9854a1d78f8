package attest

import (
	"bytes"
	"fmt"
	"regexp"
	"sync"
	"time"
)

// Fact is one line of the record: a hash line if SHA256 is set ("<hex> <name>"),
// else the free text "Name: Text".
type Fact struct {
	Name   string
	SHA256 string // 64 lower-case hex digits
	Text   string
}

// Record collects facts from the phases. Methods may be called side by side.
type Record struct {
	mu    sync.Mutex
	first string // the image's version, line 1
	facts []Fact
}

// NewRecord starts a record for an image version.
func NewRecord(version string) *Record { return &Record{first: version} }

// Add appends facts. Order within the record: text lines first, as HPCR has
// them, then hashes, each in the order added.
func (r *Record) Add(facts ...Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts = append(r.facts, facts...)
}

// hashLine is what readers of the record take for a hash (IBM's Terraform
// provider, contract.md §4.2): no text line may look like one.
var hashLine = regexp.MustCompile(`^\s*([0-9a-f]+)\s+([^\s]+)\s*$`)

var (
	hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)
	plainName = regexp.MustCompile(`^[!-~]+$`)
	plainText = regexp.MustCompile(`^[ -~]+$`)
)

// Bounds on a line's parts; counted repeats in the expressions would cost each
// process of the binary a millisecond at its start.
const maxName, maxText = 255, 512

// Text renders the record. A fact that could be read as another one is an
// error: the record is evidence.
func (r *Record) Text() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var head, hashes bytes.Buffer
	fmt.Fprintln(&head, r.first)
	seen := map[string]bool{}
	for _, f := range r.facts {
		if f.SHA256 == "" {
			line := f.Name + ": " + f.Text
			if len(line) > maxText || !plainText.MatchString(line) || hashLine.MatchString(line) {
				return nil, fmt.Errorf("fact %q is not a text line", f.Name)
			}
			fmt.Fprintln(&head, line)
			continue
		}
		if len(f.Name) > maxName || !hexDigest.MatchString(f.SHA256) || !plainName.MatchString(f.Name) || seen[f.Name] {
			return nil, fmt.Errorf("fact %q is not a hash line, or double", f.Name)
		}
		seen[f.Name] = true
		fmt.Fprintln(&hashes, f.SHA256, f.Name)
	}
	return append(head.Bytes(), hashes.Bytes()...), nil
}

// ValidUntil renders a certificate's end as HPCR does: "Jul 06 06:44:41 2027 UTC".
func ValidUntil(t time.Time) string { return t.UTC().Format("Jan 02 15:04:05 2006 UTC") }
