package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// vipKernel lets addresses pass, and nothing else.
type vipKernel struct {
	noKernel

	mu    sync.Mutex // guards what follows
	until map[netip.Addr]time.Time
	owns  int // calls
	gone  bool
}

func (k *vipKernel) Own(p netip.Prefix, d time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone {
		return errDied
	}
	if k.until == nil {
		k.until = map[netip.Addr]time.Time{}
	}
	k.until[p.Addr()] = time.Now().Add(d)
	k.owns++
	return nil
}

func (k *vipKernel) State() (x netadmin.State, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for a, until := range k.until {
		if left := time.Until(until); left > 0 {
			x.Owned = append(x.Owned, netadmin.Lease{Addr: netip.PrefixFrom(a, 24), Left: left})
		}
	}
	return x, nil
}

// owned is how often it was told that an address may pass.
func (k *vipKernel) owned() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.owns
}

func (*vipKernel) Disown(netip.Addr) error                      { return nil }
func (*vipKernel) Closing(netip.Addr) ([]netadmin.Tuple, error) { return nil, nil }
func (*vipKernel) Announce(netip.Addr) error                    { return nil }
func (*vipKernel) Fence([]netip.Prefix) error                   { return nil }
func (*vipKernel) Routed([]netip.Addr) error                    { return nil }
func (*vipKernel) Learn([]netip.AddrPort) error                 { return nil }
func (*vipKernel) Lead(_, _ netip.Addr) error                   { return nil }
func (*vipKernel) Forward(_, _ netip.Addr) error                { return nil }
func (*vipKernel) Forget(netip.Addr) error                      { return nil }
func (*vipKernel) Guest(netip.Addr, time.Duration) error        { return nil }

// seatLease is the lease of nodes in these tests, which nothing here waits for.
const seatLease = time.Minute

