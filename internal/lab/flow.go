package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Flow is one client connection as the lab knows it: what its ends should do,
// and what they saw. The ends belong to their loops; what they tell each other
// and the lab passes through the atomics here.
type Flow struct {
	ID   uint32
	Kind Kind
	To   netip.AddrPort // where the client connects

	sizes   uint64 // seed of the sizes of its exchanges
	streams [2]Stream
	way     [2]way
	client  program
	server  program

	finish atomic.Bool // the lab wants it to end
	doomed atomic.Bool // it is to be lost: its faults are none

	// Moments since the traffic began, in nanoseconds; 0: not yet.
	born                 atomic.Int64 // the client began to connect
	Opened               atomic.Int64 // the client's connect succeeded
	Served               atomic.Int64 // the server read the greeting
	Order                atomic.Int64 // its place among the accepted of its door
	clientEnd, serverEnd atomic.Pointer[end]
	ends                 atomic.Int32 // ends that are done
	Finished             atomic.Int64 // both are

	mu     sync.Mutex // guards faults
	faults []Fault
}

// way is one direction of a flow: the sender writes, the receiver reads.
type way struct {
	sent atomic.Uint64 // octets the kernel took
	got  atomic.Uint64 // octets verified
	// finAt is one more than the offset at which the sender sent FIN; 0: it
	// did not. An EOF anywhere else is a fault.
	finAt atomic.Uint64
	// A mark is an offset and the moment at which it was due to be sent. The
	// sender sets one when there is none (markAt is 0), the receiver takes it
	// when it has all octets before it: the stall of these octets.
	markOff atomic.Uint64
	markAt  atomic.Int64
	gap     atomic.Int64 // longest time between two arrivals, nanoseconds
}

// FaultKind says what went wrong.
type FaultKind uint8

// The kinds of fault. Each makes a run fail.
const (
	WrongOctet FaultKind = iota // lost, doubled, reordered, foreign, changed
	Reset                       // RST or another error on an established connection
	EarlyEOF                    // FIN before the peer sent one, or octets missing before it
	Refused                     // a connect that did not succeed
	Unfinished                  // not over in time
	Intruder                    // a connection to the server that no client made, or made twice
	faultKinds int       = iota
)

var faultNames = [faultKinds]string{"wrong octets", "reset", "early EOF", "refused", "unfinished", "intruder"}

func (k FaultKind) String() string { return faultNames[k] }

// Fault is one thing that a flow's end saw and should not have.
type Fault struct {
	Kind FaultKind
	Flow uint32
	Of   fmt.Stringer // its kind; nil: of no flow
	Side string
	When time.Time
	Err  error
	// During is the distance of the move under way, or of the last one.
	During Label
}

func (f Fault) String() string {
	return fmt.Sprintf("flow %d (%v), %s, during %v: %v: %v", f.Flow, f.Of, f.Side, f.During, f.Kind, f.Err)
}

// Faults returns what was wrong with the flow. The first fault often causes
// others: one flow with faults is one flow lost.
func (f *Flow) Faults() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Fault(nil), f.faults...)
}

// Account checks, once the flow is over, that each octet that was sent was
// verified.
func (f *Flow) Account() error {
	for _, d := range []Direction{Up, Down} {
		w := &f.way[d]
		if s, g := w.sent.Load(), w.got.Load(); s != g {
			return fmt.Errorf("%v: %d octets sent, %d verified", d, s, g)
		}
		if w.finAt.Load() == 0 {
			return fmt.Errorf("%v: no FIN was sent", d)
		}
	}
	return nil
}

// Octets returns how many octets were verified in both directions.
func (f *Flow) Octets() uint64 { return f.way[Up].got.Load() + f.way[Down].got.Load() }

// The client's first octets say which flow this is, for a server behind a
// balancer sees only the balancer's address: magic, id, and a check that makes
// it improbable that other octets are taken for a greeting.
const (
	greetingOctets = 16
	greetingMagic  = 0x31746c46
)

func greeting(seed uint64, id uint32) [greetingOctets]byte {
	var b [greetingOctets]byte
	binary.LittleEndian.PutUint32(b[0:], greetingMagic)
	binary.LittleEndian.PutUint32(b[4:], id)
	binary.LittleEndian.PutUint64(b[8:], mix(seed^uint64(id)*golden))
	return b
}

var errGreeting = errors.New("no greeting of this run")

func readGreeting(seed uint64, b [greetingOctets]byte) (uint32, error) {
	id := binary.LittleEndian.Uint32(b[4:])
	if b != greeting(seed, id) {
		return 0, fmt.Errorf("%w: %x", errGreeting, b)
	}
	return id, nil
}
