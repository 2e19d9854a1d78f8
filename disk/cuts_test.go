//go:build vm || guest

package disk

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
)

// What host and guest agree on when power is cut.

const keptMark = 1000 * 512 // between the partition table and the first partition

var rolledPass = strings.Repeat("c", 64)

// Letters of a cut disk's serial.
const (
	cutMade  = "m" // the volume is made (anew) by the next boot
	cutGrows = "G" // it has its disk's size after the next boot
)

// cutNames are the files of keep, and the letter that says that one must be there.
var cutNames = map[string]string{"kept": "k", "grown": "g", "rolled": "r"}

// keptContent is 300 KiB of which no block equals another.
func keptContent(name string) []byte {
	var b bytes.Buffer
	for i := range 75 {
		sum := sha256.Sum256(fmt.Append(nil, name, i))
		b.Write(bytes.Repeat(sum[:], 128))
	}
	return b.Bytes()
}
