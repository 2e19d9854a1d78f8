package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

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
			return sandbox.ReadRefusal(answer, "HPL11001E", "the contract was refused without a reason")
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
		if sandbox.Refuse(os.Stdout, err) != nil {
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
