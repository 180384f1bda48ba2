package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
)

// hostTalk is one conversation of this node with a peer, both greeted: each has
// shown a certificate for its name, and they speak the same protocol. One goroutine
// uses it, for one thing after another; after an error of the carrier it is of no use any more.
type hostTalk struct {
	n     *Node
	peer  string        // its name
	at    netip.Addr    // where it is
	hello move.Greeting // what it said
	id    string        // by which both know it
	c     *move.Remote
	sent  sentObjects // that the peer has

	giving *move.HostGiving
	known  *heirKnows                 // what was told
	left   map[*ledger.Endpoint]int64 // connections that have gone since Open; nil: it is not open
}

// hostFeatures are what this release speaks between hosts.
func hostFeatures() []string { return []string{move.FeatureTalk} }

// talk begins a conversation with the peer of that name. It ends with Close.
func (n *Node) talk(ctx context.Context, peer string) (*hostTalk, error) {
	c := n.Config().Cluster
	if c == nil {
		return nil, errors.New("node: the configuration has no cluster section, so there is no other host; see docs/operate.md")
	}
	if n.host.admin == nil {
		return nil, errors.New("node: the cluster section came by a reload and takes effect with the next upgrade: holdfast upgrade")
	}
	at, ok := c.Peers[peer]
	if !ok || peer == n.Config().Node.Name {
		return nil, missingf("node: there is no other node %q; there are: %s", peer, strings.Join(n.peers(), ", "))
	}
	conf, err := n.identityNow()
	if err != nil {
		return nil, err
	}
	conf = conf.Clone()
	conf.ServerName = peer
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: answerTime}, Config: conf}
	dialer.NetDialer.SetMultipathTCP(false)
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	n.silences.asked(peer, time.Now())
	conn, err := dialer.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, &unreached{peer, err}
	}
	t := &hostTalk{n: n, peer: peer, at: at.Addr(), id: rand.Text(), c: move.NewRemote(conn), sent: sentObjects{}}
	t.giving = move.NewHostGiving(t.c)
	if err := t.greet(ctx); err != nil {
		_ = t.c.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, &unreached{peer, err}
	}
	n.silences.answered(peer)
	return t, nil
}

func (t *hostTalk) greet(ctx context.Context) error {
	defer t.bound(ctx)()
	if err := t.c.SetTimeout(answerTime); err != nil {
		return err
	}
	if err := move.SendJSON(t.c, move.Hello, t.n.hostGreeting()); err != nil {
		return err
	}
	m, err := move.Expect(t.c, move.Hello)
	if err != nil {
		return err
	}
	if err := m.Into(&t.hello); err != nil {
		return err
	}
	if err := hostSpeaks(t.hello); err != nil {
		return err
	}
	return t.n.steer(t.hello, t.at)
}

// hostSpeaks refuses a release that moves flows between hosts in another way.
func hostSpeaks(hello move.Greeting) error {
	if err := hello.Check(); err != nil {
		return err
	}
	for _, f := range hostFeatures() {
		if !slices.Contains(hello.Features, f) {
			return &frozen.Refused{What: "release " + hello.Release, Why: "it speaks another way between hosts: upgrade it first"}
		}
	}
	return nil
}

// bound ends what waits on the carrier when ctx ends.
func (t *hostTalk) bound(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = t.c.Close() })
}

// Ask puts a question of the choreography to the peer: what it is called, what is
// asked (nil: nothing) and where the answer goes (nil: nowhere). Both are JSON. A
// refusal of the peer is a [*frozen.Refused], and the talk goes on. Without a
// deadline in ctx the answer is waited for as long as answerTime; if ctx ends, so
// does the talk.
func (t *hostTalk) Ask(ctx context.Context, what string, q, a any) error {
	wait := answerTime
	if d, ok := ctx.Deadline(); ok {
		wait = max(time.Millisecond, time.Until(d))
	}
	t.n.silences.asked(t.peer, time.Now())
	err := t.ask(ctx, wait, what, q, a)
	if err == nil || refusedBy(err) != nil {
		t.n.silences.answered(t.peer)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return fmt.Errorf("node: peer %s: %s: %w", t.peer, what, err)
	}
	return nil
}

