package logship

import (
	"bytes"
	"syscall"
	"testing"
	"time"
)

// BenchmarkToRsyslog is the whole way of one container line of 100 octets from
// its source to a rsyslogd that takes it: ns/op is the wall's time, cpu-ns/op
// ours and the kernel's on our behalf, without rsyslogd's.
func BenchmarkToRsyslog(b *testing.B) {
	a := newAuthority(b, "logs")
	r := newRsyslog(b, a, a.issue(b, nil))
	r.start(b)
	s := open(b, config(b, a, a.issue(b, nil), r.port))
	defer s.Close()
	web := s.Source(Origin{Name: "web", Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{
		{"service", "web"}, {"container", "c1"}, {"image", "registry.example.com/web@sha256:0123456789012345678901234567890123456789012345678901234567890123"}, {"stream", "stdout"}}})
	line := bytes.Repeat([]byte("0123456789"), 10)
	begin := cpu(b)
	for i := 0; b.Loop(); i++ {
		web.Send(Entry{Time: time.Now(), Severity: SeverityInfo, MsgID: "stdout", Text: line})
		for i%1000 == 0 && s.Stats().SpooledSize > spoolBytes/4 {
			time.Sleep(time.Millisecond) // to lose none
		}
	}
	for s.waiting() > 0 {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(cpu(b)-begin)/float64(b.N), "cpu-ns/op")
	if st := s.Stats(); st.Lost > 0 || st.Reconnects > 0 {
		b.Errorf("%+v", st)
	}
}

func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
