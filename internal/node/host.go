package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/tcprepair"
)

// hostSide is what moves between hosts need: the kernel's rules, and the
// listener where peers come. Both are there only with a cluster section.
type hostSide struct {
	admin    *netadmin.Admin
	listener net.Listener
	fd       sock.FD // of the listener, to hand on
	arrivals sync.WaitGroup

	// intake is held for reading while a batch comes in from a peer, and for
	// writing to stop that for good, when this process hands itself over.
	intake sync.RWMutex

	// guest: a predecessor still serves, and what is the whole host's, not one
	// process's, is its own to undo. The node's mu guards it.
	guest bool

	// conns guards open and closing: peers that are connected now; and who answers
	// what they ask.
	conns   sync.Mutex
	open    map[net.Conn]bool
	closing bool
	answers map[string]answerer
}

// peersMax bounds the connections of peers at one time, whether they have shown
// a certificate or not.
const peersMax = 16

// arrived notes a peer's connection; false if none is taken any more.
func (h *hostSide) arrived(c net.Conn) bool {
	h.conns.Lock()
	defer h.conns.Unlock()
	if h.closing {
		return false
	}
	if h.open == nil {
		h.open = map[net.Conn]bool{}
	}
	h.open[c] = true
	return true
}

func (h *hostSide) departed(c net.Conn) {
	h.conns.Lock()
	delete(h.open, c)
	h.conns.Unlock()
}

// closePeers ends what peers are saying, so that nobody waits for them.
func (h *hostSide) closePeers() {
	h.conns.Lock()
	defer h.conns.Unlock()
	h.closing = true
	for c := range h.open {
		_ = c.Close()
	}
}

// hostChunk is how many flows move to another host at once: each waits for its
// whole batch.
const hostChunk = 4

// hostOctets bounds what a batch brings along in queues, unless one flow alone
// has more.
const hostOctets = 512 << 10

// clusterKey is the name of the cluster's listener among inherited ones.
const clusterKey = "cluster"

func (n *Node) startHost(c *config.Config, o Options) error {
	n.host.fd = sock.NoFD
	if c.Cluster == nil {
		return nil
	}
	if err := tcprepair.Probe(); err != nil {
		return fmt.Errorf("node: cluster: flows cannot move between hosts: %w", err)
	}
	conf, err := clusterTLS(c.Cluster)
	if err != nil {
		return err
	}
	if n.host.admin, err = openAdmin(c.Cluster, o.HostHeritage, n.log); err != nil {
		return fmt.Errorf("node: cluster: %w", err)
	}
	n.host.guest = len(o.HostHeritage) > 0
	fd, ok := o.Inherited[clusterKey]
	if !ok {
		if fd, err = sock.Listen(sock.ListenSpec{Addr: c.Cluster.Listen, Backlog: 16}); err != nil {
			return err
		}
	}
	n.host.fd = fd
	dup, err := fd.Dup()
	if err != nil {
		return err
	}
	// The file takes the duplicate, and the listener makes one of its own.
	file := os.NewFile(uintptr(dup.Disown()), clusterKey)
	n.host.listener, err = net.FileListener(file)
	_ = file.Close()
	if err != nil {
		return fmt.Errorf("node: cluster: %w", err)
	}
	n.host.arrivals.Add(1)
	go func() { // ended by stopHost
		defer n.host.arrivals.Done()
		n.welcome(n.host.listener, conf)
	}()
	return nil
}

func (n *Node) stopHost() {
	if n.host.listener != nil {
		_ = n.host.listener.Close()
		n.host.closePeers()
		n.host.arrivals.Wait()
		n.host.fd.Close()
	}
	if n.host.admin != nil {
		n.closeAdmin()
	}
}

func (n *Node) hostDescriptors() map[string]sock.FD {
	if n.host.fd < 0 {
		return nil
	}
	return map[string]sock.FD{clusterKey: n.host.fd}
}

