package lab

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"
)

// httpPerThousand is how many HTTP flows stand beside a thousand others.
const httpPerThousand = 320

// httpRun is the HTTP traffic of the lab four-distances.
type httpRun struct {
	*scene
	mix   [httpKinds]int
	flows []*HTTPFlow // that stand all the time
	early []*HTTPFlow // that connect again and again

	seen  map[*HTTPFlow]int      // how often each was moved so far
	moved [httpKinds][labels]int // moves of flows, as the product lists them
	// missed are moves that a flow did not make, unlisted the looks that failed.
	missed, unlisted int
	queued           [labels]int // flows that waited in the queue, just after moves

	stopShorts func(time.Duration) error
}

// httpShortEvery is the time between two short connections.
const httpShortEvery = 50 * time.Millisecond

// open makes n flows of a kind to a service and begins them.
func (l *httpRun) open(k HTTPKind, n int, service string) []*HTTPFlow {
	var flows []*HTTPFlow
	for range n {
		flows = append(flows, l.web.NewFlow(k, l.to(service)))
	}
	l.web.Open(flows...)
	return flows
}

func (l *httpRun) openAll() error {
	n := 0
	for _, m := range l.mix {
		n += m
	}
	l.phase("opening %d flows of HTTP", n)
	for k := range HTTPKind(httpKinds) {
		switch n := l.mix[k]; k {
		case HTTPDialing:
			l.flows = append(l.flows, l.open(k, n, "webdial")...)
		case HTTPQueued:
			l.flows = append(l.flows, l.open(k, n, "webqueue")...)
		default:
			l.flows = append(l.flows, l.open(k, n/2, "web6")...)
			l.flows = append(l.flows, l.open(k, n-n/2, "web")...)
		}
	}
	there := func(f *HTTPFlow) bool {
		return f.Served.Load() != 0 || f.Kind == HTTPDialing && (f.web.direct || f.Opened.Load() != 0)
	}
	if err := l.web.AwaitEach(15*time.Second, "HTTP flows to be served", l.flows, there); err != nil {
		return err
	}
	l.early = append(l.open(HTTPEarly, max(2, l.mix[HTTPIdle]/4), "web"), l.open(HTTPEarly, 1, "web6")...)
	l.stopShorts = l.web.Churn(HTTPShort, httpShortEvery, l.to("web"), l.to("web6"))
	return nil
}

// look notes which flows a move has moved.
func (l *httpRun) look(ctx context.Context, d Label) {
	b, ok := l.balancer.(interface {
		Flows(context.Context) ([]FlowStatus, error)
	})
	if !ok {
		return
	}
	list, err := b.Flows(ctx)
	if err != nil {
		l.phase("   flows: %v", err)
		l.unlisted++
		return
	}
	moves := map[string]int{}
	for _, x := range list {
		// One address may be that of two connections, to different VIPs: a short one may
		// have that of a standing flow, which has moved more.
		moves[x.Client] = max(moves[x.Client], x.Moves)
	}
	if l.seen == nil {
		l.seen = map[*HTTPFlow]int{}
	}
	for _, f := range l.flows {
		f.mu.Lock()
		n, listed := moves[f.local.String()]
		f.mu.Unlock()
		switch {
		case d == Opening || n > l.seen[f]:
			if d != Opening {
				l.moved[f.Kind][d]++
			}
		case d == Config && listed && n == l.seen[f]:
			// It took the change up by itself: see mover.renewing.
		case len(f.Faults()) == 0:
			l.phase("   flow %d (%v): moved %d times before, %d now, listed: %v", f.ID, f.Kind, l.seen[f], n, listed)
			l.missed++
		}
		l.seen[f] = n
	}
	if st := l.mover.status(ctx); st != nil {
		l.queued[d] += st.Queued["webqueue"]
	}
}

// beginFinish lets what waits for a server be served.
func (l *httpRun) beginFinish() {
	if err := l.doors["webdial"].Unshut(); err != nil {
		l.v.Broken(err)
	}
}

func (l *httpRun) finish(patience time.Duration) {
	if l.stopShorts != nil {
		if err := l.stopShorts(min(patience, 4*time.Second)); err != nil {
			l.phase("%v", err)
		}
		l.web.Finish(0, l.web.Left(HTTPShort)) // those that are left are faults
	}
	var dialing []*HTTPFlow
	for _, f := range l.flows {
		if f.Kind == HTTPDialing {
			dialing = append(dialing, f)
		}
	}
	if err := l.web.AwaitEach(patience, "dialing HTTP flows to be served", dialing, func(f *HTTPFlow) bool { return f.Served.Load() != 0 }); err != nil {
		l.phase("%v", err)
	}
	l.web.Finish(patience, append(l.early, l.flows...))
	l.phase("all flows of HTTP are over")
}

