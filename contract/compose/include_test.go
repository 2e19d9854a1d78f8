package compose

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
)

// packed are files by name; IMAGE stands for a pinned image.
func packed(files map[string]string) []archive.File {
	var out []archive.File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		out = append(out, archive.File{Name: name, Mode: 0o644, Data: []byte(strings.ReplaceAll(files[name], "IMAGE", "a@"+digest))})
	}
	return out
}

func (s *Service) variables() map[string]string {
	vars := map[string]string{}
	for _, v := range s.Env {
		vars[v.Name] = v.Value
	}
	return vars
}

// What docker compose config says of the same folders, by the specification's
// rules: included files keep their own folder and variables, extended services
// keep the folder of their file.
func TestManyFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		env   map[string]string
		check func(*testing.T, map[string]*Service)
	}{
		"an included file has its folder and its .env, under the contract's environment": {
			files: map[string]string{
				"docker-compose.yml": "include: [sub/part.yaml]\nservices: {web: {image: IMAGE, depends_on: [db]}}",
				"sub/part.yaml": `
services:
  db:
    image: IMAGE
    environment: {A: "${A}", B: "${B}", PRICE: "5$$", SHELL_VAR: "$${HOME}"}
    env_file: db.env
    volumes: ["./conf:/conf:ro", "data:/data"]
volumes: {data: }`,
				"sub/.env":   "A=of the folder\nB=of the folder\n",
				"sub/db.env": "FROM=sub\n",
			},
			env: map[string]string{"B": "of the contract"},
			check: func(t *testing.T, s map[string]*Service) {
				want := map[string]string{"A": "of the folder", "B": "of the contract", "PRICE": "5$", "SHELL_VAR": "${HOME}", "FROM": "sub"}
				if diff := cmp.Diff(want, s["db"].variables()); diff != "" {
					t.Error(diff)
				}
				if s["db"].Mounts[0].Source != "/data1/compose/sub/conf" || s["db"].Index != 2 || s["web"].Index != 1 {
					t.Errorf("%+v %d %d", s["db"].Mounts, s["db"].Index, s["web"].Index)
				}
			},
		},
		"an include with a folder, variables and an overriding file of its own": {
			files: map[string]string{
				"docker-compose.yml": "include: [{path: [a/one.yaml, a/two.yaml], project_directory: b, env_file: c.env}]",
				"a/one.yaml":         "services: {db: {image: IMAGE, user: '1', command: [x, \"${C}\"], volumes: ['./d:/d']}}",
				"a/two.yaml":         "services: {db: {user: '2'}}",
				"c.env":              "C=yes\n",
			},
			check: func(t *testing.T, s map[string]*Service) {
				if s["db"].User != "2" || s["db"].Command[1] != "yes" || s["db"].Mounts[0].Source != "/data1/compose/b/d" {
					t.Errorf("%+v %v %v", s["db"].Mounts, s["db"].User, s["db"].Command)
				}
			},
		},
		"includes within includes, one file by two ways": {
			files: map[string]string{
				"docker-compose.yaml": "include: [a/a.yaml, b/b.yaml]",
				"a/a.yaml":            "include: [../c.yaml]\nservices: {a: {image: IMAGE}}",
				"b/b.yaml":            "include: [../c.yaml]\nservices: {b: {image: IMAGE}}",
				"c.yaml":              "services: {c: {image: IMAGE, volumes: ['./x:/x'], command: ['$$', '$$$$']}}",
			},
			check: func(t *testing.T, s map[string]*Service) {
				if len(s) != 3 || s["c"].Mounts[0].Source != "/data1/compose/x" || s["c"].Command[0] != "$" || s["c"].Command[1] != "$$" {
					t.Errorf("%v %v", s, s["c"].Command)
				}
			},
		},
		"a service extends one of another file, which extends a third": {
			files: map[string]string{
				"docker-compose.yaml": "services: {web: {extends: {file: sub/base.yaml, service: app}, environment: {B: mine}, command: ['$$x']}}",
				"sub/base.yaml":       "services: {app: {extends: {file: deep/root.yaml, service: root}, image: IMAGE, environment: {A: '${WHO}', B: base}, volumes: ['./v:/v']}}",
				"sub/deep/root.yaml":  "services: {root: {user: '7', entrypoint: ['$$e'], env_file: r.env}}",
				"sub/deep/r.env":      "R=r\n",
			},
			env: map[string]string{"WHO": "$me"},
			check: func(t *testing.T, s map[string]*Service) {
				w := s["web"]
				if diff := cmp.Diff(map[string]string{"A": "$me", "B": "mine", "R": "r"}, w.variables()); diff != "" {
					t.Error(diff)
				}
				if w.User != "7" || w.Mounts[0].Source != "/data1/compose/sub/v" || w.Command[0] != "$x" || w.Entrypoint[0] != "$e" {
					t.Errorf("%+v %v %v %v", w.Mounts, w.User, w.Command, w.Entrypoint)
				}
			},
		},
		"a service extends another one of its file": {
			files: map[string]string{"docker-compose.yaml": "services: {base: {image: IMAGE, user: '3', cap_drop: [ALL]}, web: {extends: base, user: '4'}, two: {extends: {service: web}}}"},
			check: func(t *testing.T, s map[string]*Service) {
				if s["web"].User != "4" || s["two"].User != "4" || len(s["two"].CapDrop) != 1 {
					t.Errorf("%v %v", s["web"].User, s["two"].User)
				}
			},
		},
		"an override file lies over the compose file": {
			files: map[string]string{
				"docker-compose.yaml":         "services: {web: {image: IMAGE, user: '1', cap_drop: [ALL]}}",
				"docker-compose.override.yml": "services: {web: {user: '2'}, more: {image: IMAGE}}",
			},
			check: func(t *testing.T, s map[string]*Service) {
				if s["web"].User != "2" || len(s["web"].CapDrop) != 1 || s["more"].Index != 2 {
					t.Errorf("%v %v", s["web"].User, s["more"])
				}
			},
		},
		"profiles choose services, and who is not chosen may ask for anything": {
			files: map[string]string{"docker-compose.yaml": `
services:
  always: {image: IMAGE, depends_on: {dev: {condition: service_started, required: false}}}
  chosen: {image: IMAGE, profiles: [test, "${EXTRA}"]}
  dev: {image: dev:latest, build: ., profiles: [dev]}`},
			env: map[string]string{"COMPOSE_PROFILES": "other, more", "EXTRA": "more"},
			check: func(t *testing.T, s map[string]*Service) {
				if len(s) != 2 || s["chosen"] == nil || s["chosen"].Index != 2 {
					t.Errorf("%v", s)
				}
			},
		},
		"the star chooses all profiles": {
			files: map[string]string{"docker-compose.yaml": "services: {a: {image: IMAGE, profiles: [x]}, b: {image: IMAGE, profiles: [y]}}"},
			env:   map[string]string{"COMPOSE_PROFILES": "*"},
			check: func(t *testing.T, s map[string]*Service) {
				if len(s) != 2 {
					t.Errorf("%v", s)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Load(packed(tt.files), tt.env, Options{})
			if err != nil {
				t.Fatal(err)
			}
			services := map[string]*Service{}
			for i := range p.Services {
				services[p.Services[i].Name] = &p.Services[i]
			}
			tt.check(t, services)
		})
	}
}

