package luks2

import "testing"

// BenchmarkUnlock is the whole way from header to key at the cheapest cost of
// the profile: what is not argon2id shows best there.
func BenchmarkUnlock(b *testing.B) {
	m, _ := formatted(b)
	argon2id = derive // not the one of the tests, which remembers
	for b.Loop() {
		o, err := unlock(b, m, testPass, "data")
		if err != nil {
			b.Fatal(err)
		}
		o.Key.Wipe()
	}
}

// BenchmarkDerive is argon2id alone.
func BenchmarkDerive(b *testing.B) {
	k := kdf{kind: "argon2id", cost: cheap, salt: random(saltSize)}
	argon2id = derive
	for b.Loop() {
		if _, err := k.slotKey([]byte(testPass)); err != nil {
			b.Fatal(err)
		}
	}
}
