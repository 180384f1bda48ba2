package netadmin

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// New handshakes go to the taker of an address while its flows still move:
//
//	giver: Learn       undo: Learn(nil)
//	       Handshakes
//	       Lead        undo: Lead to nobody, and Forget when none follows any more
//	       ... Handshakes until none is left, Learn(nil), and once more ...
//	       Forward
//
// A handshake that the giver has begun stays with it, also when its SYN comes
// again: its tuple was learnt, from the SYN or from the kernel's table. One
// that begins after Lead is the taker's, and what follows on its tuple goes
// there. The final ACK of a handshake in a SYN cookie, which the kernel keeps
// no state of, stays with the giver.

// Learn notes the tuples of SYNs to these addresses and ports from now on, for
// a minute each, and replaces what it said before. None ends it: what was
// learnt is forgotten, so from then on Lead leads every SYN.
func (a *Admin) Learn(on []netip.AddrPort) error {
	var list []netip.AddrPort
	for _, x := range on {
		x = netip.AddrPortFrom(x.Addr().Unmap(), x.Port())
		if !x.IsValid() || x.Port() == 0 || x.Addr().Zone() != "" {
			return fmt.Errorf("netadmin: learn on %v: not an address and a port", x)
		}
		list = append(list, x)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	for _, x := range list {
		v := a.vips[x.Addr()]
		if v == nil {
			return fmt.Errorf("netadmin: learn on %v: not a fenced address", x)
		}
		if err := a.move(x.Addr(), v); err != nil {
			return err
		}
	}
	if err := a.rules.learnOnTo(list); err != nil {
		return err
	}
	was := a.learning
	a.learning, a.unsettled = list, true
	for _, x := range was {
		if v := a.vips[x.Addr()]; v != nil {
			if err := a.rest(x.Addr(), v); err != nil {
				return err
			}
		}
	}
	return nil
}

// move makes the rules look at what is led and forwarded of an address. a.mu
// is held.
func (a *Admin) move(addr netip.Addr, v *movable) error {
	if v.moving {
		return nil
	}
	if err := a.rules.move(addr, true); err != nil {
		return err
	}
	v.moving = true
	return nil
}

// rest ends that, unless something is still in force. a.mu is held.
func (a *Admin) rest(addr netip.Addr, v *movable) error {
	if !v.moving || v.following || v.lead != nil || v.forward != nil ||
		slices.ContainsFunc(a.learning, func(x netip.AddrPort) bool { return x.Addr() == addr }) {
		return nil
	}
	if err := a.rules.move(addr, false); err != nil {
		return err
	}
	v.moving = false
	return nil
}

// cookieFor is how long a handshake of which the kernel knows nothing may be
// one in a SYN cookie: a round trip and then some.
const cookieFor = 300 * time.Millisecond

// Handshakes lists the handshakes with addr that have begun on this host and
// are not finished: those the kernel knows, which are learnt by this if Learn is in
// force, and those learnt within the last 300 ms that it knows
// nothing of, since they may be in a SYN cookie. After a change of rules it waits until no
// packet is under way by the old ones, some milliseconds.
func (a *Admin) Handshakes(addr netip.Addr) ([]Tuple, error) {
	addr = addr.Unmap()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, ErrClosed
	}
	settle := a.unsettled
	a.unsettled = false
	a.mu.Unlock()
	if settle {
		barrier()
	}
	// Learnt before the sockets: what has become one meanwhile is found there.
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, ErrClosed
	}
	learning := len(a.learning) > 0
	var learnt []noted
	var err error
	if learning {
		learnt, err = a.rules.notes(a.rules.vips.learnt, addr)
	}
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	states := uint32(handshakes)
	if len(learnt) > 0 { // which of them became sockets has to be seen at the same time
		states = allStates
	}
	sockets, err := a.sockets(map[netip.Addr]bool{addr: true}, states)
	if err != nil {
		return nil, err
	}
	var out []Tuple
	var known []noted
	for t, state := range sockets {
		if state == unix.BPF_TCP_SYN_RECV {
			out = append(out, t)
			known = append(known, noted{tuple: t})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrClosed
	}
	for _, n := range learnt {
		if _, found := sockets[n.tuple]; found || learntFor-n.left > cookieFor {
			continue
		}
		if e := a.tuples[n.tuple]; e == nil || e.peer == nil { // it may have moved already
			out = append(out, n.tuple)
		}
	}
	if learning {
		if err := a.rules.note(a.rules.vips.learnt, known, learntFor); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, compareTuples)
	return out, nil
}

func compareTuples(x, y Tuple) int {
	if c := x.Local.Compare(y.Local); c != 0 {
		return c
	}
	return x.Remote.Compare(y.Remote)
}