func (n *Node) hostCounters() map[string]uint64 {
	if n.host.admin == nil {
		return nil
	}
	c, err := n.host.admin.Counters()
	if err != nil {
		return nil
	}
	return map[string]uint64{
		"held_tuples": uint64(c.HeldTuples), "held_frames": uint64(c.HeldFrames), "diverted_tuples": uint64(c.DivertTuples),
		"held_segments_total": c.HeldTotal, "replayed_segments_total": c.Replayed, "diverted_segments_total": c.Diverted,
		"dropped_segments_total": c.Dropped + c.DeviceDropped, "resets_stopped_total": c.Resets, "strays_total": c.Strays,
	}
}

// clusterTLS makes the TLS configuration between peers: both sides show a
// certificate that the cluster's own authority has signed for their name.
func clusterTLS(c *config.Cluster) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("node: cluster.identity: %w", err)
	}
	pem, err := os.ReadFile(c.Trust)
	if err != nil {
		return nil, fmt.Errorf("node: cluster.identity.trust: %w", err)
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("node: cluster.identity.trust: %s holds no certificate", c.Trust)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		RootCAs: trust, ClientCAs: trust, ClientAuth: tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
	}, nil
}

// candidate is a flow that may move, with the tuples of its legs.
type candidate struct {
	slot   uint32
	id     uint64
	tuples []netadmin.Tuple
	queued int // octets in the kernel's queues, which go along
}

// sentObjects are objects of the configuration that a peer has.
type sentObjects map[config.Ref]bool

// flows moves flows; the caller holds change.
func (t *hostTalk) flows(ctx context.Context, want func(f *flow.Flow) bool, tell func(Progress)) (*Report, error) {
	n, began := t.n, time.Now()
	r := newReport("host")
	if err := t.c.SetTimeout(answerTime); err != nil {
		return r, err
	}
	// While flows are on their way only the peer grants what is limited.
	n.shared.Ledger.Pause()
	defer n.shared.Ledger.Resume()
	if err := move.SendJSON(t.c, move.Begin, move.Coming{Held: n.shared.Ledger.Held()}); err != nil {
		return r, err
	}
	if _, err := move.Expect(t.c, move.Ready); err != nil {
		return r, fmt.Errorf("node: peer %s: %w", t.peer, err)
	}
	g := &hostGiver{n: n, ctx: ctx, tell: tell, want: want, c: t.c, to: t.at, r: r, sent: t.sent, tries: map[uint64]int{}, left: map[*ledger.Endpoint]int64{}, began: flow.Instant(sock.Monotonic())}
	err := g.all()
	if err == nil || err == ctx.Err() {
		stop := err
		if err = t.c.Send(move.Message{Kind: move.Done}); err == nil {
			_, err = move.Expect(t.c, move.Settled)
		}
		err = errors.Join(stop, err)
	}
	for account, left := range g.left { // the peer's limits are its own now
		account.AddForeign(-left)
	}
	n.totals.move(r)
	if err != nil {
		_ = t.c.Close()
	}
	return r.done(began), err
}

// hostGiver is the giving side of one migration.
type hostGiver struct {
	n     *Node
	ctx   context.Context
	tell  func(Progress)
	said  time.Time
	want  func(f *flow.Flow) bool // which move; nil: all that may
	c     *move.Remote
	to    netip.Addr
	r     *Report
	sent  sentObjects
	left  map[*ledger.Endpoint]int64 // connections that have gone
	tries map[uint64]int             // times a flow could not move; triesMax: it stays, or has gone
	began flow.Instant               // flows that came later stay, or there were no end of it
}

// triesMax is how often a flow is tried whose reason to stay should pass.
const triesMax = 8

func (g *hostGiver) all() error {
	for {
		found := 0
		for _, l := range g.n.shared.Loops {
			list := g.candidates(l)
			found += len(list)
			for len(list) > 0 {
				if err := g.ctx.Err(); err != nil {
					return err
				}
				g.progress()
				k := g.together(list)
				if err := g.batch(l, list[:k]); err != nil {
					return err
				}
				list = list[k:]
			}
		}
		if found == 0 {
			return nil
		}
	}
}

