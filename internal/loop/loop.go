// Package loop runs flows. A Loop is one goroutine with its own poller, timers,
// buffers and table of flows; it owns each flow in the table, and nothing else
// can reach one. Work from outside comes through the mailbox.
//
// A turn is the atom: wait, and for each flow that something happened to:
// read, Step, compare its Wants with what is there, write. Between turns every
// flow is at rest, so that is when flows are parked and adopted. Turn is the
// single-step form; Run is a loop around it.
//
// Readiness is edge-triggered and remembered: a leg is registered once, for
// reading, and asked for writing from the first time on that its kernel took
// less than was given. A paused leg therefore costs nothing and need not leave
// the poller (docs/design).
package loop

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Budgets of a turn: no flow, and no burst of connections, may eat a turn.
const (
	eventsMax  = 256     // events taken from the kernel at once
	acceptsMax = 32      // connections accepted from one listener
	octetsMax  = 1 << 20 // moved for one flow
)

// Shared is what all loops of a node have in common. It is filled before the
// first loop runs.
type Shared struct {
	Ledger  *ledger.Ledger
	Objects flow.Objects // finds every object that a flow of this node may name
	Log     *slog.Logger
	Loops   []*Loop
	// Fixed: flows stay in their loops but for an explicit move, as while a
	// process hands them over.
	Fixed atomic.Bool
	// Shedding: memory is short, and accepting pauses.
	Shedding atomic.Bool
	// NextID is the identity of the latest flow; each further one counts up.
	NextID atomic.Uint64
	// Sinks are told what was served, by loop; nil: nobody wants to know.
	Sinks []Sink
}

// Listening is a listener with its open socket, as the loops see it.
type Listening struct {
	Object  *config.Listener
	Backend *config.Backend
	FD      sock.FD // owned by the node
	Gate    *ledger.Gate
}

// Generation is what loops rule new flows by. It is immutable.
type Generation struct {
	Number    uint64
	Config    *config.Config
	Listening map[string]*Listening
}

// Counters are a loop's own; the sum over loops is what people see.
type Counters struct {
	Accepted    uint64
	Ended       [flow.Causes]uint64
	Octets      [2]uint64 // received from clients, from backends
	Adopted     uint64    // flows that came by a move
	Parked      uint64    // flows that left by a move
	Retries     uint64
	AcceptPause uint64                 // times accepting stopped: no descriptors, no room, too fast
	Refused     [refusalReasons]uint64 // connections reset when they were accepted
	Shed        uint64                 // idle clients closed since memory was short
	Lost        uint64                 // flows that we broke; must stay 0
	LostMoving  uint64                 // of these: while they were put down or picked up
	Panics      uint64
	Turns       uint64
	Relayed     uint64 // octets moved inside the kernel
	Evened      uint64 // flows sent to another loop that had fewer
	Vanished    uint64 // legs whose peer answered nothing any more
	HTTP        flow.Tally
}

// Loop is one event loop. Make it with New; run it with Run, or with Turn.
type Loop struct {
	k       Kernel
	shared  *Shared
	index   int
	load    atomic.Int64 // flows in the table; read by other loops
	mail    mailbox
	gen     *Generation
	open    bool // accepting
	paused  bool // accepting waits for room or descriptors
	retryAt flow.Instant
	eager   int // connections to accept at the next wake-up
	// Listeners by number, the numbers by socket, and which sockets are watched.
	listening  []*Listening
	numbers    map[sock.FD]int
	unnumbered []int // numbers that nobody has
	watched    map[sock.FD]bool
	full       map[sock.FD]flow.Instant // not watched until then: no room, or too fast

	table   table
	wheel   wheel
	due     []uint32
	again   []uint32 // slots whose budget ran out, or that must be looked at
	spare   []uint32 // again, while it is being worked off
	simmers []uint32 // slots of streams that the clock looks at
	stewing []uint32 // those that it is looking at
	stirred flow.Instant
	waiting map[uint32]inQueue
	lodges  lodges

	asking  ledger.Asking // of the flow that asks now
	series  seriesBook
	doors   doors
	turns   Histogram   // how long they were, without the wait
	sink    Sink        // nil: none
	record  flow.Record // of a flow that is removed
	noted   bool        // the sink may keep what it was told, until flushAt
	flushAt flow.Instant
	wallAt  flow.Instant // when the desk's clock is to be set
	lender  flow.Lender
	desk    *flow.Desk
	pipes   pipes
	idle    idle
	absent  leg
	lent    bool     // see Lend
	tells   bool     // somebody asks for dropped
	dropped []uint64 // cookies of what was closed meanwhile
	wants   flow.Wants
	spec    sock.DialSpec

	events  []sock.PollEvent
	next, n int // events[next:n] are still to be handled
	current uint32
	now     flow.Instant
	busy    bool
	evenAt  flow.Instant // when to look next whether another loop has fewer flows
	rng     *rand.Rand
	stop    atomic.Bool
	done    chan struct{}
	Count   Counters // all but HTTP
}

