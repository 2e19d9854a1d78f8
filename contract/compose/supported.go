package compose

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/distribution/reference"

	"hpcr/agent/hpl"
)

// supportedService lists the keys of a service that have their effect here, or
// that have none anywhere in this guest (labels, expose, attach).
var supportedService = []string{
	"attach", "cap_add", "cap_drop", "command", "configs", "container_name",
	"cpu_period", "cpu_quota", "cpu_shares", "cpus", "cpuset", "depends_on",
	"deploy", "devices", "dns", "dns_opt", "dns_search", "domainname",
	"entrypoint", "env_file", "environment", "expose", "extends", "extra_hosts",
	"group_add", "healthcheck", "hostname", "image", "init", "ipc", "labels",
	"links", "logging", "mem_limit", "mem_reservation", "memswap_limit",
	"network_mode", "networks", "oom_score_adj", "pid", "pids_limit",
	"platform", "ports", "privileged", "pull_policy", "read_only", "restart",
	"scale", "secrets", "security_opt", "shm_size", "stdin_open",
	"stop_grace_period", "stop_signal", "sysctls", "tmpfs", "tty", "ulimits",
	"user", "userns_mode", "volumes", "working_dir",
}

// refusedService are keys that Compose knows and this guest does not, with
// what to do instead.
var refusedService = map[string]string{
	"annotations":         "annotations are not supported: remove them",
	"blkio_config":        "block I/O limits are not supported: remove them",
	"build":               "building images in the guest is not supported: push the image to a registry and give its digest",
	"cgroup":              "the container's cgroup namespace is always its own: remove this line",
	"cgroup_parent":       "a cgroup parent cannot be chosen: remove this line",
	"cpu_count":           "not supported on Linux: use cpus",
	"cpu_percent":         "not supported on Linux: use cpus",
	"cpu_rt_period":       "real-time scheduling is not supported: remove this line",
	"cpu_rt_runtime":      "real-time scheduling is not supported: remove this line",
	"credential_spec":     "credential specs are for Windows: remove this line",
	"develop":             "the develop section is for a developer's machine: remove it",
	"device_cgroup_rules": "device cgroup rules are not supported: name the device under devices",
	"dockerfile":          "building images in the guest is not supported: push the image to a registry and give its digest",
	"external_links":      "links to containers outside of the project are not supported: remove them",
	"gpus":                "GPUs are not supported: remove this line",
	"isolation":           "container isolation technologies are for Windows: remove this line",
	"label_file":          "label files are not supported: use labels",
	"log_driver":          "this key is obsolete: use logging",
	"log_opt":             "this key is obsolete: use logging",
	"mac_address":         "a MAC address cannot be chosen: remove this line",
	"mem_swappiness":      "swappiness is not supported: remove this line",
	"models":              "models are not supported: remove them",
	"net":                 "this key is obsolete: use network_mode",
	"oom_kill_disable":    "the kernel's memory killer cannot be switched off: remove this line",
	"post_start":          "hooks are not supported: put the command into the image",
	"pre_start":           "hooks are not supported: put the command into the image",
	"pre_stop":            "hooks are not supported: put the command into the image",
	"profiles":            "profiles are not supported: keep only the services that are to run",
	"provider":            "provider services are not supported: remove them",
	"pull_refresh_after":  "images are pinned by digest: remove this line",
	"runtime":             "another container runtime cannot be chosen: remove this line",
	"storage_opt":         "storage options are not supported: remove them",
	"umask":               "a umask cannot be chosen: set it in the image's entry point",
	"use_api_socket":      "there is no container engine's socket in the guest: remove this line",
	"uts":                 "the host name's namespace is always the container's own: remove this line",
	"volume_driver":       "volume drivers are not supported: remove this line",
	"volumes_from":        "volumes of another service cannot be taken over: list them under volumes",
}

var supportedTop = []string{"name", "services", "networks", "volumes", "secrets", "configs"}

var refusedTop = map[string]string{
	"include": "other compose files cannot be read: put all services into one file",
	"models":  "models are not supported: remove them",
	"jobs":    "jobs are not supported: make them services with restart: \"no\"",
}

