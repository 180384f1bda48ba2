package node

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/vip"
)

// forgetful is a kernel that notes what it forgets.
type forgetful struct {
	vipKernel
	forgot chan netip.Addr
	fails  int // so often it does not
}

func (k *forgetful) Forget(a netip.Addr) error {
	if k.fails > 0 {
		k.fails--
		return errDied
	}
	k.forgot <- a
	return nil
}

// Forget ends what is diverted of an address. So a move does not begin before what a process
// that died, or a former move, has left is forgotten; else it would be in its middle.
func TestMoveWaitsUntilTheFormerHasSettled(t *testing.T) {
	dir := t.TempDir()
	recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
	a := netip.MustParseAddr("192.0.2.100")
	kernel := &forgetful{vipKernel: vipKernel{until: map[netip.Addr]time.Time{a: time.Now().Add(seatLease)}}, forgot: make(chan netip.Addr, 1)}
	n, _ := vipNodeAt(t, kernel, dir, nil) // it has begun anew: something may be left
	k := &n.addresses
	k.mu.Lock()
	v := shopSeat(n)
	if v.guest.to == "" {
		t.Error("a process that has begun anew looks for nothing that is left")
	}
	v.guest.forget = time.Now().Add(time.Hour)
	k.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan string, 1)
	err := n.MigrateVIP(ctx, MigrateRequest{VIP: "shop", To: "n2"}, func(p Progress) {
		told <- p.Text
		cancel()
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "has not settled") {
		t.Errorf("while it settles: %v", err)
	}
	if len(told) == 0 || !strings.Contains(<-told, "waiting") {
		t.Error("it does not say that it waits")
	}
	k.mu.Lock()
	g := v.guest
	g.forget = time.Now()
	v.guest = g
	k.mu.Unlock()
	if err := n.settled(t.Context(), v, g); err != nil {
		t.Fatal(err)
	}
	if got := <-kernel.forgot; got != a {
		t.Errorf("forgot %v", got)
	}
	if err := n.MigrateVIP(t.Context(), MigrateRequest{VIP: "shop", To: "n2"}, nil); err == nil || strings.Contains(err.Error(), "settled") {
		t.Errorf("when it has settled: %v", err)
	}
}

// A node whose time to settle is over takes its turn when a move has begun that brings the VIP
// back to it: then nothing is forgotten of that one.
func TestNothingSettlesInTheNextMove(t *testing.T) {
	kernel := &forgetful{forgot: make(chan netip.Addr, 1)}
	n, _ := vipNodeAt(t, kernel, t.TempDir(), nil)
	k := &n.addresses
	k.mu.Lock()
	v := shopSeat(n)
	was := guesthood{on: true, to: "n2", forget: time.Now()}
	v.guest = guesthood{on: true, giver: "n2"}
	k.mu.Unlock()
	if err := n.settled(t.Context(), v, was); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if v.guest.giver != "n2" || len(kernel.forgot) != 0 {
		t.Errorf("a guest of n2 is %+v, and %d addresses were forgotten", v.guest, len(kernel.forgot))
	}
}

// What the privileged process could not forget, as while it begins anew, is forgotten later: until
// then the VIP has not settled.
func TestForgottenLater(t *testing.T) {
	kernel := &forgetful{forgot: make(chan netip.Addr, 1), fails: 1}
	n, _ := vipNodeAt(t, kernel, t.TempDir(), nil)
	k := &n.addresses
	k.mu.Lock()
	v := shopSeat(n)
	k.mu.Unlock()
	for _, want := range []error{errDied, nil} {
		k.mu.Lock()
		was := guesthood{on: true, to: "n2", forget: time.Now()}
		if want == nil {
			was = v.guest
		}
		v.guest = was
		k.mu.Unlock()
		if err := n.settled(t.Context(), v, was); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		k.mu.Lock()
		if settling := v.guest.to != "" && time.Until(v.guest.forget) > 0; settling != (want != nil) {
			t.Errorf("after %v it is %+v", want, v.guest)
		}
		k.mu.Unlock()
	}
	if len(kernel.forgot) != 1 {
		t.Error("it is not forgotten")
	}
}

// The time to settle begins when the new owner has the address. One that was slow to take it found
// connections that had begun at the former owner, which led nobody on any more.
func TestSettlesFromTheTakersWord(t *testing.T) {
	dir := t.TempDir()
	recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
	a := netip.MustParseAddr("192.0.2.100")
	n, c := vipNodeAt(t, &vipKernel{until: map[netip.Addr]time.Time{a: time.Now().Add(seatLease)}}, dir, nil)
	k := &n.addresses
	v := shopSeat(n)
	settle := c.Cluster.Settle
	carry := func(step vip.Step, err error) {
		t.Helper()
		if err == nil {
			err = n.carry(v, step)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	k.mu.Lock()
	r, err := v.seat.Begin(vipNow(), "n2")
	if err != nil {
		t.Fatal(err)
	}
	carry(v.seat.Begun(vipNow(), map[string]vip.Record{"n2": r}))
	k.mu.Unlock()
	address := func() error {
		m := &vipMove{n: n, q: MigrateRequest{VIP: "shop", To: "n2"}, c: c, v: v, to: netip.MustParseAddr("192.0.2.2"), tell: func(Progress) {}, r: newReport("host")}
		m.r.Phases = map[string]float64{}
		return m.address(vip.Move{Name: "shop", From: "n1", To: "n2"}, nil)
	}
	left := func() time.Duration {
		k.mu.Lock()
		defer k.mu.Unlock()
		return time.Until(v.guest.forget)
	}
	done := make(chan error, 1)
	go func() { done <- address() }() // ends with the word of n2, which does not answer, or with the node's end
	await(t, "the address is on its way", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return v.guest.on
	})
	if got := left(); got <= settle {
		t.Errorf("it settles within %v, before n2 has said anything", got)
	}
	// Its word comes otherwise.
	k.mu.Lock()
	owned := v.seat.Record()
	owned.Stage, owned.From = vip.Owned, "n1"
	carry(v.seat.Hear(vipNow(), owned), nil)
	k.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := left(); got > settle {
		t.Errorf("it settles in %v when n2 has the address, want %v", got, settle)
	}
}
