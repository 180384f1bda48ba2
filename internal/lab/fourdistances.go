package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// fourDistances is the main lab: flows of all kinds, IPv4 and IPv6, moved at
// all four distances again and again. No octet may be lost, no flow reset, no
// new connection refused.
func fourDistances(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	if o.Flows == 0 {
		o.Flows = 2000
		if o.Short {
			o.Flows = 200
		}
	}
	mix, webMix := mixOf(o.Flows), httpMixOf(o.Flows*httpPerThousand/1000)
	made, err := distances(o.Distances)
	if err != nil {
		return err
	}
	s, err := setScene(ctx, o, out, v, "server", allKinds(mix, webMix))
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	l := &longRun{scene: s, mix: mix, http: &httpRun{scene: s, mix: webMix}}
	if err = l.openAll(); err == nil {
		l.control("before the moves", o.Short)
		err = l.moveAll(made)
		if err == nil && l.traffic.LostTotal() == 0 && (!o.Short || l.left(movesEnd) > 0) {
			l.control("after them", o.Short)
		}
		if err == nil {
			err = l.leaveOwner(made)
		}
	}
	l.conclude(made, err)
	return nil
}

// allKinds are the services that flows of all kinds need.
func allKinds(mix [kinds]int, webMix [httpKinds]int) []serviceSpec {
	return []serviceSpec{
		{name: "main", vip: "10.9.0.100:443", port: 9000},
		{name: "main6", vip: "[fd09::100]:443", port: 9000},
		{name: "dial", vip: "10.9.0.100:444", port: 9001, shut: true},
		{name: "queue", vip: "10.9.0.100:445", port: 9002, slots: mix[QueueHolder]},
		{name: "web", vip: "10.9.0.100:80", port: 9080, http: true},
		{name: "web6", vip: "[fd09::100]:80", port: 9080, http: true},
		{name: "webdial", vip: "10.9.0.100:81", port: 9081, http: true, shut: true},
		{name: "webqueue", vip: "10.9.0.100:82", port: 9082, http: true, slots: httpSlots(webMix)},
	}
}

// conclude ends the traffic and judges it; err is what kept the moves from being
// made.
func (l *longRun) conclude(made []Label, err error) {
	if err != nil && !errors.Is(err, errNoDistance) {
		l.v.Broken(err)
	}
	l.finish(err != nil)
	l.judgeStatus()
	l.judgeTraffic(l.flows)
	l.http.judge(made)
	l.judgeQueue()
	l.judgeStalls(l.traffic.Stalled(), made)
	if len(made) > 0 {
		l.mover.Judge(l.v, made)
		l.judgeGoals(made)
	}
	l.sayLogs()
}

// longRun is flows of all kinds that stand while they are moved.
type longRun struct {
	*scene
	mix   [kinds]int
	flows []*Flow
	http  *httpRun

	holders, queued []*Flow
	early           int // queued flows that were served before a slot was free
	draining        bool
	broken          bool // there is little left to wait for
	stopChurn       func(time.Duration) error
}

// churnEvery is the time between two short connections.
const churnEvery = 25 * time.Millisecond

// arrivalGap keeps the arrivals of flows that will queue apart.
const arrivalGap = 10 * time.Millisecond

// awaitArrival waits until n flows are in the balancer's queue, by its own
// account if it gives one, so that their order is beyond doubt: a client is
// connected before the balancer has accepted it, and several loops accept.
func (l *longRun) awaitArrival(n int) error {
	time.Sleep(arrivalGap)
	return l.traffic.Await(5*time.Second, "flows to queue", func() (int, int) {
		if _, waiting := l.balancer.Serving().Host.Listens(l.to("queue")); waiting > 0 {
			return 0, n
		}
		st := l.mover.status(l.ctx)
		if st == nil || st.Queued == nil {
			return n, n
		}
		return st.Queued["queue"], n
	})
}

func (l *longRun) openAll() error {
	l.phase("opening %d flows", l.Flows)
	for k := range Kind(kinds) {
		switch k {
		case Queued, QueueHolder, Short, Silent:
		case Dialing:
			l.flows = append(l.flows, l.open(k, l.mix[k], "dial")...)
		default:
			l.flows = append(l.flows, l.open(k, l.mix[k]/2, "main6")...)
			l.flows = append(l.flows, l.open(k, l.mix[k]-l.mix[k]/2, "main")...)
		}
	}
	l.holders = l.open(QueueHolder, l.mix[QueueHolder], "queue")
	l.flows = append(l.flows, l.holders...)
	_, direct := l.balancer.(Direct)
	served := func(f *Flow) bool {
		return f.Served.Load() != 0 || f.Kind == Dialing && (direct || f.Opened.Load() != 0)
	}
	if err := l.traffic.AwaitEach(15*time.Second, "flows to be served", l.flows, served); err != nil {
		return err
	}
	for range l.mix[Queued] {
		f := l.open(Queued, 1, "queue")
		if err := l.traffic.AwaitEach(5*time.Second, "a queued flow to open", f, func(f *Flow) bool { return f.Opened.Load() != 0 }); err != nil {
			return err
		}
		l.queued = append(l.queued, f...)
		if err := l.awaitArrival(len(l.queued)); err != nil {
			return err
		}
	}
	l.flows = append(l.flows, l.queued...)
	l.mover.standing = len(l.flows)
	if l.saboteur != nil {
		l.mover.standing-- // its flow may be lost
	}
	if err := l.http.openAll(); err != nil {
		return err
	}
	l.mover.standing += len(l.http.flows)
	l.mover.renewing = len(l.http.flows)
	l.mover.onMove = l.http.look
	l.http.look(l.ctx, Opening)
	l.stopChurn = l.traffic.Churn(l.clients, churnEvery, l.to("main"), l.to("main6"))
	return nil
}

