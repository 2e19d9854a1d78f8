package boot

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/contract"
)

// A guest that runs from 40 days before its certificates end until they are
// over: what its owner reads. No line has a code with E.
func TestCertificateWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(40 * 24 * time.Hour)
		var (
			mu   sync.Mutex
			said []event.Event
		)
		ctx, cancel := context.WithCancel(t.Context())
		for _, c := range []certificate{
			{name: "signing", schedule: always(contract.SignerSchedule(end)), valid: "HPL12005I", ending: "HPL12006W", ended: "HPL12007W"},
			{name: "encryption", schedule: always(contract.ImageSchedule(end)), ending: "HPL12011W", ended: "HPL12011W"},
		} {
			go c.watch(ctx, time.Now, func(e event.Event) {
				mu.Lock()
				defer mu.Unlock()
				said = append(said, e)
			})
		}
		synctest.Wait()
		mu.Lock()
		if len(said) != 1 || said[0].Severity != event.Info || !strings.HasPrefix(said[0].Text, "HPL12005I: The contract is valid.") {
			t.Errorf("at the start: %v", said)
		}
		mu.Unlock()
		time.Sleep(40*24*time.Hour + 150*time.Minute)
		synctest.Wait()
		count := map[string]int{}
		for _, e := range said {
			code, _, _ := strings.Cut(e.Text, ":")
			count[code]++
			if entry, known := hpl.Lookup(hpl.Code(code)); !known || entry.Fatal || e.ID != event.CertificateExpiry {
				t.Errorf("said %+v", e)
			}
		}
		// The clock starts on January 1st of 2000, so no first of a month is
		// near. 23 days, 6 days in steps of four hours, 24 hours, the end
		// itself and two hours after it; 23 days and 14 half days, once at the
		// end. What is said at the very end is not said of an ended one yet.
		want := map[string]int{"HPL12005I": 1, "HPL12006W": 23 + 36 + 24 + 1, "HPL12007W": 2, "HPL12011W": 23 + 14 + 1}
		for code, n := range want {
			if count[code] != n {
				t.Errorf("%s: %d times, want %d", code, count[code], n)
			}
		}
		if last := said[len(said)-1].Text; !strings.Contains(last, "has ended on Feb 10 00:00:00 2000 UTC") {
			t.Errorf("last: %s", last)
		}
		cancel()
		synctest.Wait()
	})
}
