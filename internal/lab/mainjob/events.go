package mainjob

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// afterglow is how long after an event what goes wrong is still put down to it.
const afterglow = 100 * time.Millisecond

// allEvents makes them, in turn, and stops at the first that the clients did
// not survive.
func (j *job) allEvents(p pace) error {
	next := time.Now()
	for round := 1; round <= j.moves; round++ {
		for _, w := range []when{reload, rebal, upgrade} {
			select {
			case <-time.After(time.Until(next)):
			case <-j.ctx.Done():
				return j.ctx.Err()
			}
			next = time.Now().Add(p.gap)
			if round == (j.moves+1)/2 && w == rebal {
				j.strike()
			}
			if err := j.event(w); err != nil {
				return fmt.Errorf("%v %d: %w", w, round, err)
			}
			j.lastEvent = time.Now()
		}
		j.v.say("round %d of %d: %s", round, j.moves, j.progress())
	}
	return nil
}

// event makes the same one in every Holdfast, with a query and a transaction
// under way, and asks every session before and after.
func (j *job) event(w when) error {
	if err := j.askAll(); err != nil {
		return err
	}
	if err := j.open.open(); err != nil {
		return err
	}
	slept := j.session.begin(slowQuery)
	j.now.Store(int32(w))
	for _, b := range j.balancers {
		j.stage.Store(fmt.Sprintf("%v %d of %s", w, j.events[w]+1, b.name))
		if err := b.event(w); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	j.events[w]++
	j.stage.Store(fmt.Sprintf("the sessions after %v %d", w, j.events[w]))
	time.AfterFunc(afterglow, func() { j.now.CompareAndSwap(int32(w), int32(quiet)) })
	if got, err := slept(); err != nil || got != "slept" {
		return fmt.Errorf("psql: a query under way: %q %w", got, orUnexpected(err))
	}
	if err := j.session.grow(); err != nil {
		return err
	}
	if err := j.open.exec(); err != nil {
		return err
	}
	return j.askAll()
}

func orUnexpected(err error) error {
	if err == nil {
		return fmt.Errorf("is not what was asked for")
	}
	return err
}

func (j *job) progress() string {
	changes := 0
	for _, w := range j.witnesses {
		w.mu.Lock()
		changes += len(w.changes)
		w.mu.Unlock()
	}
	return fmt.Sprintf("%d reloads, %d rebalances, %d upgrades of each Holdfast; identity changes %d; longest stall %.1f ms",
		j.events[reload], j.events[rebal], j.events[upgrade], changes, millis(j.stalls.most()))
}

// judge writes what was found into the verdict.
func (j *job) judge() {
	if j.session == nil || j.messages == nil || j.iperf == nil || j.bench == nil {
		return // it never came to the sessions; the verdict has the reason
	}
	events, flows, pauses := map[string]int{}, map[string]int{}, map[string]float64{}
	var doubts []string
	for _, w := range []when{reload, rebal, upgrade} {
		events[w.String()] = j.events[w]
		for _, b := range j.balancers {
			flows[w.String()] += b.flows[w]
			pauses[w.String()] = max(pauses[w.String()], round(b.longest[w]/1000))
		}
		j.v.must(j.events[w] == j.moves, "events of each Holdfast: "+w.String(), fmt.Sprint(j.events[w]), fmt.Sprint(j.moves))
	}
	for _, b := range j.balancers {
		doubts = append(doubts, b.doubts...)
	}
	j.v.figure("events", events)
	j.v.figure("moved_flows", flows)
	j.v.figure("longest_pause_ms", pauses)
	j.v.zero("events that did not do what they said", doubts)
	j.judgeWitnesses(2) // the publisher, and curl, which has a new other end each time
	j.judgeMessages()
	j.judgeSession()
	j.judgeStalls()
	j.closeBrowser()
	j.judgeAccounts()
	if !j.bench.ended() { // the run is broken, and it would run on
		j.bench.end(time.Second)
	}
	if !j.iperf.ended() {
		j.iperf.end(time.Second)
	}
	j.judgeBench()
	j.judgeIperf()
	j.judgeWeb()
	j.judgePaced()
	if !j.v.holds() {
		for _, b := range j.balancers {
			j.v.say("log of %s:\n%s", b.process.name, b.process.tail())
			var all map[string]any
			if b.verb(&all, "status") == nil {
				j.v.say("status of %s: %v", b.process.name, all)
			}
		}
	}
}

func kill(pid int) { _ = unix.Kill(pid, unix.SIGKILL) }