func (t *hostTalk) ask(ctx context.Context, wait time.Duration, what string, q, a any) error {
	body := json.RawMessage(nil)
	if q != nil {
		var err error
		if body, err = json.Marshal(q); err != nil {
			return err
		}
	}
	defer t.bound(ctx)()
	if err := t.c.SetTimeout(wait); err != nil {
		return err
	}
	if err := move.SendJSON(t.c, move.Ask, move.Question{What: what, Body: body}); err != nil {
		return err
	}
	m, err := move.Expect(t.c, move.Answer)
	if err != nil || a == nil {
		return err
	}
	return m.Into(a)
}

// Close ends the conversation, and Open.
func (t *hostTalk) Close() {
	t.letGo()
	_ = t.c.Close()
}

// Flows moves the flows of movable listeners that want is true of, nil is all, until
// a pass over all loops finds none: in lots, each of which is the one's or the other's. A flow that
// came after it began stays for the next call. It may be called again and again in one
// conversation. If ctx ends, it stops between two lots; what has moved is the
// peer's. The report is there after an error, too. A flow that cannot
// move is named in it and goes on here. Meanwhile neither the configuration changes nor
// an upgrade begins.
func (t *hostTalk) Flows(ctx context.Context, want func(f *flow.Flow) bool, tell func(Progress)) (*Report, error) {
	t.n.change.Lock()
	defer t.n.change.Unlock()
	if err := t.n.inCharge(); err != nil {
		return newReport("host"), err
	}
	return t.flows(ctx, want, tell)
}

// answerer answers one kind of question.
type answerer func(peer string, body json.RawMessage) (any, error)

// answer registers who answers what peers ask under that name, before or after
// peers come. f is called by any goroutine, while the peer waits; an error that is a
// [*frozen.Refused] reaches it as one.
func (n *Node) answer(what string, f func(peer string, body json.RawMessage) (any, error)) {
	n.host.conns.Lock()
	defer n.host.conns.Unlock()
	if n.host.answers == nil {
		n.host.answers = map[string]answerer{}
	}
	n.host.answers[what] = f
}

// reply answers a question of a peer.
func (n *Node) reply(peer string, m move.Message) (any, error) {
	var q move.Question
	if err := m.Into(&q); err != nil {
		return nil, err
	}
	n.host.conns.Lock()
	f := n.host.answers[q.What]
	n.host.conns.Unlock()
	if f == nil {
		return nil, &frozen.Refused{What: q.What, Why: "nobody here answers that; is it of another release?"}
	}
	return f(peer, q.Body)
}

// Migrate moves every flow of movable listeners that is here now to the peer of
// that name. The listener and its address stay here, and so do the flows that
// it accepts from now on: what arrives for flows that have left is
// sent on to the peer. A flow that cannot move is named in the report and goes
// on here.
func (n *Node) Migrate(to string) (*Report, error) { return n.migrate(to, nil) }

// migrate moves the flows that want is true of; nil is all.
func (n *Node) migrate(to string, want func(f *flow.Flow) bool) (*Report, error) {
	began := time.Now()
	t, err := n.talk(context.Background(), to)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	// Idle legs to backends do not move: some are dialled from an address that
	// does.
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) { l.CloseIdle("") })
	}
	r, err := t.Flows(context.Background(), want, nil)
	if err != nil {
		n.log.Error("migration ended early; what has not moved goes on here", "to", to, "flows", r.Flows, "lost", r.Lost, "error", err)
		return nil, fmt.Errorf("node: after %s moved to %s, %d lost: %w", count(r.Flows, "flow"), to, r.Lost, err)
	}
	n.log.Info("migration done", "to", to, "flows", r.Flows, "refused", r.Refused, "lost", r.Lost, "took", time.Since(began))
	return r, nil
}
