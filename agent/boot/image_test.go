package boot

import (
	"os"
	"path/filepath"
	"testing"
)

// A dev agent in a release image, or the reverse, must not come up: its
// interlock would not be the one that the image promises.
func TestAgentAndImageAreOfOneFlavour(t *testing.T) {
	const rest = `"version":"1","arch":"s390x","buildTime":1700000000,"kernel":"6.12"}`
	for name, tc := range map[string]struct {
		image, agent string
		ok           bool
	}{
		"both release":               {`{"flavour":"release",` + rest, "release", true},
		"both dev":                   {`{"flavour":"dev",` + rest, "dev", true},
		"a dev agent in release":     {`{"flavour":"release",` + rest, "dev", false},
		"a release agent in dev":     {`{"flavour":"dev",` + rest, "release", false},
		"an image that does not say": {`{` + rest, "release", false},
		"an image that says nothing": {`{"flavour":"",` + rest, "dev", false},
		"a key of another version":   {`{"flavour":"dev","debug":true,` + rest, "dev", false},
		"no JSON":                    {`flavour: dev`, "dev", false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image.json")
			if err := os.WriteFile(file, []byte(tc.image), 0o444); err != nil {
				t.Fatal(err)
			}
			i, err := loadImage(file, tc.agent)
			if (err == nil) != tc.ok {
				t.Errorf("error %v, want none: %v", err, tc.ok)
			}
			if tc.ok && (i.Flavour != tc.agent || i.Built().Unix() != 1700000000) {
				t.Errorf("read %+v", i)
			}
		})
	}
	if _, err := loadImage(filepath.Join(t.TempDir(), "none"), "dev"); err == nil {
		t.Error("a missing image.json was read")
	}
}
