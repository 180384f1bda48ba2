package node

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/tcprepair"
)

// quietTime is how long a peer may say nothing between two things.
const quietTime = 2 * time.Minute

// converse is this node's side of a talk that a peer has begun, until its end.
func (n *Node) converse(conn *tls.Conn) {
	t := newHostTaker(n, conn)
	err := t.greet(conn)
	if err == nil {
		err = t.listen()
	}
	if err != nil {
		from := conn.RemoteAddr().String()
		if at, err := netip.ParseAddrPort(from); err == nil { // each conversation has another port
			from = at.Addr().String()
		}
		n.talkEnded(t.peer, from, err)
	}
	t.end()
}

// hostTaker is this node while flows of another host come: a [move.HostTaker].
type hostTaker struct {
	n      *Node
	conn   net.Conn
	c      *move.Remote
	peer   string
	taking *move.HostTaking
	shared map[string]int64 // what the giver still holds, by endpoint
	letGo  func()           // ends that those who wait are held back
	ended  func(own uint16) // tells who waits for the outcome
}

func newHostTaker(n *Node, conn net.Conn) *hostTaker {
	t := &hostTaker{n: n, conn: conn, c: move.NewRemote(conn)}
	t.taking = move.NewHostTaking(t.c, t)
	return t
}

// end gives up what is not this node's.
func (t *hostTaker) end() {
	_ = t.c.Close()
	if err := t.taking.End(); err != nil {
		t.n.log.Error("held tuples could not be dropped", "error", err)
	}
	if t.ended != nil {
		t.ended(t.taking.Own())
	}
}

func (t *hostTaker) greet(conn *tls.Conn) error {
	if err := t.c.SetTimeout(answerTime); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return err
	}
	m, err := move.Expect(t.c, move.Hello)
	if err != nil {
		return err
	}
	var hello move.Greeting
	if err := m.Into(&hello); err != nil {
		return err
	}
	t.peer = hello.Node
	c := t.n.Config().Cluster
	if c == nil {
		return errors.New("node: no cluster any more")
	}
	if _, ok := c.Peers[hello.Node]; !ok {
		return t.refuse(&frozen.Refused{What: "peer " + hello.Node, Why: "it is not among the nodes here"})
	}
	if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname(hello.Node); err != nil {
		return t.refuse(&frozen.Refused{What: "peer " + hello.Node, Why: err.Error()})
	}
	if err := hostSpeaks(hello); err != nil {
		return t.refuse(err)
	}
	if err := t.n.steer(hello, c.Peers[hello.Node].Addr()); err != nil {
		return t.refuse(err)
	}
	return move.SendJSON(t.c, move.Hello, t.n.hostGreeting())
}

// refuse says why there is no talk, and ends it.
func (t *hostTaker) refuse(why error) error {
	return errors.Join(why, move.SendJSON(t.c, move.Refuse, move.RefusalOf(why)))
}

// listen does what the peer says until it has said all.
func (t *hostTaker) listen() error {
	for {
		wait := quietTime
		if t.taking.Waits() {
			wait = answerTime
		}
		if err := t.c.SetTimeout(wait); err != nil {
			return err
		}
		m, err := t.c.Receive()
		if err != nil {
			if !t.taking.Busy() && move.Gone(err) {
				return nil
			}
			return err
		}
		switch m.Kind {
		case move.Ask:
			err = t.answer(m)
		case move.Inherit:
			err = t.n.takeUp(t.peer, m)
		default:
			err = t.taking.Step(m)
		}
		if err != nil {
			return err
		}
	}
}

// answer answers a question.
func (t *hostTaker) answer(m move.Message) error {
	a, err := t.n.reply(t.peer, m)
	if err != nil {
		return move.SendJSON(t.c, move.Refuse, move.RefusalOf(err))
	}
	if err := t.c.SetTimeout(answerTime); err != nil {
		return err
	}
	return move.SendJSON(t.c, move.Answer, a)
}