// progress tells how many flows have moved, now and then.
func (g *hostGiver) progress() {
	if g.tell == nil || time.Since(g.said) < tellEvery {
		return
	}
	g.said = time.Now()
	g.tell(Progress{Phase: "flows", Flows: g.r.Flows, FlowsTotal: g.r.Flows + g.n.flows(), Text: fmt.Sprintf("%d flows moved", g.r.Flows)})
}

// together is how many of the first in list move at once.
func (g *hostGiver) together(list []candidate) int {
	k, queued := 1, list[0].queued
	for k < min(hostChunk, len(list)) {
		// A flow that could not move before goes alone, so that it keeps no
		// other from moving; one with much in its queues goes with few.
		if queued += list[k].queued; queued > hostOctets || g.tries[list[0].id] > 0 || g.tries[list[k].id] > 0 {
			break
		}
		k++
	}
	return k
}

// candidates are the loop's flows that may move and have not been refused.
func (g *hostGiver) candidates(l *loop.Loop) (out []candidate) {
	l.Ask(func(l *loop.Loop) {
		for _, i := range l.Slots(0, func(f *flow.Flow) bool {
			return f.Listener().Movable && g.tries[f.ID()] < triesMax && f.Born() <= g.began && (g.want == nil || g.want(f))
		}) {
			f := l.Flow(i)
			client, backend := l.Leg(i, flow.Client), l.Leg(i, flow.Backend)
			x := candidate{slot: i, id: f.ID(), tuples: []netadmin.Tuple{tuple(client)}, queued: sock.Queued(client)}
			if f.State() == flow.Relaying && backend >= 0 {
				x.tuples = append(x.tuples, tuple(backend))
				x.queued += sock.Queued(backend)
			}
			out = append(out, x)
		}
	})
	return out
}

func tuple(fd sock.FD) netadmin.Tuple {
	return netadmin.Tuple{Local: sock.LocalAddr(fd), Remote: sock.PeerAddr(fd)}
}

// valid tells that the tuple is one of TCP with both ends known; a leg that
// was reset a moment ago has no peer any more.
func valid(ts []netadmin.Tuple) bool {
	for _, t := range ts {
		if !t.Local.IsValid() || !t.Remote.IsValid() {
			return false
		}
	}
	return true
}

// hostFlow is one flow of a batch, on the giving side.
type hostFlow struct {
	parked loop.Parked
	tuples []netadmin.Tuple
	saved  []*tcprepair.State // by descriptor; frozen sockets are in repair mode
}

