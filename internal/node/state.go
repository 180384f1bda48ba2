package node

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/journal"
	"github.com/holdfast-lb/holdfast/internal/resolve"
)

// waitingMax bounds the changes that wait for their turn.
const waitingMax = 64

// stateSide is the desired state of a node, and the order in which it changes.
//
// Three things come one after another: a change of configuration has the turn
// from its first look at the state until it is done; swap is held while
// something takes effect and gets its number, so that generations are numbered in
// the order in which they rule; and mu is held for looking only.
type stateSide struct {
	turn    chan struct{} // has a token while nobody has the turn
	waiting atomic.Int32
	tidying tidying
	reader  reader

	swap sync.Mutex
	// opening is held by who opens the journal.
	opening sync.Mutex

	// mu guards what follows.
	mu        sync.Mutex
	now       *desired
	told      *desired // to a successor, at first
	inherited *desired // what a predecessor has told at first; nil: there was none
	least     uint64   // the number of the next generation at least
	history   generations
	journal   *journal.Journal
	dir       string // of the journal; "": there is none
	unwritten string // why there is no journal
	reread    *reread
	canary    *canary
	marks     []mark            // the oldest first
	settled   string            // what came of the last one
	shifts    map[string]*shift // by full name of the endpoint
	keys      keys
}

// reread is a reload that waits for its turn, and all who want the same.
type reread struct {
	like   ChangeRequest
	done   chan struct{}
	report *ChangeReport
	err    error
}

// init makes s ready.
func (s *stateSide) init(file string) {
	s.turn, s.reader, s.shifts, s.unwritten = make(chan struct{}, 1), reader{file, Variable}, map[string]*shift{}, "node.state is none"
	s.turn <- struct{}{}
}

// take waits for the turn.
func (s *stateSide) take(ctx context.Context) error {
	select {
	case <-s.turn:
		return nil
	default:
	}
	if s.waiting.Add(1) > waitingMax {
		s.waiting.Add(-1)
		return fmt.Errorf("node: %d changes wait already: %w", waitingMax, ErrBusy)
	}
	defer s.waiting.Add(-1)
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("node: the change was not begun: %w", ctx.Err())
	}
}

func (s *stateSide) give() { s.turn <- struct{}{} }

