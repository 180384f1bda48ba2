// Package node is the data-plane process: it opens listeners, runs loops,
// applies configurations as differences, and moves flows: between loops,
// to its successor, to another host. One change runs at a time; flows are
// only touched through their loops' mailboxes.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/accesslog"
	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/resolve"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Release is the version of this binary; set by the linker.
var Release = "dev"

// Descriptors that are kept free of flows: for the API, moves, files and what
// the runtime needs, and for the pipes of each loop. Where few files may be
// open, a quarter of them is kept.
const (
	fdReserve     = 512
	fdReserveLoop = 512
)

// roomFew is how many flows a node should have room for at least, or it warns.
const roomFew = 1000

// roomFor is how many flows a process with so many open files and loops has
// room for: each has two descriptors.
func roomFor(files, loops int) (room, kept int) {
	kept = min(fdReserve+loops*fdReserveLoop, files/4)
	return max(1, (files-kept)/2), kept
}

// Options say how a node begins.
type Options struct {
	File string // of the configuration
	// Source is the configuration itself; nil: File is read.
	Source []byte
	Log    *slog.Logger
	// Inherited are open listeners by VIP. Those that the configuration names
	// are used; the others are closed.
	Inherited map[string]sock.FD
	// Quiet: do not accept until Accept is called.
	Quiet bool
	// FirstID and Generation continue the counts of a predecessor.
	FirstID    uint64
	Generation uint64
	Totals     *Totals
	// Netadmin is the socket of the privileged process, which a cluster takes.
	Netadmin string
	// HostHeritage is what the predecessor knows of VIPs that are on their way.
	HostHeritage json.RawMessage
	// Names are the predecessor's answers for endpoints that are names.
	Names map[string]resolve.Answer
	// State is the directory of the journal; "" is none.
	State string
	// Heritage is the predecessor's desired state and what is under way with it.
	Heritage json.RawMessage
	// Level is that of Log; nil: it cannot be changed.
	Level *slog.LevelVar
	// Keeper is told of listeners that come and go.
	Keeper Keeper
	// Loops is node.loops in place of the configuration's; nil: as that says. There are
	// as many of them for as long as the process lives, so a successor that is about to
	// apply another file begins with what that one says.
	Loops *int
}

// Node is a running data plane.
type Node struct {
	log      *slog.Logger
	file     string
	shared   *loop.Shared
	registry *registry
	kernels  []*loop.Epoll
	started  time.Time
	fds      int
	totals   totals
	past     past
	access   *accesslog.Log
	level    *slog.LevelVar
	memory   memory
	scrape   door // of metrics
	api      door
	doors    sync.Once // closes both
	history  history
	looks    looks
	told     atomic.Bool // a successor knows what this process has counted
	host     hostSide
	// addresses are VIPs, and who owns them.
	addresses vipKeeper
	watch     *watch
	names     *naming
	events    events
	upgrades  upgrades
	moves     moves
	marks     marks
	silences  silences
	state     stateSide
	side      flowSide
	keeper    Keeper
	strange   []string // listeners of the predecessor that are not ours; written by Start

	// change is held by whoever applies a configuration or moves flows.
	change sync.Mutex

	// mu guards what follows; it is held for reading and swapping only.
	mu         sync.Mutex
	gen        *loop.Generation
	began      *config.Config // what it began with; never written again
	leaving    bool           // flows have begun to go to a successor
	successor  int            // its pid, once it serves
	drainUntil time.Time      // when what it refused is ended
	residue    chan residue
	ending     bool // no listener is open any more
	stopLoops  sync.Once
	stopped    atomic.Bool
	// ends is done when the process is told to end: what may still be given up is.
	ends       context.Context
	end        context.CancelFunc
	heir       atomic.Bool // flows of a predecessor are still to come
	background []func()    // to be called at Stop
	retiring   retirements
}

// Variable gives the value of a variable for a file: one of the environment, or the
// host's own name, without its domain, as [config.HostVariable].
func Variable(name string) (string, bool) {
	if name != config.HostVariable {
		return os.LookupEnv(name)
	}
	host, err := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	return host, err == nil && host != ""
}

// Parse reads a configuration as the node would and lets the environment fill
// its ${NAMES}.
func Parse(file string, source []byte) (*config.Config, config.Warnings, error) {
	return config.Parse(file, source, Variable)
}

