package compose

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/contract/archive"
)

func TestOnlyWhatAContainerMountsIsNeeded(t *testing.T) {
	const record = "/var/hyperprotect"
	tests := map[string]struct {
		mounts []Mount
		record bool
		files  []string
	}{
		"no mount":                      {nil, false, []string{"conf/"}},
		"a volume and a tmpfs":          {[]Mount{{Kind: Named, Source: "/var/hyperprotect"}, {Kind: Memory, Source: Dir}}, false, []string{"conf/"}},
		"the record":                    {[]Mount{{Kind: Bind, Source: record}}, true, []string{"conf/"}},
		"a file of the record":          {[]Mount{{Kind: Bind, Source: record + "/se-version"}}, true, []string{"conf/"}},
		"a folder above the record":     {[]Mount{{Kind: Bind, Source: "/var"}}, true, []string{"conf/"}},
		"everything":                    {[]Mount{{Kind: Bind, Source: "/"}}, true, []string{".env", "conf/", "conf/a", "confidential"}},
		"the working folder":            {[]Mount{{Kind: Bind, Source: Dir}}, false, []string{".env", "conf/", "conf/a", "confidential"}},
		"a folder of the archive":       {[]Mount{{Kind: Bind, Source: Dir + "/conf"}}, false, []string{"conf/", "conf/a"}},
		"a file of the archive":         {[]Mount{{Kind: Bind, Source: Dir + "/.env"}}, false, []string{".env", "conf/"}},
		"a folder that has another one": {[]Mount{{Kind: Bind, Source: Dir + "/conf/a/b"}}, false, []string{"conf/"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := &Project{
				Files:    []archive.File{{Name: ".env"}, {Name: "conf", Dir: true}, {Name: "conf/a"}, {Name: "confidential"}},
				Services: []Service{{}, {Mounts: tt.mounts}},
			}
			if got := p.Binds(record); got != tt.record {
				t.Errorf("binds the record: %v", got)
			}
			var files []string
			for _, f := range p.Needed().Files {
				name := f.Name
				if f.Dir {
					name += "/"
				}
				files = append(files, name)
			}
			if diff := cmp.Diff(tt.files, files); diff != "" {
				t.Error(diff)
			}
			if len(p.Files) != 4 {
				t.Error("the project itself has changed")
			}
		})
	}
}
