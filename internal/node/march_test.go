package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// marching is the carrier of one side whose call of number at does not go as it
// should.
type marching struct {
	move.Carrier
	calls  atomic.Int32
	at     int32
	do     func(m *marching) error // nil: all goes well
	last   atomic.Value            // the call that did not, a string
	killed atomic.Bool
}

// errKilled is what a process that was killed sees of its channel: nothing that
// it could take for the end of the other.
var errKilled = errors.New("killed")

func (m *marching) call(what string) error {
	if m.calls.Add(1) != m.at || m.do == nil {
		return nil
	}
	m.last.Store(what)
	return m.do(m)
}

func (m *marching) Send(x move.Message) error {
	if err := m.call("send " + x.Kind.String()); err != nil {
		return err
	}
	err := m.Carrier.Send(x)
	if err != nil && m.killed.Load() {
		err = errKilled
	}
	return err
}

func (m *marching) Receive() (move.Message, error) {
	if err := m.call("receive"); err != nil {
		return move.Message{}, err
	}
	x, err := m.Carrier.Receive()
	if err != nil && m.killed.Load() {
		err = errKilled
	}
	return x, err
}

// upgraded is one upgrade within this process.
type upgraded struct {
	heir  *Node // nil: it has not come to one, or it is gone
	given move.Given
	err   error // the giver's
	taken error
	g     *giver
	calls [2]int32
	last  string
}

// upgradeHere hands what a node has to another one in this process. do happens at
// call number at of the giver (side 0) or the taker.
func upgradeHere(t *testing.T, of *running, q UpgradeRequest, side int, at int32, do func(m *marching) error, log *slog.Logger) *upgraded {
	t.Helper()
	near, far, err := sock.ChannelPair()
	if err != nil {
		t.Fatal(err)
	}
	sides := [2]*marching{{Carrier: move.NewLocal(near)}, {Carrier: move.NewLocal(far)}}
	sides[side].at, sides[side].do = at, do
	u := &upgraded{}
	end := make(chan struct{})
	go func() { // waited for below
		defer close(end)
		s, err := succeedOver(sides[1], Options{File: of.file, Log: log}, func(*Node) error { return nil })
		if err != nil {
			u.taken = err
			_ = sides[1].Close()
			return
		}
		if u.taken = s.Run(func() error { return nil }); u.taken != nil {
			s.Node.Stop()
			return
		}
		u.heir = s.Node
	}()
	u.g = newGiver(t.Context(), of.Node, q, newReport("process"), nil)
	u.given, u.err = of.handOver(sides[0], u.g)
	if u.err != nil && !u.given.Done {
		// As Upgrade does: the other process is killed, then its end is awaited.
		u.g.resume()
		sides[1].killed.Store(true)
		_ = sides[0].Close()
		<-end
		u.err = of.abort(u.g, u.err)
	}
	select {
	case <-end:
	case <-time.After(30 * time.Second):
		t.Fatal("the successor neither serves nor ends")
	}
	if u.err != nil && u.given.Done && u.taken != nil { // it was told, and has ended all the same
		u.err, u.given.Done = of.abort(u.g, u.err), false
	}
	_ = sides[0].Close()
	if u.heir != nil {
		of.t.Cleanup(u.heir.Stop)
	}
	for i, s := range sides {
		u.calls[i] = s.calls.Load()
	}
	u.last, _ = sides[side].last.Load().(string)
	return u
}

// talker is a client of TCP that checks every octet that comes back, all the time.
type talker struct {
	c    net.Conn
	said int
	err  error
}

