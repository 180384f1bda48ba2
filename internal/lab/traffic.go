package lab

import (
	"fmt"
	"net/netip"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Traffic is all flows of a run and the engines that drive their ends. The
// methods may be called from any goroutine.
type Traffic struct {
	Seed  uint64
	start time.Time
	cpu   int64 // ownCPU at the start
	label atomic.Int32

	engines []*engine
	brief   bool // a short run: livelier flows

	mu     sync.Mutex // guards what follows
	nextID uint32
	flows  map[uint32]*Flow
	faults []Fault
	lost   [faultKinds]int // flows by their first fault
	shorts ShortStats
	empty  int // connections that came to a server and went without an octet
}

// ShortStats is what became of the short connections.
type ShortStats struct {
	Opened, Done int
	Connect      Histogram // from connect to established
	Whole        Histogram // from connect to the end of both ends
}

// faultsKept bounds the list of faults; all are counted.
const faultsKept = 200

// NewTraffic returns traffic without flows. brief makes livelier ones.
func NewTraffic(seed uint64, brief bool) *Traffic {
	runtime.GOMAXPROCS(max(threadsMin, runtime.GOMAXPROCS(0)))
	return &Traffic{Seed: seed, start: time.Now(), cpu: ownCPU(), flows: map[uint32]*Flow{}, brief: brief}
}

func (t *Traffic) now() int64 { return int64(time.Since(t.start)) }

// During says which label measurements and faults get from now on, and
// returns the one before.
func (t *Traffic) During(l Label) Label { return Label(t.label.Swap(int32(l))) }

// NewFlow makes a flow of kind k to an address. It is not opened yet.
func (t *Traffic) NewFlow(k Kind, to netip.AddrPort) *Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextID++
	f := &Flow{ID: t.nextID, Kind: k, To: to}
	f.sizes = mix(t.Seed + uint64(f.ID)*golden)
	f.streams = [2]Stream{NewStream(t.Seed, f.ID, Up), NewStream(t.Seed, f.ID, Down)}
	f.client, f.server = programsOf(k, f.ID, f.sizes, t.brief)
	t.flows[f.ID] = f
	return f
}

func (t *Traffic) flow(id uint32) *Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows[id]
}

// over is told of each flow whose two ends are done.
func (t *Traffic) over(f *Flow) {
	err := f.Account()
	now := t.now()
	t.mu.Lock()
	delete(t.flows, f.ID)
	if f.Kind == Short {
		t.shorts.Done++
		t.shorts.Whole.Add(time.Duration(now - f.born.Load()))
	}
	t.mu.Unlock()
	if err != nil {
		t.fault(f, WrongOctet, "both ends", err)
	}
	f.Finished.Store(now)
}

func (t *Traffic) fault(f *Flow, k FaultKind, side string, err error) {
	if f != nil && f.doomed.Load() {
		return
	}
	x := Fault{Kind: k, Side: side, When: time.Now(), Err: err, During: Label(t.label.Load())}
	first := true
	if f != nil {
		x.Flow, x.Of = f.ID, f.Kind
		f.mu.Lock()
		first = len(f.faults) == 0
		f.faults = append(f.faults, x)
		f.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if first {
		t.lost[k]++
		if len(t.faults) < faultsKept {
			t.faults = append(t.faults, x)
		}
	}
}

// Lost returns how many flows were lost, by their first fault, and the first
// faults themselves, as many as were kept.
func (t *Traffic) Lost() ([faultKinds]int, []Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost, append([]Fault(nil), t.faults...)
}

// Doom says that flows are to be lost: what happens to them is no fault.
func (t *Traffic) Doom(flows []*Flow) {
	for _, f := range flows {
		f.doomed.Store(true)
	}
}

// LostTotal is the number of flows that had a fault.
func (t *Traffic) LostTotal() int {
	by, _ := t.Lost()
	n := 0
	for _, x := range by {
		n += x
	}
	return n
}

// Shorts returns what became of the short connections.
func (t *Traffic) Shorts() ShortStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shorts
}