func TestManyFilesRefused(t *testing.T) {
	web := "services: {web: {image: IMAGE}}\n"
	tree := map[string]string{"docker-compose.yaml": "include: [f0.yaml, ./f0.yaml]"}
	for i := range 12 {
		tree[fmt.Sprintf("f%d.yaml", i)] = fmt.Sprintf("include: [f%[1]d.yaml, ./f%[1]d.yaml]", i+1)
	}
	tree["f12.yaml"] = web
	for name, tt := range map[string]struct {
		files      map[string]string
		env        map[string]string
		code, path string
	}{
		"a file outside of the archive":   {map[string]string{"docker-compose.yaml": "include: [../../etc/passwd]\n" + web}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"an address":                      {map[string]string{"docker-compose.yaml": "include: ['oci://example.com/x']\n" + web}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"an unknown key of include":       {map[string]string{"docker-compose.yaml": "include: [{path: a.yaml, secretword: x}]\n" + web}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"include is no list":              {map[string]string{"docker-compose.yaml": "include: {a: b}\n" + web}, nil, "HPL06009E", "/workload/compose/include"},
		"a circle of includes":            {map[string]string{"docker-compose.yml": "include: [a.yaml]", "a.yaml": "include: [docker-compose.yml]\n" + web}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"a tree of includes":              {tree, nil, "HPL06009E", "/workload/compose/include/#1"},
		"two definitions":                 {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: {web: {image: IMAGE, user: '1'}}"}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"an included image by tag":        {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: {db: {image: 'db:1'}}"}, nil, "HPL06010E", "/workload/compose/services/#2/image"},
		"an included digest in a default": {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: {db: {image: '${X:-IMAGE}'}}"}, nil, "HPL06010E", "/workload/compose/services/#2/image"},
		"an included build":               {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: {db: {image: IMAGE, build: .}}"}, nil, "HPL06009E", "/workload/compose/services/#2/build"},
		"an included network's address":   {map[string]string{"docker-compose.yaml": "include: [a.yaml]\nnetworks: {n: {}}\n" + web, "a.yaml": "networks: {m: {ipam: {driver: x}}}"}, nil, "HPL06009E", "/workload/compose/networks/#2/ipam"},
		"an included home directory":      {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: {db: {image: IMAGE, volumes: ['~/x:/x']}}"}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"an included file that is broken": {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: ["}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"an included required variable":   {map[string]string{"docker-compose.yaml": "include: [a.yaml]\n" + web, "a.yaml": "services: {db: {image: IMAGE, user: '${NO:?secretword}'}}"}, nil, "HPL06009E", "/workload/compose/include/#1"},
		"a circle of extends":             {map[string]string{"docker-compose.yaml": "services: {a: {extends: b, image: IMAGE}, b: {extends: a}}"}, nil, "HPL06009E", "/workload/compose/services/#1/extends"},
		"a circle of extends over files":  {map[string]string{"docker-compose.yaml": "services: {a: {extends: {file: a.yaml, service: x}}}", "a.yaml": "services: {x: {extends: {file: docker-compose.yaml, service: a}}}"}, nil, "HPL06009E", "/workload/compose/services/#1/extends"},
		"an extended image by tag":        {map[string]string{"docker-compose.yaml": "services: {web: {extends: {file: a.yaml, service: x}}}", "a.yaml": "services: {x: {image: 'x:1'}}"}, nil, "HPL06010E", "/workload/compose/services/#1/image"},
		"extends nothing":                 {map[string]string{"docker-compose.yaml": "services: {web: {image: IMAGE, extends: none}}"}, nil, "HPL06009E", "/workload/compose/services/#1/extends"},
		"waiting for an inactive service": {map[string]string{"docker-compose.yaml": "services: {web: {image: IMAGE, depends_on: [db]}, db: {image: IMAGE, profiles: [x]}}"}, map[string]string{"COMPOSE_PROFILES": "y"}, "HPL06009E", "/workload/compose/services/#1/depends_on"},
		"an active service by tag":        {map[string]string{"docker-compose.yaml": "services: {web: {image: IMAGE}, db: {image: 'db:1', profiles: [x]}}"}, map[string]string{"COMPOSE_PROFILES": "x"}, "HPL06010E", "/workload/compose/services/#2/image"},
		"a tag of an override":            {map[string]string{"docker-compose.yaml": web, "docker-compose.override.yaml": "services: {web: {command: !reset null}}"}, nil, "HPL06009E", "/workload/compose"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(packed(tt.files), tt.env, Options{})
			wantError(t, err, hpl.Code(tt.code), tt.path)
			var e *hpl.Error
			if errors.As(err, &e) && strings.Contains(e.Line(), "secretword") {
				t.Errorf("the host would read the document: %s", e.Line())
			}
		})
	}
}