// batch moves some flows of one loop. See package move for the steps and what
// undoes each.
func (g *hostGiver) batch(l *loop.Loop, list []candidate) error {
	var tuples []netadmin.Tuple
	ready := list[:0:0]
	for _, x := range list {
		if !valid(x.tuples) {
			g.tries[x.id]++ // it is about to end
			continue
		}
		ready = append(ready, x)
		tuples = append(tuples, x.tuples...)
	}
	if len(ready) == 0 {
		return nil
	}
	if err := move.SendJSON(g.c, move.Prepare, tuples); err != nil {
		return err
	}
	if _, err := move.Expect(g.c, move.Held); err != nil {
		return err
	}
	flows := g.park(l, ready)
	frozenNow := func() (ts []netadmin.Tuple) {
		for _, f := range flows {
			ts = append(ts, f.tuples...)
		}
		return ts
	}
	if len(flows) > 0 {
		// Divert before freezing: repair mode does not stop the stack.
		if err := g.n.host.admin.Divert(frozenNow(), g.to); err != nil {
			return g.undo(l, flows, err)
		}
		flows = g.freeze(l, flows)
	}
	if len(flows) == 0 {
		return g.c.Send(move.Message{Kind: move.Abort})
	}
	parked := make([]loop.Parked, len(flows))
	var objects []*frozen.Object
	for i, f := range flows {
		parked[i] = f.parked
		objects = append(objects, g.n.registry.portable(f.parked.Frozen, g.sent)...)
	}
	batch := frozen.Batch{Objects: objects}
	for _, p := range parked {
		batch.Flows = append(batch.Flows, p.Frozen)
	}
	octets, err := batch.Encode()
	if err != nil {
		return g.undo(l, flows, err)
	}
	g.r.parked(parked)
	if err = g.c.Send(move.Message{Kind: move.Offer, Body: octets}); err == nil {
		_, err = move.Expect(g.c, move.Taken)
	}
	if err == nil {
		err = verify(flows)
	}
	if err != nil {
		why := err.Error()
		var no *frozen.Refused
		if errors.As(err, &no) {
			why = no.What + ": " + no.Why
		}
		for _, f := range flows {
			g.r.unpark(f.parked)
			if g.tries[f.parked.Frozen.Id]++; g.tries[f.parked.Frozen.Id] == triesMax {
				g.r.refuse(1, why)
			}
		}
		if no != nil || errors.Is(err, tcprepair.ErrMoved) {
			// Tried again, but not in the same company.
			err = nil
		}
		return g.undo(l, flows, err)
	}
	// The point of no return: from here on these flows are the peer's.
	commit := g.c.Send(move.Message{Kind: move.Commit})
	for _, f := range flows {
		g.tries[f.parked.Frozen.Id] = triesMax // should it come back, it stays
		for i, fd := range f.parked.FDs {
			if i < len(f.saved) {
				_ = tcprepair.Discard(fd.Disown()) // closes it, silently
			} else {
				fd.Close() // in SYN_SENT: the peer dials anew
			}
		}
		if f.parked.Account != nil {
			f.parked.Account.Forget(1) // nothing is free: the peer holds it
			g.left[f.parked.Account]++
		}
		f.parked.LeaveSource(g.n.shared.Ledger)
		g.n.shared.Ledger.Listener(f.parked.Frozen.Listener.Name).Leave()
		g.n.shared.Ledger.Node.Leave()
	}
	var a move.Adoption
	if commit == nil {
		var m move.Message
		if m, commit = move.Expect(g.c, move.Adopted); commit == nil {
			commit = m.Into(&a)
		}
	}
	if commit != nil {
		g.r.paused(nil, len(flows)) // whether they live nobody here can know
		return fmt.Errorf("node: committed %d flows and heard nothing: %w", len(flows), commit)
	}
	// The hosts share no clock: the pause is from parking here until the peer
	// has said that it serves, so it includes the way of that answer.
	now := flow.Instant(sock.Monotonic())
	var pauses []int64
	for _, f := range flows {
		pauses = append(pauses, int64(now-f.parked.Since))
	}
	g.r.paused(pauses, a.Lost)
	return nil
}

// park takes the candidates out of their loop. One whose legs are no longer
// those that were prepared goes back at once, for another batch.
func (g *hostGiver) park(l *loop.Loop, list []candidate) (flows []*hostFlow) {
	var back []loop.Parked
	l.Ask(func(l *loop.Loop) {
		for _, x := range list {
			f := l.Flow(x.slot)
			if f == nil || f.ID() != x.id {
				continue
			}
			p, ok := l.Park(x.slot)
			if !ok {
				continue
			}
			h := &hostFlow{parked: p}
			for i, fd := range p.FDs {
				if i == 0 || flow.State(p.Frozen.State) == flow.Relaying {
					h.tuples = append(h.tuples, tuple(fd))
				}
			}
			// A flow of HTTP may have another backend leg by now.
			if !slices.Equal(h.tuples, x.tuples) || !valid(h.tuples) {
				back = append(back, p)
				g.tries[x.id]++
				continue
			}
			flows = append(flows, h)
		}
	})
	g.returnToLoop(l, back)
	return flows
}