// New makes loop number index over k. seed feeds its choices among loops.
func New(index int, k Kernel, s *Shared, seed uint64) *Loop {
	l := &Loop{
		k: k, shared: s, index: index,
		waiting: map[uint32]inQueue{}, lodges: lodges{listeners: map[*config.Listener]*lodge{}, backends: map[*config.Backend]*lodge{}},
		numbers: map[sock.FD]int{}, watched: map[sock.FD]bool{}, full: map[sock.FD]flow.Instant{},
		events:  make([]sock.PollEvent, eventsMax),
		current: none, eager: 1, rng: rand.New(rand.NewPCG(seed, uint64(index))), done: make(chan struct{}),
	}
	l.desk = flow.NewDesk(&l.lender)
	l.desk.VIPs = map[netip.AddrPort]*config.Listener{}
	l.desk.Limits, l.desk.Retries, l.desk.Report = s.Ledger, budgets{l}, l.report
	if index < len(s.Sinks) {
		l.sink = s.Sinks[index]
	}
	l.idle.servers, l.idle.of = map[serverKey]*server{}, map[*config.Endpoint]*server{}
	l.now = k.Now()
	l.wheel.base = l.now
	l.setWall()
	return l
}

// Index is the loop's number.
func (l *Loop) Index() int { return l.index }

// Counters are those of now; to be asked for on the loop's thread.
func (l *Loop) Counters() Counters {
	c := l.Count
	c.HTTP = l.desk.Tally
	return c
}

// Load is how many flows the loop has; safe from any thread.
func (l *Loop) Load() int { return int(l.load.Load()) }

// yieldEvery is how often a busy loop passes through Go's scheduler: more often
// than every 10 ms, after which the runtime takes a goroutine for one that hogs
// its processor, interrupts its thread by a signal and takes the processor away
// at the next system call. Measured with an echo: the runtime's monitor took
// 2.4 % of the loop's processor time before.
const yieldEvery = flow.Instant(6 * time.Millisecond)

// Run turns until Stop. The goroutine is not locked to its thread: nothing it
// does depends on the thread, and passing through the scheduler would cost two
// switches of threads instead of none.
func (l *Loop) Run() {
	defer close(l.done)
	defer l.Flush()
	for yielded := l.now; !l.stop.Load(); {
		l.Turn(true)
		if l.now-yielded > yieldEvery {
			runtime.Gosched()
			yielded = l.now
		}
	}
}

// Stop makes Run return and waits until it has. The flows stay in the table.
func (l *Loop) Stop() {
	l.stop.Store(true)
	l.k.Wake()
	<-l.done
}