func (x *talker) talk(end <-chan struct{}) {
	for {
		what := fmt.Sprintf("<%d>", x.said)
		if _, x.err = io.WriteString(x.c, what); x.err != nil {
			return
		}
		got := make([]byte, len(what))
		if _, x.err = io.ReadFull(x.c, got); x.err != nil {
			return
		}
		if string(got) != what {
			x.err = fmt.Errorf("%w: %q where %q was due", errWrong, got, what)
			return
		}
		x.said++
		select {
		case <-end:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

var errWrong = errors.New("wrong octets")

// crowd are clients of a node: most send all the time, some are silent.
type crowd struct {
	vip     string
	talkers []*talker
	silent  []net.Conn
	end     chan struct{}
	all     sync.WaitGroup
}

func newCrowd(t *testing.T, vip string, talkers, silent int) *crowd {
	t.Helper()
	x := &crowd{vip: vip, end: make(chan struct{})}
	for range talkers {
		c := &talker{c: dial(t, vip)}
		x.talkers = append(x.talkers, c)
		x.all.Add(1)
		go func() { // ends with the crowd
			defer x.all.Done()
			c.talk(x.end)
		}()
	}
	for range silent {
		c := dial(t, vip)
		says(t, c, "here")
		x.silent = append(x.silent, c)
	}
	return x
}

// leave ends the crowd and tells how many were lost. A wrong octet is a failure,
// whatever happened.
func (x *crowd) leave(t *testing.T, when string) (lost int) {
	t.Helper()
	close(x.end)
	x.all.Wait()
	for _, c := range x.talkers {
		if c.err == nil {
			c.err = saysStill(c.c) // it may have been lost since
		}
		if errors.Is(c.err, errWrong) {
			t.Fatalf("%s: %v", when, c.err)
		}
		if c.err != nil {
			lost++
		}
		_ = c.c.Close()
	}
	for _, c := range x.silent {
		if err := saysStill(c); errors.Is(err, errWrong) {
			t.Fatalf("%s: %v", when, err)
		} else if err != nil {
			lost++
		}
		_ = c.Close()
	}
	return lost
}

func saysStill(c net.Conn) error {
	if _, err := io.WriteString(c, "still"); err != nil {
		return err
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "still" {
		return fmt.Errorf("%w: %q", errWrong, got)
	}
	return nil
}

// The call of number k of either side fails, for every k: there is one owner at
// every instant, no octet is wrong, what is lost is what the successor had, and is
// told by name; whoever is left serves, and takes new connections.
func TestUpgradeMarch(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, ", connectionsMax: 1000", ""))
	q := UpgradeRequest{Canary: time.Millisecond}
	fail := func(*marching) error { return errors.New("this call fails") }
	for side, name := range []string{"giver", "taker"} {
		t.Run(name, func(t *testing.T) {
			step := int32(1)
			if testing.Short() {
				step = 4
			}
			for k := int32(1); ; k += step {
				people := newCrowd(t, vip, 10, 10)
				u := upgradeHere(t, old, q, side, k, fail, slog.New(slog.DiscardHandler))
				when := fmt.Sprintf("call %d (%s)", k, u.last)
				gone := people.leave(t, when)
				r := u.g.r
				fresh := dial(t, vip)
				if err := saysStill(fresh); err != nil {
					t.Fatalf("%s: a new connection: %v; giver %v, taker %v, %+v", when, err, u.err, u.taken, u.given)
				}
				_ = fresh.Close()
				if u.last == "" { // k is past the last call
					if u.err != nil || u.taken != nil || gone != 0 || r.Flows < 20 {
						t.Fatalf("nothing failed: %v, %v, lost %d, %+v", u.err, u.taken, gone, r)
					}
					old = &running{Node: u.heir, t: old.t, file: old.file}
					t.Logf("%d calls", k-1)
					return
				}
				switch {
				case u.given.Done:
					// The successor has everything, whether or not we have heard of it.
					if u.taken != nil || gone != 0 {
						t.Fatalf("%s: done, and yet %v, %d lost", when, u.taken, gone)
					}
					old = &running{Node: u.heir, t: old.t, file: old.file}
				case u.err == nil || u.taken == nil:
					t.Fatalf("%s: giver %v, taker %v", when, u.err, u.taken)
				case gone != r.Lost || len(r.LostFlows) != min(r.Lost, lostNamed):
					t.Fatalf("%s: %d clients lost, the report says %d: %v", when, gone, r.Lost, r.LostFlows)
				case r.Lost > 0 && !u.given.Committed:
					t.Fatalf("%s: %d lost, and nothing was committed", when, r.Lost)
				}
				await(t, when+": flows are left behind", func() bool { return old.Node.flows() == 0 })
			}
		})
	}
}

// tampered is a carrier of the taker that says something else.
type tampered struct {
	move.Carrier
	with func(m *move.Message)
}

func (x *tampered) Send(m move.Message) error {
	x.with(&m)
	return x.Carrier.Send(m)
}

// handTampered is an upgrade to a taker that says something else than it would.
func handTampered(t *testing.T, old *running, q UpgradeRequest, with func(m *move.Message)) *upgraded {
	t.Helper()
	return upgradeHere(t, old, q, 1, 1, func(m *marching) error {
		m.Carrier = &tampered{m.Carrier, with}
		return nil
	}, slog.New(slog.DiscardHandler))
}

// What breaks in the new process breaks with a few flows, which are named; the
// others never left.
func TestBadCanary(t *testing.T) {
	for _, c := range []struct {
		sight move.Sight
		why   string
	}{
		{move.Sight{Lost: 1, Loops: 2, Of: 2}, "1 flows broke in the new process"},
		{move.Sight{Panics: 3, Loops: 2, Of: 2}, "3 panics in the new process"},
		{move.Sight{Loops: 1, Of: 2}, "1 of 2 loops of the new process do not answer"},
	} {
		vip, server := free(t), echo(t)
		old := start(t, yaml(vip, server, "", ""))
		people := newCrowd(t, vip, 20, 20)
		u := handTampered(t, old, UpgradeRequest{}, func(m *move.Message) {
			if m.Kind == move.Seen {
				var err error
				if m.Body, err = json.Marshal(c.sight); err != nil {
					t.Error(err)
				}
			}
		})
		r := u.g.r
		if u.err == nil || !strings.Contains(u.err.Error(), c.why) || u.given.Switched {
			t.Errorf("%v: %+v", u.err, u.given)
		}
		if lost := people.leave(t, c.why); lost != 8 || r.Lost != 8 || len(r.LostFlows) != 8 || r.CanaryFlows != 8 {
			t.Errorf("%s: %d clients lost, %d told: %q", c.why, lost, r.Lost, r.LostFlows)
		}
		says(t, dial(t, vip), "new")
	}
}

// A successor that stands still for longer than anything may wait delays nobody:
// what was about to go is served here, and goes when it has come to itself.
func TestSuccessorStandsStill(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, ", connectionsMax: 100", ""))
	const still = 3 * move.ParkedTime
	stood := 0
	for k := int32(2); ; k++ {
		people := newCrowd(t, vip, 10, 10)
		late := make(chan error, 1)
		u := upgradeHere(t, old, UpgradeRequest{Canary: time.Millisecond}, 1, k, func(*marching) error {
			go func() { // ends below
				time.Sleep(move.ParkedTime)
				late <- asks(vip) // somebody comes in the middle of it
			}()
			time.Sleep(still)
			return nil
		}, slog.New(slog.DiscardHandler))
		when := fmt.Sprintf("call %d", k)
		if u.err != nil || u.taken != nil {
			t.Fatalf("%s: giver %v, taker %v", when, u.err, u.taken)
		}
		if lost := people.leave(t, when); lost != 0 || u.g.r.Lost != 0 {
			t.Fatalf("%s: %d lost", when, lost)
		}
		if u.calls[1] >= k {
			if err := <-late; err != nil {
				t.Fatalf("%s: who came meanwhile: %v", when, err)
			}
			stood++
		}
		old = &running{Node: u.heir, t: old.t, file: old.file}
		if u.calls[1] < k {
			break
		}
	}
	if stood < 20 {
		t.Errorf("it stood still at %d calls only", stood)
	}
}