// Begin makes ready for flows: what the giver holds counts under the limits here, and
// where somebody waits there nobody is served before all have come.
func (t *hostTaker) Begin(coming move.Coming) error {
	if t.ended == nil {
		t.ended = t.n.host.outcomes.begin(t.peer, coming.Talk, t.conn)
	}
	if t.shared = coming.Held; t.shared == nil {
		t.shared = map[string]int64{}
	}
	t.letGo = t.n.shared.Ledger.HoldBack(coming.Waits)
	for name, held := range t.shared {
		t.n.account(name).AddForeign(held)
	}
	return nil
}

// Settle makes each host's limits its own again.
func (t *hostTaker) Settle() {
	for name, held := range t.shared {
		if held > 0 {
			t.n.account(name).AddForeign(-held)
		}
	}
	t.shared = nil
	t.letGo()
}

// Hold keeps back the segments of what is to come.
func (t *hostTaker) Hold(ts []move.Tuple) error {
	if t.n.handingOver() {
		return errUpgrade
	}
	if err := t.n.host.admin.Hold(adminTuples(ts)); err != nil {
		return &frozen.Refused{What: "hold", Why: err.Error()}
	}
	return nil
}

var errUpgrade = &frozen.Refused{What: "host", Why: "an upgrade is under way there", Retry: true}

// Drop ends Hold for what is not ours.
func (t *hostTaker) Drop(ts []move.Tuple) error { return t.n.host.admin.Drop(adminTuples(ts)) }

func adminTuples(ts []move.Tuple) []netadmin.Tuple {
	out := make([]netadmin.Tuple, len(ts))
	for i, t := range ts {
		out[i] = netadmin.Tuple(t)
	}
	return out
}

// hostRestored is a lot whose sockets were restored.
type hostRestored struct {
	thawed *loop.Thawed
	fds    []sock.FD
	states []*tcprepair.State
}

// Restore makes the sockets of a lot, quiet. From here to Adopt or Discard no upgrade begins
// to move flows.
func (t *hostTaker) Restore(octets []byte, sockets [][]byte, mine func(move.Tuple) bool) (any, []move.Tuple, error) {
	if !t.n.host.intake.TryRLock() {
		return nil, nil, errUpgrade
	}
	x := &hostRestored{}
	ts, err := t.restore(x, octets, sockets, mine)
	if err != nil {
		t.Discard(x)
		return nil, nil, err
	}
	return x, ts, nil
}

func (t *hostTaker) restore(x *hostRestored, octets []byte, sockets [][]byte, mine func(move.Tuple) bool) (ts []move.Tuple, err error) {
	if t.n.handingOver() {
		return nil, errUpgrade
	}
	batch, err := t.n.decode(octets)
	if err != nil {
		return nil, err
	}
	var some move.Unheld
	refuse := func(z *frozen.Flow, err error) {
		no := move.Refusal{Flow: z.Id, What: "socket", Why: err.Error(), Retry: true}
		var because *frozen.Refused
		if errors.As(err, &because) {
			no.What, no.Why, no.Retry = because.What, because.Why, because.Retry
		}
		some = append(some, no)
	}
	var legs []*hostLeg
	for _, z := range batch.Flows {
		for _, g := range connected(z) {
			leg, err := readLeg(z, g, sockets, mine)
			if err != nil {
				refuse(z, err)
				break
			}
			legs = append(legs, leg)
		}
	}
	if len(some) > 0 {
		return nil, some
	}
	t.sockets(legs)
	for _, l := range legs {
		if l.err == nil {
			l.err = tcprepair.RestoreOn(int(l.fd), l.state, l.options(t.n.host.admin))
		}
		if l.err != nil {
			if n := len(some); n == 0 || some[n-1].Flow != l.flow.Id {
				refuse(l.flow, l.err)
			}
			if l.fd >= 0 {
				_ = tcprepair.Discard(l.fd.Disown())
			}
			continue
		}
		l.state.Shed() // octets and sockets are not ours
		x.fds, x.states = append(x.fds, l.fd), append(x.states, l.state)
		l.leg.Fd = uint32(len(x.fds))
		ts = append(ts, l.tuple)
	}
	if len(some) > 0 {
		return nil, some
	}
	if x.thawed, err = t.n.thaw(batch, len(x.fds)); err != nil {
		return nil, err
	}
	return ts, nil
}

