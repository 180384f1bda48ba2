package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// moves is what a node knows of moves to other hosts that were asked for here.
type moves struct {
	// turn is held by who makes one.
	turn sync.Mutex

	// mu guards what follows.
	mu      sync.Mutex
	now     *Progress // the last step of the one that is under way
	last    *MoveStatus
	results map[string]uint64
	orders  map[string]*order // of peers, by number
	number  int
}

// moveResults are there with 0 from the beginning.
var moveResults = []string{"done", "aborted", "failed"}

// moveOf is a move, an evacuation or a return that is under way. One goroutine uses it,
// but for say.
type moveOf struct {
	n     *Node
	what  string
	began time.Time
	s     MoveStatus
	tell  func(Progress)

	telling sync.Mutex // held while tell is called
	// mu guards what follows.
	mu   sync.Mutex
	last Progress
	pace pace
}

// pace is how fast the flows of one VIP go.
type pace struct {
	vip   string
	flows int // that had gone when this began
	began time.Time
}

// eta is how many seconds are left at the pace so far; 0: that is not known.
func (a *pace) eta(p *Progress, now time.Time) float64 {
	if p.Phase != "flows" {
		return 0
	}
	if a.began.IsZero() || a.vip != p.VIP || p.Flows < a.flows {
		*a = pace{p.VIP, p.Flows, now}
	}
	went, left := p.Flows-a.flows, p.FlowsTotal-p.Flows
	if went <= 0 || left <= 0 {
		return 0
	}
	return now.Sub(a.began).Seconds() / float64(went) * float64(left)
}

// say tells of a step.
func (x *moveOf) say(p Progress) {
	p.Seconds = time.Since(x.began).Seconds()
	x.mu.Lock()
	if p.Move != nil {
		x.s.Move = p.Move
	}
	if x.s.VIP != "" && p.VIP == "" {
		p.VIP = x.s.VIP
	}
	if p.ETASeconds == 0 { // an order's steps have it already
		p.ETASeconds = x.pace.eta(&p, time.Now())
	}
	x.last = p
	x.mu.Unlock()
	x.pass(p)
}

// aside tells of something that is no step, so that who decides by the last step does not see it.
func (x *moveOf) aside(p Progress) {
	p.Seconds = time.Since(x.began).Seconds()
	x.mu.Lock()
	p.VIP, p.From, p.To, p.Committed = x.s.VIP, x.s.From, x.s.To, x.last.Committed
	p.Flows, p.FlowsTotal, p.Octets, p.Pause = x.last.Flows, x.last.FlowsTotal, x.last.Octets, x.last.Pause
	x.mu.Unlock()
	x.pass(p)
}

// pass tells those who look at the node, and who asked.
func (x *moveOf) pass(p Progress) {
	m := &x.n.moves
	m.mu.Lock()
	m.now = &p
	m.mu.Unlock()
	if x.tell != nil {
		x.telling.Lock()
		defer x.telling.Unlock()
		x.tell(p)
	}
}

// report notes what has moved so far.
func (x *moveOf) report(r *Report) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if r != nil {
		x.s.Move = r
	}
}

// within tells of the steps of one move that is part of a larger one, whose end is
// not the larger one's, and adds what it did to all.
func (x *moveOf) within(all *Report) func(Progress) {
	return func(p Progress) {
		if p.Done {
			if p.Move != nil {
				all.add(p.Move)
			}
			return // the error says why, or the larger one's end what
		}
		x.say(p)
	}
}

// add adds what another move has done. Of the pauses the worst stays.
func (r *Report) add(o *Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Flows += o.Flows
	r.Octets += o.Octets
	r.WithOctets += o.WithOctets
	r.Lost += o.Lost
	r.Residue += o.Residue
	r.Handshakes += o.Handshakes
	r.StateBytes += o.StateBytes
	r.Millis += o.Millis
	r.VIPs = append(r.VIPs, o.VIPs...)
	r.LostFlows = append(r.LostFlows, o.LostFlows...)
	r.addRefused(o)
	for kind, k := range o.States {
		r.States[kind] += k
	}
	r.AddressMillis = max(r.AddressMillis, o.AddressMillis)
	r.Pause.P50 = max(r.Pause.P50, o.Pause.P50)
	r.Pause.P99 = max(r.Pause.P99, o.Pause.P99)
	r.Pause.Max = max(r.Pause.Max, o.Pause.Max)
}

