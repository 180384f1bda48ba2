package node

import (
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/planted"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// A listener that has left the configuration lets nothing new in, and is closed when
// nothing of it is under way any more: its queue is empty and no handshake is left
// in it, for closing resets both. Nearly always that is at once. Should its VIP come
// back meanwhile, the socket is taken into service again.

const (
	// retireTime is how long handshakes may take: a client whose ACK was lost
	// sends it again when our SYN-ACK comes again, after a second.
	retireTime = 3 * time.Second
	// retireQuiet is how long is waited where the kernel does not tell of them.
	retireQuiet = 200 * time.Millisecond
	// retireWait is how long a change waits for the end, so that who connects after
	// it is refused rather than left without an answer, which costs it a second. To
	// look for handshakes the kernel walks all sockets there are.
	retireWait = 50 * time.Millisecond
)

// retirements are those that are under way.
type retirements struct {
	// mu guards what follows.
	mu      sync.Mutex
	by      map[string]*retirement // by vipKey
	later   []*loop.Listening      // a predecessor serves them still, and may go on to
	ending  bool
	running sync.WaitGroup
}

// retirement is one listener that is to be closed.
type retirement struct {
	x     *loop.Listening
	drops uint32 // when it was barred
	// mu guards over, and the socket as long as that is not set.
	mu   sync.Mutex
	over bool // it is closed, or serves again
}

// retire closes listeners that no loop watches any more, as soon as that resets
// nobody; it waits for a moment only.
func (n *Node) retire(all ...*loop.Listening) {
	if len(all) == 0 {
		return
	}
	s := &n.retiring
	if n.heir.Load() {
		s.mu.Lock()
		s.later = append(s.later, all...)
		s.mu.Unlock()
		return
	}
	n.unkeep(all)
	list := make([]*retirement, len(all))
	s.mu.Lock()
	if s.by == nil {
		s.by = map[string]*retirement{}
	}
	for i, x := range all {
		v := &retirement{x: x}
		v.drops, _ = sock.Drops(x.FD)
		if err := sock.BarNew(x.FD); err != nil {
			n.log.Warn("a listener that is to be closed takes new connections until then", "listener", x.Object.Ref.Name, "error", err)
		}
		s.by[vipKey(x.Object)] = v
		list[i] = v
	}
	s.running.Add(1)
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { // ended by itself, and by endRetiring
		defer s.running.Done()
		defer close(done)
		n.closeWhenEmpty(list)
	}()
	select {
	case <-done:
	case <-time.After(retireWait):
	}
}

// closeWhenEmpty closes each listener of the list once nothing waits in it.
func (n *Node) closeWhenEmpty(list []*retirement) {
	s := &n.retiring
	began := time.Now()
	for pause := time.Millisecond; len(list) > 0; pause = min(2*pause, 20*time.Millisecond) {
		at, dual := make([]netip.AddrPort, len(list)), make([]bool, len(list))
		for i, v := range list {
			at[i], dual[i] = v.x.Object.VIP, v.x.Object.DualStack
		}
		// First the handshakes and then the queue: one that ends in between is in it.
		under, err := sock.Handshakes(at, dual)
		if planted.Bug(76) {
			clear(under)
		}
		waited := time.Since(began)
		s.mu.Lock()
		last := s.ending || waited >= retireTime
		s.mu.Unlock()
		left := list[:0]
		for i, v := range list {
			none := err == nil && under[i] == 0 || err != nil && waited >= retireQuiet
			if !n.drained(v, none || last, last, waited) {
				left = append(left, v)
			}
		}
		if list = left; len(list) > 0 {
			time.Sleep(pause)
		}
	}
}

// drained accepts what waits at a listener, and closes it if that was all and it may
// be closed. It tells whether there is nothing left to do.
func (n *Node) drained(v *retirement, may, last bool, waited time.Duration) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return true
	}
	empty := planted.Bug(75)
	for tries := 0; !empty && (tries == 0 || last && tries < retireTries); tries++ {
		to := n.shared.Loops[0]
		for _, l := range n.shared.Loops {
			if l.Load() < to.Load() {
				to = l
			}
		}
		to.Ask(func(l *loop.Loop) { empty = l.AcceptRest(v.x) })
	}
	if !may || !empty && !last {
		return false
	}
	v.over = true
	late := v.late()
	n.arrivedLate(late)
	v.x.FD.Close()
	s := &n.retiring
	s.mu.Lock()
	if key := vipKey(v.x.Object); s.by[key] == v {
		delete(s.by, key)
	}
	s.mu.Unlock()
	n.log.Info("listener closed", "listener", v.x.Object.Ref.Name, "vip", v.x.Object.VIP, "late", late, "waited", waited.Round(time.Millisecond))
	return true
}

// retireTries bounds how often a full queue is looked at when time is over.
const retireTries = 128

// late is how many connections came since the listener was barred; one that tries
// again is counted again.
func (v *retirement) late() uint64 {
	now, ok := sock.Drops(v.x.FD)
	if !ok {
		return 0
	}
	return uint64(now - v.drops)
}

// revive takes a listener that is about to be closed into service again; nil: there
// is none with that VIP.
func (n *Node) revive(key string) *loop.Listening {
	s := &n.retiring
	s.mu.Lock()
	v := s.by[key]
	delete(s.by, key)
	s.mu.Unlock()
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over || sock.Unbar(v.x.FD) != nil {
		return nil
	}
	v.over = true
	n.arrivedLate(v.late())
	return v.x
}

// under is how many are under way.
func (s *retirements) under() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.by)
}

// awaitRetired waits until no listener is about to be closed. What such a one still
// accepts would come to this process after its flows have left it.
func (n *Node) awaitRetired() {
	for n.retiring.under() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// endRetiring closes what is still to be closed, and waits for it.
func (n *Node) endRetiring() {
	s := &n.retiring
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.running.Wait()
}