// supportedIn lists, for the sections with settings of their own, which of
// them are understood. "*" stands for the name that the author chose.
var supportedIn = map[string][]string{
	"networks.*":                         {"name", "driver", "internal", "attachable", "labels", "enable_ipv4"},
	"volumes.*":                          {"name", "driver", "labels"},
	"secrets.*":                          {"name", "file", "environment", "labels"},
	"configs.*":                          {"name", "file", "environment", "content", "labels"},
	"services.*.deploy":                  {"mode", "replicas", "labels", "resources", "restart_policy"},
	"services.*.deploy.resources":        {"limits", "reservations"},
	"services.*.deploy.resources.limits": {"cpus", "memory", "pids"},
	"services.*.deploy.resources.reservations": {"memory"},
	"services.*.deploy.restart_policy":         {"condition", "max_attempts"},
	"services.*.networks.*":                    {"aliases", "priority"},
	"services.*.extends":                       {"service"},
	"services.*.healthcheck":                   {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"},
	"services.*.depends_on.*":                  {"condition", "required", "restart"},
	"services.*.logging":                       {"driver", "options"},
	"services.*.volumes.#":                     {"type", "source", "target", "read_only", "consistency", "bind", "volume", "tmpfs"},
	"services.*.volumes.#.bind":                {"propagation", "create_host_path", "selinux"},
	"services.*.volumes.#.volume":              {"nocopy", "labels"},
	"services.*.volumes.#.tmpfs":               {"size", "mode"},
	"services.*.ports.#":                       {"name", "mode", "host_ip", "target", "published", "protocol", "app_protocol"},
	"services.*.ulimits.*":                     {"soft", "hard"},
	"services.*.secrets.#":                     {"source", "target", "uid", "gid", "mode"},
	"services.*.configs.#":                     {"source", "target", "uid", "gid", "mode"},
	"services.*.devices.#":                     {"source", "target", "permissions"},
}

// checkSupported refuses by name what this guest does not do: all of it, for an
// author should not have to come back for each.
func (l *load) checkSupported(raw map[string]any) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if strings.HasPrefix(key, "x-") || key == "#extensions" || slices.Contains(supportedTop, key) {
			continue
		}
		if why, ok := refusedTop[key]; ok {
			errs = append(errs, hpl.New("HPL06009E", Root+"/"+key, why))
			continue
		}
		errs = append(errs, hpl.New("HPL06009E", Root, "the compose file has a top-level key that Compose does not define: remove it"))
	}
	services, _ := raw["services"].(map[string]any)
	for _, name := range l.names() {
		at := servicePath(l.doc.index[name], "")
		s, ok := services[name].(map[string]any)
		if !ok {
			errs = append(errs, hpl.New("HPL06009E", at, "the service is not a mapping: give it an image"))
			continue
		}
		errs = append(errs, checkService(at, s)...)
		errs = append(errs, checkTree("services.*", at, s))
	}
	for _, section := range []string{"networks", "volumes", "secrets", "configs"} {
		order := mappingKeys(l.doc.root, section)
		m, _ := raw[section].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(m)) {
			v, _ := m[name].(map[string]any)
			at := Root + "/" + section + "/" + place(slices.Index(order, name))
			errs = append(errs, checkTree(section+".*", at, v))
		}
	}
	return errors.Join(errs...)
}

func checkService(at string, s map[string]any) []error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if strings.HasPrefix(key, "x-") || slices.Contains(supportedService, key) {
			continue
		}
		if why, ok := refusedService[key]; ok {
			errs = append(errs, hpl.New("HPL06009E", at+"/"+key, why))
			continue
		}
		errs = append(errs, hpl.New("HPL06009E", at, "the service has a key that Compose does not define: remove it"))
	}
	return errs
}

// checkTree compares nested settings with supportedIn. The path names only
// keys that stand in supportedIn or are a place in a list.
func checkTree(pattern, at string, v any) error {
	switch v := v.(type) {
	case map[string]any:
		allowed, closed := supportedIn[pattern]
		keys := slices.Sorted(maps.Keys(v))
		for i, key := range keys {
			if strings.HasPrefix(key, "x-") {
				continue
			}
			if closed {
				if !slices.Contains(allowed, key) {
					return hpl.New("HPL06009E", at, "a setting is not supported here: keep only "+strings.Join(allowed, ", "))
				}
				if err := checkTree(pattern+"."+key, at+"/"+key, v[key]); err != nil {
					return err
				}
				continue
			}
			if hasBelow(pattern + "." + key) {
				if err := checkTree(pattern+"."+key, at+"/"+key, v[key]); err != nil {
					return err
				}
			} else if hasBelow(pattern + ".*") {
				if err := checkTree(pattern+".*", at+"/"+place(i), v[key]); err != nil {
					return err
				}
			}
		}
	case []any:
		for i, item := range v {
			if err := checkTree(pattern+".#", at+"/"+place(i), item); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasBelow says whether supportedIn knows the pattern or something beneath it.
func hasBelow(pattern string) bool {
	for p := range supportedIn {
		if p == pattern || strings.HasPrefix(p, pattern+".") {
			return true
		}
	}
	return false
}

func place(i int) string {
	if i < 0 {
		i = 0
	}
	return "#" + itoa(i+1)
}

var pinnedRE = regexp.MustCompile(`^.+@sha256:([0-9a-f]{64})$`)

// Pinned says whether a reference, as written, ends in a literal digest.
func Pinned(image string) bool { return pinnedRE.MatchString(image) }

// checkPinned wants a literal digest in every image, and returns them.
func (l *load) checkPinned(raw map[string]any) (map[string]string, error) {
	services, _ := raw["services"].(map[string]any)
	digests := map[string]string{}
	var errs []error
	for _, name := range l.names() {
		s, ok := services[name].(map[string]any)
		if !ok {
			continue // refused already
		}
		text, _ := s["image"].(string)
		m := pinnedRE.FindStringSubmatch(text)
		switch {
		case text == "":
			errs = append(errs, hpl.New("HPL06009E", servicePath(l.doc.index[name], "image"), "the service has no image: give it one, with its digest"))
		case m == nil:
			errs = append(errs, hpl.New("HPL06010E", servicePath(l.doc.index[name], "image"),
				"the image is not pinned by a digest: write it out as NAME@sha256: and 64 lower-case hex digits"))
		default:
			digests[name] = "sha256:" + m[1]
		}
	}
	return digests, errors.Join(errs...)
}

// ParseImage is image for a reference of which the digest is known.
func ParseImage(text, digest string) (Image, bool) { return image(text, digest) }

// image parses the reference after interpolation; its digest must still be
// the literal one.
func image(text, digest string) (Image, bool) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return Image{}, false
	}
	canonical, ok := named.(reference.Canonical)
	if !ok || canonical.Digest().String() != digest {
		return Image{}, false
	}
	img := Image{Name: named.Name(), Digest: digest}
	if tagged, ok := named.(reference.Tagged); ok {
		img.Tag = tagged.Tag()
	}
	return img, true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := slices.Collect(maps.Keys(m))
	sort.Strings(keys)
	return keys
}
