package node

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/vip"
)

// obstinate is a kernel that does not end leases as long as it is told to, and that
// grants them late.
type obstinate struct {
	vipKernel
	keeps bool
	ended int
	late  time.Duration
}

func (k *obstinate) Disown(netip.Addr) error {
	if k.keeps {
		return errDied
	}
	k.ended++
	return nil
}

func (k *obstinate) Own(p netip.Prefix, d time.Duration) error {
	time.Sleep(k.late)
	return k.vipKernel.Own(p, d)
}

// owning is n1, which owns the VIP for a lease to come, and its seat.
func owning(t *testing.T, kernel *obstinate) (*Node, *vipSeat) {
	t.Helper()
	dir := t.TempDir()
	recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
	kernel.until = map[netip.Addr]time.Time{netip.MustParseAddr("192.0.2.100"): time.Now().Add(seatLease)}
	n, _ := vipNodeAt(t, kernel, dir, nil)
	return n, shopSeat(n)
}

// A lease that could not be ended is ended before anybody else is told that the address is
// free: neither is a record of another owner noted, which would say so, nor a yield confirmed.
func TestLeaseThatCouldNotBeEnded(t *testing.T) {
	kernel := &obstinate{}
	n, v := owning(t, kernel)
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	kernel.keeps = true
	theirs := vip.Record{Epoch: 5, Stage: vip.Owned, Owner: "n2"}
	for range 2 {
		if err := n.carry(v, v.seat.Hear(vipNow(), theirs)); !errors.Is(err, errDied) || v.seat.Record() == theirs {
			t.Fatalf("noted %v while its own lease lasts: %v", v.seat.Record(), err)
		}
	}
	kernel.keeps = false
	if err := n.carry(v, v.seat.Hear(vipNow(), theirs)); err != nil || kernel.ended != 1 || v.seat.Record() != theirs {
		t.Errorf("%v with %d leases ended: %v", v.seat.Record(), kernel.ended, err)
	}
}

func TestYieldIsToldAfterTheLease(t *testing.T) {
	kernel := &obstinate{keeps: true}
	n, v := owning(t, kernel)
	yielded := vip.Record{Epoch: 5, Stage: vip.Yielded, From: "n1", Owner: "n2"}
	n.addresses.mu.Lock()
	v.seat.Wrote(yielded)
	n.addresses.mu.Unlock()
	if err := n.confirm(t.Context(), v, yielded); !errors.Is(err, errDied) {
		t.Errorf("while the lease lasts: %v", err)
	}
	kernel.keeps = false
	for range 2 { // nobody answers here
		if err := n.confirm(t.Context(), v, yielded); err == nil || errors.Is(err, errDied) || kernel.ended != 1 {
			t.Errorf("with %d leases ended: %v", kernel.ended, err)
		}
	}
}

// A process that stands still between the answers of others and the word to the kernel has
// a lease begin when others may own the address: it is ended at once.
func TestLeaseThatComesAfterItsEnd(t *testing.T) {
	kernel := &obstinate{late: 3 * time.Millisecond}
	n, v := owning(t, kernel)
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	v.seat.Lapses(vipNow() + vip.Instant(time.Millisecond))
	if err := n.carry(v, vip.Step{Own: int64(seatLease)}); err == nil || kernel.ended != 1 || v.passes || v.seat.Until() != 0 {
		t.Errorf("%d leases ended, passes %v, until %v: %v", kernel.ended, v.passes, v.seat.Until(), err)
	}
	kernel.late = 0
	v.seat.Lasts(vipNow() + vip.Instant(seatLease))
	if err := n.carry(v, vip.Step{Own: int64(seatLease)}); err != nil || kernel.ended != 1 || !v.passes {
		t.Errorf("in time: %d leases ended, passes %v: %v", kernel.ended, v.passes, err)
	}
}