// current is the state in force.
func (s *stateSide) current() *desired {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// info is the entry of the history for d.
func (d *desired) info() GenerationInfo {
	return GenerationInfo{Generation: d.Generation, At: d.At, By: d.By, Kind: d.Kind}
}

// check sees that q asks for one thing.
func (q *ChangeRequest) check() error {
	ways := 0
	for _, is := range []bool{q.Source != nil, q.Reread, q.Edits != nil, q.Revert != nil, q.Rollback != 0} {
		if is {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("node: a change is one of source, reread, edits, revert and rollback")
	}
	switch q.RuntimeEdits {
	case "", "keep", "discard", "refuse":
	default:
		return fmt.Errorf("node: runtime_edits %q: want keep, discard or refuse", q.RuntimeEdits)
	}
	if q.Canary < 0 || q.Canary > canaryMost {
		return fmt.Errorf("node: a canary of %v: want up to %v", q.Canary, canaryMost)
	}
	if q.AbortOn != "" && q.Canary == 0 {
		return errors.New("node: abort_on is of a canary, and there is none")
	}
	_, err := parseAbort(q.AbortOn)
	return err
}

// kind is the word of the history.
func (q *ChangeRequest) kind() string {
	switch {
	case q.Source != nil:
		return "apply"
	case q.Reread:
		return "file"
	case q.Rollback != 0:
		return "rollback"
	}
	return "edit"
}

// expected refuses a write whose writer has not seen d.
func (d *desired) expected(expect uint64) error {
	if expect != 0 && expect != d.Generation {
		return fmt.Errorf("node: generation %d is in force, by %s %s ago; %d was expected: %w",
			d.Generation, cmp.Or(d.By.Name, "nobody"), time.Since(d.At).Round(time.Second), expect, ErrChanged)
	}
	return nil
}

// Change is the one way to another desired state. It returns when the state is
// in force on every loop, or was refused; then nothing has changed. When ctx ends
// a change that has not begun is not begun; one that has is done.
func (n *Node) Change(ctx context.Context, q ChangeRequest) (*ChangeReport, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	if err := n.checkFlows(q.Flows); err != nil {
		return nil, err
	}
	if q.DryRun {
		return n.dryRun(q)
	}
	return once(ctx, n, q.Guard, q, func() (*ChangeReport, error) {
		r, err := n.queued(ctx, q)
		switch {
		case err != nil:
			n.noteApply(q.kind(), "refused")
		case r.Superseded: // its leader is counted
		case r.Unchanged:
			n.noteApply(q.kind(), "unchanged")
		}
		return r, err
	})
}

// queued has reloads that wait together be one.
func (n *Node) queued(ctx context.Context, q ChangeRequest) (*ChangeReport, error) {
	began := time.Now()
	if !q.Reread || q.Expect != 0 {
		return n.changed(ctx, began, q, nil)
	}
	s := &n.state
	s.mu.Lock()
	if r := s.reread; r != nil && r.like.RuntimeEdits == q.RuntimeEdits && r.like.Flows == q.Flows && r.like.Canary == q.Canary && r.like.AbortOn == q.AbortOn {
		s.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("node: the change was not waited for: %w", ctx.Err())
		}
		if r.err != nil {
			return nil, r.err
		}
		own := *r.report
		own.Superseded, own.EffectiveMillis = true, millis(time.Since(began))
		own.Millis = own.EffectiveMillis
		return &own, nil
	}
	r := &reread{like: q, done: make(chan struct{})}
	s.reread = r
	s.mu.Unlock()
	// Others wait for it, too: that the first one goes away is no reason to end it.
	r.report, r.err = n.changed(context.WithoutCancel(ctx), began, q, func() {
		// From here on the file is read: who comes later may mean what is written later.
		s.mu.Lock()
		if s.reread == r {
			s.reread = nil
		}
		s.mu.Unlock()
	})
	s.mu.Lock()
	if s.reread == r {
		s.reread = nil
	}
	s.mu.Unlock()
	close(r.done)
	return r.report, r.err
}

// changed makes a change in its turn. begun, if not nil, is called when it has it.
func (n *Node) changed(ctx context.Context, began time.Time, q ChangeRequest, begun func()) (*ChangeReport, error) {
	s := &n.state
	if err := s.take(ctx); err != nil {
		return nil, err
	}
	had := true
	defer func() {
		if had {
			s.give()
		}
	}()
	if begun != nil {
		begun()
	}
	if err := s.watched(); err != nil {
		return nil, err
	}
	d := s.current()
	if err := d.expected(q.Expect); err != nil {
		return nil, err
	}
	b, err := n.next(d, q)
	if err != nil {
		return nil, err
	}
	var known map[string]resolve.Answer
	if strange := n.names.strange(b.next.doc.Config()); len(strange) > 0 {
		// Names take their time, and nobody else waits for it.
		s.give()
		known = askNames(ctx, b.next.doc.Config(), strange)
		if err := s.take(ctx); err != nil {
			had = false
			return nil, err
		}
		if err := s.watched(); err != nil {
			return nil, err
		}
		if now := s.current(); now != d {
			d = now
			if err := d.expected(q.Expect); err != nil {
				return nil, err
			}
			if b, err = n.next(d, q); err != nil {
				return nil, err
			}
		}
	}
	return n.enact(ctx, began, d, b, q, known)
}

// next gives what q makes of d.
func (n *Node) next(d *desired, q ChangeRequest) (*became, error) {
	s := &n.state
	a := asked{mode: q.RuntimeEdits, edits: q.Edits, revert: q.Revert, by: q.Author, at: time.Now(), kind: q.kind()}
	switch {
	case q.Rollback != 0:
		if q.Rollback == d.Generation {
			return nil, fmt.Errorf("node: generation %d is in force", q.Rollback)
		}
		state, err := s.stateAt(q.Rollback)
		if err != nil {
			return nil, err
		}
		return d.back(s.reader, state, a)
	case q.Reread:
		text, err := os.ReadFile(s.reader.file)
		if err != nil {
			return nil, fmt.Errorf("node: %w", err)
		}
		a.text, a.file, a.sum = text, true, textSum(text)
		if a.sum == d.fileSum && d.applied && q.RuntimeEdits != "discard" {
			// The file says nothing new: what was applied in its place stays.
			if !q.DryRun {
				same := *d // which is in force, and no other number is given to it
				same.By, same.At, same.Kind = a.by, a.at, a.kind
				return &became{next: &same, same: true, warnings: []string{fileOld}}, nil
			}
			// Who only asks wants to know in what they differ.
			b, err := d.then(s.reader, a)
			if err == nil {
				b.warnings = append(b.warnings, fileOld+"; applied by name, the file would do this")
			}
			return b, err
		}
	case q.Source != nil:
		a.text = q.Source
		if len(a.text) > sourceMax {
			return nil, fmt.Errorf("node: a configuration of %d octets; %d are the most", len(a.text), sourceMax)
		}
		// The file itself is no replacement of it.
		if text, err := os.ReadFile(s.reader.file); err == nil && string(text) == string(a.text) {
			a.file, a.sum = true, textSum(text)
		}
	}
	return d.then(s.reader, a)
}

// fileOld is why a reload changes nothing.
const fileOld = "the file is as it was when it was read last; what was applied in its place since stays in force"

// wordsLater is what is to be known of a text that means what the one before did.
const wordsLater = "the text differs in nothing but comments and form: it is no generation, and comes to the disk with the next one"

// sourceMax bounds a configuration in octets.
const sourceMax = 16 << 20

// dryRun tells what q would do now.
func (n *Node) dryRun(q ChangeRequest) (*ChangeReport, error) {
	began := time.Now()
	d := n.state.current()
	if err := d.expected(q.Expect); err != nil {
		return nil, err
	}
	b, err := n.next(d, q)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	old := n.gen
	n.mu.Unlock()
	c := n.reuse(n.names.preview(b.next.doc.Config()), old.Config)
	if err := n.mayLoseVIPs(c); err != nil {
		return nil, err
	}
	plan := config.Diff(old.Config, c)
	r := &ChangeReport{
		Generation: d.Generation, Was: d.Generation, DryRun: true, Plan: n.planText(plan, c), Warnings: b.warnings, Edits: b.edits, Loops: len(n.shared.Loops),
		Impact: n.impactOf(plan, old.Config, c, q.Flows), Durable: n.state.durable(d.Generation),
	}
	r.Plan += ordersText(ordersOf(d.orders, b.next.doc.Config()), b.next.orders)
	r.Unchanged = r.Plan == "" && b.same
	r.Millis = millis(time.Since(began))
	return r, nil
}

// planText is a plan as people read it.
func (n *Node) planText(plan config.Plan, c *config.Config) string {
	text := plan.String()
	if plan.Node == nil && plan.Cluster == nil {
		return text
	}
	if later := takesUpgrade(plan, config.Diff(n.began, c)); later != "" {
		text += "! " + later + ": takes effect with the next upgrade\n"
	}
	return text
}

// ordersOf leaves out the orders of endpoints that c has not: these go with them,
// and the plan says so.
func ordersOf(all map[string]ordered, c *config.Config) map[string]ordered {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(name string, _ ordered) bool { return endpointOf(c, name) == nil })
	return out
}