// asks is a client that comes, asks once and goes.
func asks(vip string) error {
	c, err := net.Dial("tcp4", vip)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	return saysStill(c)
}

// A new process without room for the flows is refused before anything has moved,
// with both numbers.
func TestSuccessorWithoutRoom(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	people := newCrowd(t, vip, 5, 5)
	u := handTampered(t, old, UpgradeRequest{}, func(m *move.Message) {
		if m.Kind == move.Ready {
			m.Body = []byte(`{"room":7,"file_limit":64}`)
		}
	})
	if u.err == nil || !strings.Contains(u.err.Error(), "20 sockets of flows are to go to the new process, which has room for 7") || u.given.Committed {
		t.Errorf("%v %+v", u.err, u.given)
	}
	if lost := people.leave(t, "no room"); lost != 0 {
		t.Errorf("%d lost", lost)
	}
}

// picky is the carrier of a taker that cannot hold some flows.
type picky struct {
	move.Carrier
	no      func(*frozen.Flow) bool
	refused []move.Refusal // of the last offer
}

func (x *picky) Receive() (move.Message, error) {
	m, err := x.Carrier.Receive()
	if err == nil && m.Kind == move.Offer {
		x.refused = nil
		skip := 2 + 8*(int(m.Body[0])<<8|int(m.Body[1])) // where descriptors are
		b, err := frozen.Decode(m.Body[skip:])
		if err != nil {
			return m, err
		}
		for _, f := range b.Flows {
			if x.no(f) {
				x.refused = append(x.refused, move.Refusal{Flow: f.Id, What: "h1", Why: "a field that this release does not know"})
			}
		}
	}
	return m, err
}

func (x *picky) Send(m move.Message) error {
	if m.Kind == move.Taken && len(x.refused) > 0 {
		body, err := json.Marshal(move.Refusal{What: "h1", Why: "some", Flows: x.refused})
		if err != nil {
			return err
		}
		m = move.Message{Kind: move.Refuse, Lot: m.Lot, Body: body}
	}
	return x.Carrier.Send(m)
}