// freeze puts the sockets into repair mode and their state into the frozen
// flows. A flow that will not freeze goes back to its loop.
func (g *hostGiver) freeze(l *loop.Loop, flows []*hostFlow) (frozenFlows []*hostFlow) {
	for _, f := range flows {
		if err := f.save(g.tries[f.parked.Frozen.Id] > triesMax/2); err != nil {
			id := f.parked.Frozen.Id
			var no *tcprepair.Unsupported
			if errors.As(err, &no) && !no.Retry {
				g.tries[id] = triesMax
			} else {
				g.tries[id]++
			}
			if g.tries[id] >= triesMax {
				g.tries[id] = triesMax
				g.r.refuse(1, err.Error())
			}
			if err := g.putBack(l, []*hostFlow{f}); err != nil {
				g.n.log.Error("a flow that stays", "flow", fmt.Sprintf("f-%x", id), "error", err)
			}
			continue
		}
		frozenFlows = append(frozenFlows, f)
	}
	return frozenFlows
}

// save freezes the flow's sockets. late allows what costs a retransmission.
func (f *hostFlow) save(late bool) error {
	z := f.parked.Frozen
	legs := append([]*frozen.Leg{z.Client}, z.Legs...)
	for i, fd := range f.parked.FDs {
		if i > 0 && flow.State(z.State) != flow.Relaying {
			continue // being dialled: the peer dials again
		}
		s, err := tcprepair.SaveWith(int(fd), tcprepair.SaveOptions{AllowOutOfOrder: late})
		if err != nil {
			return err
		}
		f.saved = append(f.saved, s)
		if legs[i].Socket, err = s.AppendBinary(nil); err != nil {
			return err
		}
		legs[i].Fd = 0
	}
	if flow.State(z.State) != flow.Relaying && len(z.Legs) > 0 {
		if z.Legs[0].Fd = 0; len(z.Legs[0].Unsent) == 0 {
			z.Legs = nil
		}
	}
	return nil
}

// verify sees that the sockets are still what was offered.
func verify(flows []*hostFlow) error {
	for _, f := range flows {
		for i, s := range f.saved {
			if err := tcprepair.Verify(int(f.parked.FDs[i]), s); err != nil {
				return err
			}
		}
	}
	return nil
}

// putBack gives flows that were not committed back to their loop: sockets
// leave repair mode and segments come here again. The peer still holds them
// and drops that when it hears of it.
func (g *hostGiver) putBack(l *loop.Loop, flows []*hostFlow) error {
	var err error
	var tuples []netadmin.Tuple
	var parked []loop.Parked
	for _, f := range flows {
		for i := range f.saved {
			err = errors.Join(err, tcprepair.Resume(int(f.parked.FDs[i])))
		}
		f.saved = nil
		z := f.parked.Frozen
		z.Client.Socket = nil
		if len(z.Legs) > 0 {
			z.Legs[0].Socket = nil
		} else if len(f.parked.FDs) > 1 {
			z.Legs = []*frozen.Leg{{}} // being dialled
		}
		tuples = append(tuples, f.tuples...)
		parked = append(parked, f.parked)
	}
	err = errors.Join(err, g.n.host.admin.Undivert(tuples))
	g.returnToLoop(l, parked)
	return err
}

// undo is putBack for a whole batch; the peer is told, unless something worse
// than a refusal has happened: then it sees the end of the connection.
func (g *hostGiver) undo(l *loop.Loop, flows []*hostFlow, err error) error {
	if err = errors.Join(err, g.putBack(l, flows)); err != nil {
		return err
	}
	return g.c.Send(move.Message{Kind: move.Abort})
}

