package compose

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// signals are Linux's by name, real-time ones apart.
var signals = strings.Fields("ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV " +
	"STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX")

// signalKnown says whether a signal's name or number is one of Linux: another
// would be replaced by SIGTERM, which nobody asked for.
func signalKnown(text string) bool {
	if n, err := strconv.Atoi(text); err == nil {
		return n >= 1 && n <= 64
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if slices.Contains(signals, name) {
		return true
	}
	for n := 1; n <= 15; n++ {
		if name == fmt.Sprintf("RTMIN+%d", n) || n < 15 && name == fmt.Sprintf("RTMAX-%d", n) {
			return true
		}
	}
	return false
}