// Flows that the new process cannot hold stay and end here, counted by the reason,
// while all others of their lots have gone.
func TestResidue(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	people := newCrowd(t, vip, 10, 10)
	u := upgradeHere(t, old, UpgradeRequest{Canary: time.Millisecond}, 1, 1, func(m *marching) error {
		m.Carrier = &picky{Carrier: m.Carrier, no: func(f *frozen.Flow) bool { return f.Id%5 == 0 }}
		return nil
	}, slog.New(slog.DiscardHandler))
	r, why := u.g.r, "h1: a field that this release does not know"
	if u.err != nil || r.Flows != 16 || r.Refused != 4 || r.Residue != 4 || r.Reasons[why] != 4 {
		t.Fatalf("%v: %+v", u.err, r)
	}
	if left := old.remains(u.g, time.Now()); left.Flows != 4 || left.Reasons[why] != 4 || u.heir.flows() != 16 {
		t.Errorf("%+v here, %d there", left, u.heir.flows())
	}
	if lost := people.leave(t, "residue"); lost != 0 {
		t.Errorf("%d lost", lost)
	}
	await(t, "the residue does not end", func() bool { return old.remains(u.g, time.Now()).Flows == 0 })
}

// Idle legs to servers go along: after an upgrade nobody dials who has not dialled
// before it.
func TestIdleLegsGoAlong(t *testing.T) {
	var dials atomic.Int32
	var waiting sync.WaitGroup
	open := make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/together" {
			waiting.Done()
			<-open // all at once, so that each has a leg of its own
		}
		_, _ = io.WriteString(w, q.URL.Path)
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			dials.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	vip := free(t)
	old := start(t, fmt.Sprintf("node: { loops: 2 }\nlisteners: { web: { vip: %q, protocol: http, backend: app } }\nbackends: { app: { endpoints: [ { name: a, address: %q } ] } }\n",
		vip, server.Listener.Addr()))
	const people = 12
	var clients []*http.Client
	get := func(c *http.Client, path string) error {
		r, err := c.Get("http://" + vip + path)
		if err != nil {
			return err
		}
		defer func() { _ = r.Body.Close() }()
		got, err := io.ReadAll(r.Body)
		if err == nil && string(got) != path {
			err = fmt.Errorf("%q where %q was due", got, path)
		}
		return err
	}
	answers := make(chan error, people)
	waiting.Add(people)
	for range people {
		c := &http.Client{Transport: &http.Transport{}}
		t.Cleanup(c.CloseIdleConnections)
		clients = append(clients, c)
		go func() { answers <- get(c, "/together") }() // waited for below
	}
	waiting.Wait()
	close(open)
	for range people {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	legs := func(n *Node) (idle int) {
		for _, l := range n.shared.Loops {
			l.Ask(func(l *loop.Loop) { idle += l.Idle() })
		}
		return idle
	}
	await(t, "the legs are not idle", func() bool { return legs(old.Node) == people })
	for range 3 {
		u := upgradeHere(t, old, UpgradeRequest{Canary: time.Millisecond}, 0, 0, nil, slog.New(slog.DiscardHandler))
		if u.err != nil || u.taken != nil {
			t.Fatal(u.err, u.taken)
		}
		if n := legs(u.heir); n != people || legs(old.Node) != 0 || u.g.r.IdleLegs != people || u.g.r.Copied != 2*people {
			t.Errorf("%d idle legs there, %d here, %d told, %d copied", n, legs(old.Node), u.g.r.IdleLegs, u.g.r.Copied)
		}
		for _, c := range clients {
			if err := get(c, "/one"); err != nil {
				t.Fatal(err)
			}
		}
		if n := dials.Load(); n != people {
			t.Errorf("%d legs were dialled for %d", n, people)
		}
		await(t, "a leg is missing", func() bool { return legs(u.heir) == people })
		old = &running{Node: u.heir, t: old.t, file: old.file}
	}
}

// Who asked for an upgrade may end it while the new process has not come up; it
// is ended, too, and nothing has happened.
func TestUpgradeIsNotWantedAnyMore(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	conn := dial(t, vip)
	says(t, conn, "before")
	hangs := filepath.Join(t.TempDir(), "hangs")
	if err := os.WriteFile(hangs, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := 0
	err := old.Upgrade(ctx, UpgradeRequest{Binary: hangs}, func(p Progress) {
		if p.Phase == "starting" && started == 0 {
			started = p.PID
			time.AfterFunc(10*time.Millisecond, cancel)
		}
	})
	if !errors.Is(err, context.Canceled) || started == 0 {
		t.Errorf("%v, process %d", err, started)
	}
	if err := syscall.Kill(started, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is left: %v", started, err)
	}
	says(t, conn, "after")
	says(t, dial(t, vip), "new")
}
