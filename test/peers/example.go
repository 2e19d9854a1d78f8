package peers

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var placeholder = regexp.MustCompile(`@[A-Z_]+@`)

// Fill reads a template of docs/examples and replaces each @NAME@. A name
// without a value is an error.
func Fill(file string, values map[string]string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the example: %w", err)
	}
	var missing []string
	filled := placeholder.ReplaceAllStringFunc(string(text), func(p string) string {
		v, ok := values[strings.Trim(p, "@")]
		if !ok {
			missing = append(missing, p)
		}
		return v
	})
	if missing != nil {
		return "", fmt.Errorf("%s: no value for %s", file, strings.Join(missing, ", "))
	}
	return filled, nil
}

// Example fills the templates of an example's folder, with COMPOSE_ARCHIVE
// made of its compose folder, and joins its two sections into a plain contract.
func Example(dir string, values map[string]string) ([]byte, error) {
	compose, err := Fill(filepath.Join(dir, "compose", "docker-compose.yaml"), values)
	if err != nil {
		return nil, err
	}
	archive, err := Archive(map[string]string{"docker-compose.yaml": compose})
	if err != nil {
		return nil, err
	}
	all := map[string]string{"COMPOSE_ARCHIVE": archive}
	for k, v := range values {
		all[k] = v
	}
	sections := map[string]string{}
	for _, name := range []string{"workload", "env"} {
		if sections[name], err = Fill(filepath.Join(dir, name+".yaml"), all); err != nil {
			return nil, err
		}
	}
	return Envelope(sections)
}
