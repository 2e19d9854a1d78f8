package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func one(text string) []archive.File {
	return []archive.File{{Name: "docker-compose.yaml", Mode: 0o644, Data: []byte(text)}}
}

// service wraps lines of one service into a compose file.
func service(lines ...string) string {
	return "services:\n  web:\n    image: example.com/app@" + digest + "\n    " + strings.Join(lines, "\n    ") + "\n"
}

func wantError(t *testing.T, err error, code hpl.Code, path string) {
	t.Helper()
	var e *hpl.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want %s", err, code)
	}
	if e.Code != code || e.Path != path {
		t.Fatalf("got %s at %q (%v), want %s at %q", e.Code, e.Path, e, code, path)
	}
	if e.Detail == "" {
		t.Error("the error does not say what to change")
	}
}

func TestVectors(t *testing.T) {
	for name, tt := range map[string]struct {
		code hpl.Code
		path string
	}{
		"compose-plain":    {},
		"compose-dotslash": {},
		"compose-nested":   {},
		"compose-build":    {"HPL06009E", "/workload/compose/services/#1/build"},
		"compose-missing":  {"HPL06008E", "/workload/compose/archive"},
		"compose-nodigest": {"HPL06010E", "/workload/compose/services/#1/image"},
	} {
		t.Run(name, func(t *testing.T) {
			packed, err := os.ReadFile("testdata/archives/" + name + ".tgz")
			if err != nil {
				t.Fatal(err)
			}
			files, err := archive.UnpackGzip(packed)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Load(files, map[string]string{"REGISTRY": "registry.example.com"}, Options{Privileged: true})
			if tt.code != "" {
				wantError(t, err, tt.code, tt.path)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Services) == 0 || p.Services[0].Image.Digest == "" {
				t.Errorf("no pinned service in %v", p)
			}
			for _, f := range p.Files {
				if strings.HasPrefix(f.Name, "compose/") {
					t.Errorf("%s was not lifted out of its folder", f.Name)
				}
			}
		})
	}
}

