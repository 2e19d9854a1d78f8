package compose

// The attributes of the Compose Specification's schema, each once: what has
// its effect here or has none to have, and what is refused. "*" stands for a
// name that the author chose, "#" for a place in a list. Nothing stands below a
// refused attribute. docs/compose.md says what each does.

// supported attributes, by what they lie in.
var supported = listed(map[string][]string{
	"":          {"version", "name", "include", "services", "networks", "volumes", "secrets", "configs"},
	"include.#": {"path", "project_directory", "env_file"},
	"services.*": {
		"attach", "cap_add", "cap_drop", "cgroup", "command", "configs", "container_name",
		"cpu_period", "cpu_quota", "cpu_shares", "cpus", "cpuset", "depends_on",
		"deploy", "devices", "dns", "dns_opt", "dns_search", "domainname",
		"entrypoint", "env_file", "environment", "expose", "extends", "extra_hosts",
		"group_add", "healthcheck", "hostname", "image", "init", "ipc", "labels",
		"links", "logging", "mem_limit", "mem_reservation", "memswap_limit",
		"network_mode", "networks", "oom_score_adj", "pid", "pids_limit",
		"platform", "ports", "privileged", "profiles", "pull_policy", "read_only", "restart",
		"scale", "secrets", "security_opt", "shm_size", "stdin_open",
		"stop_grace_period", "stop_signal", "sysctls", "tmpfs", "tty", "ulimits",
		"user", "userns_mode", "volumes", "working_dir",
	},
	"services.*.configs.#":                     {"source", "target", "uid", "gid", "mode"},
	"services.*.depends_on.*":                  {"condition", "required", "restart"},
	"services.*.deploy":                        {"mode", "replicas", "labels", "resources", "restart_policy"},
	"services.*.deploy.resources":              {"limits", "reservations"},
	"services.*.deploy.resources.limits":       {"cpus", "memory", "pids"},
	"services.*.deploy.resources.reservations": {"memory"},
	"services.*.deploy.restart_policy":         {"condition", "max_attempts"},
	"services.*.devices.#":                     {"source", "target", "permissions"},
	"services.*.env_file.#":                    {"path", "format", "required"},
	"services.*.extends":                       {"service", "file"},
	"services.*.healthcheck":                   {"test", "interval", "timeout", "retries", "start_period", "start_interval", "disable"},
	"services.*.logging":                       {"driver", "options"},
	"services.*.networks.*":                    {"aliases", "priority"},
	"services.*.ports.#":                       {"name", "mode", "host_ip", "target", "published", "protocol", "app_protocol"},
	"services.*.secrets.#":                     {"source", "target", "uid", "gid", "mode"},
	"services.*.ulimits.*":                     {"soft", "hard"},
	"services.*.volumes.#":                     {"type", "source", "target", "read_only", "consistency", "bind", "volume", "tmpfs"},
	"services.*.volumes.#.bind":                {"propagation", "create_host_path", "selinux"},
	"services.*.volumes.#.tmpfs":               {"size", "mode"},
	"services.*.volumes.#.volume":              {"nocopy", "labels"},
	"networks.*":                               {"name", "driver", "internal", "attachable", "labels", "enable_ipv4"},
	"volumes.*":                                {"name", "driver", "driver_opts", "labels"},
	"secrets.*":                                {"name", "file", "environment", "labels"},
	"configs.*":                                {"name", "file", "environment", "content", "labels"},
})

func listed(tree map[string][]string) map[string]bool {
	all := map[string]bool{}
	for in, keys := range tree {
		for _, key := range keys {
			all[join(in, key)] = true
		}
	}
	return all
}

func join(pattern, key string) string {
	if pattern == "" {
		return key
	}
	return pattern + "." + key
}

