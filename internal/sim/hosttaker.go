package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
	vips "github.com/holdfast-lb/holdfast/internal/vip"
)

// hostTaker is a process of the world to which flows of another host come: what
// package node is in a real one.
type hostTaker struct {
	p      *Proc
	t      *task
	c      *carrier
	from   *Proc
	taking *move.HostTaking
	shared map[string]int64
	over   bool
	own    uint16
}

var _ move.HostTaker = (*hostTaker)(nil)

const (
	// hostQuiet and hostAnswer are node's.
	hostQuiet  = 2 * time.Minute
	hostAnswer = 5 * time.Second
)

// welcome is the other side of a talk, until its end.
func (p *Proc) welcome(far *carrier, from *Proc, id string) {
	x := &hostTaker{p: p, c: far, from: from}
	x.taking = move.NewHostTaking(far, x)
	p.talks[id] = x
	p.arriving = true
	p.task("welcome", func(t *task) {
		far.t, x.t = t, t
		if err := x.listen(); err != nil {
			p.w.note("%s: a peer's talk ended early: %v", p.name, err)
		}
		_ = far.Close()
		broken := x.taking.Busy()
		if broken {
			from.unsure = true
		}
		if err := x.taking.End(); err != nil {
			p.w.fail("%s: what was held cannot be dropped: %v", p.name, err)
		}
		x.over, x.own = true, x.taking.Own()
		p.arriving = false
	})
}

func (x *hostTaker) listen() error {
	for {
		wait := hostQuiet
		if x.taking.Busy() {
			wait = hostAnswer
		}
		if err := x.c.SetTimeout(wait); err != nil {
			return err
		}
		m, err := x.c.Receive()
		if err != nil {
			if !x.taking.Busy() && move.Gone(err) {
				return nil
			}
			return err
		}
		if m.Kind == move.Ask {
			err = x.answer(m)
		} else {
			err = x.taking.Step(m)
		}
		if err != nil {
			return err
		}
	}
}

// answer answers a question of the choreography.
func (x *hostTaker) answer(m move.Message) error {
	var q move.Question
	var r vips.Record
	if err := errors.Join(m.Into(&q), json.Unmarshal(q.Body, &r)); err != nil {
		return err
	}
	h := x.p.host
	switch q.What {
	case "vip.begin":
		if _, ok := h.hear(r); !ok {
			return x.refuse(errDisk)
		}
	case "vip.yield":
		step, err := h.seat.Accept(vips.Instant(x.p.w.net.now), r)
		if err == nil {
			err = h.do(step)
		}
		if err != nil {
			return x.refuse(err)
		}
		h.ask()
	default:
		return x.refuse(fmt.Errorf("nobody answers %s", q.What))
	}
	return move.SendJSON(x.c, move.Answer, h.disk)
}

func (x *hostTaker) refuse(why error) error {
	return move.SendJSON(x.c, move.Refuse, move.RefusalOf(why))
}

// Begin counts under the limits here what the giver holds.
func (x *hostTaker) Begin(coming move.Coming) error {
	if x.shared = coming.Held; x.shared == nil {
		x.shared = map[string]int64{}
	}
	x.p.shared.Ledger.Pause()
	for _, name := range slices.Sorted(maps.Keys(x.shared)) {
		x.p.account(name).AddForeign(x.shared[name])
	}
	return nil
}

// Settle makes each host's limits its own again.
func (x *hostTaker) Settle() {
	for _, name := range slices.Sorted(maps.Keys(x.shared)) {
		if x.shared[name] > 0 {
			x.p.account(name).AddForeign(-x.shared[name])
		}
	}
	x.shared = nil
	x.p.shared.Ledger.Resume()
}

// Hold keeps back the segments of what is to come.
func (x *hostTaker) Hold(ts []move.Tuple) error {
	if x.p.leaving || x.p.gave {
		return &frozen.Refused{What: "host", Why: "an upgrade is under way there", Retry: true}
	}
	if x.p.w.net.fail("hold") {
		return &frozen.Refused{What: "hold", Why: "sim: no memory for a rule"}
	}
	for _, t := range ts {
		x.p.w.net.holds[t] = x.p
	}
	return nil
}

// Drop holds no more what the giver keeps.
func (x *hostTaker) Drop(ts []move.Tuple) error {
	n := x.p.w.net
	for _, t := range ts {
		delete(n.holds, t)
		// When the talk has broken, what is diverted here is lost on its way, and
		// nobody answers, until the giver knows as well.
		if !x.taking.Busy() || x.from.dead || x.from.unsure {
			continue
		}
		for _, s := range n.socks {
			if s.held && !s.gone && s.tuple() == t {
				n.violate("%v to %v is held no more where its segments are sent", t.Local, t.Remote)
			}
		}
	}
	return nil
}

// hostRestored is a lot whose sockets were restored.
type hostRestored struct {
	thawed *loop.Thawed
	fds    []sock.FD
}

// Restore makes the sockets of a lot here, quiet: they neither send nor hear.
func (x *hostTaker) Restore(octets []byte, sockets [][]byte, mine func(move.Tuple) bool) (any, []move.Tuple, error) {
	lot := &hostRestored{}
	ts, err := x.restore(lot, octets, sockets, mine)
	if err != nil {
		x.Discard(lot)
		return nil, nil, err
	}
	return lot, ts, nil
}

