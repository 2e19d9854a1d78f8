package contract

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
	"hpcr/contract/compose"
)

const podImage = "registry.example.com/team/web@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c"

func pods(t testing.TB, descriptors string, lint bool) *run {
	return playRun(t, "play:\n  templates:\n"+strings.ReplaceAll(descriptors, "IMAGE", podImage), lint)
}

// Every field of a pod arrives in the model that the agent runs.
func TestPod(t *testing.T) {
	r := pods(t, `    - {apiVersion: v1, kind: ConfigMap, metadata: {name: own}, data: {file: 'text {{ .Env.C }}', other: x, not/a/name: y}}
    - apiVersion: v1
      kind: Pod
      metadata: {name: "p-{{ .Env.A }}", labels: {tier: front}}
      spec:
        restartPolicy: OnFailure
        terminationGracePeriodSeconds: 5
        hostAliases: [{ip: 192.0.2.9, hostnames: [db.example]}]
        securityContext: {runAsUser: 7, runAsGroup: 8, fsGroup: 9, supplementalGroups: [10], sysctls: [{name: net.core.somaxconn, value: "99"}]}
        volumes:
          - {name: disk, hostPath: {path: /mnt/data, type: DirectoryOrCreate}}
          - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1.5Mi}}
          - {name: conf, configMap: {name: own, items: [{key: file, path: a/b, mode: 0o400}]}}
        initContainers: [{name: first, image: IMAGE}]
        containers:
          - name: main
            image: IMAGE
            command: [run, "$(A)", "$$(A)", "$(NONE)"]
            args: ["$(TIER)"]
            envFrom: [{prefix: X_, configMapRef: {name: contract.config.map}}]
            env:
              - {name: A, valueFrom: {configMapKeyRef: {name: own, key: other}}}
              - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
              - {name: B, value: "$(A)$(X_A)"}
            ports: [{containerPort: 80}, {name: dns, containerPort: 53, hostPort: 5353, protocol: UDP, hostIP: 127.0.0.1}]
            resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m, memory: 1M}}
            volumeMounts: [{name: disk, mountPath: "/d:Z,U", subPath: sub}, {name: mem, mountPath: /m, readOnly: true}, {name: conf, mountPath: /c}]
            securityContext: {runAsNonRoot: true, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
            startupProbe: {exec: {command: [ok]}}
            livenessProbe: {tcpSocket: {port: dns}, initialDelaySeconds: 3}
            readinessProbe: {httpGet: {path: /x, port: 80, scheme: HTTPS}, successThreshold: 2}
`, false)
	v, err := r.verdict()
	if err != nil {
		t.Fatal(err)
	}
	shm := compose.Mount{Kind: compose.Named, Source: "pod1-shm", Target: "/dev/shm", NoCopy: true, RAM: true, Size: 64 << 20, Mode: 0o1777}
	base := compose.Service{
		Pod: "p-w", Hostname: "p-w", Join: []compose.Membership{{Network: podNet, Aliases: []string{"p-w"}}}, StopGrace: 5 * time.Second,
		Health: &compose.Health{Disable: true}, Restart: compose.Restart{Policy: compose.RestartOnFailure}, User: "7:8", GroupAdd: []string{"10", "9"},
		ExtraHosts: v.Plan().Compose.Services[0].ExtraHosts, Sysctls: map[string]string{"net.core.somaxconn": "99"}, Mounts: []compose.Mount{shm},
		Image: compose.Image{Name: "registry.example.com/team/web", Digest: podImage[len(podImage)-71:]},
	}
	first, second := base, base
	first.Index, first.Name, first.Place = 1, "p-w-first", "/workload/play/templates/1/spec/initContainers/0"
	second.Index, second.Name, second.Place = 2, "p-w-main", "/workload/play/templates/1/spec/containers/0"
	second.DependsOn = []compose.Dependency{{Service: "p-w-first", Condition: compose.Completed, Required: true}}
	second.Entrypoint, second.Command = []string{"run", "x", "$(A)", "$(NONE)"}, []string{"front"}
	second.Env = compose.Env{{Name: "A", Value: "x"}, {Name: "B", Value: "xw"}, {Name: "TIER", Value: "front"},
		{Name: "X_A", Value: "w"}, {Name: "X_C", Value: "x"}, {Name: "X_FROM_ENV", Value: "e"}, {Name: "X_GREETING", Value: "hello"}}
	second.Limits = compose.Limits{Memory: 64 << 20, MemorySwap: 64 << 20, MemoryReservation: 1e6, CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 256}
	second.Ports = []compose.Port{{HostIP: v.Plan().Compose.Services[1].Ports[0].HostIP, HostPort: 5353, ContainerPort: 53, Proto: "udp"}}
	second.Mounts = []compose.Mount{shm,
		{Kind: compose.Bind, Source: "/mnt/data/sub", Target: "/d", Create: true},
		{Kind: compose.Named, Source: "pod1-mem", Target: "/m", NoCopy: true, RAM: true, Size: 3 << 19, Mode: 0o777, GID: 9, ReadOnly: true}}
	second.Data = []compose.Data{{Target: "/c/a/b", GID: 9, Mode: 0o400, Data: []byte("text x")}}
	second.ReadOnly, second.CapDrop, second.CapAdd = true, []string{"ALL"}, []string{"CAP_NET_BIND_SERVICE"}
	probe := compose.Probe{Period: 10 * time.Second, Timeout: time.Second, Successes: 1, Failures: 3}
	s, l, y := probe, probe, probe
	s.Exec = []string{"ok"}
	l.Kind, l.Port, l.Delay = compose.ProbeTCP, 53, 3*time.Second
	y.Kind, y.Port, y.Path, y.TLS, y.Successes = compose.ProbeHTTP, 80, "/x", true, 2
	second.Startup, second.Liveness, second.Readiness = &s, &l, &y
	type plain compose.Service
	got := v.Plan().Compose.Services
	opt := cmp.Comparer(func(a, b interface{ IsValid() bool }) bool { return a == b })
	for i, want := range []compose.Service{first, second} {
		if i >= len(got) {
			t.Fatal("a container is missing")
		}
		if diff := cmp.Diff(plain(want), plain(got[i]), opt); diff != "" {
			t.Errorf("container %d: %s", i, diff)
		}
	}
	if ip := second.Ports[0].HostIP.String() + first.ExtraHosts[0].Addr.String() + first.ExtraHosts[0].Name; ip != "127.0.0.1192.0.2.9db.example" {
		t.Error(ip)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	if back, err := Decode(wire.Bytes()); err != nil || len(back.Plan().Compose.Services) != 2 {
		t.Errorf("over the wire: %v", err)
	}
	for _, place := range []string{"/workload/play/archive/canary/spec/containers/0", "/workload/compose\x1b[2J"} {
		v.Plan().Compose.Services[0].Place = place
		wire.Reset()
		if err := v.Encode(&wire); err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(wire.Bytes()); err == nil {
			t.Errorf("the child may name a place %q", place)
		}
	}
}

// What is not supported is refused by name, at its place.
func TestPodRefused(t *testing.T) {
	const pod = "    - {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {SPECcontainers: [{name: c, image: IMAGECONTAINER}]}}\n"
	tests := map[string]struct {
		spec, container string
		path            string // below spec
		code            hpl.Code
	}{
		"an unknown field of the pod":       {spec: "hostPID: true, ", path: "/#1"},
		"an unknown field of the container": {container: ", lifecycle: {}", path: "/containers/0/#3"},
		"a volume of another kind":          {spec: "volumes: [{name: v, secret: {}}], ", path: "/volumes/0/#2"},
		"the guest's own files":             {spec: "volumes: [{name: v, hostPath: {path: /proc}}], ", path: "/volumes/0/hostPath/path"},
		"out of a volume by subPath":        {spec: "volumes: [{name: v, hostPath: {path: /mnt}}], ", container: ", volumeMounts: [{name: v, mountPath: /m, subPath: ../run}]", path: "/containers/0/volumeMounts/0/subPath"},
		"a volume that nobody declares":     {container: ", volumeMounts: [{name: v, mountPath: /m}]", path: "/containers/0/volumeMounts/0/name"},
		"a ConfigMap that nobody declares":  {container: ", envFrom: [{configMapRef: {name: v}}]", path: "/containers/0/envFrom/0/configMapRef/name"},
		"a secret":                          {container: ", env: [{name: A, valueFrom: {secretKeyRef: {}}}]", path: "/containers/0/env/0/valueFrom/#1"},
		"a port as text":                    {container: ", ports: [{containerPort: '80'}]", path: "/containers/0/ports/0/containerPort"},
		"a port twice":                      {container: ", ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]", path: "/containers/0/ports/1/hostPort"},
		"root where it is forbidden":        {container: ", securityContext: {runAsNonRoot: true}", path: "/containers/0/securityContext/runAsNonRoot"},
		"a capability over the guest":       {container: ", securityContext: {capabilities: {add: [SYS_MODULE]}}", path: "/containers/0/securityContext/capabilities/add/0"},
		"a sysctl of the guest's":           {spec: "securityContext: {sysctls: [{name: kernel.panic, value: '1'}]}, ", path: "/securityContext/sysctls/0/name"},
		"a quantity that is none":           {container: ", resources: {limits: {memory: 1Zi}}", path: "/containers/0/resources/limits/memory"},
		"a probe of two kinds":              {container: ", livenessProbe: {tcpSocket: {port: 1}, exec: {command: [x]}}", path: "/containers/0/livenessProbe"},
		"a probe without a port":            {container: ", livenessProbe: {tcpSocket: {}}", path: "/containers/0/livenessProbe/tcpSocket/port"},
		"an init container with a probe":    {spec: "initContainers: [{name: i, image: IMAGE, livenessProbe: {exec: {command: [x]}}}], ", path: "/initContainers/0/livenessProbe"},
		"a mount over another":              {spec: "volumes: [{name: v, emptyDir: {}}], ", container: ", volumeMounts: [{name: v, mountPath: /m}, {name: v, mountPath: /m/}]", path: "/containers/0/volumeMounts/1/mountPath"},
		"two containers of one name":        {spec: "initContainers: [{name: c, image: IMAGE}], ", path: "/containers/0/name"},
		"an image without a digest":         {spec: "initContainers: [{name: i, image: 'a.example/b:1'}], ", path: "/initContainers/0/image", code: "HPL06010E"},
		"a digest that a variable brings":   {spec: "initContainers: [{name: i, image: 'a.example/{{ .Env.A }}'}], ", path: "/initContainers/0/image", code: "HPL06010E"},
		"a restart policy that is none":     {spec: "restartPolicy: Sometimes, ", path: "/restartPolicy"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := strings.NewReplacer("SPEC", tt.spec, "CONTAINER", tt.container).Replace(pod)
			if tt.code == "" {
				tt.code = playCode
			}
			_, err := pods(t, text, false).verdict()
			if e := hpl.From(err); err == nil || e.Code != tt.code || e.Path != "/workload/play/templates/0/spec"+tt.path {
				t.Errorf("%v", err)
			}
		})
	}
}

