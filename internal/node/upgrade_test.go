package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// dying is a carrier whose process dies before it sends a message of a kind.
type dying struct {
	move.Carrier
	before move.Kind
	end    sync.Once
}

// Close ends the channel once: its number is soon that of something else.
func (d *dying) Close() error {
	d.end.Do(func() { _ = d.Carrier.Close() })
	return nil
}

var errDied = errors.New("died")

func (d *dying) Send(m move.Message) error {
	if m.Kind == d.before {
		_ = d.Close()
		return errDied
	}
	return d.Carrier.Send(m)
}

// succeed lets a second node in this process succeed the first, which dies
// before it sends a message of kind before (0: it does not).
func succeed(t *testing.T, of *running, before move.Kind, prepare func(*Node) error, settle func() error) (heir *Node, g *giver, done bool, given, taken error) {
	t.Helper()
	near, far, err := sock.ChannelPair()
	if err != nil {
		t.Fatal(err)
	}
	carrier := &dying{Carrier: move.NewLocal(near), before: before}
	defer func() { _ = carrier.Close() }()
	end := make(chan struct{})
	go func() { // waited for below
		defer close(end)
		s, err := Succeed(far.FD().Disown(), Options{File: of.file, Log: slog.New(slog.DiscardHandler)}, prepare)
		if err != nil {
			taken = err
			return
		}
		heir = s.Node
		t.Cleanup(heir.Stop)
		taken = s.Run(settle)
	}()
	g = newGiver(t.Context(), of.Node, UpgradeRequest{Canary: -1}, newReport("process"), nil)
	how, given := of.handOver(carrier, g)
	_ = carrier.Close()
	select {
	case <-end:
	case <-time.After(20 * time.Second):
		t.Fatal("the successor neither serves nor ends")
	}
	return heir, g, how.Done, given, taken
}

func nothing() error { return nil }

func TestSuccession(t *testing.T) {
	for _, c := range []struct {
		name   string
		before move.Kind
		settle error
		done   bool
		gone   bool // the predecessor, and with it the flow
	}{
		{"all is well", 0, nil, true, false},
		{"the socket has no place", 0, errors.New("a file is there"), true, false},
		{"the predecessor dies before it offers", move.Offer, nil, false, true},
		{"the predecessor dies before it commits", move.Commit, nil, false, true},
		{"the predecessor dies before it is done", move.Done, nil, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			vip, server := free(t), echo(t)
			old := start(t, yaml(vip, server, ", connectionsMax: 2", ""))
			conn := dial(t, vip)
			says(t, conn, "before")
			heir, _, done, given, taken := succeed(t, old, c.before, func(*Node) error { return nil }, func() error { return c.settle })
			if taken != nil || done != c.done || (given != nil) != (c.before != 0) {
				t.Fatalf("taken: %v; done %t, given: %v", taken, done, given)
			}
			want := 1
			if c.gone {
				want = 0
			} else {
				says(t, conn, "after")
			}
			says(t, dial(t, vip), "new")
			s := heir.Status()
			if s.Flows != want+1 {
				t.Errorf("%d flows, want %d", s.Flows, want+1)
			}
			sum := uint64(0)
			for _, n := range s.Ended {
				sum += n
			}
			if s.Accepted != sum+uint64(s.Flows) {
				t.Errorf("accepted %d, ended %d, open %d", s.Accepted, sum, s.Flows)
			}
		})
	}
}

// What may fail when a process begins fails before anything is handed over.
func TestSuccessorFailsEarly(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	conn := dial(t, vip)
	says(t, conn, "before")
	_, _, done, given, taken := succeed(t, old, 0, func(*Node) error { return errors.New("no room for a socket") }, nothing)
	if taken == nil || done || given == nil || !strings.Contains(given.Error(), "no room for a socket") {
		t.Fatalf("taken: %v; done %t, given: %v", taken, done, given)
	}
	if old.leaving {
		t.Error("the predecessor has begun to leave")
	}
	says(t, conn, "after")
	says(t, dial(t, vip), "new")
}

// Flows that a successor had taken when it died are counted, by number.
func TestAbortCountsWhatWasTaken(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	says(t, dial(t, vip), "one")
	says(t, dial(t, vip), "two")
	heir, r, done, given, _ := succeed(t, old, move.Done, func(*Node) error { return nil }, nothing)
	if done || given == nil {
		t.Fatalf("done %t, given: %v", done, given)
	}
	heir.Stop()
	if err := old.abort(r, given); !strings.Contains(err.Error(), "lost 2 flows that the new process had taken") {
		t.Error(err)
	}
	says(t, dial(t, vip), "new")
	if s := old.Status(); s.Accepted != 3 || s.Ended[flow.Broken.String()] != 2 || s.ResetByMove != 2 || s.Flows != 1 {
		t.Errorf("accepted %d, ended %v, reset by move %d, open %d", s.Accepted, s.Ended, s.ResetByMove, s.Flows)
	}
}