func (g *hostGiver) returnToLoop(l *loop.Loop, parked []loop.Parked) {
	if len(parked) == 0 {
		return
	}
	p, err := loop.Pack(parked)
	if err == nil {
		err = g.n.takeBack(l, p, parked)
	}
	if err != nil {
		g.n.log.Error("flows could not be given back to their loop", "flows", len(parked), "error", err)
	}
}

// welcome serves peers that bring flows, until the listener is closed.
func (n *Node) welcome(l net.Listener, conf *tls.Config) {
	room := make(chan struct{}, peersMax)
	for {
		room <- struct{}{} // more peers wait in the kernel's queue
		conn, err := l.Accept()
		if err != nil {
			<-room
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.log.Warn("the cluster's listener", "error", err)
			time.Sleep(tickOfErrors)
			continue
		}
		if !n.host.arrived(conn) {
			_ = conn.Close()
			<-room
			continue // the listener is closed, or about to be
		}
		n.host.arrivals.Add(1)
		go func() { // ends with the connection, which times out or is closed by stopHost
			defer n.host.arrivals.Done()
			defer func() { n.host.departed(conn); <-room }()
			secure := tls.Server(conn, conf)
			t := &hostTaker{n: n, c: move.NewRemote(secure)}
			if err := t.serve(secure); err != nil {
				n.log.Warn("a peer's talk ended early", "peer", t.peer, "error", err)
			}
			t.end()
		}()
	}
}

// tickOfErrors keeps a listener that fails from spinning.
const tickOfErrors = 100 * time.Millisecond

// hostTaker is the taking side of one migration.
type hostTaker struct {
	n      *Node
	c      *move.Remote
	peer   string
	held   []netadmin.Tuple // of the batch that is under way
	intake bool             // it holds the node's intake for reading
	offers int              // since the last preparation
	batch  *frozen.Batch
	fds    []sock.FD
	states []*tcprepair.State
	shared map[string]int64 // what the giver still holds, by endpoint

	pausing bool // the ledger grants nothing until the end
}

func (t *hostTaker) serve(conn *tls.Conn) error {
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
		return t.refuse(&frozen.Refused{What: "peer " + hello.Node, Why: "not in cluster.peers here"})
	}
	if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname(hello.Node); err != nil {
		return t.refuse(&frozen.Refused{What: "peer " + hello.Node, Why: err.Error()})
	}
	if err := hello.Check(); err != nil {
		return t.refuse(err)
	}
	if err := hostSpeaks(hello); err != nil {
		return t.refuse(err)
	}
	if err := t.n.steer(hello, c.Peers[hello.Node].Addr()); err != nil {
		return t.refuse(err)
	}
	if err := move.SendJSON(t.c, move.Hello, t.n.hostGreeting()); err != nil {
		return err
	}
	for {
		wait := quietTime
		if t.pausing {
			wait = answerTime
		}
		if err := t.c.SetTimeout(wait); err != nil {
			return err
		}
		m, err := t.c.Receive()
		if err != nil {
			if !t.pausing && move.Gone(err) {
				return nil // the peer has said all
			}
			return err
		}
		switch m.Kind {
		case move.Ask:
			err = t.answer(m)
		case move.Begin:
			err = t.begin(m)
		case move.Prepare:
			err = t.prepare(m)
		case move.Offer:
			err = t.offer(m)
		case move.Commit:
			err = t.commit()
		case move.Abort:
			err = t.abort()
		case move.Done:
			t.settle()
			err = t.c.Send(move.Message{Kind: move.Settled})
		default:
			err = fmt.Errorf("node: %v came out of turn", m.Kind)
		}
		if err != nil {
			return err
		}
	}
}

// quietTime is how long a peer may say nothing between two things.
const quietTime = 2 * time.Minute

// answer answers a question.
func (t *hostTaker) answer(m move.Message) error {
	a, err := t.n.reply(t.peer, m)
	if err != nil {
		return t.refuse(err)
	}
	return move.SendJSON(t.c, move.Answer, a)
}