func TestRefusedByName(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		code hpl.Code
		path string
	}{
		"not yaml":                          {"services: [", "HPL06009E", "/workload/compose"},
		"two documents":                     {service() + "---\n" + service(), "HPL06009E", "/workload/compose"},
		"a list":                            {"- a", "HPL06009E", "/workload/compose"},
		"no services":                       {"services: {}", "HPL06009E", "/workload/compose/services"},
		"repeated key":                      {service("user: a", "user: b"), "HPL06009E", "/workload/compose"},
		"include":                           {"include: [other.yaml]\n" + service(), "HPL06009E", "/workload/compose/include/#1"},
		"extends a file":                    {service("extends: {file: /etc/passwd, service: x}"), "HPL06009E", "/workload/compose/services/#1/extends"},
		"no active profile":                 {service("profiles: [a]"), "HPL06009E", "/workload/compose/services"},
		"unknown key":                       {service("secretword: 1"), "HPL06009E", "/workload/compose/services/#1"},
		"wrong type":                        {service("ports: 80"), "HPL06009E", "/workload/compose/services/#1/ports"},
		"no image":                          {"services: {web: {command: a}}", "HPL06009E", "/workload/compose/services/#1/image"},
		"digest in a variable":              {"services: {web: {image: 'a@${DIGEST}'}}", "HPL06010E", "/workload/compose/services/#1/image"},
		"digest in a default":               {"services: {web: {image: '${X:-a@" + digest + "}'}}", "HPL06010E", "/workload/compose/services/#1/image"},
		"upper-case digest":                 {"services: {web: {image: 'a@" + strings.ToUpper(digest) + "'}}", "HPL06010E", "/workload/compose/services/#1/image"},
		"short digest":                      {"services: {web: {image: 'a@" + digest[:70] + "'}}", "HPL06010E", "/workload/compose/services/#1/image"},
		"long name":                         {service("container_name: " + strings.Repeat("n", 129)), "HPL06009E", "/workload/compose/services/#1/container_name"},
		"a second at sign":                  {"services: {web: {image: '${TWO}@" + digest + "'}}", "HPL06009E", "/workload/compose/services/#1/image"},
		"second service by tag":             {service() + "  db: {image: 'db:1'}\n", "HPL06010E", "/workload/compose/services/#2/image"},
		"the whole guest":                   {service("volumes: ['/:/host']"), "HPL06009E", "/workload/compose/services/#1/volumes"},
		"the runtime's socket":              {service("volumes: ['/var/run/docker.sock:/var/run/docker.sock']"), "HPL06009E", "/workload/compose/services/#1/volumes"},
		"climbing out":                      {service("volumes: ['../../keys:/keys']"), "HPL06009E", "/workload/compose/services/#1/volumes"},
		"external volume":                   {service("volumes: ['data:/d']") + "volumes: {data: {external: true}}\n", "HPL06009E", "/workload/compose/volumes/#1/external"},
		"undefined volume":                  {service("volumes: ['data:/d']"), "HPL06009E", "/workload/compose/services/#1/volumes"},
		"random port":                       {service("ports: ['80']"), "HPL06009E", "/workload/compose/services/#1/ports"},
		"port twice":                        {service("ports: ['80:80']") + "  b: {image: 'a@" + digest + "', ports: ['80:81']}\n", "HPL06009E", "/workload/compose/services/#2/ports"},
		"uv device":                         {service("devices: ['/dev/uv']"), "HPL06009E", "/workload/compose/services/#1/devices"},
		"guest's sysctl":                    {service("sysctls: {kernel.core_pattern: '|/bin/x'}"), "HPL06009E", "/workload/compose/services/#1/sysctls"},
		"ipam":                              {service() + "networks: {default: {ipam: {driver: x}}}\n", "HPL06009E", "/workload/compose/networks/#1/ipam"},
		"replicas":                          {service("deploy: {replicas: 2}"), "HPL06009E", "/workload/compose/services/#1/scale"},
		"placement":                         {service("deploy: {placement: {constraints: [a]}}"), "HPL06009E", "/workload/compose/services/#1/deploy/placement"},
		"circle":                            {service("depends_on: [b]") + "  b: {image: 'a@" + digest + "', depends_on: [web]}\n", "HPL06009E", "/workload/compose/services"},
		"env file not there":                {service("env_file: other.env"), "HPL06009E", "/workload/compose/services/#1/env_file"},
		"env file of the guest":             {service("env_file: /etc/passwd"), "HPL06009E", "/workload/compose/services/#1/env_file"},
		"log host of its own":               {service("logging: {driver: syslog, options: {syslog-address: 'tcp://1.2.3.4:5'}}"), "HPL06009E", "/workload/compose/services/#1/logging/options"},
		"shared mounts":                     {service("volumes: [{type: bind, source: ./a, target: /a, bind: {propagation: shared}}]"), "HPL06009E", "/workload/compose/services/#1/volumes"},
		"network of nobody":                 {service("network_mode: 'service:b'"), "HPL06009E", "/workload/compose"},
		"network of a container":            {service("network_mode: 'container:b'"), "HPL06009E", "/workload/compose/services/#1/network_mode"},
		"a shared network's port":           {service("network_mode: 'service:b'", "ports: ['80:80']") + "  b: {image: 'a@" + digest + "'}\n", "HPL06009E", "/workload/compose/services/#1/ports"},
		"the host's network by a service":   {service("network_mode: 'service:b'") + "  b: {image: 'a@" + digest + "', network_mode: host}\n", "HPL06009E", "/workload/compose/services/#1/network_mode"},
		"log tag":                           {service("logging: {options: {max-size: 1m, tag: x}}"), "HPL06009E", "/workload/compose/services/#1/logging/options"},
		"log driver":                        {service("logging: {driver: fluentd}"), "HPL06009E", "/workload/compose/services/#1/logging/driver"},
		"AppArmor profile":                  {service("security_opt: ['apparmor=unconfined']"), "HPL06009E", "/workload/compose/services/#1/security_opt"},
		"the guest's cgroups":               {service("cgroup: host"), "HPL06009E", "/workload/compose/services/#1/cgroup"},
		"no IPv4":                           {service() + "networks: {default: {enable_ipv4: false}}\n", "HPL06009E", "/workload/compose/services/#1/networks"},
		"a network file system":             {service("volumes: ['n:/n']") + "volumes: {n: {driver_opts: {type: nfs, o: 'addr=10.0.0.1', device: ':/x'}}}\n", "HPL06009E", "/workload/compose/services/#1/volumes"},
		"a volume of the guest's own files": {service("volumes: ['n:/n']") + "volumes: {n: {driver_opts: {type: none, o: bind, device: /var/lib/hpcr}}}\n", "HPL06009E", "/workload/compose/services/#1/volumes"},
		"required variable":                 {service("user: ${NOT_SET:?say who}"), "HPL06009E", "/workload/compose/services/#1/user"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(one(tt.text), map[string]string{"DIGEST": digest, "TWO": "b@" + digest}, Options{Privileged: true})
			wantError(t, err, tt.code, tt.path)
			e := hpl.From(err)
			for _, canary := range []string{"secretword", "say who", "docker.sock:", "core_pattern", "/etc/passwd"} {
				if strings.Contains(e.Line(), canary) {
					t.Errorf("the host would read the document: %s", e.Line())
				}
			}
		})
	}
}

func TestAliasBombIsRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("x-a0: &a0 [1,2,3,4,5,6,7,8,9,10]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "x-a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	_, err := Load(one(b.String()+service()), nil, Options{})
	wantError(t, err, "HPL06009E", "/workload/compose")
}

func TestPolicyForbidsPower(t *testing.T) {
	for field, line := range map[string]string{
		"privileged":   "privileged: true",
		"pid":          "pid: host",
		"ipc":          "ipc: host",
		"cap_add":      "cap_add: [sys_admin]",
		"security_opt": "security_opt: ['seccomp:unconfined']",
		"network_mode": "network_mode: host",
	} {
		t.Run(field, func(t *testing.T) {
			if _, err := Load(one(service(line)), nil, Options{Privileged: true}); err != nil {
				t.Fatalf("refused although the policy allows it: %v", err)
			}
			_, err := Load(one(service(line)), nil, Options{})
			wantError(t, err, "HPL06009E", "/workload/compose/services/#1/"+field)
		})
	}
}

const full = `
x-common: &common
  restart: unless-stopped
services:
  web:
    <<: *common
    image: ${REGISTRY}/web:1.2@` + digest + `
    command: ["serve", "--name", "${NAME}"]
    entrypoint: []
    environment:
      PLAIN: ${VALUE}
      FROM_CONTRACT:
      NOT_SET:
    env_file: [app.env, .env]
    user: "1000:1000"
    working_dir: /srv
    ports: ["8080:80", "127.0.0.1:53:53/udp"]
    volumes: ["./conf:/conf:ro", "/mnt/data:/data", "state:/state", "/anon", {type: tmpfs, target: /t, tmpfs: {size: 1m}}]
    tmpfs: /scratch:size=64k
    depends_on: {db: {condition: service_healthy}}
    cap_add: [net_admin]
    cap_drop: [ALL]
    read_only: true
    ulimits: {nofile: {soft: 10, hard: 20}, nproc: 5}
    shm_size: 2m
    hostname: web1
    container_name: the-web
    networks: {front: {aliases: [www]}, back: }
    extra_hosts: ["a.example:10.0.0.1", "gw:host-gateway"]
    dns: 9.9.9.9
    stop_signal: SIGINT
    stop_grace_period: 3s
    mem_limit: 64m
    cpus: 0.5
    pids_limit: 100
    healthcheck: {test: "true", interval: 2s, retries: 2}
    secrets: [{source: token, target: t, mode: 0400}]
  db:
    image: db@` + digest + `
    networks: [back]
    deploy: {resources: {limits: {memory: 32M}}, restart_policy: {condition: on-failure, max_attempts: 4}}
networks: {front: , back: {internal: true}}
volumes: {state: }
secrets: {token: {environment: TOKEN}}
`