// vipNodeAt is n1 of three nodes, which reaches none of the others, with its records in dir. The
// heritage is that of a predecessor; nil: there is none.
func vipNodeAt(t *testing.T, kernel hostAdmin, dir string, heritage json.RawMessage) (*Node, *config.Config) {
	t.Helper()
	text := yaml(free(t), echo(t), "", "")
	n := start(t, "node: { name: n1, loops: 1 }\n"+text[len("node: { loops: 2 }\n"):]).Node
	c, _, err := config.Parse("cluster.yaml", []byte(fmt.Sprintf(`node: { name: n1 }
cluster: { identity: { certificate: /a.crt, key: /a.key, trust: /ca.crt }, lease: %v, quorum: majority }
nodes:
  n1: { address: 192.0.2.1:7443, device: lo, sourcePorts: 20000-29999 }
  n2: { address: 192.0.2.2:7443, device: lo, sourcePorts: 30000-39999 }
  n3: { address: 192.0.2.3:7443, device: lo, sourcePorts: 40000-49999 }
vips: { shop: { address: 192.0.2.100/24, home: n1 } }
listeners: { shop: { vip: "shop:443", protocol: tcp, backend: app } }
backends: { app: { source: vip, endpoints: [ { name: a, address: "192.0.2.9:80" } ] } }
`, seatLease)), os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	n.host.admin = kernel
	n.host.guest = len(heritage) > 0
	if err := n.startVIPs(c, Options{State: dir, HostHeritage: heritage}); err != nil {
		t.Fatal(err)
	}
	return n, c
}

// recorded writes a record into dir, as a process of n1 would have.
func recorded(t *testing.T, dir string, r vip.Record) *vipDisk {
	t.Helper()
	d, _, err := openVIPDisk(dir+"/vips", "shop")
	if err == nil {
		err = d.write(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func shopSeat(n *Node) *vipSeat { return n.addresses.seats["shop"] }

// A process that succeeds one whose lease has ended, as that of a node without a majority
// does, owns nothing: others may by now. One whose lease goes on goes on with what is
// left of it, and lengthens nothing before it has asked.
func TestSuccessorOwnsNoLongerThanItsPredecessor(t *testing.T) {
	for _, c := range []struct {
		name     string
		left     time.Duration // of the predecessor's lease
		heritage json.RawMessage
	}{
		{"upgrade, the lease has ended", -time.Second, json.RawMessage("{}")},
		{"upgrade, the lease goes on", seatLease / 2, json.RawMessage("{}")},
		{"crash, the lease has ended", -time.Second, nil},
		{"crash, the lease goes on", seatLease / 2, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
			kernel := &vipKernel{until: map[netip.Addr]time.Time{netip.MustParseAddr("192.0.2.100"): time.Now().Add(c.left)}}
			n, conf := vipNodeAt(t, kernel, dir, c.heritage)
			if n.reader() {
				n.alone() // the predecessor has gone
			}
			k := &n.addresses
			k.mu.Lock()
			defer k.mu.Unlock()
			v := shopSeat(n)
			if got, want := v.seat.Holds(vipNow()), c.left > 0; got != want {
				t.Errorf("owns %t, want %t", got, want)
			}
			if until := vipNow() + vip.Instant(c.left); c.left > 0 && v.seat.Until() > until {
				t.Errorf("owns for %v longer than its predecessor", time.Duration(v.seat.Until()-until))
			}
			x, _ := kernel.State()
			if got := len(x.Owned) > 0; got != (c.left > 0) {
				t.Errorf("the kernel lets it pass: %t", got)
			}
			// Nobody answers.
			asked := vipNow()
			step := v.seat.Round(asked, asked, nil)
			if step.Own > 0 || step.Why == "" {
				t.Errorf("without a majority of %d nodes: %+v", len(conf.Cluster.Nodes), step)
			}
		})
	}
}

// What settles goes along, and a reader of the records goes on with the last that was written
// when it is the one who writes: else what it wrote would be older than that, and forgotten.
func TestHeirloomsOfVIPs(t *testing.T) {
	dir := t.TempDir()
	disk := recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n3", From: "n1"})
	old, _ := vipNodeAt(t, &vipKernel{}, dir, nil)
	tuple := netadmin.Tuple{Local: netip.MustParseAddrPort("192.0.2.100:443"), Remote: netip.MustParseAddrPort("198.51.100.1:5000")}
	now := time.Now()
	was := guesthood{on: true, to: "n3", forget: now.Add(time.Minute), stays: &residueOf{vip: "shop", flows: map[uint64]bool{7: true, 9: true},
		tuples: []netadmin.Tuple{tuple}, reasons: map[string]int{"leg: x": 2}, until: now.Add(time.Hour)}, dialled: []netadmin.Tuple{tuple}}
	shopSeat(old).guest = was
	heir, _ := vipNodeAt(t, &vipKernel{}, dir, old.hostHeritage())
	got := shopSeat(heir).guest
	if d := got.forget.Sub(was.forget).Abs(); d > time.Second {
		t.Errorf("settles %v earlier or later", d)
	}
	if d := got.stays.until.Sub(was.stays.until).Abs(); d > time.Second {
		t.Errorf("ends what stays %v earlier or later", d)
	}
	got.forget, got.stays.until = was.forget, was.stays.until
	if !reflect.DeepEqual(got, was) {
		t.Errorf("inherited %+v %+v, want %+v %+v", got, got.stays, was, was.stays)
	}

	// The predecessor writes on; two records, for they have two places.
	for epoch := uint64(5); epoch < 7; epoch++ {
		if err := disk.write(vip.Record{Epoch: epoch, Stage: vip.Owned, Owner: "n3"}); err != nil {
			t.Fatal(err)
		}
	}
	next := vip.Record{Epoch: 9, Stage: vip.Owned, Owner: "n2"}
	k := &heir.addresses
	k.mu.Lock()
	err := heir.carry(shopSeat(heir), vip.Step{Write: &next})
	k.mu.Unlock()
	if !errors.Is(err, errNotServing) {
		t.Errorf("two processes write the records: %v", err)
	}
	heir.alone()
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := shopSeat(heir).seat.Record(); r.Epoch != 6 {
		t.Errorf("goes on with %v", r)
	}
	if err := heir.carry(shopSeat(heir), vip.Step{Write: &next}); err != nil {
		t.Fatal(err)
	}
	if r, err := disk.read(); err != nil || r != next {
		t.Errorf("on the disk is %v (%v), want %v", r, err, next)
	}
}

// From the moment at which a successor may be the one process of the node its predecessor does
// nothing for VIPs: what it decided before would let an address pass that has gone. If nothing
// comes of the upgrade it goes on with what was written meanwhile.
func TestPredecessorLetsGoOfVIPs(t *testing.T) {
	dir := t.TempDir()
	disk := recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
	kernel := &vipKernel{until: map[netip.Addr]time.Time{netip.MustParseAddr("192.0.2.100"): time.Now().Add(seatLease)}}
	n, _ := vipNodeAt(t, kernel, dir, nil)
	g := newGiver(t.Context(), n, UpgradeRequest{}, newReport("process"), nil)
	k := &n.addresses
	owned := kernel.owned()
	decided := vip.Step{Own: int64(seatLease)}
	g.Estate()
	k.mu.Lock()
	if err := n.carry(shopSeat(n), decided); !errors.Is(err, errNotServing) || kernel.owned() != owned {
		t.Errorf("the address passes by a decision of before: %v", err)
	}
	k.mu.Unlock()
	gone := vip.Record{Epoch: 5, Stage: vip.Yielded, From: "n1", Owner: "n3"}
	if err := disk.write(gone); err != nil {
		t.Fatal(err)
	}
	if err := n.abort(g, errDied); err == nil {
		t.Error("an upgrade that was aborted is none")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := shopSeat(n).seat.Record(); r != gone || n.reader() {
		t.Errorf("goes on with %v, as a reader: %t", r, n.reader())
	}
}

// The lease that the kernel has goes on when the privileged process is not there for a moment:
// a node that nobody can confirm has nothing else. It ends when it would have ended.
func TestLeaseThatIsNotLengthened(t *testing.T) {
	dir := t.TempDir()
	recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
	kernel := &vipKernel{until: map[netip.Addr]time.Time{netip.MustParseAddr("192.0.2.100"): time.Now().Add(seatLease / 2)}}
	n, c := vipNodeAt(t, kernel, dir, nil)
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	v := shopSeat(n)
	alone := circle(c)
	alone.Majority = false
	v.seat.Govern("n1", alone)
	kernel.gone = true
	until := v.seat.Until()
	now := vipNow()
	if err := n.carry(v, v.seat.Round(now, now, nil)); !errors.Is(err, errDied) {
		t.Fatalf("the kernel was asked in vain: %v", err)
	}
	if got := v.seat.Until(); got != until || !v.passes {
		t.Errorf("the lease ends %v earlier or later", time.Duration(until-got))
	}
	kernel.gone = false
	if err := n.carry(v, v.seat.Round(now, now, nil)); err != nil || v.seat.Until() <= until {
		t.Errorf("an owner that is alone goes on for %v: %v", time.Duration(v.seat.Until()-until), err)
	}
	kernel.gone = true
	late := v.lease + 1
	if step := v.seat.Round(late, late, nil); step.Own > 0 || step.Why == "" {
		t.Errorf("after the end of its lease: %+v", step)
	}
}

// Flows that a successor could not hold are in a process that knows nothing of moves any more:
// their VIP goes nowhere, and what is left of a VIP that has gone is not ended, before they have.
func TestVIPWithFlowsThatAnUpgradeLeft(t *testing.T) {
	dir := t.TempDir()
	disk := recorded(t, dir, vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"})
	kernel := &vipKernel{until: map[netip.Addr]time.Time{netip.MustParseAddr("192.0.2.100"): time.Now().Add(seatLease)}}
	n, _ := vipNodeAt(t, kernel, dir, nil)
	shopSeat(n).guest = guesthood{} // nothing of a former move is left
	move := func() error {
		return n.MigrateVIP(t.Context(), MigrateRequest{VIP: "shop", To: "n3"}, nil)
	}
	const drains = "3 flows of VIP shop drain in process 9"
	n.upgrades.remainVIPs(9, map[string]int{"shop": 3, "mail": 1})
	if err := move(); err == nil || !strings.Contains(err.Error(), drains) {
		t.Errorf("a VIP with flows in another process moves: %v", err)
	}
	n.upgrades.remainVIPs(9, map[string]int{"mail": 1})
	if err := move(); err == nil || strings.Contains(err.Error(), drains) {
		t.Errorf("a VIP whose flows there have ended: %v", err)
	}

	// It has gone, with flows that could not.
	if err := disk.write(vip.Record{Epoch: 5, Stage: vip.Owned, From: "n1", Owner: "n3"}); err != nil {
		t.Fatal(err)
	}
	k := &n.addresses
	v := shopSeat(n)
	k.mu.Lock()
	n.follow()
	v.guest = guesthood{on: true, to: "n3", forget: time.Now(), stays: &residueOf{vip: "shop", flows: map[uint64]bool{7: true}, until: time.Now().Add(time.Hour)}}
	k.mu.Unlock()
	stays := func() bool {
		k.mu.Lock()
		g := v.guest
		k.mu.Unlock()
		if err := n.settled(t.Context(), v, g); err != nil {
			t.Fatal(err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		return v.guest.to != ""
	}
	n.upgrades.remainVIPs(9, map[string]int{"shop": 1})
	if !stays() {
		t.Error("what comes for a flow in another process is sent nowhere")
	}
	n.upgrades.remainVIPs(9, nil)
	if stays() {
		t.Error("what comes for no flow any more is sent on")
	}
}

// steerKernel notes what is steered, and refuses what names a peer that its file lacks.
type steerKernel struct {
	vipKernel
	nodes []string
	addrs []netip.Addr
	to    map[netip.Addr]bool
}

func (k *steerKernel) Steer(addrs []netip.Addr, ranges []netadmin.PortRange) error {
	for _, r := range ranges {
		if !slices.Contains(k.nodes, r.To.String()) {
			return fmt.Errorf("%v is no node of the cluster", r.To)
		}
	}
	k.addrs, k.to = addrs, map[netip.Addr]bool{}
	for _, r := range ranges {
		k.to[r.To] = true
	}
	return nil
}

// A privileged process that comes anew is not asked for peers that have left the file: it would
// refuse the others as well.
func TestSteeredAgain(t *testing.T) {
	k := &steerKernel{nodes: []string{"192.0.2.2", "192.0.2.3"}}
	n, c := vipNodeAt(t, k, t.TempDir(), nil)
	for i, to := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.9"} {
		at, first := netip.MustParseAddr(to), uint16(30000+10000*i)
		err := n.steerTo(at, []netip.Addr{netip.MustParseAddr("192.0.2.77")}, []netadmin.PortRange{{First: first, Last: first + 99, To: at}})
		if (err != nil) != (i == 2) {
			t.Fatal(to, err)
		}
	}
	k.nodes = k.nodes[1:]
	delete(c.Cluster.Nodes, "n2")
	if err := n.steerAgain(c); err != nil {
		t.Fatal(err)
	}
	if three := netip.MustParseAddr("192.0.2.3"); len(k.to) != 1 || !k.to[three] {
		t.Errorf("steered to %v, want to %v alone", k.to, three)
	}
	if want := netip.MustParseAddr("192.0.2.100"); !slices.Contains(k.addrs, want) || len(k.addrs) != 1 {
		t.Errorf("steered of %v, want of %v", k.addrs, want)
	}
}