// moved makes a move, here or, if at is another node, there, and keeps account of it. With a key it is
// made once.
func (n *Node) moved(ctx context.Context, g Guard, q any, what, at string, tell func(Progress), do func(context.Context, *moveOf) error) error {
	told := false
	last, err := once(ctx, n, g, q, func() (*Progress, error) {
		told = true
		return n.moveOnce(ctx, g, q, what, at, tell, do)
	})
	if err == nil && !told && tell != nil { // it was done before
		tell(*last)
	}
	return err
}

func (n *Node) moveOnce(ctx context.Context, g Guard, q any, what, at string, tell func(Progress), do func(context.Context, *moveOf) error) (*Progress, error) {
	if err := n.state.current().expected(g.Expect); err != nil {
		return nil, err
	}
	if err := n.inCharge(); err != nil {
		return nil, err
	}
	m := &n.moves
	forwarded := at != "" && at != n.Config().Node.Name
	// What another node is asked to do may need something done here: a node that
	// returns asks for its VIPs.
	if !forwarded {
		if !m.turn.TryLock() {
			return nil, fmt.Errorf("node: %w", &frozen.Refused{What: n.self(), Why: "another move is under way there; holdfast status shows it", Retry: true})
		}
		defer m.turn.Unlock()
	}
	x := &moveOf{n: n, what: what, began: time.Now(), tell: tell, s: MoveStatus{What: what, By: g.Author, From: n.Config().Node.Name}}
	var err error
	if forwarded {
		x.s.From = at
		if q, ok := q.(MigrateRequest); ok {
			x.s.VIP, x.s.To = q.VIP, q.To
		}
		heard := x.whileSilent(at)
		err = n.order(ctx, at, what, q, x.say)
		heard()
		err = deadOwner(err, x.s.VIP, at)
	} else {
		// Who has been dead for long is of interest only where flows are to go.
		wanted, _ := q.(MigrateRequest)
		heard := x.whileSilent(slices.DeleteFunc(n.peers(), func(peer string) bool {
			return peer != wanted.To && n.silences.of(peer, time.Now()) > silentAfter
		})...)
		err = do(ctx, x)
		heard()
	}
	x.mu.Lock()
	last := x.last
	x.mu.Unlock()
	m.mu.Lock()
	m.now = nil
	m.mu.Unlock()
	if last.Phase == "" && err != nil {
		return nil, err // it was refused before anything was begun
	}
	s := x.s
	s.At, s.Result = time.Now(), "done"
	if err != nil {
		s.Result, s.Why = "aborted", strings.TrimPrefix(err.Error(), "node: ")
	}
	if s.Move != nil && s.Move.Lost > 0 {
		s.Result = "failed"
	}
	m.mu.Lock()
	m.last = &s
	if m.results == nil {
		m.results = map[string]uint64{}
	}
	m.results[s.Result]++
	m.mu.Unlock()
	n.tellMoved(what, &s, &last)
	if err != nil && !(last.Done && last.Failed != "") {
		x.say(Progress{Phase: "aborted", Done: true, Failed: s.Why, Text: s.Why, From: s.From, To: s.To, Move: s.Move})
		m.mu.Lock()
		m.now = nil
		m.mu.Unlock()
	}
	return &last, err
}

// tellMoved tells of the end of a move to those who watch, and to the log.
func (n *Node) tellMoved(what string, s *MoveStatus, last *Progress) {
	object, text := "", last.Text
	if s.VIP != "" {
		object = "vip/" + s.VIP
	}
	fields := map[string]string{"what": what, "result": s.Result, "from": s.From, "to": s.To}
	args := []any{"what", what, "vip", s.VIP, "from", s.From, "to", s.To, "result", s.Result}
	if r := s.Move; r != nil {
		fields["flows"], fields["lost"], fields["refused"] = fmt.Sprint(r.Flows), fmt.Sprint(r.Lost), fmt.Sprint(r.Refused)
		args = append(args, "flows", r.Flows, "lost", r.Lost, "refused", r.Refused, "pause_max_ms", math.Round(r.Pause.Max)/1000)
	}
	if s.Why != "" {
		text = what + ": " + s.Why
		args = append(args, "why", s.Why)
	}
	n.tell("move", object, s.By, fields, "%s", text)
	if s.Result == "failed" {
		n.log.Error("a move between hosts has lost flows", args...)
	} else {
		n.log.Info("a move between hosts has ended", args...)
	}
}

