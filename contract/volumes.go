package contract

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"hpcr/agent/secret"
)

// SeedMask is what replaces a seed after use, as HPCR writes it.
const SeedMask = "***************"

const defaultMount, defaultFilesystem = "/mnt/data", "ext4"

// volumePair is one volume with both halves.
type volumePair struct {
	place     at // in workload.volumes
	name      string
	mount, fs string
	work, env seeds
	oldStyle  bool // a seed that creates follows only the older rule
	joined    bool
	demands   volumeDemands
}

// volumeDemands are workload.x-hpcr.volumes.NAME: what must hold of a volume
// before anything is written to it. They stand in workload, so that who joins
// an env to it cannot drop them.
type volumeDemands struct {
	existing, integrity bool
	minGeneration       uint64
}

type seeds struct{ now, before string }

// VolumePassphrase joins two seeds as HPCR does: the lower-case hex of the
// SHA-256 of env's seed followed by workload's. The caller owns the result.
func VolumePassphrase(envSeed, workloadSeed []byte) *secret.Secret {
	h := sha256.New()
	h.Write(envSeed)
	h.Write(workloadSeed)
	sum := h.Sum(nil)
	defer clear(sum)
	return secret.New(hex.AppendEncode(nil, sum))
}

func (r *run) workloadVolumes(a at) {
	if !r.volumeKeys(a) {
		return
	}
	mounts := map[string]bool{}
	for i, k := range a.n.keys {
		e := a.entry(i)
		if !r.mapping(e) {
			continue
		}
		v := volumePair{place: e, name: k.text, mount: defaultMount, fs: defaultFilesystem}
		r.closed(e, "seed", "mount", "filesystem", "previousSeed")
		if m := e.get("mount"); m.present() {
			v.mount, _ = r.matching(m, validMount, "this is not an absolute path", "write it like /mnt/data, without dots and doubled slashes")
			if reservedMount(v.mount) {
				r.fail("HPL07002E", m, "the guest itself needs this folder", "mount the volume below /mnt or another folder of its own")
			}
		}
		if mounts[v.mount] && v.mount != "" {
			r.fail(schema, e.get("mount"), "two volumes have one mount point", "give each volume a mount of its own (without one it is /mnt/data)")
		}
		mounts[v.mount] = true
		if f := e.get("filesystem"); f.present() {
			v.fs, _ = r.matching(f, func(s string) bool { return s == "ext4" || s == "xfs" || s == "btrfs" },
				"this file system is not known", "write ext4, xfs or btrfs")
		}
		if s, ok := r.required(e, "seed"); ok {
			v.work.now = r.seed(s, &v.oldStyle)
		}
		v.work.before = r.seed(e.get("previousSeed"), nil)
		r.volumes = append(r.volumes, v)
	}
	r.demandsOfVolumes(a)
}

// demandsOfVolumes reads workload.x-hpcr.volumes, which names volumes of the
// workload.
func (r *run) demandsOfVolumes(volumes at) {
	a := r.volumeConditions
	if !a.present() || !r.mapping(a) {
		return
	}
	for i, k := range a.n.keys {
		e := a.entry(i)
		j := slices.IndexFunc(r.volumes, func(v volumePair) bool { return v.name == k.text })
		if j < 0 && volumes.get(k.text).n == nil {
			r.fail(schema, a.key(i), "workload.volumes has no such volume", "name a volume of the workload, or remove these lines")
			continue
		}
		if !r.mapping(e) {
			continue
		}
		r.closed(e, "existing", "integrity", "minGeneration")
		d := volumeDemands{existing: r.boolean(e.get("existing")), integrity: r.boolean(e.get("integrity"))}
		if g := e.get("minGeneration"); g.present() {
			d.minGeneration = r.generation(g)
			if not := e.get("existing"); not.present() && !d.existing {
				r.warn("", not, "minGeneration means that the volume exists, so this has no effect", "remove this line, or minGeneration for the boot that makes the volume")
			}
		}
		if j >= 0 {
			r.volumes[j].demands = d
		}
	}
}

// generation reads a count that a volume's header may have reached.
func (r *run) generation(a at) uint64 {
	if a.n.kind == scalarNode && a.n.tag == "!!int" {
		if v, err := strconv.ParseUint(a.n.text, 10, 32); err == nil && v > 0 {
			return v
		}
	}
	r.fail(schema, a, "this is not a generation", "give a whole number from 1 on, without quotes, as the log or hpcrctl volume inspect show it")
	return 0
}

func (r *run) envVolumes(a at) {
	if !r.volumeKeys(a) {
		return
	}
	for i, k := range a.n.keys {
		e := a.entry(i)
		if !r.mapping(e) {
			continue
		}
		unsupported := []string{"kms", "kmsTimeout", "grep11", "uv-secret-id", "uv-previous-secret-id", "apiKey", "volumeName", "volumeID"}
		for _, key := range unsupported {
			r.unsupported(schema, e.get(key), key)
		}
		r.closed(e, append([]string{"seed", "previousSeed"}, unsupported...)...)
		var s seeds
		oldStyle := false
		if e.get("seed").present() || !e.get("uv-secret-id").present() {
			if v, ok := r.required(e, "seed"); ok {
				s.now = r.seed(v, &oldStyle)
			}
		}
		s.before = r.seed(e.get("previousSeed"), nil)
		if j := slices.IndexFunc(r.volumes, func(v volumePair) bool { return v.name == k.text }); j >= 0 {
			r.volumes[j].env, r.volumes[j].joined = s, true
			r.volumes[j].oldStyle = r.volumes[j].oldStyle || oldStyle
		}
	}
}

