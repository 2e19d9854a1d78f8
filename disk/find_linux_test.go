package disk

import (
	"errors"
	"strings"
	"testing"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

// imageOf is the header of a disk with this content.
func imageOf(t *testing.T, write func(ram)) *luks2.Image {
	t.Helper()
	r := ram{make([]byte, luks2.MinSize)}
	write(r)
	im, err := luks2.Read(r, luks2.MinSize)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func (r ram) Sync() error { return nil }

// TestDecide: which disk a volume gets, and when it waits.
func TestDecide(t *testing.T) {
	marked := imageOf(t, func(r ram) {
		if err := luks2.Mark(r); err != nil {
			t.Fatal(err)
		}
	})
	disk := func(name, serial string, kind Kind) *found {
		d := &found{blockDevice: blockDevice{name: name, serial: serial}, content: Content{Kind: kind, Layout: WholeDisk}}
		if kind == Interrupted {
			d.content.Image = marked
		}
		if kind == Foreign {
			d.content.Reason = errors.New("something else")
		}
		return d
	}
	broken := disk("vdb", "data", "")
	broken.err = errors.New("input/output error")
	broken2 := disk("vdb", "", "")
	broken2.err = broken.err
	claimed := disk("vdb", "data", Ours)
	claimed.claimed = true
	parts := disk("vdb", "", Foreign)
	parts.content.Layout, parts.content.Partitions = Partitioned, 1
	long := strings.Repeat("v", 30)

	tests := map[string]struct {
		name    string // of the volume; "" = data
		floor   uint64 // the contract's minGeneration
		unnamed int
		disks   []*found
		open    string // names of the disks to be tried
		create  string
		code    hpl.Code
	}{
		"no disk: wait": {},
		"the serial names it, others do not matter":        {disks: []*found{disk("vda", "", Ours), disk("vdb", "data", Ours), disk("vdc", "", Blank)}, open: "vdb"},
		"the serial names an empty disk":                   {disks: []*found{disk("vda", "", Ours), disk("vdb", "data", Blank)}, create: "vdb"},
		"the serial names a creation that was cut off":     {disks: []*found{disk("vdb", "data", Interrupted)}, create: "vdb"},
		"a floor, and the serial names an empty disk":      {floor: 1, disks: []*found{disk("vdb", "data", Blank)}, code: "HPL02003E"},
		"a floor, and a creation that was cut off":         {floor: 1, disks: []*found{disk("vdb", "data", Interrupted)}, code: "HPL02003E"},
		"a floor, and one empty disk":                      {floor: 1, unnamed: 1, disks: []*found{disk("vdb", "", Blank)}, code: "HPL02003E"},
		"a floor, and no disk: wait":                       {floor: 1},
		"the serial names foreign content":                 {disks: []*found{disk("vdb", "data", Foreign), disk("vdc", "", Blank)}, code: "HPL02003E"},
		"the serial names a disk that cannot be read":      {disks: []*found{broken, disk("vdc", "", Blank)}, code: "HPL02120E"},
		"two disks with the serial":                        {disks: []*found{disk("vdb", "data", Ours), disk("vdc", "data", Ours)}, code: "HPL02121E"},
		"the named disk is another volume's already: wait": {disks: []*found{claimed}},
		"a long name, cut by virtio":                       {name: long, disks: []*found{disk("vdb", long[:serialLength], Ours)}, open: "vdb"},
		"a short serial is no prefix":                      {disks: []*found{disk("vdb", "dat", Foreign), disk("vdc", "da", Foreign)}},
		"one volume without a serial":                      {disks: []*found{disk("vdb", "x", Ours)}, open: "vdb"},
		"several volumes without a serial: all are tried":  {disks: []*found{disk("vdb", "", Ours), disk("vdc", "", ForeignLUKS)}, open: "vdb vdc"},
		"a volume comes before an empty disk":              {disks: []*found{disk("vdb", "", Blank), disk("vdc", "", Ours)}, open: "vdc"},
		"another volume's disk is not tried":               {disks: []*found{disk("vdb", "other", Ours)}},
		"nor the disks with a role":                        {disks: []*found{disk("vdb", "scratch", Blank), disk("vdc", "images", Ours)}},
		"one empty disk, one volume":                       {unnamed: 1, disks: []*found{disk("vdb", "", Blank)}, create: "vdb"},
		"one empty disk, two volumes":                      {unnamed: 2, disks: []*found{disk("vdb", "", Blank)}, code: "HPL02121E"},
		"two empty disks":                                  {unnamed: 1, disks: []*found{disk("vdb", "", Blank), disk("vdc", "", Blank)}, code: "HPL02121E"},
		"one disk with foreign content":                    {unnamed: 1, disks: []*found{disk("vdb", "", Foreign)}, code: "HPL02003E"},
		"one disk with one partition":                      {unnamed: 1, disks: []*found{parts}, code: "HPL07006E"},
		"one disk that cannot be read":                     {unnamed: 1, disks: []*found{broken2}, code: "HPL02120E"},
		"two disks with foreign content: wait":             {unnamed: 1, disks: []*found{disk("vdb", "", Foreign), disk("vdc", "", Foreign)}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := Spec{Name: "data", Path: "/workload/volumes/#1", MinGeneration: tt.floor}
			if tt.name != "" {
				s.Name = tt.name
			}
			v := decide(s, tt.unnamed, []string{s.Name, "other"}, tt.disks)
			var open []string
			for _, d := range v.open {
				open = append(open, d.name)
			}
			create := ""
			if v.create != nil {
				create = v.create.name
			}
			var code hpl.Code
			if v.err != nil {
				code = hpl.From(v.err).Code
			}
			if strings.Join(open, " ") != tt.open || create != tt.create || code != tt.code {
				t.Errorf("open %v, create %q, error %v", open, create, v.err)
			}
		})
	}
}

func TestCheckSpec(t *testing.T) {
	good := Spec{Name: "data", Mount: "/mnt/data", Filesystem: "ext4", Passphrases: []*secret.Secret{secret.FromString("x")}}
	with := func(change func(*Spec)) Spec {
		s := good
		change(&s)
		return s
	}
	tests := map[string]struct {
		spec Spec
		code hpl.Code
	}{
		"good":                    {with(func(s *Spec) { s.Name = "b"; s.Mount = "/data" }), ""},
		"below another":           {with(func(s *Spec) { s.Name = "b"; s.Mount = "/mnt/data/b" }), ""},
		"unknown file system":     {with(func(s *Spec) { s.Filesystem = "zfs" }), "HPL02005E"},
		"no seeds":                {with(func(s *Spec) { s.Passphrases = nil }), "HPL02121E"},
		"same name":               {with(func(s *Spec) { s.Mount = "/b" }), "HPL02121E"},
		"same mount":              {with(func(s *Spec) { s.Name = "b" }), "HPL02121E"},
		"over the root":           {with(func(s *Spec) { s.Name = "b"; s.Mount = "/" }), "HPL02007E"},
		"over the image's trust":  {with(func(s *Spec) { s.Name = "b"; s.Mount = "/etc/ssl" }), "HPL02007E"},
		"over what holds a mount": {with(func(s *Spec) { s.Name = "b"; s.Mount = "/var" }), "HPL02007E"},
		"over the keys":           {with(func(s *Spec) { s.Name = "b"; s.Mount = "/keys" }), "HPL02007E"},
		"by a way round":          {with(func(s *Spec) { s.Name = "b"; s.Mount = "/mnt/../keys" }), "HPL02007E"},
		"relative":                {with(func(s *Spec) { s.Name = "b"; s.Mount = "mnt" }), "HPL02007E"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := checkSpec(tt.spec, []Spec{good})
			if (err != nil) != (tt.code != "") || err != nil && hpl.From(err).Code != tt.code {
				t.Errorf("got %v, want %q", err, tt.code)
			}
		})
	}
}

func TestMessagesNameNoSerial(t *testing.T) {
	d := &found{blockDevice: blockDevice{name: "vdb", serial: "host-chosen"}, content: Content{Kind: Foreign, Reason: errors.New("x")}}
	for _, err := range []error{refusal(Spec{Path: "/p"}, d), decide(Spec{Name: "host-chosen", Path: "/p"}, 1, nil, []*found{d, d}).err} {
		if e := hpl.From(err); strings.Contains(e.Line(), "host-chosen") || !strings.Contains(e.Line(), "/p") {
			t.Error(e.Line())
		}
	}
}
