package lab

import (
	"fmt"
	"time"
)

// Kind is what a flow does all its life. Kinds differ in what the balancer
// holds for a flow at a random moment.
type Kind uint8

// The kinds of flow.
const (
	Bulk        Kind = iota // the server sends large bursts
	BulkUp                  // the client does
	Exchange                // small requests, small responses
	Idle                    // a few octets now and then
	ClientHalf              // the client sends FIN early, the server goes on
	ServerHalf              // the other way round
	SlowClient              // the server pushes, the client rarely reads
	SlowServer              // the other way round
	Dialing                 // the server's kernel answers no SYN until told to
	Queued                  // waits for a slot of a limited endpoint
	QueueHolder             // holds such a slot
	Short                   // connect, exchange, close
	Silent                  // a few octets each, then none until the end
	Steady                  // a few octets from the server every steadyEvery
	Flood                   // the server sends as fast as it is read
	FloodUp                 // the client does
	kinds       int  = iota // how many there are
)

var kindNames = [kinds]string{
	"bulk-down", "bulk-up", "exchange", "idle", "half-closed-by-client", "half-closed-by-server",
	"backpressured-to-client", "backpressured-to-backend", "dialing", "queued", "queue-holder", "short", "silent", "steady",
	"flood-down", "flood-up",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// program is what one end of a flow does. It never changes while the end
// lives.
type program struct {
	first int           // octets due at birth
	burst int           // octets due at each tick
	every time.Duration // from tick to tick
	flood bool          // always more octets due

	finEarly bool // sends FIN behind the first octets

	asks      bool // sends a request, waits for the response, rests for every
	answers   bool // sends the response to each request
	exchanges int  // ends by itself after that many; 0: when told to
	finFirst  bool // of two ends that end by themselves, this one begins

	readBurst int           // octets it reads before it rests; 0: always reads
	rest      time.Duration // how long it does not read

	bufferBytes int // of the socket, for what it does not read or cannot send; 0: the kernel's
}

// slowBufferBytes keeps what an end that rests can hold small: the octets
// shall wait in the balancer, for there they can be lost.
const slowBufferBytes = 32 << 10

// steadyEvery is so short that each time without service shows as a gap between two
// arrivals.
const steadyEvery = 10 * time.Millisecond

// programsOf says what the ends of flow id do, if it is of kind k. Periods
// differ from flow to flow so that no two kinds fall into step.
func programsOf(k Kind, id uint32, h uint64, short bool) (client, server program) {
	// jitter is d, 50 % to 150 % of it.
	jitter := func(d time.Duration) time.Duration {
		h = mix(h + golden)
		return d/2 + time.Duration(h%uint64(d))
	}
	patience := 1 // longer runs have calmer flows: there are ten times as many
	if !short {
		patience = 3
	}
	p := time.Duration(patience)
	switch k {
	case Bulk:
		server = program{burst: 192 << 10, every: jitter(p * 100 * time.Millisecond)}
		client = program{burst: 100, every: jitter(time.Second)}
	case BulkUp:
		client = program{burst: 192 << 10, every: jitter(p * 100 * time.Millisecond)}
		server = program{burst: 100, every: jitter(time.Second)}
	case Exchange:
		client = program{asks: true, every: jitter(p * 200 * time.Millisecond)}
		server = program{answers: true}
	case Idle:
		client = program{first: 10, burst: 7, every: jitter(6 * time.Second)}
		server = program{first: 20, burst: 13, every: jitter(6 * time.Second)}
	case ClientHalf:
		client = program{first: 1000, finEarly: true}
		server = program{burst: 3000, every: jitter(p * 150 * time.Millisecond)}
	case ServerHalf:
		client = program{burst: 3000, every: jitter(p * 150 * time.Millisecond)}
		server = program{first: 1000, finEarly: true}
	case SlowClient, SlowServer:
		slow := program{burst: 50, every: jitter(4 * time.Second), readBurst: 192 << 10,
			rest: jitter(p * 1500 * time.Millisecond), bufferBytes: slowBufferBytes}
		if id%16 < 2 && !short {
			// Longer than any timeout that a balancer might set on octets
			// that a peer acknowledges but has no room for.
			slow.rest = 70 * time.Second
		}
		push := program{flood: true, bufferBytes: slowBufferBytes}
		if k == SlowClient {
			return slow, push
		}
		return push, slow
	case Silent:
		client, server = program{first: 10}, program{first: 20}
	case Flood:
		client, server = program{first: 100}, program{flood: true}
	case FloodUp:
		client, server = program{flood: true}, program{first: 100}
	case Steady:
		client, server = program{first: 10}, program{first: 20, burst: 40, every: steadyEvery}
	case Dialing:
		client = program{first: 2000, burst: 500, every: jitter(3 * time.Second)}
		server = program{first: 3000, burst: 500, every: jitter(200 * time.Millisecond)}
	case Queued:
		client = program{asks: true, exchanges: 2, every: jitter(p * 20 * time.Millisecond)}
		server = program{answers: true, exchanges: 2}
	case QueueHolder:
		client = program{asks: true, every: jitter(p * 200 * time.Millisecond)}
		server = program{answers: true}
	case Short:
		client = program{asks: true, exchanges: 1}
		server = program{answers: true, exchanges: 1}
	default:
		panic("lab: no program for " + k.String())
	}
	if client.exchanges > 0 {
		client.finFirst, server.finFirst = id%2 == 0, id%2 == 1
	}
	return client, server
}

// measured says whether the octets of a kind should arrive at once: those of
// the others wait for a peer that rests or for a slot.
func (k Kind) measured() bool {
	switch k {
	case SlowClient, SlowServer, Dialing, Queued, Short, Silent, Flood, FloodUp:
		return false
	}
	return true
}

// share of a kind in a thousand flows of the mix. More than three in ten have
// octets in the balancer at any moment: backpressured, dialing and queued ones.
var mixShares = [kinds]int{
	Bulk: 40, BulkUp: 30, Exchange: 240, Idle: 160, ClientHalf: 70, ServerHalf: 70,
	SlowClient: 170, SlowServer: 150, Dialing: 30, Queued: 30, QueueHolder: 10,
}

// queueSlots is the limit of the queued listener's endpoint for a mix of n.
func queueSlots(n int) int { return max(2, n*mixShares[QueueHolder]/1000) }

// mixOf says how many flows of each kind make a mix of n.
func mixOf(n int) [kinds]int {
	var m [kinds]int
	left := n
	for k, s := range mixShares {
		if Kind(k) == QueueHolder {
			m[k] = queueSlots(n)
		} else {
			m[k] = n * s / 1000
		}
		left -= m[k]
	}
	m[Exchange] += left
	return m
}

// requestOctets and responseOctets are the sizes of a flow's i-th exchange,
// known to both ends.
func requestOctets(h uint64, i int) uint64 { return 40 + mix(h+uint64(i)*2)%600 }

func responseOctets(h uint64, i int) uint64 { return 100 + mix(h+uint64(i)*2+1)%3000 }