// httpStates are the states of flows with HTTP that must have been moved, in the
// product's words: at each distance, whatever else was.
var httpStates = []string{"http-idle", "http-head", "http-request", "http-pipelined", "http-response", "http-tunnel"}

// judge writes what the ends saw into the verdict.
func (l *httpRun) judge(made []Label) {
	by, total, faults := l.web.Lost()
	counts := l.web.Counts()
	l.v.Say("HTTP: %d flows; connections to servers: %d; moved:%s", len(l.flows), l.web.accepted.Load(), headOf(made))
	kinds := map[string]any{}
	idle := 0
	for k, c := range counts {
		if c.opened == 0 {
			continue
		}
		line, moved := "", map[string]int{}
		for _, d := range made {
			line += fmt.Sprintf(" %7d", l.moved[k][d])
			moved[d.String()] = l.moved[k][d]
		}
		if HTTPKind(k) == HTTPShort || HTTPKind(k) == HTTPEarly {
			line, moved = "", nil
		}
		l.v.Say("  %-26s %5d flows %7d exchanges %9.1f MB, lost %d%s", HTTPKind(k), c.opened, c.exchanges, float64(c.octets)/1e6, c.lost, line)
		kinds[HTTPKind(k).String()] = map[string]any{"flows": c.opened, "exchanges": c.exchanges, "octets": c.octets, "lost": c.lost, "moved": moved}
		if c.exchanges == 0 && c.lost == 0 {
			idle++
		}
	}
	for i, f := range faults {
		if i == 20 {
			l.v.Say("  ... %d faults in all", total)
			break
		}
		l.v.Say("  fault at %s: %v", f.When.Format("15:04:05.000"), f)
	}
	lost := map[string]int{}
	for k, n := range by {
		lost[FaultKind(k).String()] = n
		l.v.Zero("HTTP flows lost by "+FaultKind(k).String(), n)
	}
	l.v.Zero("kinds of HTTP flow without an answer", idle)
	if total == 0 {
		l.v.Zero("connections that ended within a request's head at a server", int(l.web.halfHeads.Load()))
	}
	rtt := map[string]any{}
	for _, d := range append([]Label{Control}, made...) {
		h := &l.web.rtt[d]
		l.v.Say("  answers to http-exchange, %-8v %6d, p50 %s p99 %s max %s", d, h.N, ms(h.Quantile(0.5)), ms(h.Quantile(0.99)), ms(h.Max))
		rtt[d.String()] = map[string]float64{"p50": millis(h.Quantile(0.5)), "p99": millis(h.Quantile(0.99)), "max": millis(h.Max)}
	}
	slots, most := httpSlots(l.mix), l.web.MostInFlight(l.doors["webqueue"])
	if !l.web.direct {
		l.v.Must(most <= slots, "requests to the limited endpoint at once", fmt.Sprint(most), fmt.Sprintf("at most %d", slots))
	}
	l.v.Figure("http", map[string]any{"flows": len(l.flows), "lost": total, "lost_by": lost, "kinds": kinds, "answer_ms": rtt,
		"queue": map[string]int{"slots": slots, "most": most}, "idle_resets": l.web.idleResets.Load()})
	if len(made) > 0 {
		l.judgeMoves(made)
	}
}

func headOf(made []Label) (s string) {
	for _, d := range made {
		s += " " + d.String()
	}
	return s
}

func (l *httpRun) judgeMoves(made []Label) {
	l.v.Zero("HTTP flows that a move left where they were", l.missed)
	l.v.Zero("moves after which the flows were not listed", l.unlisted)
	for _, d := range made {
		never := ""
		for _, s := range httpStates {
			if l.mover.stateOf[d][s] == 0 {
				never += " " + s
			}
		}
		l.v.Must(never == "", fmt.Sprintf("%v: states of HTTP that were not moved", d), cmp.Or(strings.TrimSpace(never), "none"), "none")
		l.v.Must(l.queued[d] > 0, fmt.Sprintf("%v: HTTP flows in the queue at moves", d), fmt.Sprint(l.queued[d]), "more than 0")
	}
}
