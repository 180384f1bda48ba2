package flow

import (
	"net/netip"
	"time"
)

// limited asks the rates of the listener and of route n, which may be -1, and
// counts the request unless it has to wait.
func (f *Flow) limited(now Instant, d *Desk, n int, source netip.Addr) time.Duration {
	r := f.listener.Rules
	some := r.Rate != nil || r.SourceRate != nil
	if n >= 0 {
		some = some || r.Routes[n].Rate != nil || r.Routes[n].SourceRate != nil
	}
	if !some || d.Limits == nil {
		return 0
	}
	return d.Limits.Pass(int64(now), f.listener, n, source)
}
