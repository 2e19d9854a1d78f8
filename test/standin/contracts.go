package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hpcr/agent/sandbox"
)

// corpus is where contracts() finds cases, cidata devices and the key.
const corpus = "/corpus"

// contracts has the contract applet read one device after the other, in a child
// as the agent's, and says on the console what it answers to each.
func contracts() error {
	if err := sandbox.KeepForAgent(); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(corpus, "cases.json"))
	if err != nil {
		return err
	}
	var cases []struct {
		Cidata      string
		Policy, Now json.RawMessage
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		return err
	}
	for i, c := range cases {
		order, err := json.Marshal(map[string]any{"policy": c.Policy, "now": c.Now, "keys": 1})
		if err != nil {
			return err
		}
		answer, err := read(filepath.Join(corpus, c.Cidata), order)
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Printf("contract %d: %s\n", i, answer)
	}
	fmt.Println("contracts: all read")
	return nil
}

// read is one child's answer: its code and path, or "accepted".
func read(device string, order []byte) (string, error) {
	cidata, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer cidata.Close()
	key, err := os.Open(filepath.Join(corpus, "key.pem"))
	if err != nil {
		return "", err
	}
	defer key.Close()
	said := "accepted"
	err = sandbox.Spawn(context.Background(), sandbox.Child{
		Path: "/bin/contract", Name: "contract", Stdin: order, Files: []*os.File{cidata, key},
		Memory: 320 << 20, Output: 96 << 20, Limit: time.Minute,
	}, func(answer []byte, refused bool) error {
		if !refused {
			return nil
		}
		var r struct{ Code, Path string }
		if err := json.Unmarshal(answer, &r); err != nil {
			return err
		}
		// Whole, it would be this guest's own verdict to whoever reads the console.
		said = strings.TrimPrefix(r.Code, "HPL") + " " + r.Path
		return nil
	})
	return said, err
}
