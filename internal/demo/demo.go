// Package demo is the traffic of `holdfast demo`: a server and its clients in
// one process, with something between them that should change nothing. Long
// flows exchange requests, download, or stay half-closed; short ones come all
// the time. Every octet is known beforehand and looked at by the end that
// receives it, and at its end a flow must have arrived whole.
//
// The package knows nothing of Holdfast: it is given an address to connect to.
package demo

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Traffic is a server and the clients that connect to it. Start makes it, Stop
// ends it; its methods may be called by any goroutine.
type Traffic struct {
	listeners []net.Listener
	dial      Dial
	target    string // where clients connect
	stop      chan struct{}
	stopOnce  sync.Once
	running   sync.WaitGroup // every goroutine

	nextID    atomic.Uint64
	open      atomic.Int64  // long flows
	opened    atomic.Uint64 // connections, short ones included
	octets    atomic.Uint64 // received and right, at both ends
	lost      atomic.Int64
	wrong     atomic.Int64
	window    histogram // round trips since the last Look
	trips     histogram // all before that
	exchanges atomic.Uint64

	// mu guards flows, conns and faults.
	mu     sync.Mutex
	flows  map[uint64]*flow
	conns  map[net.Conn]struct{} // of both ends
	faults []string
}

// Figures are what a Traffic has counted so far.
type Figures struct {
	Open       int           // long flows open now
	Opened     uint64        // connections since the beginning, short ones included
	Octets     uint64        // that arrived as they should, at both ends
	RoundTrips uint64        // requests with their responses
	P99        time.Duration // of a round trip: Look: since the last Look; Stop: of all
	Max        time.Duration // likewise
	Lost       int           // flows that ended as they should not
	Wrong      int           // octets that were not what they should be
	Faults     []string      // what happened to the first lost flows
}

// Dial connects a client, from wherever clients are.
type Dial func(ctx context.Context, target string) (net.Conn, error)

// Start runs the server on a free port of 127.0.0.1, and clients on this host.
func Start() (*Traffic, error) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return StartAt(Direct, l), nil
}

// Listen opens a listener for StartAt, in the network in which it is called.
func Listen(address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return l, nil
}

// Direct dials in the network in which it is called.
func Direct(ctx context.Context, target string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", target)
}

// StartAt runs a server on each of some listeners, which are its own from then on.
// All are one to the clients, which dial with dial.
func StartAt(dial Dial, listeners ...net.Listener) *Traffic {
	t := &Traffic{
		listeners: listeners, dial: dial, stop: make(chan struct{}),
		flows: map[uint64]*flow{}, conns: map[net.Conn]struct{}{},
	}
	for _, l := range listeners {
		t.running.Add(1)
		go t.serve(l)
	}
	return t
}

// Server is the address of the first server.
func (t *Traffic) Server() string { return t.listeners[0].Addr().String() }

func (t *Traffic) closeListeners() {
	for _, l := range t.listeners {
		_ = l.Close()
	}
}

// shortEvery is the time between two short connections.
const shortEvery = 20 * time.Millisecond

// dialsMax is how many long flows are opened at a time: fewer than fit into
// any listener's queue.
const dialsMax = 64

// Open connects long flows to target, of every kind, returns when each has
// had its first octets answered, and lets short ones come from then on.
func (t *Traffic) Open(ctx context.Context, target string, flows int) error {
	t.target = target
	slots := make(chan struct{}, dialsMax)
	begun := make(chan error, flows)
	for i := range flows {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		f := t.newFlow(kindOf(i, flows), period(flows))
		t.running.Add(1)
		go func() {
			defer t.running.Done()
			t.long(ctx, f, func(err error) { begun <- err; <-slots })
		}()
	}
	for range flows {
		select {
		case err := <-begun:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t.running.Add(1)
	go t.comeAndGo()
	return nil
}

// comeAndGo opens short connections until Stop.
func (t *Traffic) comeAndGo() {
	defer t.running.Done()
	tick := time.NewTicker(shortEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			t.running.Add(1)
			go func() {
				defer t.running.Done()
				t.short(t.newFlow(short, 0))
			}()
		}
	}
}

// Look gives the figures as they are; times are those since the last Look.
func (t *Traffic) Look() Figures {
	f := t.figures(&t.window)
	t.trips.merge(&t.window)
	return f
}

func (t *Traffic) figures(h *histogram) Figures {
	t.mu.Lock()
	faults := append([]string(nil), t.faults...)
	t.mu.Unlock()
	return Figures{
		Open: int(t.open.Load()), Opened: t.opened.Load(), Octets: t.octets.Load(), RoundTrips: t.exchanges.Load(),
		P99: h.quantile(0.99), Max: time.Duration(h.longest.Load()),
		Lost: int(t.lost.Load()), Wrong: int(t.wrong.Load()), Faults: faults,
	}
}

// Stop lets every flow run to its end and gives the final figures. A flow that
// has not ended after patience is lost.
func (t *Traffic) Stop(patience time.Duration) Figures {
	t.stopOnce.Do(func() { close(t.stop) })
	ended := make(chan struct{})
	go func() { // ends with the goroutines it waits for
		t.running.Wait()
		close(ended)
	}()
	late := time.AfterFunc(patience, t.breakOff)
	defer late.Stop()
	t.mu.Lock()
	clients := len(t.flows)
	t.mu.Unlock()
	// The server accepts until the clients have gone: one that waits in a
	// queue must be served, too.
	for deadline := time.Now().Add(patience); clients > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
		t.mu.Lock()
		clients = len(t.flows)
		t.mu.Unlock()
	}
	t.closeListeners()
	<-ended
	t.trips.merge(&t.window)
	return t.figures(&t.trips)
}

// breakOff ends whatever still waits.
func (t *Traffic) breakOff() {
	t.closeListeners()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		_ = c.Close()
	}
}

// faultsMax is how many faults are kept for people to read.
const faultsMax = 5

// lose counts f as lost, once, however many ends notice it.
func (t *Traffic) lose(f *flow, err error) {
	if !f.lost.CompareAndSwap(false, true) {
		return
	}
	t.lost.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.faults) < faultsMax {
		t.faults = append(t.faults, fmt.Sprintf("flow %d (%v): %v", f.id, f.kind, err))
	}
}

func (t *Traffic) stopping() bool {
	select {
	case <-t.stop:
		return true
	default:
		return false
	}
}