// hostLeg is a leg whose socket is restored.
type hostLeg struct {
	flow  *frozen.Flow
	leg   *frozen.Leg
	state *tcprepair.State
	tuple move.Tuple
	fd    sock.FD
	err   error
}

func (l *hostLeg) options(a hostAdmin) tcprepair.Options { return tcprepair.Options{Inject: a.Inject} }

// readLeg reads what was offered of a leg.
func readLeg(z *frozen.Flow, g *frozen.Leg, sockets [][]byte, mine func(move.Tuple) bool) (*hostLeg, error) {
	if g.Fd == 0 || int(g.Fd) > len(sockets) {
		return nil, &frozen.Refused{What: "socket", Why: fmt.Sprintf("leg of socket %d: the lot has %d", g.Fd, len(sockets))}
	}
	s := new(tcprepair.State)
	if err := s.ReadBinary(sockets[g.Fd-1]); err != nil {
		return nil, &frozen.Refused{What: "socket", Why: err.Error()}
	}
	if n := len(g.Unsent) + int(s.Unsent); n > flow.UnsentMax {
		return nil, &frozen.Refused{What: "leg", Why: fmt.Sprintf("%d octets unsent, the limit is %d", n, flow.UnsentMax), Retry: true}
	}
	tuple := move.Tuple{Local: s.Local, Remote: s.Remote}
	if !mine(tuple) {
		return nil, &frozen.Refused{What: "socket", Why: fmt.Sprintf("%v-%v was not prepared", s.Local, s.Remote), Retry: true}
	}
	return &hostLeg{flow: z, leg: g, state: s, tuple: tuple, fd: sock.NoFD}, nil
}

// sockets has the sockets made for legs, all at once: it is one word with the
// privileged process. If that fails, each by itself tells which it was.
func (t *hostTaker) sockets(legs []*hostLeg) {
	if len(legs) == 0 {
		return
	}
	specs := make([]tcprepair.SocketSpec, len(legs))
	for i, l := range legs {
		specs[i] = l.state.Spec(l.options(t.n.host.admin))
	}
	if fds, err := t.n.host.admin.Sockets(specs); err == nil {
		for i, fd := range fds {
			legs[i].fd = sock.Own(fd)
		}
		return
	}
	for i, l := range legs {
		fds, err := t.n.host.admin.Sockets(specs[i : i+1])
		if l.err = err; err == nil {
			l.fd = sock.Own(fds[0])
		}
	}
}

// connected are the legs of a flow that have a socket to be restored. One that
// is still to be dialled may have octets that came behind a PROXY header.
func connected(z *frozen.Flow) []*frozen.Leg {
	legs := []*frozen.Leg{z.Client}
	if flow.State(z.State) == flow.Relaying {
		legs = append(legs, z.Legs...)
	}
	return legs
}

// Discard forgets sockets that were restored and not committed, silently.
func (t *hostTaker) Discard(lot any) {
	x := lot.(*hostRestored)
	for _, fd := range x.fds {
		_ = tcprepair.Discard(fd.Disown())
	}
	t.n.host.intake.RUnlock()
}

// Adopt makes a lot ours and has a loop serve it.
func (t *hostTaker) Adopt(lot any, ts []move.Tuple) move.Adoption {
	x := lot.(*hostRestored)
	batch, n := x.thawed.Batch, t.n
	if t.goLive(x, ts) {
		// It is not what was thawed any more.
		if thawed, err := n.thaw(batch, len(x.fds)); err != nil {
			n.log.Error("flows that were taken cannot be served", "flows", len(batch.Flows), "error", err)
			return t.lose(x, ts)
		} else {
			x.thawed = thawed
		}
	}
	for _, z := range batch.Flows {
		if z.Endpoint != nil {
			t.shared[z.Endpoint.Name]-- // take imports it
		}
	}
	a := n.take(batch, &loop.Parcel{Thawed: x.thawed, FDs: x.fds})
	n.totals.arrive(len(batch.Flows) - a.Lost)
	n.host.intake.RUnlock()
	return a
}