// More listeners than descriptors fit into one message are handed over.
func TestManyListeners(t *testing.T) {
	const many = sock.RightsMax + 10
	text := "node: { loops: 1 }\nlisteners:\n"
	var vips []string
	for i := range many { // each on an address that nobody else dials from
		vips = append(vips, fmt.Sprintf("127.9.%d.%d:7443", i/200+1, i%200+1))
		text += fmt.Sprintf("  l%d: { vip: %q, backend: app }\n", i, vips[i])
	}
	old := start(t, text+fmt.Sprintf("backends: { app: { endpoints: [ { name: a, address: %q } ] } }\n", echo(t)))
	_, _, _, given, taken2 := succeed(t, old, 0, func(*Node) error { return nil }, nothing)
	if given != nil || taken2 != nil {
		t.Fatal(given, taken2)
	}
	for _, vip := range vips {
		says(t, dial(t, vip), "still there")
	}
}

// Process 1 of a container is not replaced: all ends with it.
func TestUpgradeOfProcessOne(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	was := pid
	pid = 1
	defer func() { pid = was }()
	if err := old.Upgrade(t.Context(), UpgradeRequest{Binary: filepath.Join(t.TempDir(), "none")}, nil); err == nil || !strings.Contains(err.Error(), "process 1") || errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Who tells the process to end does not wait for a new binary that does not come up.
func TestUpgradeEndsWithTheProcess(t *testing.T) {
	vip, server := free(t), echo(t)
	n := start(t, yaml(vip, server, "", "")).Node
	hangs := filepath.Join(t.TempDir(), "hangs")
	if err := os.WriteFile(hangs, []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	began, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- n.Upgrade(context.Background(), UpgradeRequest{Binary: hangs}, func(p Progress) {
			if p.Phase == "starting" {
				began <- struct{}{}
			}
		})
	}()
	<-began
	if left := n.Drain(time.Minute, nil, nil); left != 0 {
		t.Errorf("%d flows are left", left)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "told to end") {
		t.Errorf("the upgrade ended by %v", err)
	}
}

// A peer that prepares nothing, or offers what it has not prepared, holds
// nothing up.
func TestPeerHoldsNothingUp(t *testing.T) {
	vip, server := free(t), echo(t)
	n := start(t, yaml(vip, server, "", "")).Node
	free := func() bool {
		if n.host.intake.TryLock() {
			n.host.intake.Unlock()
			return true
		}
		return false
	}
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }() // ends with the pipe
	defer func() { _, _ = near.Close(), far.Close() }()
	begin := func() *move.HostTaking {
		taker := &hostTaker{n: n, conn: near, c: move.NewRemote(near)}
		x := move.NewHostTaking(taker.c, taker)
		if err := x.Step(move.Message{Kind: move.Begin, Body: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, body := range []string{"", "null", "\x04\x01\x02\x03"} {
		x := begin()
		if err := x.Step(move.Message{Kind: move.Prepare, Lot: 1, Body: []byte(body)}); err == nil {
			t.Errorf("%q was prepared", body)
		}
		_ = x.End()
		if !free() {
			t.Fatalf("%q holds the intake", body)
		}
	}
	x := begin()
	batch := frozen.Batch{}
	octets, err := batch.Encode()
	if err != nil {
		t.Fatal(err)
	}
	octets = append([]byte{0, 0, 0, byte(len(octets))}, octets...)
	for i, want := range []bool{true, false} { // a number is used once
		if err := x.Step(move.Message{Kind: move.Offer, Lot: 1, Body: octets}); (err == nil) != want {
			t.Errorf("offer %d: %v", i, err)
		}
	}
	if free() {
		t.Error("an upgrade may begin while an offer stands")
	}
	for i, body := range []string{"", "no batch", "\x00\x00\x00\x08no batch", string(octets[:len(octets)-1]), string(octets) + "\x00\x00", string(octets) + "\xff\xff\xff\xff\x07",
		string(octets) + strings.Repeat("\x00\x00\x00\x00", 2*move.HostLotFlows+1)} {
		if err := x.Step(move.Message{Kind: move.Offer, Lot: uint16(2 + i), Body: []byte(body)}); err != nil {
			t.Errorf("%q cannot be read and is refused, and ended the talk: %v", body, err)
		}
	}
	if err := x.End(); err != nil || !free() || n.shared.Ledger.Paused() {
		t.Errorf("after the end of the talk: %v, intake free: %t, grants nothing: %t", err, free(), n.shared.Ledger.Paused())
	}
}