// begin makes ready for flows. Until they have come waiting ones come in any order,
// and one that came early must not be served before one that is still to come.
func (t *hostTaker) begin(m move.Message) error {
	var coming move.Coming
	if err := m.Into(&coming); err != nil {
		return err
	}
	t.settle()
	if t.shared = coming.Held; t.shared == nil {
		t.shared = map[string]int64{}
	}
	t.n.shared.Ledger.Pause()
	t.pausing = true
	for name, held := range t.shared {
		t.n.account(name).AddForeign(held)
	}
	return t.c.Send(move.Message{Kind: move.Ready})
}

// settle ends what begin began: each host's limits are its own again.
func (t *hostTaker) settle() {
	for name, held := range t.shared {
		if held > 0 {
			t.n.account(name).AddForeign(-held)
		}
	}
	t.shared = nil
	if t.pausing {
		t.pausing = false
		t.n.shared.Ledger.Resume()
	}
}

func (t *hostTaker) refuse(why error) error {
	r := move.Refusal{What: "batch", Why: why.Error()}
	var no *frozen.Refused
	if errors.As(why, &no) {
		r = move.Refusal{What: no.What, Why: no.Why, Retry: no.Retry}
	}
	return move.SendJSON(t.c, move.Refuse, r)
}

// prepare holds the segments of what is to come.
func (t *hostTaker) prepare(m move.Message) error {
	if t.intake || !t.pausing {
		return errors.New("node: a batch is prepared while another is under way, or before flows were announced")
	}
	var ts []netadmin.Tuple
	if err := m.Into(&ts); err != nil {
		return err
	}
	if len(ts) == 0 || len(ts) > 2*hostChunk*4 {
		return fmt.Errorf("node: %d tuples in one batch", len(ts))
	}
	t.n.host.intake.RLock()
	t.intake, t.offers = true, 0
	t.n.mu.Lock()
	leaving := t.n.leaving
	t.n.mu.Unlock()
	if leaving {
		t.letIn()
		return t.refuse(&frozen.Refused{What: "host", Why: "an upgrade is under way there", Retry: true})
	}
	if err := t.n.host.admin.Hold(ts); err != nil {
		t.letIn()
		return t.refuse(&frozen.Refused{What: "hold", Why: err.Error()})
	}
	t.held = ts
	return t.c.Send(move.Message{Kind: move.Held})
}

// letIn ends the hold on the node's intake, if there is one.
func (t *hostTaker) letIn() {
	if t.intake {
		t.intake = false
		t.n.host.intake.RUnlock()
	}
}

// offer restores the sockets of a batch, quiet, and sees that each flow could
// be thawed.
func (t *hostTaker) offer(m move.Message) error {
	if t.offers++; len(t.held) == 0 || t.offers > 1 {
		return errors.New("node: an offer that was not prepared")
	}
	batch, err := t.n.decode(m.Body)
	for i := 0; err == nil && i < len(batch.Flows); i++ {
		_, err = flow.Thaw(0, batch.Flows[i], t.n.registry)
	}
	if err == nil {
		err = t.restore(batch)
	}
	if err != nil {
		t.discard()
		return t.refuse(err)
	}
	t.batch = batch
	return t.c.Send(move.Message{Kind: move.Taken})
}