// ordersText tells by what orders differ, as plans do.
func ordersText(was, is map[string]ordered) string {
	var out strings.Builder
	for _, name := range sortedKeys(was, is) {
		a, old := was[name]
		b, has := is[name]
		if !old {
			a.Weight = -1
		}
		if !has {
			b.Weight = -1
		}
		if a.Admin != b.Admin {
			fmt.Fprintf(&out, "~ endpoint %s: %s -> %s\n", name, cmp.Or(a.Admin, readyWord), cmp.Or(b.Admin, readyWord))
		}
		if a.Weight != b.Weight {
			fmt.Fprintf(&out, "~ endpoint %s: ordered %s -> %s\n", name, orderedWeight(a.Weight), orderedWeight(b.Weight))
		}
	}
	return out.String()
}

func orderedWeight(w int) string {
	if w < 0 {
		return "the file's weight"
	}
	return fmt.Sprintf("weight %d", w)
}

// enact brings the node from d to b. The caller has the turn.
func (n *Node) enact(ctx context.Context, began time.Time, d *desired, b *became, q ChangeRequest, known map[string]resolve.Answer) (*ChangeReport, error) {
	if err := n.lockChange(ctx); err != nil {
		return nil, err
	}
	unlock := sync.OnceFunc(n.change.Unlock)
	defer unlock()
	if err := n.inCharge(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	old := n.gen
	n.mu.Unlock()
	named := n.names.prepare(b.next.doc.Config(), known, 0)
	defer named.end()
	c := n.reuse(named.Config, old.Config)
	if err := n.mayLoseVIPs(c); err != nil {
		return nil, err
	}
	plan := config.Diff(old.Config, c)
	s := &n.state
	r := &ChangeReport{Was: d.Generation, Plan: n.planText(plan, c), Warnings: b.warnings, Edits: b.edits, Loops: len(n.shared.Loops)}
	r.Plan += ordersText(ordersOf(d.orders, b.next.doc.Config()), b.next.orders)
	if plan.Empty() && b.same {
		named.keep()
		s.mu.Lock()
		r.Generation, r.Unchanged = s.now.Generation, true
		if s.now == d {
			// Only letters differ: they are in force, and are durable with what comes next.
			same := *b.next
			same.Generation, same.By, same.At, same.Kind, same.orders = d.Generation, d.By, d.At, d.Kind, d.orders
			s.now = &same
		}
		s.mu.Unlock()
		if b.next.applied && !bytes.Equal(b.next.text, d.text) {
			r.Warnings = append(r.Warnings, wordsLater)
		}
		r.Durable = s.durable(r.Generation)
		r.EffectiveMillis, r.Millis = millis(time.Since(began)), millis(time.Since(began))
		n.log.Debug("configuration unchanged", "generation", r.Generation)
		return r, nil
	}
	r.Impact = n.impactOf(plan, old.Config, c, q.Flows)
	n.notePhase("plan", time.Since(began))
	kernel := n.kernelBefore()
	var watched scope
	var before *figures
	var compared *baseline
	if q.Canary > 0 {
		watched, before, compared = n.canaryBaseline(plan)
	}
	moved := newReport("config")
	var pending *journal.Pending
	var info GenerationInfo
	x := bringing{c: c, plan: plan, old: old, flows: q.Flows, end: true, report: moved}
	x.check = func() error { return s.current().expected(q.Expect) }
	x.commit = func() {
		from := s.current()
		next := b.next
		if from != d && q.Rollback == 0 {
			// Orders came meanwhile; they stay, but for what is taken back.
			next.orders = ordersWithout(from.orders, q.Revert, make([]bool, len(q.Revert)))
			next.keepOrders(d.doc.Config())
		}
		if q.Canary > 0 {
			next.trial = &trial{s.number(from.Generation), d.Generation}
		}
		info, pending = n.commit(next, from, r.Plan, r.Impact)
		r.Generation, r.Was = info.Generation, from.Generation
	}
	x.effective = func() {
		took := time.Since(began)
		r.EffectiveMillis = millis(took)
		n.notePhase("effective", took)
	}
	if err := n.bring(&x); err != nil {
		return nil, err
	}
	named.keep()
	moved.done(began)
	n.totals.move(moved)
	r.Flows, r.Closed, r.Lost, r.Pause, r.Following, r.ArrivedLate = moved.Flows, moved.Closed, moved.Lost, moved.Pause, x.following, x.late
	r.Octets, r.WithOctets, r.States, r.Refused, r.Reasons = moved.Octets, moved.WithOctets, moved.States, moved.Refused, moved.Reasons
	r.Kernel = n.kernelAfter(kernel)
	if q.Canary > 0 {
		r.Canary = n.beginCanary(q, d, info, watched, before, compared)
	}
	n.tellChange(info, r)
	n.tellListeners(plan, info.By)
	n.noteApply(info.Kind, "applied")
	if pending != nil {
		go func() { // ends with the first try to write
			if <-pending.Done(); pending.Err() == nil {
				n.notePhase("durable", time.Since(began))
			}
		}()
	}
	unlock()
	n.state.tidying.tidy()
	n.await(ctx, r, pending, q.WaitDurable)
	r.Millis = millis(time.Since(began))
	n.log.Info("configuration applied", "generation", r.Generation, "kind", info.Kind, "by", info.By.Name, "flows", r.Flows, "closed", r.Closed, "effective_ms", r.EffectiveMillis, "took", time.Since(began))
	return r, nil
}

// commit makes next the state in force, with the next number. The caller holds
// swap, and next rules every loop, or its orders the ledger.
func (n *Node) commit(next, from *desired, plan string, impact Impact) (GenerationInfo, *journal.Pending) {
	s := &n.state
	next.Generation = s.number(from.Generation)
	info := next.info()
	info.Plan, info.Impact = cutPlan(plan), impact
	pending := s.write(next, info)
	s.mu.Lock()
	s.now = next
	s.mu.Unlock()
	return info, pending
}

// number is that of the generation after one.
func (s *stateSide) number(after uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(after+1, s.least)
}

// numbersSkipped is to what the first number is rounded up after a process that
// ended without having written all: what it did not write others may have seen,
// under numbers that mean nothing else from then on.
const numbersSkipped = 10_000

// skipNumbers leaves out numbers that may have been seen after one.
func (s *stateSide) skipNumbers(after uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.least = (after/numbersSkipped + 1) * numbersSkipped
}

// tellChange tells those who watch of a generation.
func (n *Node) tellChange(i GenerationInfo, r *ChangeReport) {
	n.events.note(Event{Kind: "generation", Generation: i.Generation, By: i.By.Name, Text: fmt.Sprintf("generation %d (%s) by %s: %s", i.Generation, i.Kind, cmp.Or(i.By.Name, "nobody"), brief(i.Plan)),
		Fields: map[string]string{"kind": i.Kind, "reason": i.By.Reason, "was": fmt.Sprint(r.Was)}})
}

// listenersTold bounds the listeners of one change that are told of one by one.
const listenersTold = 16

// tellListeners tells those who watch of listeners that came, went or changed.
func (n *Node) tellListeners(p config.Plan, by Author) {
	type line struct {
		l    *config.Listener
		what string
	}
	var all []line
	for _, l := range p.ListenersAdded {
		all = append(all, line{l, "opened"})
	}
	for _, l := range p.ListenersRemoved {
		all = append(all, line{l, "removed"})
	}
	for _, x := range p.ListenersChanged {
		all = append(all, line{x.New, "changed"})
	}
	for _, x := range all[:min(len(all), listenersTold)] {
		n.tell("listener", "listener/"+x.l.Ref.Name, by, nil, "%s %v %s", x.l.Ref.Name, x.l.VIP, x.what)
	}
	if more := len(all) - listenersTold; more > 0 {
		n.tell("listener", "", by, nil, "and %d more", more)
	}
}

// brief is a plan in one line.
func brief(plan string) string {
	if plan == "" {
		return "nothing but words"
	}
	lines := strings.Count(plan, "\n")
	head, _, _ := strings.Cut(plan, "\n")
	if lines > 1 {
		return fmt.Sprintf("%s, and %d lines more", head, lines-1)
	}
	return head
}

// await fills in whether r is durable, and waits for it if that was asked for.
func (n *Node) await(ctx context.Context, r *ChangeReport, p *journal.Pending, wait bool) {
	if p != nil && wait {
		_ = p.Wait(ctx) // what came of it is read below
	}
	r.Durable = n.state.durable(r.Generation)
	if p != nil && r.Durable == durableYes {
		r.DurableMillis = r.EffectiveMillis + millis(p.Took())
	}
}

// lockChange waits until nobody else changes or moves anything.
func (n *Node) lockChange(ctx context.Context) error {
	for !n.change.TryLock() {
		// An upgrade or a move may take long, and who asks may not want to wait.
		if err := sleep(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("node: the change was not begun: %w", err)
		}
	}
	return nil
}

// reuse is c with the objects of old, and of the registry, where they are equal.
// Only what is another pointer is looked at.
func (n *Node) reuse(c, old *config.Config) *config.Config {
	fresh := &config.Config{Listeners: map[string]*config.Listener{}, Backends: map[string]*config.Backend{}}
	was := &config.Config{Cluster: old.Cluster, AccessLog: old.AccessLog, Listeners: map[string]*config.Listener{}, Backends: map[string]*config.Backend{}}
	// What came back once is another copy in the document since.
	again := &config.Config{Listeners: map[string]*config.Listener{}, Backends: map[string]*config.Backend{}}
	for name, l := range c.Listeners {
		switch o := old.Listeners[name]; {
		case o == l:
		case o != nil && o.Ref == l.Ref:
			again.Listeners[name] = o
		default:
			fresh.Listeners[name] = l
			if o != nil {
				was.Listeners[name] = o
			}
		}
	}
	for name, b := range c.Backends {
		switch o := old.Backends[name]; {
		case o == b:
		case o != nil && o.Ref == b.Ref:
			again.Backends[name] = o
		default:
			fresh.Backends[name] = b
			if o != nil {
				was.Backends[name] = o
			}
		}
	}
	fresh.Cluster, fresh.AccessLog = c.Cluster, c.AccessLog
	// The registry last: what comes back from an earlier generation is the object
	// that flows of that time still name, not a copy of it.
	known := n.registry.reuse(fresh.Reuse(was))
	next := *c
	next.Cluster, next.AccessLog = known.Cluster, known.AccessLog
	if len(fresh.Listeners)+len(again.Listeners) > 0 {
		next.Listeners = maps.Clone(c.Listeners)
		maps.Copy(next.Listeners, known.Listeners)
		maps.Copy(next.Listeners, again.Listeners)
	}
	if len(fresh.Backends)+len(again.Backends) > 0 {
		next.Backends = maps.Clone(c.Backends)
		maps.Copy(next.Backends, known.Backends)
		maps.Copy(next.Backends, again.Backends)
	}
	return &next
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ConfigState tells what is desired now.
func (n *Node) ConfigState() *ConfigState {
	s := &n.state
	d := s.current()
	r := &ConfigState{
		Generation: d.Generation, Source: d.doc.Source(), File: s.reader.file, Edits: d.drift(), By: d.By, At: d.At, Durable: s.durable(d.Generation),
		FileDiffers: d.applied, Shifts: n.Shifts(), Waiting: int(s.waiting.Load()),
	}
	if text, err := os.ReadFile(s.reader.file); err == nil {
		r.FileDiffers = textSum(text) != d.fileSum || d.applied
	}
	r.Canary, r.CanaryEnds = s.canaryText()
	return r
}

// Reload reads the file again and applies it.
func (n *Node) Reload() (*ChangeReport, error) {
	return n.Change(context.Background(), ChangeRequest{Guard: Guard{Author: Author{Name: "file"}}, Reread: true})
}

// Apply brings the node to the configuration in source.
func (n *Node) Apply(source []byte) (*ChangeReport, error) {
	return n.Change(context.Background(), ChangeRequest{Source: source})
}

// Bounds of what is remembered of writes that had a key.
const (
	keysMax = 1000
	keyTime = 10 * time.Minute
	// keysBytes bounds the answers, in octets: a plan may be long.
	keysBytes = 4 << 20
)

// keys are answers to writes that may be sent again. Its owner's lock guards it.
type keys struct {
	all   map[string]*keyed
	order []string        // the oldest first
	told  map[string]bool // to a successor, at first
}

// keyed is one answer.
type keyed struct {
	Sum    string          `json:"sum"` // of the request
	At     time.Time       `json:"at"`
	Answer json.RawMessage `json:"answer,omitempty"`
	done   chan struct{}   // nil once it is answered
}

// once does a write that has a key no more than once. A write that is sent again
// has the first one's answer; one that was refused may be tried again.
func once[Q, R any](ctx context.Context, n *Node, g Guard, q Q, do func() (*R, error)) (*R, error) {
	if g.Key == "" {
		return do()
	}
	sum, err := requestSum(q)
	if err != nil {
		return nil, err
	}
	s := &n.state
	for {
		s.mu.Lock()
		k := s.keys.find(g.Key, time.Now())
		if k == nil {
			break
		}
		if k.Sum != sum {
			s.mu.Unlock()
			return nil, fmt.Errorf("node: the idempotency key %q belongs to another request: %w", g.Key, ErrKey)
		}
		if k.done == nil {
			answer := k.Answer
			s.mu.Unlock()
			r := new(R)
			return r, json.Unmarshal(answer, r)
		}
		done := k.done
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	k := &keyed{Sum: sum, At: time.Now(), done: make(chan struct{})}
	s.keys.add(g.Key, k)
	s.mu.Unlock()
	r, err := do()
	answer, bad := json.Marshal(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(k.done)
	k.done, k.Answer = nil, answer
	if err != nil || bad != nil {
		s.keys.drop(g.Key)
	}
	s.keys.bound()
	return r, err
}

// find is what is remembered under a key.
func (k *keys) find(key string, now time.Time) *keyed {
	x := k.all[key]
	if x != nil && x.done == nil && now.Sub(x.At) > keyTime {
		k.drop(key)
		return nil
	}
	return x
}

func (k *keys) add(key string, x *keyed) {
	if k.all == nil {
		k.all = map[string]*keyed{}
	}
	k.all[key] = x
	k.order = append(k.order, key)
	k.bound()
}

// bound forgets the oldest of what is too much.
func (k *keys) bound() {
	size := 0
	for i := len(k.order) - 1; i >= 0; i-- {
		if size += len(k.all[k.order[i]].Answer); size > keysBytes || len(k.order)-i > keysMax {
			for _, key := range k.order[:i+1] {
				delete(k.all, key)
			}
			k.order = slices.Clone(k.order[i+1:])
			return
		}
	}
}

func (k *keys) drop(key string) {
	delete(k.all, key)
	for i, x := range k.order {
		if x == key {
			k.order = append(k.order[:i:i], k.order[i+1:]...)
			return
		}
	}
}
