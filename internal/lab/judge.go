package lab

import (
	"fmt"
	"time"
)

// count reads the TCP counters of all hosts.
func (s *scene) count() map[string]map[string]int64 {
	all := map[string]map[string]int64{}
	for name, h := range s.world.Hosts {
		if c, err := h.Counters(); err == nil {
			all[name] = c
		}
	}
	return all
}

// watched are the counters worth a line: resets sent, retransmissions,
// timeouts, dropped connects, octets thrown away unread.
var watched = []string{"OutRsts", "EstabResets", "AttemptFails", "RetransSegs", "TCPTimeouts", "TCPLossProbes",
	"ListenOverflows", "ListenDrops", "TCPAbortOnClose", "TCPAbortOnTimeout", "TCPSACKReneging", "TCPRcvQDrop"}

// judgeTraffic writes what the ends saw into the verdict.
func (s *scene) judgeTraffic(flows []*Flow) {
	by, faults := s.traffic.Lost()
	s.v.Say("traffic: %d flows, %.1f MB verified, %.2f of a core", len(flows), float64(octetsOf(flows))/1e6, s.traffic.CPU())
	s.sayKinds(flows)
	for i, f := range faults {
		if i == 20 {
			s.v.Say("  ... %d faults in all", s.traffic.LostTotal())
			break
		}
		s.v.Say("  fault at %s: %v", f.When.Format("15:04:05.000"), f)
	}
	now := s.count()
	for _, h := range sortedNames(s.world.Hosts) {
		line := ""
		for _, c := range watched {
			if d := now[h][c] - s.counters[h][c]; d != 0 {
				line += fmt.Sprintf(" %s %d", c, d)
			}
		}
		if line != "" {
			s.v.Say("  TCP of %-7s%s", h+":", line)
		}
	}
	lost := map[string]int{}
	for k, n := range by {
		lost[FaultKind(k).String()] = n
		s.v.Zero("flows lost by "+FaultKind(k).String(), n)
	}
	shorts := s.traffic.Shorts()
	if shorts.Opened > 0 {
		s.v.Must(shorts.Done == shorts.Opened, "short connections served", fmt.Sprint(shorts.Done), fmt.Sprint(shorts.Opened))
		s.v.Say("short connections: %d, connect p50 %s p99 %s max %s, whole p50 %s max %s", shorts.Opened, ms(shorts.Connect.Quantile(0.5)),
			ms(shorts.Connect.Quantile(0.99)), ms(shorts.Connect.Max), ms(shorts.Whole.Quantile(0.5)), ms(shorts.Whole.Max))
	}
	s.v.Figure("flows", len(flows))
	s.v.Figure("octets", octetsOf(flows))
	s.v.Figure("lost", s.traffic.LostTotal())
	s.v.Figure("lost_by", lost)
	s.v.Figure("short_connections", map[string]any{"opened": shorts.Opened, "done": shorts.Done,
		"connect_ms": map[string]float64{"p99": millis(shorts.Connect.Quantile(0.99)), "max": millis(shorts.Connect.Max)}})
	s.v.Figure("traffic_cores", s.traffic.CPU())
}

func (s *scene) sayKinds(flows []*Flow) {
	var n, lost [kinds]int
	var octets [kinds]uint64
	var gap [kinds]time.Duration
	for _, f := range flows {
		n[f.Kind]++
		octets[f.Kind] += f.Octets()
		if len(f.Faults()) > 0 {
			lost[f.Kind]++
		}
		gap[f.Kind] = max(gap[f.Kind], time.Duration(max(f.way[Up].gap.Load(), f.way[Down].gap.Load())))
	}
	for k := range Kind(kinds) {
		if n[k] > 0 {
			s.v.Say("  %-26v %5d flows %9.1f MB, longest gap %8.1f ms, lost %d", k, n[k], float64(octets[k])/1e6, millis(gap[k]), lost[k])
		}
	}
}

func octetsOf(flows []*Flow) uint64 {
	var n uint64
	for _, f := range flows {
		n += f.Octets()
	}
	return n
}

// judgeStalls compares what clients and servers noticed of moves with the
// noise of a time without any.
func (s *scene) judgeStalls(st *stalls, made []Label) {
	figure := map[string]map[string]float64{}
	noise := st.by[Control].Max
	s.v.Say("stalls: how late octets came, counted from when they were due to be sent")
	for _, l := range append([]Label{Control}, made...) {
		h := &st.by[l]
		s.v.Say("  %-8v %7d samples, p50 %s p99 %s max %s", l, h.N, ms(h.Quantile(0.5)), ms(h.Quantile(0.99)), ms(h.Max))
		for _, x := range st.worst[l][:min(3, len(st.worst[l]))] {
			s.v.Say("           %s at %s: flow %d (%v) %v", ms(x.Took), x.When.Format("15:04:05.000"), x.Flow, x.Of, x.Way)
		}
		figure[l.String()] = map[string]float64{"p50": millis(h.Quantile(0.5)), "p99": millis(h.Quantile(0.99)), "max": millis(h.Max)}
		if l == Control {
			s.v.Must(h.N > 0, "stalls measured without events", fmt.Sprint(h.N), "more than 0")
			continue
		}
		limit := max(2*noise, stallGoals[l])
		s.v.Goal(h.Max <= limit, fmt.Sprintf("%v: longest stall", l), ms(h.Max),
			fmt.Sprintf("at most %s (twice the noise %s, or %s)", ms(limit), ms(noise), ms(stallGoals[l])))
	}
	s.v.Figure("stall_ms", figure)
}

// judgeStatus looks at the counters that the product promises to keep at zero.
func (s *scene) judgeStatus() {
	st := s.mover.status(s.ctx)
	if st == nil {
		return
	}
	s.v.Zero("flows_reset_by_move_total", int(st.ResetByMove))
	s.v.Zero("flows lost, by the product's own account", int(st.Lost+st.LostTotal))
}

// sayLogs shows what the balancer wrote if anything was wrong.
func (s *scene) sayLogs() {
	if s.v.Wrong() {
		s.v.Say("-- logs of the balancer\n%s", s.balancer.Logs())
	}
}
