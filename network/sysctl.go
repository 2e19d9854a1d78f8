package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const procNet = "/proc/sys/net"

// stackSettings hold for the whole guest. They are set by Up before any card
// is raised, so the agent's own table of sysctls need not name them.
var stackSettings = []struct{ key, value string }{
	{"ipv4/conf/all/rp_filter", "1"},
	{"ipv4/conf/default/rp_filter", "1"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/secure_redirects", "0"},
	{"ipv4/conf/default/secure_redirects", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
	{"ipv4/conf/all/arp_ignore", "1"}, // answer only for addresses of the asked link
	{"ipv4/conf/default/arp_ignore", "1"},
	{"ipv4/icmp_echo_ignore_broadcasts", "1"},
	{"ipv4/tcp_syncookies", "1"},
}

func hardenStack() error {
	for _, s := range stackSettings {
		if err := sysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return errors.Join(disableIPv6("all"), disableIPv6("default"))
}

// linkSettings6 hold for a link that speaks IPv6; the kernel takes nothing
// from routers.
var linkSettings6 = []struct{ key, value string }{
	{"accept_ra", "0"},
	{"autoconf", "0"},
	{"accept_redirects", "0"},
	{"accept_source_route", "0"},
	{"forwarding", "0"},
	{"use_tempaddr", "0"},
	{"addr_gen_mode", "0"}, // the link-local address is that of the card
	{"accept_dad", "1"},
	{"dad_transmits", "1"},
	{"router_solicitations", "0"},
	{"disable_ipv6", "0"}, // last: all else stands before the first address
}

func enableIPv6(link string) error {
	for _, s := range linkSettings6 {
		if err := sysctl("ipv6/conf/"+link+"/"+s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

// disableIPv6 on a link, or "all", "default". A kernel without IPv6 is fine.
func disableIPv6(link string) error {
	err := sysctl("ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sysctl writes a value unless it is set already: some kernels show a setting
// read-only that has the wished value.
func sysctl(key, value string) error {
	path := filepath.Join(procNet, key)
	if have, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set net/%s: %w", key, err)
	}
	return nil
}
