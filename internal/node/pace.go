package node

import (
	"context"
	"fmt"
	"time"
)

// paceMissed is how much of what was missed is made up for: a pace that stood
// still goes on, not at once all that it did not do.
const paceMissed = 100 * time.Millisecond

// perSecondMost bounds a pace that is asked for; faster is at once.
const perSecondMost = 1e6

// checkPace refuses a pace that is none.
func checkPace(perSecond, jitter float64) error {
	if !(perSecond >= 0 && perSecond <= perSecondMost) { // not a number is neither
		return fmt.Errorf("node: %g flows per second: want 0, which is at once, to %g", perSecond, perSecondMost)
	}
	if !(jitter >= 0 && jitter <= 1) {
		return fmt.Errorf("node: a jitter of %g: want a share of the interval, 0 to 1", jitter)
	}
	return nil
}

// pacer spreads what is done to flows over time.
type pacer struct {
	interval time.Duration // 0: at once
	jitter   float64
	chance   func() float64 // 0 to 1
	due      time.Time      // of the next
}

func newPacer(now time.Time, perSecond, jitter float64, chance func() float64) *pacer {
	p := &pacer{jitter: jitter, chance: chance, due: now}
	if perSecond > 0 {
		p.interval = time.Duration(float64(time.Second) / perSecond)
	}
	return p
}

// take gives how many of most are due now, and if none is, when to ask again. The
// mean of the intervals is what was asked for, whatever is left to chance.
func (p *pacer) take(now time.Time, most int) (k int, wait time.Duration) {
	if p.interval == 0 {
		return most, 0
	}
	if late := now.Add(-paceMissed); p.due.Before(late) {
		p.due = late
	}
	for k < most && !p.due.After(now) {
		k++
		sure := float64(p.interval) * (1 - p.jitter)
		p.due = p.due.Add(time.Duration(sure + float64(p.interval)*p.jitter*2*p.chance()))
	}
	return k, p.due.Sub(now)
}

// next waits until some are due, and tells how many of most.
func (p *pacer) next(ctx context.Context, most int) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		k, wait := p.take(time.Now(), most)
		if k > 0 {
			return k, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return 0, err
		}
	}
}

// sleep waits for d, or for the end of ctx, which is an error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
