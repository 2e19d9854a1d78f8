package workload

import "testing"

// A registry's list of signatures: no panic, and bounded in number.
func FuzzSignatureList(f *testing.F) {
	f.Add([]byte(`{"signatures":[{"schemaVersion":2,"name":"sha256:00@1","type":"atomic","content":"AAAA"}]}`))
	f.Add([]byte(`{"signatures":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseExtension(text)
		if len(got) > maxSignatures || err != nil && got != nil {
			t.Errorf("%d signatures, %v", len(got), err)
		}
	})
}