// Start begins a node: everything is checked and opened before anything
// serves. Its loops run until Stop.
func Start(o Options) (*Node, error) {
	n := &Node{log: o.Log, level: o.Level, keeper: o.Keeper, file: o.File, registry: newRegistry(), started: time.Now()}
	n.ends, n.end = context.WithCancel(context.Background())
	n.state.init(o.File)
	serves := false
	defer func() {
		if !serves {
			_ = n.state.closeJournal("the node has not begun") // nothing was written
		}
	}()
	fresh, err := n.state.begin(&o)
	if err != nil {
		return nil, err
	}
	for _, w := range fresh.warnings {
		o.Log.Warn(w)
	}
	c := fresh.next.doc.Config()
	if o.Loops != nil {
		own := *c
		own.Node.Loops = *o.Loops
		c = &own
	}
	place, err := accesslog.Open(c.AccessLog, logTag)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	defer func() {
		if n.access == nil { // it has not come to that
			place.Close()
		}
	}()
	if n.fds, err = sock.FileLimit(); err != nil {
		return nil, err
	}
	n.totals.inherit(o.Totals)
	n.shared = &loop.Shared{Objects: n.registry, Log: o.Log}
	n.shared.NextID.Store(max(o.FirstID, firstID(c.Node.Name)))
	n.watch, n.names = newWatch(n), newNaming(n)
	begun := false
	defer func() {
		if !begun {
			n.names.stop()
		}
	}()
	n.shared.Ledger = ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: n.ring, Open: n.reopen, Alarm: n.watch.alarm, Node: c.Node.Name, Zone: c.Node.Zone})
	named := n.names.prepare(c, o.Names, resolveTime)
	named.keep()
	c = named.Config

	n.closeStrange(c, &o)
	if err := n.openDoors(c, o.Inherited); err != nil {
		return nil, err
	}
	g, _, err := n.open(c, nil, config.Plan{}, o.Inherited, 1)
	if err != nil {
		n.closeDoors()
		return nil, err
	}
	count := c.Node.Loops
	if count == 0 {
		count = runtime.NumCPU()
	}
	// Two threads more than loops: the control side must run when all loops are
	// busy, and a loop that sleeps in the kernel must find a processor at once.
	runtime.GOMAXPROCS(max(count+2, runtime.GOMAXPROCS(0)))
	n.startLog(count, place)
	for i := range count {
		k, err := loop.NewEpoll()
		if err != nil {
			n.freeKernels()
			n.access.Close()
			return nil, err
		}
		n.kernels = append(n.kernels, k)
		n.shared.Loops = append(n.shared.Loops, loop.New(i, k, n.shared, uint64(time.Now().UnixNano())))
	}
	n.setLimits(c)
	if room, kept := roomFor(n.fds, count); room < roomFew {
		o.Log.Warn(fmt.Sprintf("room for %d flows: open files %d, %d kept free; raise LimitNOFILE or ulimit -n", room, n.fds, kept))
	}
	n.registry.addConfig(time.Now(), c)
	n.gen, n.began = g, g.Config
	n.watch.govern(c, true)
	n.state.start(fresh, o.Generation)
	n.noteApply("start", "applied")
	n.obeyAll()
	for _, l := range n.shared.Loops {
		l.SetGeneration(g)
		if !o.Quiet {
			l.SetAccepting(true)
		}
		go l.Run()
	}
	begun = true
	n.names.begin()
	if !o.Quiet {
		n.watch.begin()
	}
	n.tend()
	if err := n.startHost(c, o); err != nil {
		n.Stop()
		return nil, err
	}
	if c.Cluster != nil {
		n.background = append(n.background, n.beginEvacuation())
	}
	serves = true
	if !o.Quiet {
		n.keep(slices.Collect(maps.Values(g.Listening))...)
	}
	return n, nil
}

// firstID makes identities of flows differ between nodes and starts: 24 bits
// of name and time, 40 bits that count.
func firstID(name string) uint64 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %d", name, time.Now().UnixNano())
	return uint64(h.Sum32()>>8) << 40
}

func (n *Node) ring(loop int, token uint64) { n.shared.Loops[loop].Ring(token) }

func (n *Node) reopen() {
	if n.shared == nil {
		return
	}
	for _, l := range n.shared.Loops {
		l.Do(func(l *loop.Loop) { l.ResumeAccepting() })
	}
}

