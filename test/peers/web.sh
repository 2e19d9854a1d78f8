# What the test image plays; the first argument chooses the part.
#   web              counts its starts in $DATA, serves them and $GREETING on port 8080
#   probe HOST PORT  asks for / until it answers, says the first line, stays
#   exit CODE        ends at once
#   idle             stays
# Each part writes what it does to stdout, one line a step, and ends with the
# status 0 when it is asked to stop.

bb() { /bin/busybox "$@"; }

stay() {
	trap 'echo "$1: asked to stop"; kill $! 2>/dev/null; exit 0' TERM INT
	wait $!
	echo "$1: its child ended with status $?"
	exit 1
}

case "$1" in
web)
	data=${DATA:-/mnt/data}
	bb mkdir -p "$data/www" || exit 1
	echo start >> "$data/visits" || exit 1
	starts=$(bb wc -l < "$data/visits")
	{
		echo "starts: $starts"
		echo "greeting: $GREETING"
	} > "$data/www/index.html" || exit 1
	bb sync
	echo "web: start number $starts, serving on port 8080"
	/bin/busybox httpd -f -p 8080 -h "$data/www" &
	stay web
	;;
probe)
	n=0
	# Not wget: Debian's static one crashes in the C library's name service.
	until page=$(printf 'GET / HTTP/1.0\r\n\r\n' | bb nc -w 5 "$2" "$3" | bb grep '^starts: '); do
		n=$((n + 1))
		if [ "$n" -gt 60 ]; then
			echo "probe: no answer from $2 port $3"
			exit 1
		fi
		bb sleep 1
	done
	echo "probe: got $page"
	/bin/busybox sleep 1000000 &
	stay probe
	;;
exit)
	echo "exit: ending with status $2"
	exit "$2"
	;;
idle)
	echo "idle: waiting"
	/bin/busybox sleep 1000000 &
	stay idle
	;;
*)
	echo "web.sh: no part is named $1" >&2
	exit 2
	;;
esac
