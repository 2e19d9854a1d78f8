# Each part says what it sees, a line for each: "see NAME: VALUE".
bb() { /bin/busybox "$@"; }
see() { echo "see $1: $2"; }
file() { see "$1" "$(bb cat "$2" 2>&1)"; }
page() { printf 'GET / HTTP/1.0\r\n\r\n' | bb nc -w 5 "$1" "$2" | bb tail -n 1; }
out() { bb nc -w 5 "${registry%%:*}" "${registry##*:}" < /dev/null > /dev/null 2>&1 && echo reached || echo nothing; }
stay() { bb sleep 1000000 & wait $!; }

part=$1 registry=${2%%/*}
case "$part" in
identity)
	see arguments "$# $2"
	see user "$(bb id -u) $(bb id -g) $(bb id -G)"
	see folder "$(pwd)"
	see hostname "$(bb hostname)"
	file domainname /proc/sys/kernel/domainname
	see environment "$PLAIN|$FROM_CONTRACT|$MORE|$RAW"
	[ -t 1 ] && see terminal "$TERM"
	;;
limits)
	for f in memory.max memory.low cpu.max cpu.weight cpuset.cpus.effective pids.max; do file $f /sys/fs/cgroup/$f; done
	see nofile "$(ulimit -Sn) $(ulimit -Hn)"
	see core "$(ulimit -c)"
	see shm "$(bb df -k /dev/shm | bb tail -n 1 | bb awk '{print $2}')"
	file oom_score_adj /proc/self/oom_score_adj
	file somaxconn /proc/sys/net/core/somaxconn
	file msgmax /proc/sys/kernel/msgmax
	;;
deployed)
	for f in memory.max memory.low cpu.max pids.max; do file deployed-$f /sys/fs/cgroup/$f; done
	echo run >> /shared/deployed
	see deployed-runs "$(bb wc -l < /shared/deployed)"
	bb sleep 1
	exit 3
	;;
period)
	file period /sys/fs/cgroup/cpu.max
	see capabilities "$(bb grep CapEff /proc/self/status | bb awk '{print $2}')"
	see privileges "$(bb grep NoNewPrivs /proc/self/status | bb awk '{print $2}')"
	see read-only "$(bb touch /x 2>&1)"
	see device "$(bb stat -c %t:%T /dev/fused) $( (echo x > /dev/fused) 2>&1)"
	see own-shm "$(bb grep -c ' /dev/shm ' /proc/mounts)"
	file cgroup /proc/self/cgroup
	;;
mounts)
	see short "$(bb stat -c %a /short) $(bb df -k /short | bb tail -n 1 | bb awk '{print $1, $2}')"
	see long "$(bb stat -c %a /long) $(bb df -k /long | bb tail -n 1 | bb awk '{print $1, $2}')"
	echo once more >> /kept/visits
	see kept "$(bb wc -l < /kept/visits)"
	see two-places "$(bb wc -l < /etc/kept/visits)"
	see again "$(bb touch /again/x 2>&1)"
	file filled /srv/shipped
	see made "$(bb stat -c %F /made)"
	file config /plain
	see variable "$(bb cat /somewhere/conf) $(bb stat -c '%u %g %a' /somewhere/conf)"
	file filed /filed
	file token /run/secrets/token
	see key "$(bb cat /elsewhere/key) $(bb stat -c '%u %g %a' /elsewhere/key)"
	see script "$( (echo x >> /data1/run.sh) 2>&1)"
	;;
served)
	for port in 7080 7081 7082; do
		bb mkdir -p /tmp/$port
		echo "page of $port" > /tmp/$port/index.html
		bb httpd -p $port -h /tmp/$port
	done
	;;
check)
	page 127.0.0.1 7080 | bb grep -q '^page'
	exit $?
	;;
asking)
	see alias "$(page alias 7080)"
	see route "$(bb ip route | bb grep -c default)"
	see page "$(page served 7080)"
	see out "$(out)"
	see hosts "$(bb grep -c '^192.0.2.1.fixed.example' /etc/hosts) $(bb grep -c '.gate$' /etc/hosts)"
	see resolver "$(bb grep -c '^search search.example$' /etc/resolv.conf) $(bb grep -c '^options.* ndots:2' /etc/resolv.conf)"
	see links "$(bb ip -o link | bb grep -c -v LOOPBACK)"
	see before "$(bb cat /shared/once)"
	;;
beside)
	until page 127.0.0.1 7081 | bb grep -q '^page'; do bb sleep 1; done
	see beside "$(page 127.0.0.1 7081) $(bb hostname)"
	;;
inner)
	see inner-out "$(out)"
	see inner-dns "$(bb grep nameserver /etc/resolv.conf)"
	;;
alone)
	see nocopy "$(bb ls /srv | bb wc -l)"
	see alone "$(bb ip -o link | bb wc -l)"
	;;
guests)
	see guests-first "$(bb cat /proc/1/comm)"
	see guests-links "$(bb ip -o link | bb grep -c -v LOOPBACK | bb awk '{print ($1 > 1)}')"
	;;
once)
	echo x >> /shared/runs
	[ "$(bb wc -l < /shared/runs)" -ge 3 ] || exit 7
	echo "third run" > /shared/once
	see once "$(bb wc -l < /shared/runs)"
	exit 0
	;;
eater)
	see eater begins
	exec /bin/busybox tail /dev/zero
	;;
silent)
	see silent "this must not be heard"
	;;
last)
	trap 'see last "asked by USR1"; exit 0' USR1
	trap 'see last "asked by TERM"; exit 0' TERM
	see last begins
	while :; do bb sleep 1; done
	;;
stubborn)
	trap 'see stubborn "asked"' TERM
	see stubborn begins
	while :; do bb sleep 1; done
	;;
esac
trap 'exit 0' TERM INT
stay
