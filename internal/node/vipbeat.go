package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// askBeat tells a peer this node's records, and asks for its own.
const askBeat = "vip.beat"

// vipBeat is both the question and the answer.
type vipBeat struct {
	Records map[string]vip.Record `json:"records"`
	// Holds are VIPs that the node owns now.
	Holds map[string]bool `json:"holds,omitempty"`
}

// beatsOfLease is how often a lease is renewed within it, and roundsMost bounds rounds
// that follow each other at once since each has changed a record.
const (
	beatsOfLease = 3
	roundsMost   = 8
)

// vipPeer asks one peer, one question at a time.
type vipPeer struct {
	ask  chan vipAsked
	quit chan struct{}
	done sync.WaitGroup
	down atomic.Bool // it did not answer the last time
}

type vipAsked struct {
	ctx    context.Context
	over   context.CancelFunc // of ctx
	what   string
	q, a   any
	answer chan<- error // has room
}

// peer finds or makes the one that asks that peer. The caller holds mu.
func (n *Node) vipPeerOf(name string) *vipPeer {
	k := &n.addresses
	if k.peers == nil {
		return nil // the node ends
	}
	p := k.peers[name]
	if p == nil {
		p = &vipPeer{ask: make(chan vipAsked), quit: make(chan struct{})}
		k.peers[name] = p
		p.done.Add(1)
		go func() { // ended by end
			defer p.done.Done()
			p.serve(n, name)
		}()
	}
	return p
}

// serve asks what it is told to ask, in one conversation for as long as that lives.
func (p *vipPeer) serve(n *Node, name string) {
	var t *hostTalk
	defer func() {
		if t != nil {
			t.Close()
		}
	}()
	for {
		select {
		case <-p.quit:
			return
		case x := <-p.ask:
			err := error(nil)
			for try := 0; ; try++ {
				fresh := t == nil
				if fresh {
					if t, err = n.talk(x.ctx, name); err != nil {
						t = nil
						break
					}
				}
				if err = t.Ask(x.ctx, x.what, x.q, x.a); err == nil || refusedBy(err) != nil {
					break
				}
				t.Close()
				if t = nil; fresh || try > 0 || x.ctx.Err() != nil {
					break
				}
			}
			p.down.Store(err != nil)
			x.answer <- err
			x.over()
		}
	}
}

func (p *vipPeer) end() {
	close(p.quit)
	p.done.Wait()
}

// tendVIPs renews leases and goes on with what is under way, until ctx ends.
func (n *Node) tendVIPs(ctx context.Context) {
	tick := time.NewTimer(0)
	defer tick.Stop()
	alive := true
	for {
		var asked chan struct{}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			lease := time.Second
			if c := n.Config().Cluster; c != nil && c.Lease > 0 {
				lease = c.Lease
			}
			tick.Reset(lease / beatsOfLease)
			alive = n.loopsAlive()
		case asked = <-n.addresses.kick:
		}
		n.beat(ctx, alive)
		if asked != nil {
			close(asked)
		}
	}
}

