package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/tcprepair"
)

// talkOver joins two nodes that have greeted: here is the one that asks and gives.
func talkOver(t *testing.T, here, there *Node) (talk *hostTalk, over chan error) {
	t.Helper()
	near, far := net.Pipe()
	talk = &hostTalk{n: here, peer: "there", id: t.Name(), c: move.NewRemote(near), sent: sentObjects{}}
	talk.giving = move.NewHostGiving(talk.c)
	taker := newHostTaker(there, far)
	taker.peer = "here"
	over = make(chan error, 1)
	go func() { // ends with the talk
		err := taker.listen()
		taker.end()
		over <- err
	}()
	t.Cleanup(talk.Close)
	return talk, over
}

// Questions are answered by who has registered, refusals arrive as such and end
// nothing, and one that nobody waits for any more ends the talk.
func TestTalkAsks(t *testing.T) {
	server := echo(t)
	here, there := start(t, yaml(free(t), server, "", "")), start(t, yaml(free(t), server, "", ""))
	release := make(chan struct{})
	there.answer("test.twice", func(peer string, body json.RawMessage) (any, error) {
		var k int
		if err := json.Unmarshal(body, &k); err != nil {
			return nil, err
		}
		if k < 0 {
			return nil, &frozen.Refused{What: "number", Why: "it is too small", Retry: true}
		}
		return map[string]any{"twice": 2 * k, "peer": peer}, nil
	})
	there.answer("test.never", func(string, json.RawMessage) (any, error) { <-release; return nil, nil })
	talk, over := talkOver(t, here.Node, there.Node)
	ctx := context.Background()
	var a struct {
		Twice int    `json:"twice"`
		Peer  string `json:"peer"`
	}
	for range 3 {
		if err := talk.Ask(ctx, "test.twice", 21, &a); err != nil || a.Twice != 42 || a.Peer != "here" {
			t.Errorf("answered %+v: %v", a, err)
		}
		var no *frozen.Refused
		if err := talk.Ask(ctx, "test.twice", -1, &a); !errors.As(err, &no) || no.What != "number" || !no.Retry {
			t.Errorf("refused by %v", err)
		}
		if err := talk.Ask(ctx, "test.unknown", nil, nil); !errors.As(err, &no) {
			t.Errorf("what nobody answers: %v", err)
		}
		if err := talk.Ask(ctx, "test.twice", "no number", nil); !errors.As(err, &no) {
			t.Errorf("what cannot be read: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	there.answer("test.cancel", func(string, json.RawMessage) (any, error) { cancel(); <-release; return nil, nil })
	if err := talk.Ask(ctx, "test.cancel", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
	close(release)
	<-over
}

// While a talk is open the other node counts what this one holds under its own limits;
// what nobody holds it grants. When it is settled, or broken, each has its own.
func TestTalkDividesLimits(t *testing.T) {
	for _, broken := range []bool{false, true} {
		server, a, b := echo(t), free(t), free(t)
		text := func(vip string) string {
			return "node: { loops: 1 }\nlisteners: { web: { vip: \"" + vip + "\", backend: app } }\nbackends: { app: { limits: { queueTime: 1m }, endpoints: [ { name: a, address: \"" + server + "\", connections: 2 } ] } }\n"
		}
		here, there := start(t, text(a)), start(t, text(b))
		held := dial(t, a)
		says(t, held, "held here")
		talk, over := talkOver(t, here.Node, there.Node)
		if err := talk.Open(); err != nil {
			t.Fatal(err)
		}
		free := dial(t, b)
		says(t, free, "one is free")
		wait := dial(t, b)
		await(t, "that one waits there", func() bool { return there.Status().Queued["app"] == 1 })
		mine := dial(t, a)
		await(t, "that one waits here", func() bool { return here.Status().Queued["app"] == 1 })
		r, err := talk.Flows(context.Background(), func(*flow.Flow) bool { return false }, nil)
		if err != nil || r.Flows != 0 {
			t.Errorf("%d flows of none went: %v", r.Flows, err)
		}
		if q := there.Status().Queued["app"]; q != 1 {
			t.Errorf("a round of flows ended what was opened: %d wait", q)
		}
		if broken {
			talk.Close()
		} else if err := talk.Settle(); err != nil {
			t.Error(err)
		}
		says(t, wait, "both are its own")
		says(t, mine, "and here, too")
		if talk.Close(); true {
			<-over
		}
	}
}

// Who belongs where goes along, and what has changed since.
func TestTalkTells(t *testing.T) {
	one, two, a, b := webServer(t), webServer(t), free(t), free(t)
	text := func(vip string) string {
		return "node: { loops: 1 }\nlisteners: { web: { vip: \"" + vip + "\", protocol: http, backend: app } }\nbackends: { app: { sticky: { source: {} }, endpoints: [ { name: a, address: \"" +
			one + "\" }, { name: b, address: \"" + two + "\" } ] } }\n"
	}
	here, there := start(t, text(a)), start(t, text(b))
	talk, _ := talkOver(t, here.Node, there.Node)
	known := func(n *Node) (sum int) {
		for _, x := range n.shared.Ledger.Tables() {
			sum += len(x.Keys)
		}
		return sum
	}
	if err := talk.Tell(); err != nil {
		t.Fatal(err)
	}
	c := dial(t, a)
	says200(t, c)
	if known(here.Node) != 1 || known(there.Node) != 0 {
		t.Fatalf("%d clients are known here, %d there", known(here.Node), known(there.Node))
	}
	if err := talk.Tell(); err != nil {
		t.Fatal(err)
	}
	there.answer("test.heard", func(string, json.RawMessage) (any, error) { return nil, nil })
	if err := talk.Ask(context.Background(), "test.heard", nil, nil); err != nil {
		t.Fatal(err)
	}
	if known(there.Node) != 1 {
		t.Errorf("%d clients are known there", known(there.Node))
	}
}

// noKernel is a hostAdmin for lots without flows.
type noKernel struct{ hostAdmin }

func (noKernel) Repair([]int, []int) []error                   { return nil }
func (noKernel) Sockets([]tcprepair.SocketSpec) ([]int, error) { return nil, nil }
func (noKernel) Release([]netadmin.Tuple) (int, error)         { return 0, nil }
func (noKernel) Counters() (netadmin.Counters, error)          { return netadmin.Counters{}, nil }
func (noKernel) State() (netadmin.State, error)                { return netadmin.State{}, nil }
func (noKernel) Close() error                                  { return nil }

// Who asks for the outcome of a talk ends it, and hears which lot came last; what is
// not known is refused.
func TestOutcome(t *testing.T) {
	server := echo(t)
	here, there := start(t, yaml(free(t), server, "", "")), start(t, yaml(free(t), server, "", ""))
	there.host.admin = noKernel{}
	there.answer(askOutcome, there.host.outcomes.tell)
	broken, over := talkOver(t, here.Node, there.Node)
	if err := broken.Open(); err != nil {
		t.Fatal(err)
	}
	octets, err := (&frozen.Batch{}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	octets = append([]byte{0, 0, 0, byte(len(octets))}, octets...)
	for _, m := range []move.Message{{Kind: move.Offer, Lot: 7, Body: octets}, {Kind: move.Commit, Lot: 7}, {Kind: move.Offer, Lot: 8, Body: octets}} {
		if err := broken.c.Send(m); err != nil {
			t.Fatal(err)
		}
		if _, err := broken.c.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := talkOver(t, here.Node, there.Node)
	var a outcome
	if err := other.Ask(context.Background(), askOutcome, outcome{Talk: broken.id}, &a); err != nil || a.Last != 7 {
		t.Errorf("the last lot is %d: %v", a.Last, err)
	}
	<-over
	if _, err := broken.c.Receive(); err == nil {
		t.Error("the talk goes on")
	}
	var no *frozen.Refused
	if err := other.Ask(context.Background(), askOutcome, outcome{Talk: "another"}, &a); !errors.As(err, &no) {
		t.Errorf("of a talk that nobody knows: %v", err)
	}
}
