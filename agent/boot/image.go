package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Image is what the build recorded about itself (/etc/hpcr/image.json).
type Image struct {
	Version   string `json:"version"`
	Arch      string `json:"arch"`
	Flavour   string `json:"flavour"`
	BuildTime int64  `json:"buildTime"` // seconds since 1970: the floor for every clock
	Kernel    string `json:"kernel"`
}

// Paths of the image.
const (
	imageFile   = "/etc/hpcr/image.json"
	policyFile  = "/etc/hpcr/policy.json"
	modulesFile = "/etc/hpcr/modules.json"
	profileFile = "/etc/hpcr/container.apparmor"
	rootsFile   = "/etc/ssl/certs/ca-certificates.crt"
	keysDir     = "/keys"
)

// Built is the time floor.
func (i Image) Built() time.Time { return time.Unix(i.BuildTime, 0).UTC() }

// LoadImage reads what the image says of itself. flavour is compiled into the
// binary and must match.
func LoadImage(flavour string) (Image, error) { return loadImage(imageFile, flavour) }

func loadImage(file, flavour string) (Image, error) {
	var i Image
	if err := readJSON(file, &i); err != nil {
		return i, err
	}
	if i.Flavour != flavour {
		return i, fmt.Errorf("the image is %q, its agent %q", i.Flavour, flavour)
	}
	return i, nil
}

// readJSON reads a file of the image, which is measured: strict all the same.
func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