// order is what a peer has ordered of this node.
type order struct {
	stop context.CancelFunc

	// mu guards what follows.
	mu    sync.Mutex
	steps []Progress // the last of each phase, one after the other
	first int        // the number of the first of steps
	asked int        // that of the first that the peer has not had
	over  bool
	err   error
	seen  time.Time // when the peer asked last how it goes
}

// orderSteps bounds the steps of an order that wait for who asks.
const orderSteps = 64

// note keeps a step. One that only goes on with a phase stands for the one before it.
func (o *order) note(p Progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := len(o.steps); k > 0 && o.steps[k-1].Phase == p.Phase && o.first+k > o.asked {
		o.steps[k-1] = p
		return
	}
	o.steps = append(o.steps, p)
	if over := len(o.steps) - orderSteps; over > 0 {
		o.steps, o.first = o.steps[over:], o.first+over
	}
}

const (
	// orderSilence is how long a peer may not ask how its order goes; then it is as if
	// it had gone away, and the order ends if it still can.
	orderSilence = 5 * time.Second
	orderLook    = 100 * time.Millisecond
)

// What travels between nodes of an order.
type (
	orderBegin struct {
		What    string          `json:"what"` // migrate, evacuate, return
		Request json.RawMessage `json:"request"`
	}
	orderNumber struct {
		Number string `json:"number"`
		Abort  bool   `json:"abort,omitempty"`
		Seen   int    `json:"seen,omitempty"` // the number of the first step that the asker has not had
	}
	orderStep struct {
		Seen   int        `json:"seen"` // of the first that is still to come
		Steps  []Progress `json:"steps,omitempty"`
		Over   bool       `json:"over,omitempty"`
		Failed string     `json:"failed,omitempty"`
	}
)

// order has another node do something, and tells of its steps. If ctx ends it is
// aborted there, which may come too late; the error says what came of it.
func (n *Node) order(ctx context.Context, at, what string, q any, tell func(Progress)) error {
	body, err := json.Marshal(q)
	if err != nil { // requests are words and numbers
		panic(err)
	}
	t, err := n.talk(ctx, at)
	if err != nil {
		return err
	}
	defer t.Close()
	// What has begun there is followed to its end, ctx or no.
	asking := context.WithoutCancel(ctx)
	var k orderNumber
	if err := t.Ask(asking, "node.order", orderBegin{what, body}, &k); err != nil {
		return err
	}
	for {
		k.Abort = ctx.Err() != nil
		var s orderStep
		if err := t.Ask(asking, "node.follow", k, &s); err != nil {
			return fmt.Errorf("node: %s was ordered of %s, which is not heard of any more; holdfast status there says what came of it: %w", what, at, err)
		}
		k.Seen = s.Seen
		for _, p := range s.Steps {
			tell(p)
		}
		switch {
		case s.Over && s.Failed != "":
			return errors.New(s.Failed)
		case s.Over:
			return nil
		}
		_ = sleep(ctx, orderLook)
		if ctx.Err() != nil {
			_ = sleep(asking, orderLook)
		}
	}
}