// room is how many flows the node takes under c. Flows of HTTP have a backend
// leg during a request only: where there are no others a third more are taken,
// and should too many ask at once, some wait for a descriptor.
func (n *Node) room(c *config.Config) int {
	room, _ := roomFor(n.fds, len(n.shared.Loops))
	brief := len(c.Listeners) > 0
	for _, l := range c.Listeners {
		brief = brief && l.Protocol == config.HTTP
	}
	if brief {
		room += room / 3
	}
	if c.Node.ConnectionsMax > 0 {
		room = min(room, c.Node.ConnectionsMax)
	}
	return room
}

// followLimits brings the ledger to what a plan has changed, which gave c.
func (n *Node) followLimits(c *config.Config, p config.Plan) {
	n.shared.Ledger.Node.SetMax(n.room(c))
	for _, l := range p.ListenersAdded {
		n.shared.Ledger.Listener(l.Ref.Name).SetMax(l.ConnectionsMax)
	}
	for _, l := range p.ListenersChanged {
		n.shared.Ledger.Listener(l.New.Ref.Name).SetMax(l.New.ConnectionsMax)
	}
	for _, b := range p.BackendsAdded {
		n.shared.Ledger.Backend(b.Ref.Name).Govern(b)
	}
	for _, b := range p.BackendsChanged {
		n.shared.Ledger.Backend(b.New.Ref.Name).Govern(b.New)
	}
}

// setLimits brings the ledger to what c says.
func (n *Node) setLimits(c *config.Config) {
	n.shared.Ledger.Node.SetMax(n.room(c))
	for name, l := range c.Listeners {
		n.shared.Ledger.Listener(name).SetMax(l.ConnectionsMax)
	}
	for name, b := range c.Backends {
		n.shared.Ledger.Backend(name).Govern(b)
	}
}

// open makes the generation of c: sockets of old or inherited listeners are
// kept by VIP, whatever their name; the others are opened. plan is the difference
// from old; what it does not name is not looked at. On an error all that was opened
// is closed again and nothing has changed; back does the same.
func (n *Node) open(c *config.Config, old *loop.Generation, plan config.Plan, inherited map[string]sock.FD, number uint64) (_ *loop.Generation, back func(), _ error) {
	g := &loop.Generation{Number: number, Config: c, Listening: map[string]*loop.Listening{}}
	touched := c.Listeners
	if old != nil {
		g.Listening = maps.Clone(old.Listening)
		for _, l := range plan.ListenersRemoved {
			delete(g.Listening, l.Ref.Name)
		}
		touched = touchedBy(plan, c)
	}
	var fresh []sock.FD
	var again []func() error // for open sockets: what c says of them
	var undo []func()
	back = func() {
		for _, fd := range fresh {
			fd.Close()
		}
		for _, f := range undo {
			f()
		}
	}
	fail := func(name string, err error) error {
		back()
		return fmt.Errorf("node: listener %s: %w", name, err)
	}
	for name, l := range touched {
		key := vipKey(l)
		fd, ok := inherited[key]
		var before *config.Listener // which opened it
		if was := listeningAt(old, name, l); was != nil {
			fd, before, ok = was.FD, was.Object, true
		}
		if ok {
			again = append(again, func() error {
				if before != nil {
					undo = append(undo, func() { _ = sock.Relisten(fd, listenSpec(before)) })
				}
				if err := sock.Relisten(fd, listenSpec(l)); err != nil {
					return fail(name, err)
				}
				return nil
			})
		} else if was := n.revive(key); was != nil {
			fd = was.FD
			undo = append(undo, func() { n.retire(was) })
			again = append(again, func() error {
				if err := sock.Relisten(fd, listenSpec(l)); err != nil {
					return fail(name, err)
				}
				return nil
			})
		} else {
			var err error
			if fd, err = sock.Listen(listenSpec(l)); err != nil {
				return nil, nil, fail(name, err)
			}
			fresh = append(fresh, fd)
		}
		g.Listening[name] = &loop.Listening{Object: l, Backend: c.Backends[l.BackendName], FD: fd, Gate: n.shared.Ledger.Listener(name)}
	}
	// Sockets that serve already are changed last, when nothing else can fail.
	for _, f := range again {
		if err := f(); err != nil {
			return nil, nil, err
		}
	}
	return g, back, nil
}