// Turn is one turn. With wait it sleeps until there is something to do; it
// tells whether there was.
func (l *Loop) Turn(wait bool) bool {
	d := time.Duration(0)
	if wait && len(l.again) == 0 && !l.mail.full.Load() {
		d = l.untilNext(l.now)
		if l.resting() {
			d = sooner(d, time.Duration(l.retryAt-l.now))
		}
		if l.noted {
			d = sooner(d, time.Duration(l.flushAt-l.now))
		}
		if len(l.shared.Loops) > 1 && l.load.Load() > evenLeast && (d < 0 || d > evenEvery) {
			d = evenEvery
		}
		if (l.idle.n > 0 || len(l.lodges.old) > 0 || l.series.stale) && (d < 0 || d > sweepEvery) {
			d = sweepEvery
		}
		if len(l.simmers) > 0 && (d < 0 || d > simmerTime) {
			d = simmerTime
		}
	}
	l.n = 0
	if l.busy && d != 0 {
		// A loop that had much to do looks before it sleeps: a call that never
		// waits is cheaper, and the scheduler need not be told.
		l.n = l.k.Wait(l.events, 0)
	}
	if l.n == 0 {
		l.n = l.k.Wait(l.events, d)
	}
	l.next = 0
	l.now = l.k.Now()
	if l.now >= l.wallAt {
		l.setWall()
	}
	l.Count.Turns++
	l.busy = l.n >= 4
	worked := l.n > 0 || len(l.again) > 0 || l.mail.full.Load()
	again := l.again
	l.again, l.spare = l.spare[:0], again
	for l.next < l.n {
		if l.handle(); l.mail.urgent.Load() {
			l.readMail()
		}
	}
	for _, i := range again {
		if s := l.at(i); s.live && s.again {
			s.again = false
			if l.guard(i); l.mail.urgent.Load() {
				l.readMail()
			}
		}
	}
	l.spare = again[:0]
	l.readMail()
	l.expire(l.now, l.expired)
	if l.resting() && l.now >= l.retryAt {
		l.ResumeAccepting()
	}
	l.stir()
	if l.now >= l.idle.sweepAt {
		l.sweep()
	}
	if l.now >= l.evenAt {
		l.even()
	}
	if l.noted && l.now >= l.flushAt {
		l.Flush()
	}
	l.turns.Note(time.Duration(l.k.Now() - l.now))
	return worked
}

// sooner is the smaller of two waits; a negative one of the first is for ever.
func sooner(d, most time.Duration) time.Duration {
	if most = max(0, most); d < 0 || d > most {
		return most
	}
	return d
}

// setWall tells the desk what time people have; once a second, for it needs no
// finer one.
func (l *Loop) setWall() {
	wall := l.now + l.k.Epoch()
	l.desk.Wall = int64(wall / flow.Instant(time.Second))
	l.wallAt = l.now + flow.Instant(time.Second) - wall%flow.Instant(time.Second)
}

// Flows move from a loop that has many to one that has few, a few at a time,
// all day: the way that an upgrade and a migration take is never unused.
const (
	evenEvery = time.Second
	evenMost  = 16 // flows at once: the turn that parks them delays all others
	evenLeast = 32 // a difference that is not worth a move
)

// even sends flows to the loop that has the fewest, if this one has clearly
// more. Of two loops only the fuller one acts, and it halves the difference,
// so flows do not swing back.
func (l *Loop) even() {
	l.evenAt = l.now.Add(evenEvery)
	to := l
	for _, x := range l.shared.Loops {
		if x.load.Load() < to.load.Load() {
			to = x
		}
	}
	mine, theirs := l.load.Load(), to.load.Load()
	if mine-theirs <= max(evenLeast, mine/8) || l.shared.Fixed.Load() {
		return
	}
	n := min(evenMost, int(mine-theirs)/2)
	// From a random place on, so that no flow moves more often than others.
	// Those that wait for an endpoint stay: on their way they would lose their turn.
	all := l.Slots(0, func(f *flow.Flow) bool { return f.State() != flow.Queued })
	if len(all) == 0 {
		return
	}
	at := l.rng.IntN(len(all))
	slots := append(all[at:], all[:at]...)[:min(n, len(all))]
	sent, _ := l.SendTo(to, slots, nil)
	l.Count.Evened += uint64(len(sent))
	// Until they are even it goes on quickly, and others have their turns.
	l.evenAt = l.now.Add(evenEvery / 64)
}

// handle works events off, until there are no more or a letter is urgent: between
// two of them every flow is at rest. It is one of the two places where a panic ends: it
// costs the flow it came from, which is reset, counted and logged.
func (l *Loop) handle() {
	defer l.survive()
	for urgent := false; l.next < l.n && !urgent; urgent = l.mail.urgent.Load() {
		ev := &l.events[l.next]
		l.next++
		data := ev.Data()
		if data&listenerBit != 0 {
			l.accept(data)
			continue
		}
		i, s, side := l.find(data)
		if s == nil {
			continue // of a flow that has left since, or of a leg without one
		}
		l.current = i
		if !l.leg(s, side).note(ev.Ready()) {
			l.mute(i, s, side)
			continue
		}
		l.drive(i, s)
	}
	l.current = none
}