// roundNow makes a round and returns after it, or with ctx.
func (n *Node) roundNow(ctx context.Context) {
	asked := make(chan struct{})
	select {
	case n.addresses.kick <- asked:
		select {
		case <-asked:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	case <-n.ends.Done():
	}
}

// loopsAlive tells whether all loops have answered since it was called last: a node whose
// loops hang owns nothing.
func (n *Node) loopsAlive() bool {
	busy := &n.addresses.busy
	if busy.Load() > 0 {
		return false
	}
	busy.Store(int64(len(n.shared.Loops)))
	for _, l := range n.shared.Loops {
		l.Do(func(*loop.Loop) { busy.Add(-1) })
	}
	return true
}

// beat makes rounds until nothing changes any more.
func (n *Node) beat(ctx context.Context, alive bool) {
	k := &n.addresses
	c := n.Config()
	if c.Cluster == nil {
		return
	}
	k.mu.Lock()
	if k.handed {
		k.mu.Unlock()
		return
	}
	if err := n.syncVIPs(c); err != nil {
		n.log.Error("vips of the configuration are not in force", "error", err)
	}
	if n.reader() {
		n.follow()
	}
	k.mu.Unlock()
	if len(k.of) == 0 {
		return
	}
	if alive {
		for range roundsMost {
			if !n.round(ctx, c) {
				break
			}
		}
	}
	n.tendGuests(ctx, c)
}

// follow reads what the other process of this node has written. The caller holds mu.
func (n *Node) follow() {
	for _, v := range n.addresses.seats {
		r, err := v.disk.read()
		if err != nil {
			n.log.Error("the record of a vip is not readable", "vip", v.name, "error", err)
			continue
		}
		if r != v.seat.Record() {
			v.seat.Wrote(r)
			v.since = time.Now()
		}
	}
}

// round asks all peers of a configuration and lets each seat decide. It tells whether another
// one is due.
func (n *Node) round(ctx context.Context, c *config.Config) (again bool) {
	k := &n.addresses
	q := vipBeat{Records: map[string]vip.Record{}}
	k.mu.Lock()
	for name, v := range k.seats {
		q.Records[name] = v.seat.Record()
	}
	k.mu.Unlock()
	asked := vipNow()
	answers := n.askBeats(ctx, q, othersOf(c), c.Cluster.Lease/beatsOfLease)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.handed {
		return false // meanwhile
	}
	for name, v := range k.seats {
		if _, ok := q.Records[name]; !ok {
			continue // it came meanwhile
		}
		said := map[string]vip.Record{}
		for peer, a := range answers {
			if r, ok := a.Records[name]; ok {
				said[peer] = r
				if r.Contrary(v.seat.Record()) {
					k.conflicts++
				}
			}
		}
		x := v.seat.Round(asked, vipNow(), said)
		if err := n.carry(v, x); err != nil {
			if !n.reader() {
				n.log.Error("vip", "vip", name, "error", err)
			}
			continue
		}
		again = again || x.Write != nil
	}
	return again
}

// othersOf are all nodes of a configuration but this one. Who acts for VIPs reads the configuration
// once: the next one may have no cluster any more.
func othersOf(c *config.Config) (others []string) {
	for name := range c.Cluster.Nodes {
		if name != c.Node.Name {
			others = append(others, name)
		}
	}
	return others
}

// downWait is how long one is waited for that did not answer the last time, after all
// others have.
const downWait = 20 * time.Millisecond

// askBeats asks peers all at once, and gives the answers that came in time. One that
// still owes an answer to an earlier question is not waited for.
func (n *Node) askBeats(ctx context.Context, q vipBeat, peers []string, wait time.Duration) map[string]vipBeat {
	type said struct {
		peer string
		down bool
		a    *vipBeat
		err  chan error
	}
	var asked []said
	n.addresses.mu.Lock()
	for _, name := range peers {
		p := n.vipPeerOf(name)
		if p == nil {
			continue
		}
		x := said{name, p.down.Load(), new(vipBeat), make(chan error, 1)}
		// What is not waited for here goes on: it may bring up a conversation.
		ask, over := context.WithTimeout(ctx, wait)
		select {
		case p.ask <- vipAsked{ask, over, askBeat, q, x.a, x.err}:
			asked = append(asked, x)
		case <-time.After(time.Millisecond): // it may be about to read
			over()
		}
	}
	n.addresses.mu.Unlock()
	answers := map[string]vipBeat{}
	hear := func(down bool, end <-chan time.Time) {
		for _, x := range asked {
			if x.down != down {
				continue
			}
			select {
			case err := <-x.err:
				if err == nil {
					answers[x.peer] = *x.a
				}
			case <-end:
				return
			case <-ctx.Done():
				return
			}
		}
	}
	hear(false, time.After(wait))
	hear(true, time.After(downWait))
	return answers
}

// answerVIPs registers the answers to what peers ask of VIPs.
func (n *Node) answerVIPs() {
	n.answer(askBeat, answering(n.hearBeat))
	n.answer(askPlan, answering(n.hearPlan))
	n.answer(askGuest, answering(n.hearGuest))
	n.answer(askStays, answering(n.hearStays))
	n.answer(askDialled, answering(n.hearDialled))
	n.answer(askYield, answering(n.hearYield))
	n.answer(askBack, answering(n.hearBack))
}

// answering reads the question's JSON.
func answering[Q, A any](f func(peer string, q Q) (A, error)) func(string, json.RawMessage) (any, error) {
	return func(peer string, body json.RawMessage) (any, error) {
		var q Q
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, fmt.Errorf("node: question of %s: %w", peer, err)
		}
		return f(peer, q)
	}
}

// hearBeat learns a peer's records and answers with ours. What could not be made
// durable is left out of the answer.
func (n *Node) hearBeat(peer string, q vipBeat) (vipBeat, error) {
	k := &n.addresses
	a := vipBeat{Records: map[string]vip.Record{}, Holds: map[string]bool{}}
	if err := n.knownNode(peer); err != nil {
		return a, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, r := range q.Records {
		v := k.seats[name]
		if v == nil {
			continue
		}
		if err := r.Check(); err != nil {
			return a, &frozen.Refused{What: "vip " + name, Why: err.Error()}
		}
		if err := n.carry(v, v.seat.Hear(vipNow(), r)); err != nil {
			n.log.Warn("what a peer knows of a vip could not be noted", "vip", name, "peer", peer, "error", err)
			continue
		}
		a.Records[name] = v.seat.Record()
		if v.seat.Holds(vipNow()) {
			a.Holds[name] = true
		}
	}
	return a, nil
}

// knownNode refuses who is not among the nodes here.
func (n *Node) knownNode(peer string) error {
	if c := n.Config().Cluster; c == nil || c.Nodes[peer] == nil {
		return &frozen.Refused{What: "node " + peer, Why: "it is not among nodes here"}
	}
	return nil
}

// refusedBy is what a peer refused, if that is what err is.
func refusedBy(err error) *frozen.Refused {
	var no *frozen.Refused
	if errors.As(err, &no) {
		return no
	}
	return nil
}