// answerOrders has this node do what peers order.
func (n *Node) answerOrders() {
	n.answer("node.order", func(peer string, body json.RawMessage) (any, error) {
		var b orderBegin
		if err := json.Unmarshal(body, &b); err != nil {
			return nil, err
		}
		// A successor hears peers before it serves: what it began then would wait for the upgrade's end.
		k := &n.addresses
		k.mu.Lock()
		follows := n.reader()
		k.mu.Unlock()
		if follows {
			return nil, errUpgrade
		}
		do, err := n.ordered(peer, &b)
		if err != nil {
			return nil, err
		}
		return orderNumber{Number: n.beginOrder(do)}, nil
	})
	n.answer("node.follow", func(_ string, body json.RawMessage) (any, error) {
		var k orderNumber
		if err := json.Unmarshal(body, &k); err != nil {
			return nil, err
		}
		m := &n.moves
		m.mu.Lock()
		o := m.orders[k.Number]
		m.mu.Unlock()
		if o == nil {
			return nil, &frozen.Refused{What: "order " + k.Number, Why: "there is none of this number; the process may have been replaced"}
		}
		if k.Abort {
			o.stop()
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.seen = time.Now()
		s := orderStep{Seen: o.first + len(o.steps), Over: o.over}
		s.Steps = append(s.Steps, o.steps[min(max(0, k.Seen-o.first), len(o.steps)):]...)
		o.asked = s.Seen
		if o.err != nil {
			s.Failed = strings.TrimPrefix(o.err.Error(), "node: ")
		}
		return s, nil
	})
}

// ordered understands what a peer orders.
func (n *Node) ordered(peer string, b *orderBegin) (func(context.Context, func(Progress)) error, error) {
	name := func(g *Guard) {
		if g.Key = ""; g.Name == "" { // the peer sees to it that it is made once
			g.Name = "node " + peer
		}
		g.Expect = 0 // generations are each node's own
	}
	switch b.What {
	case "migrate":
		var q MigrateRequest
		if err := json.Unmarshal(b.Request, &q); err != nil {
			return nil, err
		}
		name(&q.Guard)
		v, err := n.vipOf(q.VIP)
		if err != nil {
			return nil, err
		}
		if v.Owner != n.Config().Node.Name { // else two nodes could send an order to and fro
			return nil, &frozen.Refused{What: "VIP " + q.VIP, Why: "it belongs to " + v.Owner, Retry: true}
		}
		return func(ctx context.Context, tell func(Progress)) error { return n.Relocate(ctx, q, tell) }, nil
	case "evacuate":
		var q EvacuateRequest
		if err := json.Unmarshal(b.Request, &q); err != nil {
			return nil, err
		}
		name(&q.Guard)
		q.Node = ""
		return func(ctx context.Context, tell func(Progress)) error { return n.Evacuate(ctx, q, tell) }, nil
	case "return":
		var q ReturnRequest
		if err := json.Unmarshal(b.Request, &q); err != nil {
			return nil, err
		}
		name(&q.Guard)
		q.Node = ""
		return func(ctx context.Context, tell func(Progress)) error { return n.Return(ctx, q, tell) }, nil
	}
	return nil, &frozen.Refused{What: b.What, Why: "that is no order; is the peer of another release?"}
}

// ordersMax bounds the orders that are remembered.
const ordersMax = 16

// beginOrder begins an order and gives its number.
func (n *Node) beginOrder(do func(context.Context, func(Progress)) error) string {
	ctx, stop := context.WithCancel(n.ends)
	o := &order{stop: stop, seen: time.Now()}
	m := &n.moves
	m.mu.Lock()
	m.number++
	number := fmt.Sprintf("%d-%d", pid, m.number)
	if m.orders == nil {
		m.orders = map[string]*order{}
	}
	for k, x := range m.orders {
		x.mu.Lock()
		if x.over && len(m.orders) >= ordersMax {
			delete(m.orders, k)
		}
		x.mu.Unlock()
	}
	m.orders[number] = o
	m.mu.Unlock()
	n.host.arrivals.Add(1)
	go func() { // ended by n.ends, which Stop and Drain call, or by silence
		defer n.host.arrivals.Done()
		defer stop()
		err := do(ctx, o.note)
		o.mu.Lock()
		o.over, o.err = true, err
		o.mu.Unlock()
	}()
	go func() { // ends with the order
		for sleep(ctx, orderSilence/5) == nil {
			o.mu.Lock()
			silent := time.Since(o.seen) > orderSilence
			o.mu.Unlock()
			if silent {
				stop()
			}
		}
	}()
	return number
}