func TestFullService(t *testing.T) {
	t.Setenv("NAME", "from the host")
	files := append(one(full),
		archive.File{Name: "app.env", Mode: 0o644, Data: []byte("APP=a ${VALUE}\nPLAIN=overridden\n")},
		archive.File{Name: ".env", Mode: 0o644, Data: []byte("NAME=shipped\nVALUE=shipped\nSHIPPED='x y'\n")})
	p, err := Load(files, map[string]string{
		"REGISTRY": "reg.example.com:5000", "VALUE": "it's $5", "FROM_CONTRACT": "c", "TOKEN": "hush",
	}, Options{Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Services) != 2 || p.Services[0].Name != "db" || p.Services[1].Index != 1 {
		t.Fatalf("services are not in start order: %s", p.Services[0].Name)
	}
	web, db := p.Services[1], p.Services[0]
	if got := web.Image.Ref(); got != "reg.example.com:5000/web@"+digest || web.Image.Tag != "1.2" {
		t.Errorf("image %q", got)
	}
	if db.Image.Name != "docker.io/library/db" || db.Limits.Memory != 32<<20 || db.Restart != (Restart{RestartOnFailure, 4}) {
		t.Errorf("db: %+v %+v", db.Limits, db.Restart)
	}
	env := map[string]string{}
	for _, v := range web.Env {
		env[v.Name] = v.Value
	}
	want := map[string]string{
		"APP": "a it's $5", "PLAIN": "it's $5", "FROM_CONTRACT": "c", "REGISTRY": "reg.example.com:5000",
		"VALUE": "it's $5", "NAME": "shipped", "SHIPPED": "x y", "TOKEN": "hush",
	}
	if d := cmp.Diff(want, env); d != "" {
		t.Errorf("environment: %s", d)
	}
	if d := cmp.Diff([]string{"serve", "--name", "shipped"}, web.Command); d != "" {
		t.Errorf("command: %s", d)
	}
	if web.Entrypoint == nil || len(web.Entrypoint) != 0 || db.Entrypoint != nil {
		t.Error("an empty entrypoint and an absent one are not told apart")
	}
	mounts := []Mount{
		{Kind: Bind, Source: "/data1/compose/conf", Target: "/conf", ReadOnly: true, Create: true},
		{Kind: Bind, Source: "/mnt/data", Target: "/data", Create: true},
		{Kind: Named, Source: "state", Target: "/state"},
		{Kind: Named, Target: "/anon"},
		{Kind: Memory, Target: "/t", Size: 1 << 20},
		{Kind: Memory, Target: "/scratch", Options: "size=64k"},
	}
	if d := cmp.Diff(mounts, web.Mounts); d != "" {
		t.Errorf("mounts: %s", d)
	}
	if len(web.Ports) != 2 || web.Restart.Policy != RestartUnlessStopped || web.Limits.CPUQuota != 50_000 || web.StopGrace.Seconds() != 3 {
		t.Errorf("ports %v restart %v limits %v", web.Ports, web.Restart, web.Limits)
	}
	if len(web.Data) != 1 || string(web.Data[0].Data) != "hush" || web.Data[0].Target != "/run/secrets/t" || web.Data[0].Mode != 0o400 {
		t.Errorf("secret: %+v", web.Data)
	}
	if d := cmp.Diff([]string{"NOT_SET"}, p.Unset); d != "" {
		t.Errorf("unset: %s", d)
	}

	t.Run("travels as JSON", func(t *testing.T) {
		wire, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back Project
		if err := json.Unmarshal(wire, &back); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(back)
		if err != nil {
			t.Fatal(err)
		}
		if string(again) != string(wire) || back.Services[1].Entrypoint == nil {
			t.Error("the project changes on its way")
		}
	})
	t.Run("prints no value", func(t *testing.T) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			for _, v := range []any{p, *p, web, &web, web.Env, web.Env[0], web.Data} {
				if s := fmt.Sprintf(verb, v); strings.Contains(s, "hush") || strings.Contains(s, "$5") || strings.Contains(s, "shipped") {
					t.Errorf("%s shows a secret: %s", verb, s)
				}
			}
		}
	})
	t.Run("env file is read back unchanged", func(t *testing.T) {
		for _, f := range p.Files {
			if f.Name != ".env" {
				continue
			}
			got, err := dotenv.Parse(strings.NewReader(string(f.Data)))
			if err != nil {
				t.Fatal(err)
			}
			if got["VALUE"] != "it's $5" || got["SHIPPED"] != "x y" || got["NAME"] != "shipped" {
				t.Errorf("got %q", got)
			}
		}
	})
}

func TestVolumeInAContractVolume(t *testing.T) {
	p, err := Load(one(service("volumes: ['data:/d:ro']")+"volumes: {data: {driver: local, driver_opts: {type: none, o: bind, device: /mnt/data/db}}}\n"), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Mount{{Kind: Named, Source: "data", Target: "/d", ReadOnly: true, Device: "/mnt/data/db"}}, p.Services[0].Mounts); diff != "" {
		t.Error(diff)
	}
	if !p.Binds("/mnt/data") || p.Binds("/mnt/other") {
		t.Error("the volume's place is not seen as bound")
	}
}

func TestSharedNetwork(t *testing.T) {
	p, err := Load(one(service("network_mode: service:db")+"  db: {image: 'a@"+digest+"'}\n"), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	web := p.Services[1]
	if web.Share != "db" || web.NetworkMode != "" || len(web.Join) != 0 || len(web.DependsOn) != 1 {
		t.Errorf("%q %q %v %v", web.Share, web.NetworkMode, web.Join, web.DependsOn)
	}
}
