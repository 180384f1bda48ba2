package netadmin

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// The kernel refuses a transaction: nothing of it has happened, the error says
// why, and what comes after works.
func TestBatchFails(t *testing.T) {
	l := newLab(t)
	a := l.a.open(Config{})
	ts := append(manyTuples(0, 3), manyTuples(1, 3)...)
	must(t, "Hold", a.Hold(ts[:4]))
	elements := func() (n int) {
		for i := range families {
			for _, s := range []*nftables.Set{a.rules.steer[i], a.rules.guard[i]} {
				list, err := l.a.rst.GetSetElements(s)
				must(t, "list", err)
				n += len(list)
			}
		}
		return n
	}
	if n := elements(); n != 8 {
		t.Fatalf("%d elements", n)
	}
	a.vipMu.Lock() // nobody makes it anew
	// Somebody removes one behind our back; to remove it once more fails, and
	// with it all that goes by the same call.
	must(t, "encode", l.a.rst.SetDeleteElements(a.rules.guard[1], []nftables.SetElement{{Key: key(ts[3])}}))
	must(t, "remove", l.a.rst.Flush())
	if err := a.Drop(ts); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Drop: %v", err)
	}
	if n, c := elements(), l.a.counters(a); n != 7 || c.HeldTuples != 4 {
		t.Errorf("%d elements, %+v", n, c)
	}
	must(t, "Drop", a.Drop(ts[:3]))
	must(t, "Hold", a.Hold(ts[4:]))
	if n, c := elements(), l.a.counters(a); n != 5 || c.HeldTuples != 3 {
		t.Errorf("%d elements, %+v", n, c)
	}
	// The table is gone altogether.
	l.a.rst.DelTable(a.rules.netdev)
	must(t, "remove table", l.a.rst.Flush())
	if err := a.Hold(ts[:1]); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Hold: %v", err)
	}
	if c := a.tuples[ts[0]]; c != nil {
		t.Errorf("%+v", *c)
	}
	a.vipMu.Unlock()
	wait(t, "the rules", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.counters.Rebuilt > 0 && !a.rules.doubt
	})
	if n := elements(); n != 6 {
		t.Errorf("%d elements", n)
	}
}

// What a failed change has left unknown is made anew: nothing is refused for ever.
func TestDoubtIsSettled(t *testing.T) {
	l := newLab(t)
	a := l.a.open(Config{})
	ts := manyTuples(0, 2)
	must(t, "Hold", a.Hold(ts[:1]))
	// The kernel has what is not known here, as after a change whose answer was lost.
	a.mu.Lock()
	delete(a.tuples, ts[0])
	a.mu.Unlock()
	if err := a.Divert(ts[:1], l.b.addr[0]); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("Divert: %v", err)
	}
	wait(t, "the rules", func() bool { return a.Divert(ts[:1], l.b.addr[0]) == nil })
}

// A firewall is loaded anew, and takes all tables away. They come again, with
// who may speak for what, and with the flows that have gone elsewhere.
func TestFlushedRuleset(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		v := vip[fam]
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		for _, h := range []*host{l.a, l.b} {
			h.greeter(v, 443)
		}
		l.a.own(aa, v, long)
		must(t, "Steer", aa.Steer(src[:], []PortRange{{First: firstOfB, Last: lastOfB, To: l.b.addr[0]}}))
		must(t, "Own", aa.Own(prefixOf(src[fam]), long))
		must(t, "Guest on b", ba.Guest(v, long))
		must(t, "Guest on b", ba.Guest(src[fam], long))
		goes := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		stays := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		(&mover{t: t, stream: goes}).move(l.a, l.b, aa, ba, nil)
		must(t, "Lead", aa.Lead(v, l.b.addr[0]))
		for _, x := range []struct {
			h *host
			a *Admin
		}{{l.b, ba}, {l.a, aa}} {
			x.h.rst.FlushRuleset()
			must(t, "flush ruleset", x.h.rst.Flush())
			wait(t, "the rules", func() bool {
				x.a.mu.Lock()
				defer x.a.mu.Unlock()
				return x.a.counters.Rebuilt == 1
			})
		}
		for _, s := range []*stream{goes, stays} {
			s.pump(20*time.Millisecond, 700)
		}
		if got := whoAnswers(t, l.client.dial(v, 443)); got != "b" {
			t.Errorf("led to %s", got)
		}
		ln := l.server.listen(l.server.addr[fam])
		s, err := dialFrom(t, l.b, netip.AddrPortFrom(src[fam], firstOfB), ln, 5*time.Second)
		must(t, "connect from b", err)
		s.pump(20*time.Millisecond, 700)
		for _, s := range []*stream{goes, stays, s} {
			s.finish(true, true)
		}
		j := l.client.judge()
		must(t, "Disown", aa.Disown(v))
		j.speakers(v)
		l.client.provoke(v)
		if got := j.speakers(v); len(got) != 0 {
			t.Errorf("%v speak after Disown", got)
		}
	})
}