func (t *hostTaker) restore(batch *frozen.Batch) error {
	prepared := map[netadmin.Tuple]bool{}
	for _, x := range t.held {
		prepared[x] = true
	}
	for _, z := range batch.Flows {
		for _, g := range connected(z) {
			s := new(tcprepair.State)
			if err := s.UnmarshalBinary(g.Socket); err != nil {
				return &frozen.Refused{What: "socket", Why: err.Error()}
			}
			if len(g.Unsent)+int(s.Unsent) > flow.UnsentMax {
				return &frozen.Refused{What: "leg", Why: fmt.Sprintf("%d octets unsent, the limit is %d", len(g.Unsent)+int(s.Unsent), flow.UnsentMax)}
			}
			if !prepared[netadmin.Tuple{Local: s.Local, Remote: s.Remote}] {
				return &frozen.Refused{What: "socket", Why: fmt.Sprintf("%v-%v was not prepared", s.Local, s.Remote)}
			}
			fd, err := tcprepair.Restore(s, tcprepair.Options{Inject: t.n.host.admin.Inject})
			if err != nil {
				return &frozen.Refused{What: "socket", Why: err.Error()}
			}
			t.fds, t.states = append(t.fds, sock.Own(fd)), append(t.states, s)
			g.Fd, g.Socket = uint32(len(t.fds)), nil
		}
	}
	return nil
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

// discard forgets sockets that were restored and not committed, silently.
func (t *hostTaker) discard() {
	for _, fd := range t.fds {
		_ = tcprepair.Discard(fd.Disown())
	}
	t.fds, t.states, t.batch = nil, nil, nil
}

// commit makes the batch ours and serves it.
func (t *hostTaker) commit() error {
	if t.batch == nil {
		return errors.New("node: a commit without an offer")
	}
	batch, fds, states, held := t.batch, t.fds, t.states, t.held
	t.batch, t.fds, t.states = nil, nil, nil
	rests := make([][]byte, len(fds))
	for i, fd := range fds {
		var err error
		if rests[i], err = tcprepair.GoLive(int(fd), states[i]); err != nil {
			// The socket is what it is; the loop will find out by using it.
			t.n.log.Error("a restored socket would not go live", "error", err)
		}
	}
	for _, z := range batch.Flows {
		for _, g := range connected(z) {
			// What the restored socket did not take back goes before all that
			// was not sent: its order in the stream.
			if rest := rests[g.Fd-1]; len(rest) > 0 {
				if g != z.Client && z.H1 != nil && !z.H1.Tunnel {
					unsend(z.H1, rest)
				} else {
					g.Unsent = append(append([]byte(nil), rest...), g.Unsent...)
				}
				g.Sent -= uint64(len(rest))
				// A FIN comes after it: the loop shuts down again.
				g.Shut = false
			}
		}
	}
	// Tuples of flows that the giver kept after all are its own again.
	var ours, others []netadmin.Tuple
	restored := map[netadmin.Tuple]bool{}
	for _, s := range states {
		restored[netadmin.Tuple{Local: s.Local, Remote: s.Remote}] = true
	}
	for _, x := range held {
		if restored[x] {
			ours = append(ours, x)
		} else {
			others = append(others, x)
		}
	}
	_, err := t.n.host.admin.Release(ours)
	if len(others) > 0 {
		err = errors.Join(err, t.n.host.admin.Drop(others))
	}
	t.held = nil
	for _, z := range batch.Flows {
		if z.Endpoint != nil {
			t.shared[z.Endpoint.Name]-- // take imports it
		}
	}
	octets, e := batch.Encode() // the sockets are in it no more
	if e != nil {               // it was decoded a moment ago
		panic(e)
	}
	a := t.n.take(batch, &loop.Parcel{Octets: octets, FDs: fds})
	t.n.totals.arrive(len(batch.Flows) - a.Lost)
	t.letIn()
	return errors.Join(err, move.SendJSON(t.c, move.Adopted, a))
}

// abort ends a batch that the giver keeps.
func (t *hostTaker) abort() error {
	t.discard()
	if len(t.held) == 0 {
		return nil
	}
	err := t.n.host.admin.Drop(t.held)
	t.held = nil
	t.letIn()
	return err
}

// end cleans up after a giver that is gone: what it had not committed it owns,
// and each host's limits are its own again.
func (t *hostTaker) end() {
	_ = t.c.Close()
	t.settle()
	t.discard()
	if len(t.held) > 0 {
		if err := t.n.host.admin.Drop(t.held); err != nil {
			t.n.log.Error("held tuples could not be dropped", "error", err)
		}
		t.held = nil
	}
	t.letIn()
}