// touchedBy are the listeners of c that a plan has made or changed, or whose
// backend it has.
func touchedBy(p config.Plan, c *config.Config) map[string]*config.Listener {
	out := map[string]*config.Listener{}
	for _, l := range p.ListenersAdded {
		out[l.Ref.Name] = l
	}
	for _, x := range p.ListenersChanged {
		out[x.New.Ref.Name] = x.New
	}
	backends := map[string]bool{}
	for _, b := range p.BackendsAdded {
		backends[b.Ref.Name] = true
	}
	for _, x := range p.BackendsChanged {
		backends[x.New.Ref.Name] = true
	}
	if len(backends) == 0 {
		return out
	}
	for name, l := range c.Listeners {
		if l.BackendName != "" && backends[l.BackendName] {
			out[name] = l
		}
	}
	return out
}

// listeningAt is what listens at the VIP of l in old, which may be nil: most often
// that of the same name.
func listeningAt(old *loop.Generation, name string, l *config.Listener) *loop.Listening {
	if old == nil {
		return nil
	}
	at := func(x *loop.Listening) bool {
		return x != nil && x.Object.VIP == l.VIP && x.Object.DualStack == l.DualStack
	}
	if x := old.Listening[name]; at(x) {
		return x
	}
	for _, x := range old.Listening {
		if at(x) {
			return x
		}
	}
	return nil
}

// same tells whether two versions of a listener's backend are one. A listener
// for HTTP has none: its requests find theirs.
func same(a, b *config.Backend) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Ref == b.Ref
}

func listenSpec(l *config.Listener) sock.ListenSpec {
	return sock.ListenSpec{Addr: l.VIP, DualStack: l.DualStack, Backlog: l.Backlog, Life: loop.Life(l), MSS: loop.MSS(l), Buffer: loop.Buffer(l), FreeBind: l.VIPName != ""}
}

func vipKey(l *config.Listener) string {
	if l.DualStack {
		return l.VIP.String() + "+4"
	}
	return l.VIP.String()
}

// inCharge refuses what only the process that serves may do, once that is
// another one. The caller holds change, so an upgrade is not half done.
func (n *Node) inCharge() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ending {
		return errors.New("node: this process is about to end; nothing is changed any more")
	}
	if n.successor != 0 {
		return fmt.Errorf("node: process %d answers now, ask again: %w", n.successor, ErrHandedOver)
	}
	return nil
}

// handedOver tells that another process serves.
func (n *Node) handedOver() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.successor != 0
}

// bringing is a configuration on its way to rule every loop.
type bringing struct {
	c      *config.Config
	plan   config.Plan // from what rules now
	old    *loop.Generation
	flows  FlowsPolicy
	end    bool // flows may be ended
	report *Report
	// check has the last word before anything changes, effective is called when
	// every loop rules by c, and commit after it; nil is nothing. All are called
	// while nothing else takes effect.
	check     func() error
	effective func()
	commit    func()

	following int    // flows that are still to follow
	late      uint64 // connections that came to what had been closed
}

// bring puts a configuration in force. Nothing changes unless all of it can be
// done. Flows under objects that changed do as the policy or their listener says.
// The caller holds change.
func (n *Node) bring(x *bringing) error {
	place, relog, err := logChange(x.old.Config, x.c)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	g, undo, err := n.open(x.c, x.old, x.plan, nil, x.old.Number+1)
	if err != nil {
		place.Close()
		return err
	}
	step := loop.Compare(x.old, g)
	n.state.swap.Lock()
	if x.check != nil {
		if err := x.check(); err != nil {
			n.state.swap.Unlock()
			undo()
			place.Close()
			return err
		}
	}
	if relog {
		n.access.Set(place)
	}
	n.registry.addPlan(time.Now(), x.plan)
	// What is new does not serve before it was looked at.
	n.watch.follow(x.plan)
	n.followLimits(x.c, x.plan)
	n.mu.Lock()
	n.gen = g
	n.mu.Unlock()
	// Flows stay in their loops, lest one comes to a loop that is done. What was
	// sent before lies in a mailbox before what is asked below.
	n.shared.Fixed.Store(true)
	defer n.shared.Fixed.Store(false)
	n.askAll(func(l *loop.Loop) { l.Advance(step) })
	if x.effective != nil {
		x.effective()
	}
	if x.commit != nil {
		x.commit()
	}
	n.state.swap.Unlock()
	n.obeyAll()
	if !n.heir.Load() {
		n.keep(step.Opened()...)
	}
	n.retire(step.Closed()...)
	x.following = n.followAll(x.plan, g.Config, n.Generation(), x.flows, x.end, x.report)
	return nil
}

