package initramfs

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

// ModuleGroups are the modules that the guest may load, by need. Nothing else
// of the kernel package enters the image: there is no modprobe in the guest,
// so what is not named here cannot be loaded at all.
//
// "base" is loaded at every boot; the others when the plan asks for them.
// "hardware" are accelerators whose init says ENODEV where they do not fit.
// Each module costs 10–20 ms under emulation, two thirds of it for its
// signature, so none stands here that no code of ours uses.
// A name that the kernel has built in costs nothing; one it lacks is an error.
func ModuleGroups(arch string) map[string][]string {
	groups := map[string][]string{
		"base":       {"virtio_pci", "virtio_blk", "virtio_console", "nf_tables", "nft_ct"}, // the firewall stands before the first link
		"disk":       {"dm_mod", "dm_crypt", "aes_generic", "xts", "sha256_generic", "crc32c_generic", "ext4"},
		"integrity":  {"dm_integrity", "authenc"},
		"xfs":        {"xfs"},
		"btrfs":      {"btrfs"},
		"network":    {"virtio_net", "af_packet"},
		"containers": {"overlay", "veth", "bridge", "nft_chain_nat", "nft_nat", "nft_masq"},
		"vlan":       {"8021q"},
		"vsock":      {"vmw_vsock_virtio_transport"},
		"tun":        {"tun"},
		// What iptables and nft ask the kernel for, in a container that keeps a firewall or a proxy of its own.
		"netfilter": {
			"nft_compat", "nft_limit", "nft_log", "nft_redir", "nft_reject_inet", "xt_tcpudp", "xt_conntrack", "xt_addrtype",
			"xt_comment", "xt_limit", "xt_mark", "xt_multiport", "xt_owner", "xt_nat", "xt_MASQUERADE", "xt_REDIRECT",
			"xt_TCPMSS", "ipt_REJECT",
		},
	}
	switch arch {
	case "amd64":
		groups["base"] = append(groups["base"], "button") // the host's power-off request
		groups["hardware"] = []string{"aesni_intel"}
	case "s390x":
		groups["hardware"] = []string{"aes_s390", "sha256_s390", "sha512_s390", "s390-trng"}
		groups["secure-execution"] = []string{"uvdevice"}
	}
	return groups
}

// moduleIndex is what depmod wrote about one kernel's modules.
type moduleIndex struct {
	root    string              // folder that holds "kernel/…"
	file    map[string]string   // module name → path below root
	deps    map[string][]string // path → paths
	pre     map[string][]string // module name → names or aliases to load before it
	post    map[string][]string
	alias   map[string]string // exact aliases only
	builtin map[string]bool
}

// moduleName is the kernel's name of a module file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func readModuleIndex(root string) (*moduleIndex, error) {
	x := &moduleIndex{
		root: root, file: map[string]string{}, deps: map[string][]string{}, pre: map[string][]string{},
		post: map[string][]string{}, alias: map[string]string{}, builtin: map[string]bool{},
	}
	lines := func(name string, fn func(line string)) error {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				fn(line)
			}
		}
		return nil
	}
	err := lines("modules.dep", func(line string) {
		file, deps, _ := strings.Cut(line, ":")
		x.file[moduleName(file)] = file
		x.deps[file] = strings.Fields(deps)
	})
	if err != nil {
		return nil, err
	}
	err = lines("modules.softdep", func(line string) {
		f := strings.Fields(line) // softdep NAME pre: a b post: c
		if len(f) < 3 || f[0] != "softdep" {
			return
		}
		into, name := x.pre, strings.ReplaceAll(f[1], "-", "_")
		for _, word := range f[2:] {
			switch word {
			case "pre:":
				into = x.pre
			case "post:":
				into = x.post
			default:
				into[name] = append(into[name], word)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	err = lines("modules.alias", func(line string) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" && !strings.ContainsAny(f[1], "*?[") {
			if _, ok := x.alias[f[1]]; !ok {
				x.alias[f[1]] = f[2]
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return x, lines("modules.builtin", func(line string) { x.builtin[moduleName(line)] = true })
}

// closure lists the files to load for the named modules, each after what it
// needs, soft dependencies included.
func (x *moduleIndex) closure(names []string) ([]string, error) {
	var order []string
	state := map[string]bool{} // path → listed already, or being visited
	var visit func(name string, soft bool) error
	var load func(file string) error
	load = func(file string) error {
		if _, ok := state[file]; ok {
			return nil
		}
		state[file] = true
		name := moduleName(file)
		for _, soft := range x.pre[name] {
			if err := visit(soft, true); err != nil {
				return err
			}
		}
		// modules.dep lists the whole closure, the nearest first: its reverse is a load order.
		for _, dep := range slices.Backward(x.deps[file]) {
			if err := load(dep); err != nil {
				return err
			}
		}
		order = append(order, file)
		for _, soft := range x.post[name] {
			if err := visit(soft, true); err != nil {
				return err
			}
		}
		return nil
	}
	visit = func(name string, soft bool) error {
		key := strings.ReplaceAll(name, "-", "_")
		if x.builtin[key] {
			return nil
		}
		if file, ok := x.file[key]; ok {
			return load(file)
		}
		if target, ok := x.alias[name]; ok {
			return visit(target, soft)
		}
		if soft {
			return nil // a soft dependency that this kernel does not have is none
		}
		return fmt.Errorf("the kernel has no module %s", name)
	}
	for _, name := range names {
		if err := visit(name, false); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// readModule returns a module's bytes, decompressed: the kernel's own
// decompressor costs seconds of a boot.
func (x *moduleIndex) readModule(file string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(x.root, file))
	if err != nil || !strings.HasSuffix(file, ".xz") {
		return data, err
	}
	r, err := xz.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out.Bytes(), nil
}