// The archive's files may hold several descriptors; a bad one has its line.
func TestPodsOfAnArchive(t *testing.T) {
	v, err := playRun(t, "play:\n  archive: "+string(encodedVector(t, "play.tgz"))+"\n", false).verdict()
	if err != nil || len(v.Plan().Compose.Services) != 1 || v.Plan().Compose.Services[0].Place != "/workload/play/archive/#1/spec/containers/0" {
		t.Fatalf("%v", err)
	}
	for text, line := range map[string]int{"a: 1\n---\nb: [\n": 3, "---\n- x\n": 2} {
		r := playRun(t, "play: {}\n", false)
		r.archived(root("workload/play/archive", "workload", nil), []archive.File{{Name: "pod.yaml", Data: []byte(text)}, {Name: "sub/ignored.yaml", Data: []byte("[")}})
		if len(r.findings) != 1 || r.findings[0].Code != playCode || r.findings[0].HostPath != "/workload/play/archive/#1" || r.findings[0].Line < line {
			t.Errorf("%q: %+v", text, r.findings)
		}
	}
	parts := apartYAML([]byte("a: 1\n--- \n\n---\nb: 2\n"))
	var got []int
	for _, p := range parts {
		n, yerr := parseYAML("play", p)
		if yerr != nil {
			t.Fatal(yerr)
		}
		if n != nil {
			got = append(got, n.vals[0].line)
		}
	}
	if diff := cmp.Diff([]int{1, 5}, got); diff != "" {
		t.Error(diff)
	}
}

// Property: no panic, no error without a catalogue code, and what is accepted
// crosses to the agent.
func FuzzPod(f *testing.F) {
	f.Add("{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: " + podImage + "}]}}")
	f.Add("{apiVersion: v1, kind: ConfigMap, metadata: {name: p}, data: {a: b}}")
	f.Fuzz(func(t *testing.T, text string) {
		n, yerr := parseYAML("play", []byte(text))
		if yerr != nil || n == nil || n.kind != mapNode {
			return
		}
		r := playRun(t, "play: {}\n", false)
		p := r.translate([]descriptor{{root("workload/play/resources/0", "play", n), n}}, nil, map[string]string{"A": "b"})
		checkHostForm(t, r)
		if r.failed {
			return
		}
		var wire bytes.Buffer
		if err := (&Verified{plan: &Plan{Compose: p}}).Encode(&wire); err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(wire.Bytes()); err != nil {
			t.Fatal(err)
		}
	})
}