// barrier returns when no packet is dealt with by rules of before the call: the
// kernel walks them in RCU read sections (net/core/dev.c:
// netif_receive_skb_internal), and this command is synchronize_rcu.
func barrier() {
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL, include/uapi/linux/membarrier.h
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(20 * time.Millisecond) // not with nohz_full: no softirq takes that long
	}
}

// Lead sends SYNs to a fenced address whose tuple was not learnt to the host
// `to`, from now on, and all that follows on these tuples. The zero `to` ends
// it for new ones; those that follow go on, until Forget.
func (a *Admin) Lead(addr, to netip.Addr) error {
	return a.sendTo(addr, to, func(v *movable, p *peer) error {
		if p != nil {
			v.following = true
		}
		if err := a.rules.lead(addr.Unmap(), wayTo(v.lead), wayTo(p)); err != nil {
			return err
		}
		v.lead = p
		return nil
	})
}

// Forward sends all TCP of a fenced address to the host `to`, be it from the
// network or from this host's own endpoints, but for tuples that are held,
// here or diverted, that this host has dialled as a guest, and segments that
// another host has sent on. The zero `to` ends it.
func (a *Admin) Forward(addr, to netip.Addr) error {
	return a.sendTo(addr, to, func(v *movable, p *peer) error {
		if err := a.rules.forward(addr.Unmap(), wayTo(v.forward), wayTo(p)); err != nil {
			return err
		}
		v.forward = p
		return nil
	})
}

func wayTo(p *peer) way {
	if p == nil {
		return wayUsual
	}
	return p.way()
}

// sendTo calls f with a.mu held and the peer, or nil, that `to` is.
func (a *Admin) sendTo(addr, to netip.Addr, f func(*movable, *peer) error) error {
	addr = addr.Unmap()
	v, err := a.vipOf(addr)
	if err != nil {
		return err
	}
	var at hop
	if to.IsValid() {
		if at, err = a.resolve(to, a.cfg.ResolveTimeout); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	var p *peer
	if to.IsValid() {
		if p, err = a.peer(to.Unmap(), at); err != nil {
			return err
		}
	}
	a.unsettled = true
	if p != nil {
		if err := a.move(addr, v); err != nil {
			return err
		}
	}
	if err := f(v, p); err != nil {
		return err
	}
	return a.rest(addr, v)
}

// Here makes tuples stay on this host, whatever Lead, Forward and Steer say, as
// long as they have sockets.
func (a *Admin) Here(ts []Tuple) error {
	if err := checkAll(ts); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(ts, nil, func(_ Tuple, e *entry) { e.here = a.serial() })
}

// Forget ends all that a move of addr has left: what is led and forwarded, and
// every tuple that follows, was learnt, is diverted or here. It is for when
// the neighbours know where the address is, or when a move has been undone.
func (a *Admin) Forget(addr netip.Addr) error {
	addr = addr.Unmap()
	if _, err := a.vipOf(addr); err != nil {
		return err
	}
	return a.forgetAddr(addr)
}

func (a *Admin) forgetAddr(addr netip.Addr) error {
	was, err := a.forgetWays(addr)
	if err != nil {
		return err
	}
	// Those in the ports of another host that is steered to stay here.
	err = a.changeFew(slices.Collect(maps.Keys(was)), func(t Tuple, e *entry) {
		if (elsewhere{e.peer, e.here}) != was[t] {
			return // it has gone another way meanwhile
		}
		e.peer = nil
		if e.here != 0 {
			e.here = a.stays(t)
		}
	})
	if err != nil {
		return err
	}
	r := a.rules
	sets := []vipSet{r.vips.learnt, r.vips.me}
	a.mu.Lock()
	for _, s := range r.vips.follow {
		sets = append(sets, s)
	}
	a.mu.Unlock()
	for _, set := range sets {
		a.mu.Lock()
		err := r.forgetNotes(set, addr)
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.vips[addr]; v != nil {
		return a.rest(addr, v)
	}
	return nil
}

// elsewhere is what Divert and Here say of a tuple.
type elsewhere struct {
	peer *peer
	here uint64
}

// forgetWays ends what is led and forwarded of an address, and gives its tuples that are
// diverted or here.
func (a *Admin) forgetWays(addr netip.Addr) (ts map[Tuple]elsewhere, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.vips[addr]
	if a.closed {
		return nil, ErrClosed
	}
	r := a.rules
	if v != nil {
		if err := r.lead(addr, wayTo(v.lead), wayUsual); err != nil {
			return nil, err
		}
		v.lead = nil
		if err := r.forward(addr, wayTo(v.forward), wayUsual); err != nil {
			return nil, err
		}
		v.forward = nil
		v.following = false
	}
	ts = map[Tuple]elsewhere{}
	for t, e := range a.tuples {
		if t.Local.Addr() == addr && (e.peer != nil || e.here != 0) {
			ts[t] = elsewhere{e.peer, e.here}
		}
	}
	return ts, nil
}
