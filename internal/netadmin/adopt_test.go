package netadmin

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func (h *host) adopt(cfg Config) *Admin {
	h.t.Helper()
	cfg.Device = "eth0"
	var a *Admin
	h.do("Adopt", func() (err error) {
		a, err = Adopt(cfg)
		return err
	})
	h.t.Cleanup(func() {
		h.do("Close", func() error {
			if err := a.Close(); !errors.Is(err, ErrClosed) {
				return err
			}
			return nil
		})
	})
	return a
}

func (h *host) leftover(table string) (left *heritage) {
	h.t.Helper()
	h.do("leftover", func() (err error) {
		left, err = leftover(table)
		return err
	})
	return left
}

// The giver's process is killed in the middle of a move, twice, and its successor
// goes on with all it did: a flow that has left, one that stays, handshakes that
// are led, one that follows, an address that is owned and one that is a guest's.
func TestAdopt(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		v := vip[fam]
		aa, ba := l.a.adopt(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		for _, h := range []*host{l.a, l.b} {
			h.greeter(v, 443)
		}
		l.a.own(aa, v, long)
		must(t, "Guest", aa.Guest(src[fam], long))
		must(t, "Forward", aa.Forward(src[fam], l.b.addr[1-fam]))
		goes := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		leg := connect(t, l.a, v, l.a, l.a.addr[fam], false)
		stays := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		dialled := connect(t, l.a, src[fam], l.a, l.a.addr[fam], false) // as a guest
		streams := []*stream{goes, leg, stays, dialled}
		must(t, "Forward on b", ba.Forward(v, l.a.addr[fam]))
		must(t, "Guest on b", ba.Guest(v, long))
		must(t, "Learn", aa.Learn([]netip.AddrPort{netip.AddrPortFrom(v, 443)}))
		must(t, "Lead", aa.Lead(v, l.b.addr[0]))
		follower := l.client.dial(v, 443)
		if got := whoAnswers(t, follower); got != "b" {
			t.Fatalf("led to %s", got)
		}
		for _, s := range []*stream{goes, leg} {
			(&mover{t: t, stream: s}).move(l.a, l.b, aa, ba, nil)
		}
		must(t, "Here", aa.Here([]Tuple{stays.tuple}))
		held := manyTuples(fam, 3)
		must(t, "Hold", aa.Hold(held))
		for round := range 2 {
			want, err := aa.State()
			must(t, "State", err)
			crash(aa)
			for _, s := range streams { // rules outlive the process
				s.pump(10*time.Millisecond, 1000)
			}
			if round == 1 {
				// One that was killed while it took over: its rules are not whole.
				part := l.a.open(Config{Table: DefaultTable, HoldDevice: DefaultHoldDevice, unfinished: true})
				crash(part)
			}
			aa = l.a.adopt(Config{})
			got, err := aa.State()
			must(t, "State", err)
			for _, s := range []*State{&want, &got} {
				for _, list := range [][]Lease{s.Owned, s.Guests} {
					for i := range list {
						if list[i].Left < long/2 || list[i].Left > long {
							t.Errorf("%v is left of %v", list[i].Left, list[i].Addr)
						}
						list[i] = Lease{Addr: netip.PrefixFrom(list[i].Addr.Addr(), 0)}
					}
				}
				for i := range s.Fenced {
					s.Fenced[i] = netip.PrefixFrom(s.Fenced[i].Addr(), 0)
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("round %d\ngot  %+v\nwant %+v", round, got, want)
			}
			for _, s := range streams {
				s.pump(10*time.Millisecond, 1000)
			}
			if got := whoAnswers(t, l.client.dial(v, 443)); got != "b" {
				t.Errorf("a client was led to %s", got)
			}
			if list, err := aa.rules.notes(aa.rules.vips.follow[chainOf(l.b.addr[0])], v); err != nil || len(list) != 2+round {
				t.Errorf("%d follow, %v", len(list), err)
			}
		}
		must(t, "Drop", aa.Drop(held))
		must(t, "Own", aa.Own(prefixOf(v), long))
		for _, s := range streams {
			s.finish(true, true)
		}
		l.wantNoReset()
	})
}