// refused attributes, with what to do instead.
var refused = map[string]string{
	"jobs":   "jobs are not supported: make them services with restart: \"no\"",
	"models": "models are not supported: remove them",

	"services.*.annotations":         "annotations are not supported: remove them",
	"services.*.blkio_config":        "block I/O limits are not supported: remove them",
	"services.*.build":               "building images in the guest is not supported: push the image to a registry and give its digest",
	"services.*.cgroup_parent":       "a cgroup parent cannot be chosen: remove this line",
	"services.*.cpu_count":           "not supported on Linux: use cpus",
	"services.*.cpu_percent":         "not supported on Linux: use cpus",
	"services.*.cpu_rt_period":       "real-time scheduling is not supported: remove this line",
	"services.*.cpu_rt_runtime":      "real-time scheduling is not supported: remove this line",
	"services.*.credential_spec":     "credential specs are for Windows: remove this line",
	"services.*.develop":             "the develop section is for a developer's machine: remove it",
	"services.*.device_cgroup_rules": "device cgroup rules are not supported: name the device under devices",
	"services.*.external_links":      "links to containers outside of the project are not supported: remove them",
	"services.*.gpus":                "GPUs are not supported: remove this line",
	"services.*.isolation":           "container isolation technologies are for Windows: remove this line",
	"services.*.label_file":          "label files are not supported: use labels",
	"services.*.mac_address":         "a MAC address cannot be chosen: remove this line",
	"services.*.mem_swappiness":      "swappiness is not supported: remove this line",
	"services.*.models":              "models are not supported: remove them",
	"services.*.oom_kill_disable":    "the kernel's memory killer cannot be switched off: remove this line",
	"services.*.post_start":          "hooks are not supported: put the command into the image",
	"services.*.pre_start":           "hooks are not supported: put the command into the image, or into a service that this one depends on",
	"services.*.pre_stop":            "hooks are not supported: have the program act on its stop signal",
	"services.*.provider":            "provider services are not supported: remove them",
	"services.*.pull_refresh_after":  "images are pinned by digest: remove this line",
	"services.*.runtime":             "another container runtime cannot be chosen: remove this line",
	"services.*.storage_opt":         "storage options are not supported: remove them",
	"services.*.umask":               "a umask cannot be chosen: set it in the image's entry point",
	"services.*.use_api_socket":      "there is no container engine's socket in the guest: remove this line",
	"services.*.uts":                 "the host name's namespace is always the container's own: remove this line",
	"services.*.volumes_from":        "volumes of another service cannot be taken over: list them under volumes",

	"services.*.deploy.endpoint_mode":                            "one container a service has no use for an endpoint mode: remove this line",
	"services.*.deploy.placement":                                "there is only one machine to be placed on: remove it",
	"services.*.deploy.rollback_config":                          "a guest has no rolling updates: remove it",
	"services.*.deploy.update_config":                            "a guest has no rolling updates: remove it",
	"services.*.deploy.resources.reservations.cpus":              "CPUs cannot be reserved: use cpu_shares",
	"services.*.deploy.resources.reservations.devices":           "devices cannot be reserved: name them under devices",
	"services.*.deploy.resources.reservations.generic_resources": "generic resources are not supported: remove them",
	"services.*.deploy.restart_policy.delay":                     "the pause between restarts is fixed, it doubles from 100 ms to a minute: remove this line",
	"services.*.deploy.restart_policy.window":                    "a run counts as steady after ten seconds: remove this line",

	"services.*.networks.*.driver_opts":            "options of a network's driver are not supported: remove them",
	"services.*.networks.*.gw_priority":            "the gateway is the one of the first network: use priority",
	"services.*.networks.*.interface_name":         "an interface's name cannot be chosen: remove this line",
	"services.*.networks.*.ipv4_address":           "a container's address cannot be chosen: use the service's name",
	"services.*.networks.*.ipv6_address":           "a container's address cannot be chosen: use the service's name",
	"services.*.networks.*.link_local_ips":         "a container's address cannot be chosen: remove this line",
	"services.*.networks.*.mac_address":            "a MAC address cannot be chosen: remove this line",
	"services.*.networks.*.use_service_name_alias": "a service always has its own name: remove this line",

	"services.*.volumes.#.bind.recursive": "a bind mount always comes with the mounts in it: remove this line",
	"services.*.volumes.#.image":          "images cannot be mounted: copy the files into the service's own image",
	"services.*.volumes.#.volume.subpath": "a part of a volume cannot be mounted: mount all of it",

	"networks.*.driver_opts": "options of a network's driver are not supported: remove them",
	"networks.*.enable_ipv6": "containers' networks are IPv4: remove this line",
	"networks.*.external":    "only networks of the project itself are supported: remove this line",
	"networks.*.ipam":        "the guest chooses the addresses of its containers: remove it",
	"volumes.*.external":     "only volumes of the project itself are supported: for data that stays, use a volume of the contract",

	"secrets.*.driver":          "secrets come from the archive or the environment: use file or environment",
	"secrets.*.driver_opts":     "secrets come from the archive or the environment: use file or environment",
	"secrets.*.external":        "secrets come from the archive or the environment: use file or environment",
	"secrets.*.template_driver": "secrets are not templates: remove this line",
	"configs.*.external":        "configs come from the file itself, the archive or the environment: use content, file or environment",
	"configs.*.template_driver": "configs are not templates: remove this line",
}

// obsolete keys are not in the schema any more; older files have them.
var obsolete = map[string]string{
	"services.*.dockerfile": "building images in the guest is not supported: push the image to a registry and give its digest",
	"services.*.log_driver": "this key is obsolete: use logging",
	"services.*.log_opt":    "this key is obsolete: use logging",
	"services.*.net":        "this key is obsolete: use network_mode",
}
