package initramfs

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// sbom is an SPDX 2.3 document of what is in the image: Debian's packages, and
// the Go modules that the binaries themselves name.
func (m *Manifest) sbom(binaries ...string) ([]byte, error) {
	type ref struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	type sum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	type pkg struct {
		Name     string `json:"name"`
		ID       string `json:"SPDXID"`
		Version  string `json:"versionInfo"`
		Download string `json:"downloadLocation"`
		Analyzed bool   `json:"filesAnalyzed"`
		License  string `json:"licenseConcluded"`
		Declared string `json:"licenseDeclared"`
		Copy     string `json:"copyrightText"`
		Sums     []sum  `json:"checksums,omitempty"`
		Refs     []ref  `json:"externalRefs,omitempty"`
	}
	type relation struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
	image := pkg{Name: "hpcr-image", ID: "SPDXRef-Image", Version: m.Version, Download: "NOASSERTION", License: "NOASSERTION", Declared: "NOASSERTION", Copy: "NOASSERTION"}
	pkgs := []pkg{image}
	relations := []relation{{"SPDXRef-DOCUMENT", "DESCRIBES", image.ID}}
	add := func(id, name, version, purl, sha256 string) {
		p := image
		p.Name, p.Version, p.ID = name, version, "SPDXRef-"+spdxID(id)
		p.Refs = []ref{{"PACKAGE-MANAGER", "purl", purl}}
		if sha256 != "" {
			p.Sums = []sum{{"SHA256", sha256}}
		}
		pkgs = append(pkgs, p)
		relations = append(relations, relation{image.ID, "CONTAINS", p.ID})
	}
	debs := m.Packages
	if m.SecureExecution != nil {
		debs = append(slices.Clone(debs), m.SecureExecution.Package)
	}
	for _, p := range debs {
		add("deb-"+p.Name, p.Name, p.Version, fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", p.Name, p.Version, p.Arch), p.SHA256)
	}
	modules := map[string]string{"stdlib": strings.TrimPrefix(m.Go, "go")}
	for _, file := range binaries {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("modules of %s: %w", file, err)
		}
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			modules[d.Path] = d.Version
		}
		if info.Main.Path != modulePath {
			modules[info.Main.Path] = info.Main.Version
		}
	}
	names := make([]string, 0, len(modules))
	for name := range modules {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		add("go-"+name, name, modules[name], "pkg:golang/"+name+"@"+modules[name], "")
	}
	namespace := "https://hpcr.invalid/spdx/" + m.Arch + "-" + m.Flavour + "-" + m.Base.SHA256
	return json.MarshalIndent(map[string]any{
		"spdxVersion":       "SPDX-2.3",
		"dataLicense":       "CC0-1.0",
		"SPDXID":            "SPDXRef-DOCUMENT",
		"name":              "hpcr-image-" + m.Arch,
		"documentNamespace": namespace,
		"creationInfo": map[string]any{
			"created":  time.Unix(m.BuildTime, 0).UTC().Format(time.RFC3339),
			"creators": []string{"Tool: hpcrctl-" + m.Version},
		},
		"packages":      pkgs,
		"relationships": relations,
	}, "", "  ")
}

// spdxID keeps the letters that SPDX allows in an identifier.
func spdxID(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s)
}
