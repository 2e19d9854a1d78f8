package composed

import (
	"embed"
	"io/fs"
	"strings"
)

//go:embed all:project
var project embed.FS

// Files are the project's by their names in the archive, with an image, an
// architecture and a mount of a contract's volume filled in.
func Files(image, arch, mount string) (map[string]string, error) {
	files := map[string]string{}
	fill := strings.NewReplacer("IMAGE", image, "ARCH", arch, "MOUNT", mount)
	err := fs.WalkDir(project, "project", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := project.ReadFile(path)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, "project/")
		files[name] = string(text)
		if strings.HasSuffix(name, ".yaml") {
			files[name] = fill.Replace(files[name])
		}
		return nil
	})
	return files, err
}

// Env is the contract's environment for it.
func Env() map[string]string {
	return map[string]string{"WORD": "of the contract", "FROM_CONTRACT": "given", "TOKEN": "hush", "COMPOSE_PROFILES": "test"}
}

// Observation is what a container, or the guest about it, has to say, and the
// attributes that it stands for.
type Observation struct {
	Line       string // regular expression of a whole message
	Attributes []string
}

const (
	s = "services.*."
)

// Observations are made while the guest runs.
var Observations = []Observation{
	{`see arguments: 2 two words`, []string{s + "command", s + "entrypoint", s + "image", "services"}},
	{`see user: 1234 77 77 4321`, []string{s + "user", s + "group_add"}},
	{`see folder: /tmp`, []string{s + "working_dir"}},
	{`see hostname: named`, []string{s + "hostname"}},
	{`see domainname: example.test`, []string{s + "domainname"}},
	{`see environment: a of the contract \$\{NOT\}\|given\|more of of the contract\|"\$\{WORD\}"`,
		[]string{s + "environment", s + "env_file", s + "env_file.#.path", s + "env_file.#.format", s + "env_file.#.required"}},
	{`see terminal: xterm`, []string{s + "tty"}},
	{`see included: of the contract yes a note of the part`, []string{"include", "include.#.path"}},
	{`see moved: yes a note elsewhere`, []string{"include.#.project_directory", "include.#.env_file"}},
	{`see extended: a note of the part`, []string{s + "extends", s + "extends.file", s + "extends.service", s + "profiles"}},

	{`see memory.max: 67108864`, []string{s + "mem_limit"}},
	{`see memory.low: 33554432`, []string{s + "mem_reservation"}},
	{`see cpu.max: 50000 100000`, []string{s + "cpus"}},
	{`see cpu.weight: (20|59)`, []string{s + "cpu_shares"}},
	{`see cpuset.cpus.effective: 0`, []string{s + "cpuset"}},
	{`see pids.max: 99`, []string{s + "pids_limit"}},
	{`see nofile: 111 222`, []string{s + "ulimits", s + "ulimits.*.soft", s + "ulimits.*.hard"}},
	{`see core: 0`, nil},
	{`see shm: 3072`, []string{s + "shm_size"}},
	{`see oom_score_adj: 321`, []string{s + "oom_score_adj"}},
	{`see somaxconn: 77`, []string{s + "sysctls"}},
	{`see msgmax: 7777`, nil},
	{`see deployed-memory.max: 50331648`, []string{s + "deploy", s + "deploy.resources", s + "deploy.resources.limits", s + "deploy.resources.limits.memory"}},
	{`see deployed-memory.low: 25165824`, []string{s + "deploy.resources.reservations", s + "deploy.resources.reservations.memory"}},
	{`see deployed-cpu.max: 25000 100000`, []string{s + "deploy.resources.limits.cpus"}},
	{`see deployed-pids.max: 88`, []string{s + "deploy.resources.limits.pids"}},
	{`see deployed-runs: 2`, []string{s + "deploy.restart_policy", s + "deploy.restart_policy.condition", s + "deploy.restart_policy.max_attempts"}},
	{`see period: 10000 50000`, []string{s + "cpu_period", s + "cpu_quota"}},

	{`see capabilities: 0000000000001000`, []string{s + "cap_add", s + "cap_drop"}},
	{`see privileges: 0`, []string{s + "security_opt"}},
	{`see read-only: .*Read-only file system`, []string{s + "read_only"}},
	{`see device: a:e5 .*(Operation not permitted|Permission denied)`, []string{s + "devices", s + "devices.#.source", s + "devices.#.target", s + "devices.#.permissions"}},
	{`see own-shm: 0`, []string{s + "ipc"}},
	{`see cgroup: 0::/`, []string{s + "cgroup"}},

	{`see short: 700 tmpfs 1024`, []string{s + "tmpfs"}},
	{`see long: 750 tmpfs 2048`, []string{s + "volumes.#.tmpfs", s + "volumes.#.tmpfs.size", s + "volumes.#.tmpfs.mode"}},
	{`see kept: 1`, []string{"volumes", "volumes.*.driver", "volumes.*.driver_opts", s + "volumes", s + "volumes.#.source", s + "volumes.#.target", s + "volumes.#.type"}},
	{`see two-places: 1`, nil},
	{`see again: .*Read-only file system`, []string{s + "volumes.#.read_only"}},
	{`see filled: from the image`, nil},
	{`see nocopy: 0`, []string{s + "volumes.#.volume", s + "volumes.#.volume.nocopy"}},
	{`see made: directory`, []string{s + "volumes.#.bind", s + "volumes.#.bind.create_host_path"}},
	{`see config: config of of the contract`, []string{"configs", "configs.*.content", s + "configs", s + "configs.#.source"}},
	{`see variable: given 1234 77 440`, []string{"configs.*.environment", s + "configs.#.target", s + "configs.#.uid", s + "configs.#.gid", s + "configs.#.mode"}},
	{`see filed: a config file`, []string{"configs.*.file"}},
	{`see token: hush`, []string{"secrets", "secrets.*.environment", s + "secrets", s + "secrets.#.source"}},
	{`see key: a secret file 1234 77 400`, []string{"secrets.*.file", s + "secrets.#.target", s + "secrets.#.uid", s + "secrets.#.gid", s + "secrets.#.mode"}},
	{`see script: .*Read-only file system`, nil},

	{`see alias: page of 7080`, []string{s + "networks.*.aliases"}},
	{`see out: reached`, nil},
	{`see route: 1`, []string{s + "networks.*.priority"}}, // the first network has a way out, the other has none
	{`see page: page of 7080`, []string{"networks", s + "networks"}},
	{`see hosts: 1 1`, []string{s + "extra_hosts"}},
	{`see resolver: 1 1`, []string{s + "dns_search", s + "dns_opt"}},
	{`see links: 2`, nil},
	// The check of the service that it waits for runs once an hour but for the start.
	{`see before: third run`, []string{s + "healthcheck.start_period", s + "healthcheck.start_interval",
		s + "depends_on", s + "depends_on.*.condition", s + "depends_on.*.required"}},
	{`see once: 3`, []string{s + "restart"}},
	{`see beside: page of 7081 served`, []string{s + "network_mode"}},
	{`see inner-out: nothing`, []string{"networks.*.internal"}},
	{`see inner-dns: nameserver 192.0.2.53`, []string{s + "dns"}},
	{`see alone: 1`, nil},
	{`see guests-first: init`, []string{s + "pid"}},
	{`see guests-links: 1`, nil},
	{`a container ran out of memory and the kernel killed processes of it service="eater" killed="1" limit="16777216"`, nil},
}

// Unheard must never arrive.
var Unheard = []string{`see silent`, `see last: asked by TERM`}

// AtTheEnd are made when the guest is stopped, in this order.
var AtTheEnd = []Observation{
	{`see last: asked by USR1`, []string{s + "stop_signal"}},
	{`see stubborn: asked`, nil},
}

// Elsewhere are attributes that another test observes from inside a container,
// or from where the attribute has its effect, by the test's name.
var Elsewhere = map[string]string{
	s + "privileged":           "TestContainerCannot",
	s + "stdin_open":           "TestOutput",
	s + "logging":              "TestOutput",
	s + "logging.driver":       "TestOutput",
	s + "stop_grace_period":    "TestStopInOrder",
	s + "container_name":       "TestNetworks",
	s + "healthcheck":          "TestDependencies",
	s + "healthcheck.test":     "TestDependencies",
	s + "healthcheck.interval": "TestDependencies",
	s + "healthcheck.retries":  "TestFailedDependency",
	s + "platform":             "TestPullRefusals",
	s + "ports":                "composedProject",
	s + "ports.#.target":       "composedProject",
	s + "ports.#.published":    "composedProject",
	s + "ports.#.protocol":     "composedProject",
	s + "ports.#.host_ip":      "composedProject",
}
