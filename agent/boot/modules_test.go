package boot

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/contract/compose"
)

func TestModulesFollowWhatContainersAskFor(t *testing.T) {
	for name, tt := range map[string]struct {
		services []compose.Service
		want     []string
	}{
		"an ordinary container":              {[]compose.Service{{}}, nil},
		"other capabilities and devices":     {[]compose.Service{{CapAdd: []string{"CAP_SYS_PTRACE"}, Devices: []compose.Device{{Source: "/dev/fuse"}}}}, nil},
		"a tunnel":                           {[]compose.Service{{}, {Devices: []compose.Device{{Source: "/dev/net/tun"}}}}, []string{"tun"}},
		"a container with a firewall":        {[]compose.Service{{CapAdd: []string{"CAP_NET_ADMIN"}}}, []string{"netfilter"}},
		"all capabilities":                   {[]compose.Service{{CapAdd: []string{"ALL"}}}, []string{"netfilter"}},
		"a privileged container, and others": {[]compose.Service{{}, {Privileged: true}}, []string{"tun", "netfilter"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, containerModules(&compose.Project{Services: tt.services})); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := containerModules(nil); got != nil {
		t.Errorf("a plan without a project wants %q", got)
	}
}
