package loop

import (
	"math/bits"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// The wheel indexes deadlines; the deadline itself is state of the flow. An
// entry stands in the bucket of its deadline's tick; one that is further away
// than a whole turn of the wheel is looked at once a turn and stays. Moving a
// deadline later costs nothing: the entry fires early and is put further on.
const (
	tick    = 64 * time.Millisecond // timeouts are seconds; none is promised finer
	buckets = 512                   // a turn is 32.8 s
)

// timer is a slot's place in the wheel: links by slot number + 1, 0 is none.
type timer struct {
	prev, next uint32
	at         uint32 // the tick by which it is due, counted from the wheel's first
	bucket     int16  // -1: in no bucket
}

type wheel struct {
	head [buckets]uint32
	full [buckets / 64]uint64
	base flow.Instant // the wheel's first tick began here
	last int64        // the tick up to which all has fired
	n    int
}

// tickOf is the tick within which at lies.
func (w *wheel) tickOf(at flow.Instant) int64 { return int64(at-w.base) / int64(tick) }

// due is the tick by whose beginning at has passed. 32 bits of ticks are more
// than eight years; what is further away is looked at then.
func (w *wheel) due(at flow.Instant) uint32 {
	return uint32(min(max(0, w.tickOf(at))+1, 1<<32-1))
}

// arm puts slot i into the wheel for at, or moves it there.
func (l *Loop) arm(i uint32, t *timer, at flow.Instant) {
	if t.bucket >= 0 {
		l.disarm(i, t)
	}
	w := &l.wheel
	// A deadline within the current tick fires with the next one.
	t.at = w.due(at)
	b := int16(max(int64(t.at), w.last+1) % buckets)
	t.bucket, t.prev, t.next = b, 0, w.head[b]
	if t.next != 0 {
		l.at(t.next - 1).timer.prev = i + 1
	}
	w.head[b] = i + 1
	w.full[b/64] |= 1 << (b % 64)
	w.n++
}

// disarm takes slot i out of the wheel.
func (l *Loop) disarm(i uint32, t *timer) {
	if t.bucket < 0 {
		return
	}
	w, b := &l.wheel, t.bucket
	if t.next != 0 {
		l.at(t.next - 1).timer.prev = t.prev
	}
	if t.prev != 0 {
		l.at(t.prev - 1).timer.next = t.next
	} else if w.head[b] = t.next; t.next == 0 {
		w.full[b/64] &^= 1 << (b % 64)
	}
	t.prev, t.next, t.bucket = 0, 0, -1
	w.n--
}

// expire fires what is due at now: each such slot is disarmed and given to do.
func (l *Loop) expire(now flow.Instant, do func(i uint32)) {
	w := &l.wheel
	to := w.tickOf(now)
	if to-w.last > buckets {
		w.last = to - buckets // after a long sleep every bucket is seen once
	}
	for w.last < to {
		w.last++
		for i := w.head[w.last%buckets]; i != 0; {
			t := &l.at(i - 1).timer
			next := t.next
			if int64(t.at) <= to {
				l.disarm(i-1, t)
				l.due = append(l.due, i-1)
			}
			i = next
		}
	}
	for _, i := range l.due {
		do(i)
	}
	l.due = l.due[:0]
}

// untilNext is how long nothing can be due; negative if nothing is armed.
func (l *Loop) untilNext(now flow.Instant) time.Duration {
	w := &l.wheel
	if w.n == 0 {
		return -1
	}
	for k := int64(1); k <= buckets; {
		b := (w.last + k) % buckets
		word := w.full[b/64] >> (b % 64)
		if word == 0 {
			k += 64 - b%64
			continue
		}
		k += int64(bits.TrailingZeros64(word))
		due := w.base + flow.Instant((w.last+k)*int64(tick))
		return max(0, time.Duration(due-now))
	}
	return tick * buckets
}
