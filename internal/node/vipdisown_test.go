package node

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
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

// A guest to whom the address was yielded, and whose lease comes only after that, is a guest
// until then and no longer: else it would give the flows back to somebody who has nothing
// to do with the VIP, whenever that goes on to another node.
func TestGuestWhoseLeaseComesLate(t *testing.T) {
	n, v := owning(t, &obstinate{})
	k := &n.addresses
	tend := func(until vip.Instant) string {
		k.mu.Lock()
		v.seat.Lasts(until)
		k.mu.Unlock()
		n.tendGuests(t.Context(), &config.Config{Cluster: &config.Cluster{Lease: seatLease}})
		k.mu.Lock()
		defer k.mu.Unlock()
		return v.guest.giver
	}
	k.mu.Lock()
	v.guest = guesthood{on: true, giver: "n2"}
	k.mu.Unlock()
	if giver := tend(0); giver != "n2" {
		t.Errorf("without a lease: guest of %q", giver)
	}
	if giver := tend(vipNow() + vip.Instant(seatLease)); giver != "" {
		t.Errorf("with a lease: guest of %q", giver)
	}
}

// Who looks at a seat without the keeper's mutex, as loops do that are asked for its flows, knows
// its address whatever the configuration says of it meanwhile. Only the race detector can tell.
func TestSeatAddressWhileItsVIPChanges(t *testing.T) {
	n, v := owning(t, &obstinate{})
	k := &n.addresses
	seen := make(chan netip.Addr, 1)
	go func() { seen <- v.addr() }()
	k.mu.Lock()
	c := &config.Config{Node: n.Config().Node, Cluster: &config.Cluster{Lease: seatLease}, VIPs: maps.Clone(k.of)}
	other := *c.VIPs["shop"]
	other.Home = "n3"
	c.VIPs["shop"] = &other
	err := n.syncVIPs(c)
	k.mu.Unlock()
	if at := <-seen; err != nil || at != other.Address.Addr() || v.v.Home != "n3" {
		t.Errorf("%v: %v", at, err)
	}
}

// A reload may take the cluster away while peers are asked: the round ends with the
// configuration that it began with.
func TestRoundWhileTheClusterGoes(t *testing.T) {
	n, conf := vipNodeAt(t, &vipKernel{}, t.TempDir(), nil)
	if n.Config().Cluster != nil {
		t.Fatal("this node still has a cluster")
	}
	if n.round(t.Context(), conf) || shopSeat(n).seat.Record() != (vip.Record{}) {
		t.Errorf("nobody answers, and the record is %v", shopSeat(n).seat.Record())
	}
}
