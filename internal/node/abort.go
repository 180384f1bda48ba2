package node

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// A threshold is one condition under which a canary, or a shift, is taken back.
type threshold struct {
	what     string        // errors, p50 or p99
	share    float64       // of errors: 0 to 1
	took     time.Duration // of the others
	more     bool          // by so much more than before
	times    float64       // so many times what was before; 0: the above
	original string
}

// canaryAbort is what a canary is judged by if nobody says otherwise.
const canaryAbort = "errors>+1%,p99>x2"

// What a judgement needs: fewer requests say nothing, and a latency that is
// compared with another one has to differ by more than what the machine itself
// does.
const (
	judgedLeast  = 20
	latencyNoise = 5 * time.Millisecond
)

// parseAbort reads "errors>1%,p99>250ms": errors are a share, p50 and p99 times;
// a + is by so much more than before, x2 is twice what was before.
func parseAbort(text string) ([]threshold, error) {
	var all []threshold
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		what, value, ok := strings.Cut(part, ">")
		t := threshold{what: strings.TrimSpace(what), original: part}
		value = strings.TrimSpace(value)
		bad := fmt.Errorf("node: abort on %q: want conditions as in errors>1%%, errors>+1%%, p99>250ms, p99>x2", part)
		if !ok || t.what != "errors" && t.what != "p50" && t.what != "p99" {
			return nil, bad
		}
		var err error
		switch {
		case strings.HasPrefix(value, "x"):
			t.times, err = strconv.ParseFloat(value[1:], 64)
			if err == nil && !(t.times >= 1 && t.times <= 1e6) {
				return nil, bad
			}
		default:
			if strings.HasPrefix(value, "+") {
				t.more, value = true, value[1:]
			}
			if t.what != "errors" {
				t.took, err = time.ParseDuration(value)
				if err == nil && t.took < 0 {
					return nil, bad
				}
				break
			}
			number, is := strings.CutSuffix(value, "%")
			if !is {
				return nil, bad
			}
			t.share, err = strconv.ParseFloat(number, 64)
			if t.share /= 100; err == nil && !(t.share >= 0 && t.share <= 1) {
				return nil, bad
			}
		}
		if err != nil {
			return nil, bad
		}
		all = append(all, t)
	}
	return all, nil
}

// figures are counts of what was served; they only grow.
type figures struct {
	Requests uint64         `json:"requests"` // or flows without HTTP, that ended
	Errors   uint64         `json:"errors"`
	Took     loop.Histogram `json:"took"`
}

func (f *figures) add(x *loop.Series, http bool) {
	for _, k := range x.Requests {
		f.Requests += k
	}
	f.Errors += x.Requests[5]
	if !http {
		for _, cause := range badCauses {
			f.Errors += x.Causes[cause]
		}
	}
	f.Took.Add(&x.Took)
}

// badCauses are ends of flows without HTTP that their clients did not want.
var badCauses = []flow.Cause{flow.BackendReset, flow.NoEndpoint, flow.QueueFull, flow.QueueTimeout, flow.Broken, flow.BreakerOpen, flow.RetriesSpent}

// since is what came after from.
func (f *figures) since(from *figures) *figures {
	out := &figures{Requests: less(f.Requests, from.Requests), Errors: less(f.Errors, from.Errors), Took: f.Took}
	for i := range out.Took.Counts {
		out.Took.Counts[i] = less(out.Took.Counts[i], from.Took.Counts[i])
	}
	out.Took.Sum -= from.Took.Sum
	return out
}

func (f *figures) errorShare() float64 {
	if f.Requests == 0 {
		return 0
	}
	return float64(f.Errors) / float64(f.Requests)
}

// String tells them in words.
func (f *figures) String() string {
	return fmt.Sprintf("%d requests, errors %.2f%%, p50 %v, p99 %v", f.Requests, 100*f.errorShare(), round(f.Took.Quantile(0.5)), round(f.Took.Quantile(0.99)))
}

