// Command init is the smallest guest: it says that it lives and powers off, or
// does what the kernel's command line asks of it (hpcr.test=…).
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := syscall.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			fmt.Println("mount", m[1], err)
		}
	}
	if c, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		os.Stdout = c
	}
	up, _ := os.ReadFile("/proc/uptime")
	cmdline, _ := os.ReadFile("/proc/cmdline")
	fmt.Println("INIT at", strings.TrimSpace(string(up)))
	switch {
	case strings.Contains(string(cmdline), "hpcr.test=panic"):
		panic("as asked")
	case strings.Contains(string(cmdline), "hpcr.test=hang"):
		for { // not select: the runtime would call it a deadlock and die
			time.Sleep(time.Hour)
		}
	}
	if port := events(); port != nil {
		fmt.Fprintf(port, `{"t":"hello","arch":"test","flavour":"dev","version":"0","bootMs":1}`+"\n")
		buf := make([]byte, 4096)
		n, _ := port.Read(buf)
		fmt.Printf("GOT %q\n", buf[:n])
		fmt.Fprintf(port, `{"t":"phase","name":"mounts","startMs":0,"ms":3,"ok":true}`+"\n")
		fmt.Fprintf(port, `{"t":"verdict","verdict":"ready","codes":[],"message":"","readyMs":5}`+"\n")
		signals(port)
		fmt.Fprintf(port, `{"t":"off","ordered":true}`+"\n")
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Println("OFF")
	time.Sleep(50 * time.Millisecond)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

// signals waits for the host's wish to stop: Ctrl-Alt-Del on s390x; here a
// command on the port stands for the ACPI button.
func signals(port *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := port.Read(buf)
		if err != nil || strings.Contains(string(buf[:n]), `"stop"`) {
			return
		}
	}
}

func events() *os.File {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, n := range names {
		if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == "org.hpcr.events" {
			f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			if err == nil {
				return f
			}
		}
	}
	return nil
}