// lose ends flows that are ours and that nobody can serve.
func (t *hostTaker) lose(x *hostRestored, ts []move.Tuple) move.Adoption {
	if err := t.Drop(ts); err != nil {
		t.n.log.Error("held tuples could not be dropped", "error", err)
	}
	for _, fd := range x.fds {
		fd.CloseReset()
	}
	t.n.host.intake.RUnlock()
	return move.Adoption{Lost: len(x.thawed.Batch.Flows)}
}

// goLive starts restored sockets and lets them have the segments that were held. changed:
// some did not take back all that was to be sent, which is the flow's again.
func (t *hostTaker) goLive(x *hostRestored, ts []move.Tuple) (changed bool) {
	sockets := make([]tcprepair.Socket, len(x.fds))
	for i, fd := range x.fds {
		sockets[i] = tcprepair.Socket{FD: int(fd), State: x.states[i]}
	}
	admin, held := t.n.host.admin, adminTuples(ts)
	tcprepair.GoLiveAll(sockets, func(fds, modes []int) []error {
		errs, _, err := admin.Live(fds, modes, held)
		if err != nil {
			errs = admin.Repair(fds, modes)
			_, err = admin.Release(held)
		}
		if err != nil {
			t.n.log.Error("segments of flows that were taken are held", "error", err)
		}
		return errs
	})
	for _, z := range x.thawed.Batch.Flows {
		for _, g := range connected(z) {
			s := &sockets[g.Fd-1]
			if s.Err != nil {
				// The socket is what it is; the loop will find out by using it.
				t.n.log.Error("a restored socket would not go live", "error", s.Err)
			}
			if len(s.Rest) == 0 {
				continue
			}
			// What the restored socket did not take back goes before all that was not
			// sent: its order in the stream.
			changed = true
			if g != z.Client && z.H1 != nil && !z.H1.Tunnel {
				unsend(z.H1, s.Rest)
			} else {
				g.Unsent = append(append([]byte(nil), s.Rest...), g.Unsent...)
			}
			g.Sent -= uint64(len(s.Rest))
			// A FIN comes after it: the loop shuts down again.
			g.Shut = false
		}
	}
	return changed
}

// unsend takes back the octets of a request that its restored leg did not take:
// they are still here, or they come before those that are.
func unsend(h *frozen.H1, rest []byte) {
	if n := uint32(len(rest)); h.RequestSent >= n {
		h.RequestSent -= n
		return
	}
	h.Request = append(append([]byte(nil), rest...), h.Request[h.RequestSent:]...)
	h.RequestSent = 0
}

// askOutcome asks which lots of a talk that broke are the taker's.
const askOutcome = "flows.outcome"

// outcome asks for the outcome of a talk, and tells it.
type outcome struct {
	Talk string `json:"talk,omitempty"`
	Last uint16 `json:"last,omitempty"`
}

// outcomes are those of the last talks in which flows came.
type outcomes struct {
	mu  sync.Mutex // guards all
	all []*talked
}

// talked is one talk in which flows came.
type talked struct {
	peer, talk string
	conn       net.Conn
	over       chan struct{} // closed when last is known
	last       uint16
}

// talkedMost is how many talks are remembered.
const talkedMost = 64

// begin notes a talk; who tells of its end calls what it returns.
func (o *outcomes) begin(peer, talk string, conn net.Conn) (ended func(own uint16)) {
	x := &talked{peer: peer, talk: talk, conn: conn, over: make(chan struct{})}
	o.mu.Lock()
	if o.all = append(o.all, x); len(o.all) > talkedMost {
		o.all = o.all[1:]
	}
	o.mu.Unlock()
	return func(own uint16) {
		x.last = own
		close(x.over)
	}
}

// tell ends a talk, if it has not ended, and tells which lot came last.
func (o *outcomes) tell(peer string, body json.RawMessage) (any, error) {
	var q outcome
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("node: %s: %w", askOutcome, err)
	}
	o.mu.Lock()
	var x *talked
	for _, y := range o.all {
		if y.peer == peer && y.talk == q.Talk {
			x = y
		}
	}
	o.mu.Unlock()
	if x == nil {
		return nil, &frozen.Refused{What: "talk", Why: "it is not known here"}
	}
	_ = x.conn.Close()
	<-x.over
	return outcome{Last: x.last}, nil
}