// control measures the noise of this machine: everything runs, nothing moves.
// The longer, the fairer: the worst of a long time is worse than that of a
// short one.
func (l *longRun) control(when string, short bool) {
	d := 20 * time.Second
	if short {
		d = 3 * time.Second
	}
	time.Sleep(700 * time.Millisecond) // what was before wears off
	l.phase("control interval %s: %v without events", when, d)
	l.traffic.During(Control)
	time.Sleep(d)
	l.traffic.During(Opening)
}

// moveUntil is when a short run stops to begin new rounds of moves.
const moveUntil = 23 * time.Second

// movesEnd is when a short run makes no more moves at all, so that its flows
// can finish and be judged.
const movesEnd = 30 * time.Second

// roundsMin is the least number of moves of each distance in a short run.
const roundsMin = 3

func (l *longRun) moveAll(made []Label) error {
	rounds := l.Moves
	if rounds == 0 && !l.Short {
		rounds = 100
	}
	l.phase("moves: %v, %s", made, roundsText(rounds))
	failed := map[Label]bool{}
	for i := 0; ; i++ {
		last := i == rounds-1
		if rounds == 0 {
			last = i+1 >= roundsMin && l.left(moveUntil) < 0
		}
		// The queue runs off where the VIPs are not, if flows come there.
		drain := last || rounds == 0 && i == roundsMin-1
		if drain && (!slices.Contains(made, HostMove) || l.balancer.Serving().Host.Name != owner) {
			l.drainQueue()
		}
		for k, d := range made {
			if i == 1 && k == len(made)/2 {
				l.strike()
			}
			if failed[d] {
				continue
			}
			if l.Short && l.left(movesEnd) < 0 {
				l.phase("no time for more moves")
				return nil // too few are a figure that does not hold
			}
			if err := l.mover.Move(l.ctx, d); err != nil {
				// The other distances are worth a look still.
				l.phase("   %v: no more of these: %v", d, err)
				l.v.Must(false, d.String()+" moves", err.Error(), "no error")
				failed[d] = true
			}
			if drain && d == HostMove {
				l.drainQueue()
			}
		}
		if len(failed) == len(made) && len(made) > 0 {
			return errNoDistance
		}
		if len(made) == 0 {
			l.strike()
			time.Sleep(2 * time.Second)
			return nil
		}
		if last {
			return nil
		}
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
}

// leaveOwner makes one more host move if the flows are on the owner of the VIPs:
// then the door that was shut opens to a host that is not.
func (l *longRun) leaveOwner(made []Label) error {
	if !slices.Contains(made, HostMove) || l.mover.made[HostMove] == 0 || l.balancer.Serving().Host.Name != owner ||
		l.Short && l.left(movesEnd) < 0 {
		return nil
	}
	l.phase("one more move: what is not served yet shall be on another host than the owner of the VIPs")
	return l.mover.Move(l.ctx, HostMove)
}

// sayServedOn tells on which hosts flows of a kind were served.
func (l *longRun) sayServedOn(what string, flows []*Flow) {
	on := map[string]int{}
	for _, f := range flows {
		if at := f.Served.Load(); at != 0 {
			on[l.mover.hostOf(at).Name]++
		}
	}
	for _, h := range sortedKeys(on) {
		l.v.Say("%s: %d were served by %s", what, on[h], h)
	}
}

// errNoDistance: each has failed, and the verdict has it already.
var errNoDistance = errors.New("lab: no distance works")

func roundsText(rounds int) string {
	if rounds == 0 {
		return "as many rounds as fit"
	}
	return fmt.Sprintf("%d rounds", rounds)
}

// drainQueue gives one slot of the limited endpoint free. The oldest waiting
// flow takes it, ends after two exchanges, gives the slot to the next, and so
// on, while the moves go on.
func (l *longRun) drainQueue() {
	if l.draining || len(l.holders) == 0 {
		return
	}
	l.draining = true
	for _, f := range l.queued {
		if f.Served.Load() != 0 {
			l.early++
		}
	}
	l.phase("queue: one slot is given free, %d flows wait for it", len(l.queued))
	// They end one after another, and are standing flows no longer.
	l.mover.standing -= len(l.queued) + 1
	go l.traffic.Finish(8*time.Second, l.holders[:1])
}

// patience is how long the next step of the finish may take. All steps of a
// short run together end before the run must: a figure that does not hold says
// more than a run that is out of time.
func (l *longRun) patience() time.Duration {
	switch {
	case l.broken:
		return 2 * time.Second
	case l.Short:
		return max(l.left(l.shortLimit()-3*time.Second)/2, 500*time.Millisecond)
	}
	return 60 * time.Second
}

func (l *longRun) finish(broken bool) {
	l.traffic.During(Closing)
	l.broken = broken || l.traffic.LostTotal() > len(l.flows)/2
	l.phase("finishing: the shut door opens, the queue runs off, all flows drain")
	l.drainQueue()
	if err := l.doors["dial"].Unshut(); err != nil {
		l.v.Broken(err)
	}
	l.http.beginFinish()
	if l.stopChurn != nil {
		if err := l.stopChurn(min(l.patience(), 4*time.Second)); err != nil {
			l.v.Must(false, "short connections", err.Error(), "none left")
		}
	}
	dialing := slices.DeleteFunc(slices.Clone(l.flows), func(f *Flow) bool { return f.Kind != Dialing })
	patience := l.patience()
	if !l.Short && !l.broken {
		// The next SYN may be two minutes away (RFC 6298's backoff).
		patience = 130 * time.Second
	}
	if err := l.traffic.AwaitEach(patience, "dialing flows to be served", dialing, func(f *Flow) bool { return f.Served.Load() != 0 }); err != nil {
		l.phase("%v", err)
	} else if !l.broken {
		time.Sleep(time.Second) // they move octets for a while
	}
	l.sayServedOn("dialing flows", dialing)
	l.sayServedOn("queued flows", l.queued)
	if err := l.traffic.AwaitEach(l.patience(), "queued flows to end", l.queued, func(f *Flow) bool { return f.Finished.Load() != 0 }); err != nil {
		l.phase("%v", err)
	}
	l.http.finish(l.patience())
	l.traffic.Finish(l.patience(), l.flows)
	l.phase("all flows are over")
}

// judgeQueue checks the limit and the order of the limited endpoint.
func (l *longRun) judgeQueue() {
	slots := l.mix[QueueHolder]
	if _, direct := l.balancer.(Direct); direct {
		return
	}
	got := inOrder(l.queued)
	overtaken := 0
	for i := 1; i < len(got); i++ {
		if got[i].ID < got[i-1].ID {
			overtaken++
			l.v.Say("  queue: flow %d, opened at %s, was served at %s after flow %d, opened at %s, served at %s",
				got[i].ID, at(got[i].Opened.Load()), at(got[i].Served.Load()), got[i-1].ID, at(got[i-1].Opened.Load()), at(got[i-1].Served.Load()))
		}
	}
	most := int(l.doors["queue"].Most.Load())
	l.v.Say("queue: %d slots, %d flows waited, %d served, %d overtaken, at most %d connections at once", slots, len(l.queued), len(got), overtaken, most)
	l.v.Must(len(got) == l.mix[Queued], "queued flows served", fmt.Sprint(len(got)), fmt.Sprint(l.mix[Queued]))
	l.v.Zero("queued flows served before a slot was free", l.early)
	l.v.Zero("queued flows served out of order", overtaken)
	l.v.Must(most <= slots, "connections to the limited endpoint at once", fmt.Sprint(most), fmt.Sprintf("at most %d", slots))
	l.v.Figure("queue", map[string]any{"slots": slots, "waited": len(l.queued), "served": len(got), "overtaken": overtaken, "early": l.early, "most": most})
}

// movesPerFlow is how often every flow must have moved in a full run.
const movesPerFlow = 20

func (l *longRun) judgeGoals(made []Label) {
	for _, d := range made {
		least := roundsMin
		if l.Moves > 0 {
			least = l.Moves
		} else if !l.Short {
			least = 100
		}
		l.v.Must(l.mover.made[d] >= least, fmt.Sprintf("%v: moves made", d), fmt.Sprint(l.mover.made[d]), fmt.Sprintf("at least %d", least))
	}
	least := movesPerFlow
	if l.Short || l.Moves > 0 {
		least = l.mover.total() // each move moves each flow
	}
	l.v.Must(l.mover.whole >= least, "moves of every flow", fmt.Sprint(l.mover.whole), fmt.Sprintf("at least %d", least))
}

// at writes a moment of the traffic.
func at(nanos int64) string { return fmt.Sprintf("%.4f s", float64(nanos)/1e9) }
