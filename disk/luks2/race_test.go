//go:build race

package luks2

const raceEnabled = true
