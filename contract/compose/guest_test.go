package compose

import "testing"

func TestNoContainerGetsTheGuest(t *testing.T) {
	for name, tt := range map[string]struct{ lines, field string }{
		"a module":                             {"cap_add: [sys_module]", "cap_add"},
		"the clock among others":               {"cap_add: [net_raw, SYS_TIME]", "cap_add"},
		"process numbers and privilege":        {"{privileged: true, pid: host}", "pid"},
		"process numbers and ptrace":           {"{cap_add: [sys_ptrace], pid: host}", "pid"},
		"the guest's network and privilege":    {"{privileged: true, network_mode: host}", "network_mode"},
		"the guest's network and its firewall": {"{cap_add: [net_admin], network_mode: host}", "network_mode"},
		"the guest's network and everything":   {"{cap_add: [all], network_mode: host}", "network_mode"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := tt.lines
			if lines[0] == '{' {
				lines = "<<: " + lines
			}
			_, err := Load(one(service(lines)), nil, Options{Privileged: true})
			wantError(t, err, "HPL06009E", "/workload/compose/services/#1/"+tt.field)
		})
	}
	for name, line := range map[string]string{
		"everything for itself":                       "cap_add: [all]",
		"its own firewall":                            "cap_add: [net_admin, sys_admin]",
		"process numbers and a capability of its own": "<<: {pid: host, cap_add: [net_bind_service]}",
		"the guest's network and low ports":           "<<: {network_mode: host, cap_add: [net_bind_service]}",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Load(one(service(line)), nil, Options{Privileged: true}); err != nil {
				t.Error(err)
			}
		})
	}
}
