package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/sandbox"
	"hpcr/agent/secret"
	"hpcr/contract"
)

// Limits of the contract child.
const (
	contractMemory = 320 << 20
	contractLimit  = 60 * time.Second
	maxKeyFile     = 64 << 10
	maxKeys        = 16
)

// order is what the agent asks of the contract child, on its stdin.
type order struct {
	Policy contract.Policy `json:"policy"`
	Now    time.Time       `json:"now"`
	Keys   int             `json:"keys"`
}

// refusal is the child's answer when the contract does not hold (exit 1).
type refusal struct {
	Code   hpl.Code `json:"code"`
	Path   string   `json:"path"`
	Detail string   `json:"detail"`
	Cause  string   `json:"cause"`
}

// openContract has the contract child decrypt and verify what cidata holds.
// The keys go to the child as open files: they never pass through the agent.
func openContract(ctx context.Context, cidata []byte, o order, keys []*os.File) (*contract.Verified, error) {
	device, err := sandbox.SealedFile("cidata", cidata)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	o.Keys = len(keys)
	in, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var v *contract.Verified
	err = sandbox.Spawn(ctx, sandbox.Child{
		Path: "/bin/contract", Name: "contract", Stdin: in, Files: append([]*os.File{device}, keys...),
		Memory: contractMemory, Output: contract.MaxWire, Limit: contractLimit,
	}, func(answer []byte, refused bool) error {
		if refused {
			return readRefusal(answer)
		}
		var err error
		if v, err = contract.Decode(answer); err != nil {
			return hpl.Wrap(err, "HPL11001E", "", "the contract could not be processed")
		}
		return nil
	})
	var known *hpl.Error
	if err != nil && !errors.As(err, &known) {
		err = hpl.Wrap(err, "HPL11001E", "", "the contract could not be processed within its limits of memory and time")
	}
	return v, err
}

var (
	refusalPath   = regexp.MustCompile(`^(/[A-Za-z0-9_.#-]{1,64})*$`)
	refusalDetail = regexp.MustCompile(`^[ -~]*$`)
)

// readRefusal takes the child's word for the reason, as far as it is one: the
// child has read hostile bytes.
func readRefusal(out []byte) error {
	var r refusal
	d := json.NewDecoder(bytes.NewReader(out))
	d.DisallowUnknownFields()
	err := d.Decode(&r)
	e, known := hpl.Lookup(r.Code)
	if err != nil || !known || !e.Fatal || len(r.Path) > 256 || len(r.Detail) > 400 ||
		!refusalPath.MatchString(r.Path) || !refusalDetail.MatchString(r.Detail) {
		return hpl.Wrap(err, "HPL11001E", "", "the contract was refused without a reason")
	}
	cause := errors.New("no further cause")
	if r.Cause != "" {
		cause = fmt.Errorf("%.500q", r.Cause)
	}
	return hpl.Wrap(cause, r.Code, r.Path, r.Detail)
}

// ContractMain is the contract applet: the order on stdin, cidata and the keys
// as its files; the verified contract, or the refusal, to stdout.
func ContractMain() { sandbox.Finish(contractMain()) }

// contractMain returns the child's status: 1 with a refusal.
func contractMain() int {
	if err := sandbox.Confine(); err != nil {
		return 2
	}
	v, err := contractChild()
	if err == nil {
		err = v.Encode(os.Stdout)
	}
	if err != nil {
		e := hpl.From(err)
		r := refusal{Code: e.Code, Path: e.Path, Detail: e.Detail}
		if e.Err != nil {
			r.Cause = e.Err.Error()
		}
		if json.NewEncoder(os.Stdout).Encode(r) != nil {
			return 2
		}
		return 1
	}
	return 0
}

func contractChild() (*contract.Verified, error) {
	var o order
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 1<<20)).Decode(&o); err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	if o.Keys < 1 || o.Keys > maxKeys {
		return nil, fmt.Errorf("order: %d keys", o.Keys)
	}
	keys := make([]*secret.Secret, o.Keys)
	for i := range keys {
		var err error
		if keys[i], err = secret.ReadAll(sandbox.File(1+i, "key"), maxKeyFile); err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
	}
	cidata, err := sandbox.Mapped(0, "cidata")
	if err != nil {
		return nil, fmt.Errorf("cidata: %w", err)
	}
	// What the heap may hold before it is collected; it rarely has to be.
	debug.SetMemoryLimit(16<<20 + 2*int64(len(cidata)))
	return contract.Process(contract.Input{Cidata: cidata, Keys: keys, Policy: o.Policy, Now: o.Now})
}
