package contract

import (
	"testing"
	"time"
)

// A year before the end and two days after it, walked through: how often the
// guest speaks in each stretch.
func TestSchedules(t *testing.T) {
	end := time.Date(2027, 3, 17, 6, 44, 41, 0, time.UTC)
	tests := map[string]struct {
		schedule Schedule
		counts   []int // stretches below
	}{
		// 30 days before is February 15th: the firsts of April to February.
		"signing certificate": {SignerSchedule(end), []int{11, 23, 36, 24, 48}},
		"image's certificate": {ImageSchedule(end), []int{0, 23, 12, 2, 12}},
	}
	stretches := []struct{ from, to time.Duration }{
		{-365 * day, -30 * day}, {-30 * day, -7 * day}, {-7 * day, -day}, {-day, 0}, {0, 2 * day},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			counts := make([]int, len(stretches))
			now := end.Add(-365 * day)
			for now.Before(end.Add(2 * day)) {
				next := tt.schedule.Next(now)
				if !next.After(now) {
					t.Fatalf("at %s: next is %s", now, next)
				}
				for i, s := range stretches {
					if !next.Before(end.Add(s.from)) && next.Before(end.Add(s.to)) {
						counts[i]++
					}
				}
				now = next
			}
			for i := range counts {
				if counts[i] != tt.counts[i] {
					t.Errorf("from %v to %v before the end: %d times, want %d", stretches[i].from, stretches[i].to, counts[i], tt.counts[i])
				}
			}
		})
	}
}

func TestScheduleTimes(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	signer, image := SignerSchedule(at("2027-03-17T06:30:00+02:00")), ImageSchedule(at("2027-03-17T04:30:00Z"))
	tests := map[string]struct {
		schedule  Schedule
		now, next string
	}{
		"far, in the middle of a month":    {signer, "2026-11-27T06:00:00Z", "2026-12-01T00:00:00Z"},
		"far, on the first":                {signer, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		"over the year's end":              {signer, "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"},
		"the first is after the 30 days":   {signer, "2027-02-02T00:00:00Z", "2027-02-15T04:30:00Z"},
		"the image's does not know months": {image, "2026-11-27T06:00:00Z", "2027-02-15T04:30:00Z"},
		"30 days":                          {signer, "2027-02-15T04:30:00Z", "2027-02-16T04:30:00Z"},
		"within 30 days, at any time":      {signer, "2027-02-20T12:00:00.5Z", "2027-02-21T04:30:00Z"},
		"7 days":                           {signer, "2027-03-10T04:30:00Z", "2027-03-10T08:30:00Z"},
		"7 days, image":                    {image, "2027-03-10T04:30:00Z", "2027-03-10T16:30:00Z"},
		"just before 7 days":               {signer, "2027-03-10T04:29:59Z", "2027-03-10T04:30:00Z"},
		"the last day":                     {signer, "2027-03-16T04:30:00Z", "2027-03-16T05:30:00Z"},
		"the last second":                  {signer, "2027-03-17T04:29:59Z", "2027-03-17T04:30:00Z"},
		"the end":                          {signer, "2027-03-17T04:30:00Z", "2027-03-17T05:30:00Z"},
		"long after":                       {signer, "2027-04-17T04:45:00Z", "2027-04-17T05:30:00Z"},
		"long after, image":                {image, "2027-04-17T04:45:00Z", "2027-04-17T08:30:00Z"},
	}
	for name, tt := range tests {
		if got := tt.schedule.Next(at(tt.now)); !got.Equal(at(tt.next)) {
			t.Errorf("%s: %s, want %s", name, got.Format(time.RFC3339Nano), tt.next)
		}
	}
	if signer.Near(at("2027-02-15T04:29:59Z")) || !signer.Near(at("2027-02-15T04:30:00Z")) || !signer.Near(at("2028-01-01T00:00:00Z")) {
		t.Error("near is 30 days")
	}
}