func (r *run) volumeKeys(a at) bool {
	if !a.present() || !r.mapping(a) {
		return false
	}
	if len(a.n.keys) > maxVolumes {
		r.fail(schema, a, "there are more than 64 volumes", "join some of them")
		return false
	}
	for i, k := range a.n.keys {
		if !volumeKey.MatchString(k.text) || len(k.text) > 255 {
			r.fail(schema, a.key(i), "this is not the name of a volume", "use lower-case letters, digits, dashes and underscores, beginning with a letter or underscore")
		}
	}
	return true
}

// validMount is the schema's pattern, and nothing that a clean path would
// change.
func validMount(s string) bool {
	return mountPattern.MatchString(s) && path.Clean(s) == s && len(s) <= 4095 && utf8.ValidString(s) &&
		strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }) < 0
}

// Mount paths that make a volume the guest's alone, and no container's.
const (
	ImageStore = "/var/lib/hpcr/images" // of images, for the next boot
	LogStore   = "/var/lib/hpcr/log"    // of log messages that wait for the log host
)

// GuestsOwn says whether a volume with this mount is the guest's alone.
func GuestsOwn(mount string) bool { return mount == ImageStore || mount == LogStore }

// reservedMount protects the folders that the guest runs from: a volume there
// would hide them, or fill them with what an earlier boot left.
func reservedMount(s string) bool {
	if GuestsOwn(s) {
		return false
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(s, "/"), "/")
	switch first {
	case "proc", "sys", "dev", "run", "keys", "etc", "bin", "sbin", "lib", "lib64", "usr", "init", "data1":
		return true
	}
	for _, own := range []string{"/var/hyperprotect", "/var/lib/containerd", "/var/lib/hpcr"} {
		if s == own || strings.HasPrefix(s, own+"/") || strings.HasPrefix(own, s+"/") {
			return true
		}
	}
	return false
}

// seed checks one seed. Until March 2026 three characters of any kind were
// enough; such volumes exist and must open, but none is made any more.
func (r *run) seed(a at, oldStyle *bool) string {
	if !a.present() {
		return ""
	}
	s, ok := r.matching(a, func(s string) bool { return runes(s) >= 3 }, "the seed has fewer than 3 characters", "use at least 15")
	switch {
	case !ok:
		return ""
	case s == SeedMask:
		r.warn("", a, "the seed is the mask that HPCR puts in a seed's place", "give the real seed")
	case !seedPattern.MatchString(s):
		r.warn("", a, "the seed follows only the rule of older images: it opens an existing volume but makes no new one", `use at least 15 letters, digits and signs, without blanks, and roll the old one by previousSeed`)
		if oldStyle != nil {
			*oldStyle = true
		}
	}
	return s
}

// pairing compares the two key sets.
func (r *run) pairing() {
	w, e := r.workload.body.get("volumes"), r.env.body.get("volumes")
	if r.workload.closed || r.env.closed || !r.workload.body.present() || !r.env.body.present() {
		return
	}
	if !w.present() {
		if len(e.vals()) > 0 {
			r.warn("", e, "workload has no volumes: these seeds have no effect", "remove them, or add the volumes to workload")
		}
		return
	}
	for _, v := range r.volumes {
		if !v.joined && e.get(v.name).n == nil {
			r.fail("HPL07015E", v.place, "this volume is missing in env", "give it a seed under env.volumes, by the same name")
		}
	}
	for i, k := range e.keys() {
		if w.get(k.text).n == nil {
			r.fail("HPL07015E", e.key(i), "this volume is missing in workload", "give it a mount and a seed under workload.volumes, by the same name")
		}
	}
}

func (a at) keys() []*node {
	if a.n == nil {
		return nil
	}
	return a.n.keys
}

// planVolumes joins the seeds: the new ones, env's first, then workload's first,
// which no document rules out; and if seeds are rolled, every mix with a
// previous one, likewise.
func (r *run) planVolumes() {
	type mix struct{ env, work string }
	for _, v := range r.volumes {
		out := Volume{Name: v.name, Path: v.place.host, Mount: v.mount, Filesystem: v.fs, MayCreate: !v.oldStyle,
			Existing: v.demands.existing, Integrity: v.demands.integrity, MinGeneration: v.demands.minGeneration}
		var mixes []mix
		if v.env.before != "" && v.work.before != "" {
			mixes = append(mixes, mix{v.env.before, v.work.before})
		}
		if v.work.before != "" {
			mixes = append(mixes, mix{v.env.now, v.work.before})
		}
		if v.env.before != "" {
			mixes = append(mixes, mix{v.env.before, v.work.now})
		}
		seen := map[string]bool{}
		try := func(list []*secret.Secret, first, second string) []*secret.Secret {
			if seen[first+second] { // only the joined text counts
				return list
			}
			seen[first+second] = true
			return append(list, VolumePassphrase([]byte(first), []byte(second)))
		}
		out.Passphrases = try(out.Passphrases, v.env.now, v.work.now)
		out.Passphrases = try(out.Passphrases, v.work.now, v.env.now)
		for _, m := range mixes {
			out.Previous = try(out.Previous, m.env, m.work)
		}
		for _, m := range mixes {
			out.Previous = try(out.Previous, m.work, m.env)
		}
		r.plan.Volumes = append(r.plan.Volumes, out)
	}
}