// askAll has f run on each loop's thread, at the same time, and returns when all
// have.
func (n *Node) askAll(f func(l *loop.Loop)) {
	var all sync.WaitGroup
	for _, l := range n.shared.Loops {
		all.Add(1)
		l.Do(func(l *loop.Loop) {
			defer all.Done()
			f(l)
		})
	}
	all.Wait()
}

// takesUpgrade names what of a plan a running process cannot change in itself. It
// is in force for the successor, which begins with this configuration. What is
// as it was when the process began, by whole, is in force already.
func takesUpgrade(p, whole config.Plan) string {
	var what []string
	if p.Node != nil && whole.Node != nil {
		old, is, began := p.Node.Old, p.Node.New, whole.Node.Old
		if old.Loops != is.Loops && is.Loops != began.Loops {
			what = append(what, "node.loops")
		}
		if old.AdminSocket != is.AdminSocket && is.AdminSocket != began.AdminSocket {
			what = append(what, "node.admin.socket")
		}
		if old.Metrics != is.Metrics && is.Metrics != began.Metrics {
			what = append(what, "node.admin.metrics")
		}
		if a, b, c := apiAddr(&old), apiAddr(&is), apiAddr(&began); a != b && b != c {
			what = append(what, "node.admin.api.listen")
		}
		if old.State != is.State && is.State != began.State {
			what = append(what, "node.state")
		}
		if old.Zone != is.Zone && is.Zone != began.Zone {
			what = append(what, "node.zone")
		}
	}
	if p.Cluster != nil && whole.Cluster != nil {
		what = append(what, "cluster")
	}
	return strings.Join(what, ", ")
}

// Rebalance moves flows between loops: all of them to the next loop if all is
// set, else as many as it takes for the loops to have the same number.
func (n *Node) Rebalance(all bool) (*Report, error) {
	n.change.Lock()
	defer n.change.Unlock()
	if err := n.inCharge(); err != nil {
		return nil, err
	}
	began := time.Now()
	r := newReport("loop")
	loops := n.shared.Loops
	if len(loops) < 2 {
		r.Refused++
		r.Reasons["the node has one loop"]++
		return r.done(began), nil
	}
	// Loops shall not even themselves out meanwhile.
	n.shared.Fixed.Store(true)
	defer n.shared.Fixed.Store(false)
	// What each loop has now is what moves, so that a flow moves once.
	flows := make([][]tenant, len(loops))
	total := 0
	for i, l := range loops {
		l.Ask(func(l *loop.Loop) { flows[i] = tenants(l) })
		total += len(flows[i])
	}
	for i, l := range loops {
		mine := flows[i]
		if !all {
			mine = mine[:max(0, len(mine)-(total+len(loops)-1)/len(loops))]
		}
		for len(mine) > 0 {
			k := min(loopChunk, len(mine))
			to := loops[(i+1)%len(loops)]
			if !all {
				for _, x := range loops {
					if x.Load() < to.Load() {
						to = x
					}
				}
			}
			// One batch at a time: flows that wait in a mailbox behind others
			// are not served, those that are still in their loop are.
			adopted := make(chan struct{})
			l.Ask(func(l *loop.Loop) {
				slots, upTo := present(l, mine[:k], nil)
				if len(slots) == 0 {
					close(adopted)
					return
				}
				inTurn := n.keepTurns(l, slots)
				sent, dealt := l.SendTo(to, slots, func(pauses []int64, lost int) {
					inTurn()
					r.paused(pauses, lost)
					close(adopted)
				})
				k = upTo[dealt-1]
				r.parked(sent)
				if len(sent) == 0 {
					inTurn()
					close(adopted)
				}
			})
			<-adopted
			mine = mine[k:]
		}
	}
	n.totals.move(r)
	return r.done(began), nil
}