// Churn opens short connections, one each period, to the addresses in turn,
// until the returned function is called. That one waits for the last of them.
func (t *Traffic) Churn(from *engine, every time.Duration, to ...netip.AddrPort) (stop func(time.Duration) error) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			t.mu.Lock()
			t.shorts.Opened++
			t.mu.Unlock()
			from.Open(t.NewFlow(Short, to[i%len(to)]))
		}
	}()
	return func(patience time.Duration) error {
		close(quit)
		<-done
		return t.Await(patience, "short connections to end", func() (int, int) {
			t.mu.Lock()
			defer t.mu.Unlock()
			left := 0
			for _, f := range t.flows {
				if f.Kind == Short && len(f.Faults()) == 0 {
					left++
				}
			}
			return t.shorts.Opened - left, t.shorts.Opened
		})
	}
}

// Await waits until progress returns two equal numbers.
func (t *Traffic) Await(patience time.Duration, what string, progress func() (have, want int)) error {
	deadline := time.Now().Add(patience)
	for {
		have, want := progress()
		if have == want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("lab: waited %v for %s: %d of %d", patience, what, have, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// AwaitEach waits until each of the flows has reached a point, or is lost.
func (t *Traffic) AwaitEach(patience time.Duration, what string, flows []*Flow, at func(*Flow) bool) error {
	return t.Await(patience, what, func() (int, int) {
		n := 0
		for _, f := range flows {
			if at(f) || len(f.Faults()) > 0 {
				n++
			}
		}
		return n, len(flows)
	})
}

// Finish tells the flows to end, and waits. What is not over then is a fault.
func (t *Traffic) Finish(patience time.Duration, flows []*Flow) {
	for _, f := range flows {
		f.finish.Store(true)
		for _, p := range []*atomic.Pointer[end]{&f.clientEnd, &f.serverEnd} {
			if e := p.Load(); e != nil {
				e.eng.post(e.finish)
			}
		}
	}
	err := t.AwaitEach(patience, "flows to finish", flows, func(f *Flow) bool { return f.Finished.Load() != 0 })
	if err == nil {
		return
	}
	for _, f := range flows {
		if f.Finished.Load() == 0 && len(f.Faults()) == 0 {
			t.fault(f, Unfinished, "both ends", fmt.Errorf("%d of 2 ends done, up %d of %d octets, down %d of %d", f.ends.Load(),
				f.way[Up].got.Load(), f.way[Up].sent.Load(), f.way[Down].got.Load(), f.way[Down].sent.Load()))
		}
	}
}

// Stop ends the engines and returns the stalls they measured. Connections that
// are still open are closed.
func (t *Traffic) Stop() *stalls {
	all := &stalls{}
	for _, e := range t.engines {
		e.stop()
		all.merge(&e.stalls)
	}
	return all
}

// Stalled returns the longest stall of each label so far.
func (t *Traffic) Stalled() *stalls {
	all := &stalls{}
	for _, e := range t.engines {
		e.call(func() { all.merge(&e.stalls) })
	}
	return all
}

// CPU is the share of one core that this process used since the traffic began.
func (t *Traffic) CPU() float64 {
	return float64(ownCPU()-t.cpu) / float64(time.Since(t.start))
}

// ownCPU is the time that processors spent on this process, in nanoseconds.
func ownCPU() int64 {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru) // cannot fail for oneself
	return ru.Utime.Nano() + ru.Stime.Nano()
}

// threadsMin is what the engines' locked threads and the lab itself need beside
// each other: an engine that waits for a processor of the runtime would show
// up as a stall of the balancer.
const threadsMin = 6

// inOrder returns the flows sorted by the order in which a door accepted them,
// without those that never arrived.
func inOrder(flows []*Flow) []*Flow {
	var out []*Flow
	for _, f := range flows {
		if f.Order.Load() > 0 {
			out = append(out, f)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Order.Load() < out[j].Order.Load() })
	return out
}
