package ledger

import (
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// rate is a rate as the generic cell rate algorithm has it (ITU-T I.371, annex A):
// one event in each every nanoseconds, and burst of them at once.
type rate struct {
	every int64
	burst int64
}

func rateOf(r *config.Rate) rate {
	every := max(1, int64(r.Every()))
	return rate{every, max(1, min(int64(r.Burst), burstTime/every))}
}

// burstTime bounds how far a burst reaches ahead, in nanoseconds: 73 years, so that
// no sum of instants is too large.
const burstTime = int64(1) << 61

// dueSlack is how far the clocks of two loops, which they read once a turn, may be
// apart, in nanoseconds.
const dueSlack = int64(10 * time.Second)

// pass judges an event at now; due is the theoretical arrival time, the whole
// state. It gives how long to wait, 0 if the event conforms, and the new state
// if it does.
func (r rate) pass(now, due int64) (wait, next int64) {
	if due-now > r.burst*r.every+dueSlack {
		due = now // it is of another rate, from before a reload
	}
	burst := r.burst
	if planted.Bug(50) {
		burst++
	}
	if early := due - now - (burst-1)*r.every; early > 0 {
		return early, due
	}
	return 0, max(now, due) + r.every
}

// gcra is a rate's state that all loops share. Its zero value is ready.
type gcra struct{ tat atomic.Int64 }

// take counts an event, or gives how long it would have to wait.
func (g *gcra) take(r rate, now int64) int64 {
	for {
		due := g.tat.Load()
		wait, next := r.pass(now, due)
		if wait != 0 || g.tat.CompareAndSwap(due, next) {
			return wait
		}
	}
}

// raiseTo makes a state no earlier than due.
func raiseTo(tat *atomic.Int64, due int64) {
	for {
		was := tat.Load()
		if was >= due || tat.CompareAndSwap(was, due) {
			return
		}
	}
}

// peek is take that counts nothing.
func (g *gcra) peek(r rate, now int64) int64 {
	wait, _ := r.pass(now, g.tat.Load())
	return wait
}

// untake takes back what take counted. Meanwhile somebody may have been refused,
// never let through too much.
func (g *gcra) untake(r rate) { g.tat.Add(-r.every) }