func (x *hostTaker) restore(lot *hostRestored, octets []byte, sockets [][]byte, mine func(move.Tuple) bool) (ts []move.Tuple, err error) {
	p := x.p
	if p.leaving || p.gave {
		return nil, &frozen.Refused{What: "host", Why: "an upgrade is under way there", Retry: true}
	}
	batch, err := frozen.Decode(octets)
	if err != nil {
		return nil, err
	}
	if err := p.objects.receive(batch.Objects); err != nil {
		return nil, err
	}
	var some move.Unheld
	for _, z := range batch.Flows {
		no := func(why string, again bool) {
			some = append(some, move.Refusal{Flow: z.Id, What: "socket", Why: why, Retry: again})
		}
		if w := p.w; w.shape.picky > 0 && mix(w.seed, z.Id)%uint64(w.shape.picky) == 0 {
			no("it is of a release that this one does not know", false)
			continue
		}
		legs := []*frozen.Leg{z.Client}
		if flow.State(z.State) == flow.Relaying {
			legs = append(legs, z.Legs...)
		}
		for _, g := range legs {
			t, fd, err := p.restoreSock(sockets[g.Fd-1])
			if err == nil && !mine(t) {
				err = fmt.Errorf("%v to %v was not prepared", t.Local, t.Remote)
				p.discard(fd)
			}
			if err != nil {
				no(err.Error(), true)
				break
			}
			lot.fds = append(lot.fds, fd)
			ts = append(ts, t)
			g.Fd = uint32(len(lot.fds))
		}
	}
	if len(some) > 0 {
		return nil, some
	}
	thawed, wrong := loop.Thaw(p.shared.Loops[0].Now(), batch, len(lot.fds), p.objects)
	for i, err := range wrong {
		some = append(some, move.Refusal{Flow: batch.Flows[i].Id, What: "flow", Why: err.Error()})
	}
	if len(some) > 0 {
		return nil, some
	}
	lot.thawed = thawed
	return ts, nil
}

// restoreSock makes one socket of what was saved.
func (p *Proc) restoreSock(octets []byte) (t move.Tuple, fd sock.FD, err error) {
	n := p.w.net
	if n.fail("restore") {
		return t, sock.NoFD, errors.New("sim: no memory for a socket")
	}
	var x state
	if err := json.Unmarshal(octets, &x); err != nil {
		return t, sock.NoFD, err
	}
	s := &Sock{
		net: n, cookie: n.cookie(), local: x.Local, remote: x.Remote, snd: x.Snd, una: x.Una, nxt: x.Una, rcv: x.Rcv, rcvNxt: x.RcvNxt,
		sndCap: x.SndCap, rcvCap: x.RcvCap, finOut: x.FinOut, finIn: x.FinIn, connected: true, held: true,
	}
	if planted.Bug(9) {
		s.una, s.nxt = s.una+1, s.nxt+1
	}
	s.file = &file{sock: s}
	fd, ok := p.fds.put(s.file)
	if !ok {
		return t, sock.NoFD, errors.New("sim: no descriptors")
	}
	return s.tuple(), fd, nil
}

// discard closes a restored socket without a word.
func (p *Proc) discard(fd sock.FD) {
	if s := p.fds.sock(fd, "discard"); s != nil {
		s.gone = true
		p.fds.close(fd)
	}
}

// Discard forgets what was restored and not committed.
func (x *hostTaker) Discard(lot any) {
	for _, fd := range lot.(*hostRestored).fds {
		x.p.discard(fd)
	}
}

// Adopt makes a lot ours and has a loop serve it.
func (x *hostTaker) Adopt(lot any, ts []move.Tuple) move.Adoption {
	r := lot.(*hostRestored)
	x.p.w.release(x.p.fds, r.fds)
	for _, t := range ts {
		delete(x.p.w.net.holds, t)
	}
	for _, z := range r.thawed.Batch.Flows {
		if z.Endpoint != nil {
			x.shared[z.Endpoint.Name]--
		}
	}
	x.p.w.came += len(r.thawed.Batch.Flows)
	x.p.adopt(x.t, r.thawed.Batch, &loop.Parcel{Thawed: r.thawed, FDs: r.fds}, false)
	return move.Adoption{}
}

// release lets restored sockets take the place of those they were saved from:
// segments come here from now on.
func (w *World) release(t *FDs, fds []sock.FD) {
	for _, fd := range fds {
		s := t.sock(fd, "release")
		if s == nil {
			continue
		}
		for _, old := range w.net.socks {
			if !old.held || old.gone || old.local != s.local || old.remote != s.remote {
				continue
			}
			if old.orphan {
				w.net.left--
			}
			old.gone = true
			s.peer, s.excused, s.mate = old.peer, old.excused, old.mate
			s.peer.peer = s
			if s.peer.mate == old {
				s.peer.mate = s
			}
		}
		s.held = false
		if s.peer == nil {
			if !w.gaveUp[s.tuple()] {
				w.fail("a socket %v to %v was restored and is nobody's", s.local, s.remote)
			}
			// Its peer was reset by the giver, who could not know.
			s.peer = &Sock{net: w.net, local: s.remote, remote: s.local, dead: true}
			s.dead, s.errno = true, sock.Reset
			s.excuse("nobody knew who served it last")
		}
		w.net.socks = append(w.net.socks, s)
	}
}