// find is the flow of whose leg an event tells. An event of a leg that is idle
// it deals with itself.
func (l *Loop) find(data uint64) (i uint32, s *slot, side flow.Side) {
	i, side = uint32(data)>>1, flow.Side(data&1)
	incarnation := uint32(data>>32) & incarnationMask
	if side == flow.Backend {
		if int(i) >= l.table.legs.size() {
			return 0, nil, side
		}
		b := l.far(i)
		if !b.live || b.incarnation != incarnation && !planted.Bug(10) {
			return 0, nil, side
		}
		if b.owner == none {
			l.unasked(i, b)
			return 0, nil, side
		}
		return b.owner, l.at(b.owner), side
	}
	if int(i) >= l.table.slots.size() {
		return 0, nil, side
	}
	s = l.at(i)
	if !s.live || s.incarnation != incarnation && !planted.Bug(10) {
		return 0, nil, side
	}
	return i, s, side
}

// step tells a flow a fact.
func (l *Loop) step(s *slot, e flow.Event) {
	e.Desk = l.desk
	s.flow.Step(l.now, e)
	if l.desk.From != nil {
		l.moveIn(s)
	}
}

// noteOutcome tells the endpoint's account what a Step has shown of it: before
// the flow parts from its leg, and before any other flow is told anything.
func (l *Loop) noteOutcome(s *slot) {
	o := &l.desk.Outcome
	if s.far != 0 && !planted.Bug(58) {
		// What came within a turn took some time, too; 0 would say that it is not known.
		l.far(s.far-1).account.Note(int64(l.now), o.Good, max(o.Took, time.Microsecond))
	}
	o.Set = false
}

// guard drives one flow outside of event handling.
func (l *Loop) guard(i uint32) {
	defer l.survive()
	l.current = i
	l.drive(i, l.at(i))
	l.current = none
}

func (l *Loop) survive() {
	r := recover()
	if r == nil {
		return
	}
	l.Count.Panics++
	l.desk.Outcome.Set = false
	i := l.current
	if l.desk.From != nil && i != none {
		l.moveIn(l.at(i)) // it leaves what it is under now
	}
	l.desk.From = nil
	l.current = none
	l.shared.Log.Error("a flow broke an invariant and was reset", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
	if i != none && l.at(i).live {
		l.Count.Lost++
		l.remove(i, l.at(i), [2]bool{true, true}, flow.Broken)
	}
}

// creep tells a flow that seems idle what its legs' kernels still sent, before
// it is taken for one that is: a queue in the kernel may hold minutes' worth of
// a slow reader.
func (l *Loop) creep(s *slot) {
	if state := s.flow.State(); state != flow.Relaying && state != flow.Answering {
		return
	}
	for side := flow.Client; side <= flow.Backend; side++ {
		g := l.leg(s, side)
		if g.fd < 0 {
			continue
		}
		if ago, ok := l.k.Sent(g.fd); ok {
			l.step(s, flow.Event{Kind: flow.Crept, Leg: side, N: int(ago)})
		}
	}
}

// expired looks at a flow whose entry in the wheel has fired.
func (l *Loop) expired(i uint32) {
	s := l.at(i)
	if !s.live {
		return
	}
	l.current = i
	func() {
		defer l.survive()
		s.flow.Wants(&l.wants)
		if at := l.wants.Deadline; at != 0 && at <= l.now && !l.wants.Done {
			l.creep(s)
			s.flow.Wants(&l.wants)
			if at = l.wants.Deadline; at != 0 && at <= l.now {
				// Without a VIP to dial from nothing was sent.
				if s.flow.State() == flow.Dialing && (l.far(s.far-1).fd >= 0 || !s.flow.Listener().Movable) {
					l.unreached(s)
				}
				waited := s.flow.State() == flow.Queued
				l.step(s, flow.Event{Kind: flow.Expired})
				if waited {
					l.unqueue(i) // it waits no longer, or for another backend
				}
			}
		}
		l.look(s)
		l.drive(i, s)
	}()
	l.current = none
}
