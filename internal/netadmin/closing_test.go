package netadmin

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A connection that A has closed, with octets that its client has not read yet, has no
// process that could move it. Closing finds it, and with its segments sent back to A the
// client has all of it after the address has gone to B, and no reset.
func TestClosing(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		v := vip[fam]
		l.a.own(aa, v, long)
		s := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		over := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		s.pump(10*time.Millisecond, 1000)
		if ts, err := aa.Closing(v); err != nil || len(ts) != 0 {
			t.Fatalf("before the end: %v, %v", ts, err)
		}
		s.settle()           // unread octets at the close would be a reset
		s.write(true, 1<<20) // far more than the client's window
		must(t, "close", unix.Close(s.ours))
		must(t, "close", unix.Close(over.ours)) // its client has all, and has not shut its own end
		s.ours, over.ours = -1, -1
		ts, err := aa.Closing(v)
		if err != nil || len(ts) != 2 || !slices.Contains(ts, s.tuple) || !slices.Contains(ts, over.tuple) {
			t.Fatalf("Closing: %v, %v, want %v and %v", ts, err, s.tuple, over.tuple)
		}
		must(t, "Here", aa.Here(ts))
		must(t, "Divert", ba.Divert(ts, l.a.addr[fam]))
		must(t, "Forward", aa.Forward(v, l.b.addr[0]))
		must(t, "Guest", aa.Guest(v, long))
		must(t, "Disown", aa.Disown(v))
		must(t, "Own", ba.Own(prefixOf(v), long))
		must(t, "Announce", ba.Announce(v))
		wait(t, "the client to have all", func() bool { return s.drain(false) })
		if s.peersRead != s.oursWrote {
			t.Errorf("the client read %d octets of %d", s.peersRead, s.oursWrote)
		}
		for _, x := range []*stream{s, over} {
			must(t, "close the client's", unix.Close(x.peers))
			x.peers = -1
		}
		wait(t, "nothing to be due", func() bool {
			ts, err := aa.Closing(v)
			must(t, "Closing", err)
			return len(ts) == 0
		})
		l.wantNoReset()
	})
}