// keepTurns lets nothing be granted at endpoints with a limit while flows that wait
// for one are on their way: who comes after them would get what is due to them.
// The result ends it, when they wait again.
func (n *Node) keepTurns(l *loop.Loop, slots []uint32) (end func()) {
	if !slices.ContainsFunc(slots, func(i uint32) bool { return l.Flow(i).State() == flow.Queued }) {
		return func() {}
	}
	n.shared.Ledger.Pause()
	return n.shared.Ledger.Resume
}

// loopChunk is how many flows move between loops at once: few, for the turn
// that parks them delays all others.
const loopChunk = 8

// tend starts what runs beside the loops.
func (n *Node) tend() {
	// Of what the node does by itself; ended first.
	ctx, stop := context.WithCancel(context.Background())
	n.background = append(n.background, stop)
	end := make(chan struct{})
	n.background = append(n.background, func() { close(end) })
	go func() { // ended by Stop
		t := time.NewTicker(sweepEvery)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-t.C:
				n.sweep(now)
			}
		}
	}()
	n.background = append(n.background, n.endRetiring, n.beginFlows())
	n.residue = make(chan residue, 1)
	n.background = append(n.background, n.tellResidue())
	n.background = append(n.background, n.remember())
	n.background = append(n.background, every(memoryEvery, n.watchMemory))
	n.background = append(n.background, every(canaryLook, func(now time.Time) {
		n.markFigures(now)
		n.lookAtCanary(ctx, now)
	}))
	// A canary may wait for its turn; shifts do not wait with it.
	n.background = append(n.background, every(shiftEvery, n.stepShifts))
	n.background = append(n.background, n.watchFile(ctx))
	n.background = append(n.background, every(journalRetry, func(time.Time) { n.keepJournal() }))
}

// every calls do each d, until what it gives is called, which waits for the last.
func every(d time.Duration, do func(now time.Time)) (end func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() { // ended by end
		defer close(done)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-over:
				return
			case now := <-t.C:
				do(now)
			}
		}
	}()
	return func() { close(over); <-done }
}

// sweepEvery is how often all flows are looked at for the objects that they name.
const sweepEvery = 10 * time.Second

// sweep notes which objects flows still name, and forgets the others. While flows
// go from one process to another they may be in no table, and come back.
func (n *Node) sweep(now time.Time) {
	if n.handingOver() {
		return
	}
	n.mu.Lock()
	c := n.gen.Config
	n.mu.Unlock()
	n.registry.addConfig(now, c)
	// Each object once: many flows name few.
	named := map[any]bool{}
	for _, l := range n.shared.Loops {
		if n.stopped.Load() {
			return
		}
		var list []tenant
		l.Ask(func(l *loop.Loop) { list = tenants(l) })
		inChunks(l, list, func(_ *loop.Loop, _ tenant, f *flow.Flow) {
			named[f.Listener()] = true
			if b := f.Backend(); b != nil {
				named[b] = true
			}
			if e := f.Endpoint(); e != nil {
				named[e] = true
			}
		})
	}
	n.registry.add(now, slices.Collect(maps.Keys(named))...)
	n.registry.prune(now)
	n.shared.Ledger.Prune(c)
}

// Stop ends the node: the loops stand still, all flows that are left are
// reset, all descriptors go back.
func (n *Node) Stop() {
	n.stopLoops.Do(func() {
		n.names.stop()
		n.watch.leave(false)
		for _, f := range n.background {
			f()
		}
		n.stopHost()
		for _, l := range n.shared.Loops {
			l.Ask(func(l *loop.Loop) {
				l.SetAccepting(false)
				for _, i := range l.Slots(0, nil) {
					l.Kill(i)
				}
			})
		}
		n.stopped.Store(true)
		for _, l := range n.shared.Loops {
			l.Stop()
			l.Free()
		}
		if err := n.state.closeJournal("the node has ended"); err != nil {
			n.log.Error("the last changes are not on the disk", "error", err)
		}
		n.access.Close()
		n.closeDoors()
		n.closeOpen()
		n.freeKernels()
	})
}

func (n *Node) freeKernels() {
	for _, k := range n.kernels {
		k.Free()
	}
}

// Config is the configuration in force.
func (n *Node) Config() *config.Config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gen.Config
}

// Generation is the number of the desired state in force.
func (n *Node) Generation() uint64 { return n.state.current().Generation }
