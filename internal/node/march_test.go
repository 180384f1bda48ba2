package node

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	last   string                  // call that did not
	killed atomic.Bool
}

// errKilled is what a process that was killed sees of its channel: nothing that
// it could take for the end of the other.
var errKilled = errors.New("killed")

func (m *marching) call(what string) error {
	if m.calls.Add(1) != m.at || m.do == nil {
		return nil
	}
	m.last = what
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
	u.last = sides[side].last
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