// Nobody comes after the one that was killed: the lease ends all the same.
func TestKilledOwner(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		a := l.a.open(Config{})
		fenceAll(t, a)
		j := l.client.judge()
		const lease = 2 * time.Second
		l.a.own(a, vip[fam], lease)
		end := time.Now().Add(lease)
		crash(a)
		l.client.provoke(vip[fam])
		if got := j.speakers(vip[fam]); got[l.a.mac()] == 0 {
			t.Errorf("%v speak within the lease", got)
		}
		time.Sleep(time.Until(end) + grace)
		j.speakers(vip[fam])
		l.client.provoke(vip[fam])
		if got := j.speakers(vip[fam]); len(got) != 0 {
			t.Errorf("%v speak after the lease", got)
		}
		wait(t, "the address to leave its device", func() bool { return !l.a.has("eth0", vip[fam]) })
	})
}

// An heir takes over addresses as well, and decides alone from then on, though the rules
// of the one that was killed are still there.
func TestInheritVIPs(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		a := l.a.open(Config{})
		fenceAll(t, a)
		const lease = 2 * time.Second
		l.a.own(a, vip[fam], lease)
		s := connect(t, l.a, vip[fam], l.client, l.client.addr[fam], true)
		s.pump(10*time.Millisecond, 1000)
		crash(a)
		heir := l.a.open(Config{Table: "heir", HoldDevice: "heir"})
		must(t, "inherit", heir.inherit(*l.a.leftover(DefaultTable)))
		must(t, "Own", heir.Own(prefixOf(vip[fam]), 2*lease))
		time.Sleep(lease + 100*time.Millisecond) // of the predecessor, which is still there
		s.pump(10*time.Millisecond, 1000)
		s.settle()
		must(t, "remove", heir.removeTable(DefaultTable))
		s.pump(10*time.Millisecond, 1000)
		s.settle()
		j := l.client.judge()
		must(t, "Disown", heir.Disown(vip[fam]))
		j.speakers(vip[fam])
		l.client.provoke(vip[fam])
		if got := j.speakers(vip[fam]); len(got) != 0 {
			t.Errorf("%v speak after Disown", got)
		}
		l.a.own(heir, vip[fam], long)
		s.finish(true, true)
	})
}

// An heir is killed when it has made the rules of the one before let pass what its own
// decide on, before or after it took that one's place: its leases count, and no address
// is owned for longer.
func TestAdoptOutlasted(t *testing.T) {
	for _, unfinished := range []bool{true, false} {
		l := newBareLab(t)
		a := l.a.adopt(Config{})
		fenceAll(t, a)
		const lease = 5 * time.Second
		l.a.own(a, vip[0], lease)
		must(t, "Guest", a.Guest(src[0], lease))
		crash(a)
		h := l.a.leftover(DefaultTable)
		heir := l.a.open(Config{Table: DefaultTable + "1", HoldDevice: DefaultHoldDevice + "1", unfinished: unfinished})
		must(t, "inherit", heir.inherit(*h))
		crash(heir)
		s, err := l.a.adopt(Config{}).State()
		must(t, "State", err)
		for _, list := range [][]Lease{s.Owned, s.Guests} {
			if len(list) != 1 || list[0].Left > lease {
				t.Errorf("unfinished %v: %v are owned, %v guests", unfinished, s.Owned, s.Guests)
			}
		}
	}
}

// A peer that is gone keeps nothing of the others' from being taken over.
func TestAdoptWithoutPeer(t *testing.T) {
	l := newBareLab(t)
	a := l.a.adopt(Config{})
	fenceAll(t, a)
	l.a.own(a, vip[0], long)
	there := manyTuples(0, 2)
	must(t, "Divert", a.Divert(there, l.b.addr[0]))
	must(t, "Lead", a.Lead(vip[0], l.b.addr[0]))
	held := []Tuple{{Local: netip.AddrPortFrom(vip[0], 443), Remote: netip.AddrPortFrom(l.client.addr[0], 9)}}
	must(t, "Hold", a.Hold(held))
	crash(a)
	h := l.a.leftover(DefaultTable)
	nobody := netip.AddrFrom4([4]byte(l.b.addr[0].AsSlice())).Next().Next().Next().Next().Next()
	h.state.Led = append(h.state.Led, Sending{src[0], nobody})
	h.followers = append(h.followers, Diversion{held[0], nobody})
	h.state.Diverted = append(h.state.Diverted, Diversion{manyTuples(0, 3)[2], nobody})
	heir := l.a.open(Config{Table: "heir", HoldDevice: "heir"})
	if err := heir.inherit(*h); err == nil {
		t.Fatal("a peer that is not there was found")
	}
	s, err := heir.State()
	must(t, "State", err)
	if len(s.Diverted) != len(there) || !reflect.DeepEqual(s.Held, held) || len(s.Owned) != 1 || len(s.Led) != 1 {
		t.Errorf("taken over: %+v", s)
	}
}