func round(d time.Duration) time.Duration {
	if d >= 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

// met tells whether now, compared with before, is what t is about, and in words.
func (t *threshold) met(now, before *figures) (bool, string) {
	if now.Requests < judgedLeast {
		return false, ""
	}
	known := before.Requests >= judgedLeast
	if t.what == "errors" {
		is, was := now.errorShare(), before.errorShare()
		limit := t.share
		switch {
		case t.times > 0 && !known:
			return false, ""
		case t.times > 0:
			limit = was * t.times
		case t.more:
			limit += was // nothing before is no error before
		}
		return is > limit, fmt.Sprintf("%s: errors %.2f%%, before %.2f%%", t.original, 100*is, 100*was)
	}
	q := 0.99
	if t.what == "p50" {
		q = 0.5
	}
	is, was := now.Took.Quantile(q), before.Took.Quantile(q)
	limit := t.took
	if (t.times > 0 || t.more) && !known {
		return false, ""
	}
	switch {
	case t.times > 0:
		limit = max(time.Duration(float64(was)*t.times), was+latencyNoise)
	case t.more:
		limit += was
	}
	return is > limit, fmt.Sprintf("%s: %s %v, before %v", t.original, t.what, round(is), round(was))
}

// judge gives the first condition that is met, in words; "" if none is.
func judgeBy(all []threshold, now, before *figures) string {
	for i := range all {
		if is, why := all[i].met(now, before); is {
			return why
		}
	}
	return ""
}

// scope says what figures are of.
type scope struct {
	Listeners map[string]bool `json:"listeners,omitempty"`
	Backends  map[string]bool `json:"backends,omitempty"`
	Endpoint  string          `json:"endpoint,omitempty"` // "backend/endpoint", alone
	All       bool            `json:"all,omitempty"`
}

// scopeOf is what a plan touches.
func scopeOf(p config.Plan) scope {
	s := scope{Listeners: map[string]bool{}, Backends: map[string]bool{}, All: p.Node != nil}
	for _, l := range p.ListenersAdded {
		s.Listeners[l.Ref.Name] = true
	}
	for _, l := range p.ListenersChanged {
		s.Listeners[l.New.Ref.Name] = true
	}
	for _, b := range p.BackendsAdded {
		s.Backends[b.Ref.Name] = true
	}
	for _, b := range p.BackendsChanged {
		s.Backends[b.New.Ref.Name] = true
	}
	return s
}

func (s *scope) has(key loop.SeriesKey) bool {
	if s.Endpoint != "" {
		return s.Endpoint == key.Backend+"/"+key.Endpoint
	}
	return s.All || s.Listeners[key.Listener] || s.Backends[key.Backend]
}

// figuresOf sums what was served in a scope, by all processes of this node.
func (n *Node) figuresOf(s scope) *figures {
	sum := &figures{}
	n.eachFigures(s, func(_ loop.SeriesKey, x *loop.Series, http bool) { sum.add(x, http) })
	return sum
}

// eachFigures calls do for the series of a scope, in the turns of their loops.
func (n *Node) eachFigures(s scope, do func(key loop.SeriesKey, x *loop.Series, http bool)) {
	c := n.Config()
	add := func(key loop.SeriesKey, x *loop.Series) {
		l := c.Listeners[key.Listener]
		do(key, x, l != nil && l.Protocol == config.HTTP)
	}
	n.past.mu.Lock()
	for key, x := range n.past.series {
		if s.has(key) {
			add(key, x)
		}
	}
	n.past.mu.Unlock()
	for _, l := range n.shared.Loops {
		for from, more := 0, true; more; {
			l.Ask(func(l *loop.Loop) {
				from, more = l.SeriesFrom(from, seriesChunk, func(key loop.SeriesKey, x *loop.Series) {
					if s.has(key) {
						add(key, x)
					}
				})
			})
		}
	}
}

const (
	// markEvery is the time between two marks, marksMost how many are kept: the
	// oldest is of about five minutes ago.
	markEvery = time.Minute
	marksMost = 6
)

// mark is what was counted until a time. Endpoints are not told apart, for no
// baseline is of one alone: so it stays small.
type mark struct {
	at  time.Time
	sum map[loop.SeriesKey]*figures
}

// baseline is what was served in the last minutes before a change: what was long
// ago says little of now.
type baseline struct {
	Figures *figures      `json:"figures"`
	Over    time.Duration `json:"over"`
}

// or gives the figures to compare with; old are those of a change that was begun
// by a release that took no marks.
func (b *baseline) or(old *figures) *figures {
	if b == nil || b.Figures == nil {
		return old
	}
	return b.Figures
}

// String tells what is compared with.
func (b *baseline) String() string {
	switch {
	case b == nil || b.Figures == nil:
		return "before: all that was counted"
	case b.Figures.Requests < judgedLeast:
		return "before: too few requests to compare with"
	}
	f := b.Figures
	return fmt.Sprintf("before: %d requests in %v, errors %.2f%%, p99 %v", f.Requests, b.Over.Round(time.Second), 100*f.errorShare(), round(f.Took.Quantile(0.99)))
}

// baselineOf is what was served in s since the oldest mark; is is what was counted
// until now. Without a mark nothing is known.
func (s *stateSide) baselineOf(of scope, is *figures, now time.Time) *baseline {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.marks {
		if now.Sub(m.at) > marksMost*markEvery {
			continue // none was taken for a while
		}
		from := &figures{}
		for key, f := range m.sum {
			if of.has(key) {
				from.Requests += f.Requests
				from.Errors += f.Errors
				from.Took.Add(&f.Took)
			}
		}
		return &baseline{is.since(from), now.Sub(m.at)}
	}
	return &baseline{Figures: &figures{}}
}

// markFigures takes a mark when it is time to.
func (n *Node) markFigures(now time.Time) {
	s := &n.state
	s.mu.Lock()
	due := len(s.marks) == 0 || now.Sub(s.marks[len(s.marks)-1].at) >= markEvery
	s.mu.Unlock()
	if !due || n.handingOver() {
		return
	}
	m := mark{now, map[loop.SeriesKey]*figures{}}
	n.eachFigures(scope{All: true}, func(key loop.SeriesKey, x *loop.Series, http bool) {
		key = loop.SeriesKey{Listener: key.Listener, Backend: key.Backend}
		f := m.sum[key]
		if f == nil {
			f = &figures{}
			m.sum[key] = f
		}
		f.add(x, http)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.marks) == marksMost {
		s.marks = append([]mark(nil), s.marks[1:]...)
	}
	s.marks = append(s.marks, m)
}
