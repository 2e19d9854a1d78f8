//go:build vm

package test

import (
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var playScenarios = []scenario.Scenario{
	{
		Name:     "a pod's containers share localhost, and its probes say when it is ready",
		Attacker: "nobody",
		Claim: "The init container sees the ConfigMap's file and leaves one in the emptyDir, without which the page's container ends; " +
			"a second container reaches the page on 127.0.0.1; the host reaches it on its hostPort; " +
			"a container whose liveness probe fails is started again: its first line arrives twice.",
		Tier:  scenario.Core,
		Archs: []string{scenario.AMD64},
		Cost:  30 * time.Second,
		Run:   onePod,
	},
	{
		Name:     "a pod runs on s390x, and a field that is not supported is refused there by name",
		Attacker: "nobody",
		Claim:    "As the amd64 scenario; and a pod with hostPID ends the boot with HPL15002E before the registry is asked.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     240 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			onePod(t, lab)
			c := podContract(t, lab)
			c.Workload.Play.Resources[0]["spec"].(map[string]any)["hostPID"] = true
			lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)}).Failed(t, "HPL15002E")
		},
	},
}

func onePod(t *testing.T, lab *scenario.Lab) {
	c := podContract(t, lab)
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Publish: []int{8081}, While: func(g *scenario.Guest) {
		if page, want := fetch(t, "http://"+g.Address(8081)+"/"), "starts: 1\ngreeting: "+scenario.Greeting+"\n"; page != want {
			t.Errorf("the page is %q, want %q", page, want)
		}
		logged(t, lab, "probe: got starts: 1")
		logged(t, lab, "life began again")
	}}).Ready(t)
}

func podContract(t *testing.T, lab *scenario.Lab) peers.Contract {
	type m = map[string]any
	type l = []any
	image := lab.Web(t)
	c := lab.Contract(t)
	c.Workload.Compose, c.Workload.Volumes, c.Env.Volumes = nil, nil, nil
	sh := func(text ...string) l { return l{"/bin/sh", "-c", strings.Join(text, "; ")} }
	data, settings := m{"name": "data", "mountPath": "/data"}, m{"name": "settings", "mountPath": "/etc/settings"}
	c.Workload.Play = &peers.Play{Resources: []map[string]any{
		{"apiVersion": "v1", "kind": "Pod", "metadata": m{"name": "canarypod"}, "spec": m{
			"initContainers": l{m{"name": "canaryinit", "image": image, "volumeMounts": l{data, settings},
				"command": sh(`read note < /etc/settings/note`, `[ "$note" = canarynote ] && echo made > /data/init`)}},
			"containers": l{
				m{"name": "canaryweb", "image": image, "volumeMounts": l{data},
					"command": sh(`[ -f /data/init ] && exec /bin/sh /entry.sh web`),
					"env": l{m{"name": "DATA", "value": "/data"},
						m{"name": "GREETING", "valueFrom": m{"configMapKeyRef": m{"name": "contract.config.map", "key": "CANARY_GREETING"}}}},
					"ports":          l{m{"name": "http", "containerPort": 8080, "hostPort": 8081}},
					"startupProbe":   m{"tcpSocket": m{"port": "http"}, "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 5},
					"readinessProbe": m{"httpGet": m{"path": "/index.html", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5}},
				m{"name": "canaryprobe", "image": image, "args": l{"probe", "127.0.0.1", "8080"}},
				m{"name": "canaryflaky", "image": image, "volumeMounts": l{data},
					"command":       sh(`[ -f /data/lived ] && echo life began again`, `echo x > /data/lived`, `exec /bin/busybox sleep 1000`),
					"livenessProbe": m{"exec": m{"command": l{"/bin/busybox", "false"}}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5}},
			},
			"terminationGracePeriodSeconds": 2,
			"volumes":                       l{m{"name": "data", "emptyDir": m{"medium": "Memory", "sizeLimit": "8Mi"}}, m{"name": "settings", "configMap": m{"name": "canarymap"}}},
		}},
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": m{"name": "canarymap"}, "data": m{"note": "canarynote\n"}},
	}}
	return c
}
