package contract

import "time"

// Schedule says when a running guest speaks of a certificate's end. Nothing
// stops at the end: only a boot after it is refused.
type Schedule struct {
	End time.Time

	monthly bool   // on the first of each month, as long as the end is far
	steps   []step // longest first; each Before is a multiple of each later Every
	after   time.Duration
}

// step: from Before the end on, once Every.
type step struct{ before, every time.Duration }

const day = 24 * time.Hour

// SignerSchedule is that of the signing certificate (contract.md §1.5).
func SignerSchedule(end time.Time) Schedule {
	return Schedule{End: end.UTC(), monthly: true, steps: []step{{30 * day, day}, {7 * day, 4 * time.Hour}, {day, time.Hour}}, after: time.Hour}
}

// ImageSchedule is that of the image's own certificates (contract.md §1.3).
func ImageSchedule(end time.Time) Schedule {
	return Schedule{End: end.UTC(), steps: []step{{30 * day, day}, {7 * day, 12 * time.Hour}}, after: 4 * time.Hour}
}

// Near says whether the end is past or so close that it is spoken of daily.
func (s Schedule) Near(now time.Time) bool { return !now.Before(s.End.Add(-s.steps[0].before)) }

// Next is the first time after now to speak. Times count back from the end, so
// they do not depend on when the guest was started or what its clock did.
func (s Schedule) Next(now time.Time) time.Time {
	left := s.End.Sub(now.Round(0))
	if left <= 0 {
		return s.End.Add((-left/s.after + 1) * s.after)
	}
	every := time.Duration(0)
	for _, st := range s.steps {
		if left <= st.before {
			every = st.every
		}
	}
	if every > 0 {
		return s.End.Add(-(left - 1) / every * every)
	}
	next := s.End.Add(-s.steps[0].before)
	if y, m, _ := now.UTC().Date(); s.monthly {
		if first := time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC); first.Before(next) {
			return first
		}
	}
	return next
}
