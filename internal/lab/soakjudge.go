package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The balancer's appetite may differ by so much between two times of the same
// load: what clients happen to have under way, and when the collector of Go
// last ran.
const (
	growthPart  = 4        // a quarter of what was
	growthRSS   = 12 << 20 // and so many octets
	growthFDs   = 48       // and so many descriptors
	restingFDs  = 24       // above those at rest before the load: pipes kept for later
	releaseTime = 12 * time.Second
)

// judge writes what was found into the verdict.
func (s *soak) judge() {
	s.wrk.judge(s.ctx, s.v)
	for _, name := range []string{goodFleet, fickleFleet, badFleet} {
		s.fleets[name].judge(s.v)
	}
	s.judgeOrigins()
	s.judgeTrouble()
	s.judgeEvents()
	s.judgeGrowth()
	s.judgeRelease()
	if s.v.Wrong() {
		s.v.Say("-- logs of the balancer\n%s", s.balancer.Logs())
	}
}

// judgeOrigins asks the servers what they were sent.
func (s *soak) judgeOrigins() {
	var faults []string
	served := map[string]int64{}
	for _, o := range s.origins {
		faults = append(faults, o.Faults()...)
		served[o.Name] = o.Served.Load()
		s.v.Must(o.Served.Load() > 0, "answers of "+o.Name, fmt.Sprint(o.Served.Load()), "more than 0")
	}
	logs, _ := filepath.Glob(filepath.Join(s.world.Dir, "mortal-*.log"))
	for _, l := range logs {
		b, _ := os.ReadFile(l)
		for line := range bytes.Lines(b) {
			if bytes.HasPrefix(line, []byte("fault: ")) {
				faults = append(faults, string(bytes.TrimSpace(line)))
			}
		}
	}
	for i, f := range faults {
		if i < 20 {
			s.v.Say("  %s", f)
		}
	}
	s.v.Zero("requests with wrong octets at the origins", len(faults))
	s.v.Figure("served", served)
}

// judgeTrouble makes sure that there was some, and peace as well: else the
// excuses would excuse everything, or nothing.
func (s *soak) judgeTrouble() {
	s.trouble.mu.Lock()
	counts, n := s.trouble.counts, len(s.trouble.spans)
	s.trouble.mu.Unlock()
	bad := s.fleets[badFleet]
	bad.mu.Lock()
	defer bad.mu.Unlock()
	s.v.Say("troubles: %v", counts)
	s.v.Figure("troubles", counts)
	s.v.Must(n >= 4, "troubles of the bad fleet", fmt.Sprint(n), "4 at least")
	s.v.Must(bad.undisturbed >= 100, "exchanges with the bad fleet while it was well", fmt.Sprint(bad.undisturbed), "100 at least")
	s.v.Must(bad.excuses() > 0, "errors that the troubles made", fmt.Sprint(bad.excuses()), "more than 0: they were real")
}

func (s *soak) judgeEvents() {
	s.eventsMu.Lock()
	defer s.eventsMu.Unlock()
	if s.Balancer != "holdfast" || s.Sabotage == BlindRelay {
		return
	}
	made, pauses := map[string]int{}, map[string]float64{}
	for _, l := range []Label{Loop, Config, ProcessMove} {
		if !slices.Contains(s.Distances, l.String()) {
			continue
		}
		made[l.String()], pauses[l.String()] = s.events[l], millis(s.longest[l])
		s.v.Must(s.events[l] >= 2, fmt.Sprintf("events: %v", l), fmt.Sprint(s.events[l]), "2 at least")
	}
	s.v.Figure("events", made)
	s.v.Figure("longest_pause_ms", pauses)
	s.v.Figure("refused", s.refused)
	s.v.Say("events %v, longest pauses %v ms, refused %v", made, pauses, s.refused)
	for _, d := range s.doubts {
		s.v.Say("  %s", d)
	}
	s.v.Zero("events that did not do what they said", len(s.doubts))
}

// judgeGrowth compares processes at the same age: each served for as long, and
// the first one warmed up the lab.
func (s *soak) judgeGrowth() {
	runs := s.scale.all()
	for i, r := range runs {
		s.v.Say("process %d served for %5.1f s, at most %v", i+1, r.to.Sub(r.from).Seconds(), r.most)
	}
	if len(runs) > 1 {
		s.v.Figure("appetite", map[string]any{"first_mb": megabytes(runs[0].most.rssBytes), "first_fds": runs[0].most.fds,
			"last_mb": megabytes(runs[len(runs)-1].most.rssBytes), "last_fds": runs[len(runs)-1].most.fds})
	}
	if len(runs) < 3 {
		if s.Balancer == "holdfast" && s.Sabotage == "" && slices.Contains(s.Distances, ProcessMove.String()) {
			s.v.Must(false, "processes that served", fmt.Sprint(len(runs)), "3 at least")
		}
		return
	}
	// The second was the first with flows handed to it; the last may have
	// had less time, which only makes it smaller.
	before, rss, fds := runs[1].most, 0, 0
	for _, r := range runs[2:] {
		rss, fds = max(rss, r.most.rssBytes), max(fds, r.most.fds)
	}
	rssMax := before.rssBytes + before.rssBytes/growthPart + growthRSS
	fdsMax := before.fds + before.fds/growthPart + growthFDs
	s.v.Must(rss <= rssMax, "resident memory of any later process", fmt.Sprintf("%.1f MB", megabytes(rss)), fmt.Sprintf("at most %.1f MB", megabytes(rssMax)))
	s.v.Must(fds <= fdsMax, "descriptors of any later process", fmt.Sprint(fds), fmt.Sprintf("at most %d", fdsMax))
}

// judgeRelease looks whether what the load took is given back, and whether
// anybody is left.
func (s *soak) judgeRelease() {
	pid := int(s.pid.Load())
	var last appetite
	released := eventually(releaseTime, func() bool {
		a, err := appetiteOf(pid)
		last = a
		return err == nil && a.fds <= s.atRest.fds+restingFDs
	})
	s.v.Must(released, "descriptors after the load", fmt.Sprint(last.fds),
		fmt.Sprintf("at most %d: %d before it, and %d", s.atRest.fds+restingFDs, s.atRest.fds, restingFDs))
	s.v.Say("at rest: before %v, after %v", s.atRest, last)
	h, ok := s.balancer.(*webHoldfast)
	if !ok {
		return
	}
	if st, err := h.Status(s.ctx); err != nil {
		s.v.Broken(err)
	} else {
		s.v.Zero("flows after the load", st.Flows)
		s.v.Zero("flows_reset_by_move_total", int(st.ResetByMove))
		s.v.Zero("flows lost, by the product's own account", int(st.LostTotal))
	}
	left := -1
	eventually(5*time.Second, func() bool {
		left = len(running(h.Binary)) - 1
		return left == 0
	})
	s.v.Zero("processes of earlier releases that still run", left)
	s.v.Must(h.Stop(5*time.Second), "the balancer, asked to end", "alive: "+fmt.Sprint(Alive(pid)), "ended within 5 s")
}
