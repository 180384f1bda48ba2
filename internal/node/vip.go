package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// vipKeeper is what a node has to do with VIPs: it knows who owns them, and lets the
// kernel pass those that are this node's.
type vipKeeper struct {
	dir  string // of the records
	stop context.CancelFunc
	done sync.WaitGroup
	kick chan chan struct{} // asks for a round at once; closed when it is done

	// turn is held by who moves a VIP away or takes one: one at a time.
	turn sync.Mutex

	// busy counts those loops that have not answered since the last beat.
	busy atomic.Int64

	// mu guards what follows, and the seats' disks and rules of the kernel.
	mu    sync.Mutex
	seats map[string]*vipSeat // by name
	of    map[string]*config.VIP
	peers map[string]*vipPeer

	conflicts uint64

	// still: an upgrade is about to begin, or under way, so no VIP begins to move. handed: what is
	// to be done for VIPs is the successor's, and nothing of it is done here.
	still, handed bool
	leaves        bool                 // the node is about to end: no VIP comes
	inherited     map[string]guesthood // what the predecessor said, for seats to come

	steered steered
}

// vipSeat is one VIP as this node sees it.
type vipSeat struct {
	name  string
	at    netip.Prefix // for ever: an address that changes is another seat
	v     *config.VIP
	seat  *vip.Seat
	disk  *vipDisk
	since time.Time   // owner and epoch are what they are
	why   string      // it is silent
	lease vip.Instant // the kernel's ends then, or later; 0: there is none
	lasts vip.Instant // the kernel's ends then, or before; 0: there is none
	// passes: the kernel was told to let it pass, so neighbours have heard of it.
	passes bool

	guest   guesthood
	working bool // something is being done for it: see inTurn
}

// guesthood is why a node speaks TCP for a VIP that it does not own.
type guesthood struct {
	on bool
	// giver: its flows come here from there.
	giver string
	// to has taken it from us; until forget, late segments go there.
	to     string
	forget time.Time
	stays  *residueOf // flows that could not go
	// dialled are legs of the giver's flows with ports of ours, which we may not dial
	// from until they have come.
	dialled []netadmin.Tuple
}

func (v *vipSeat) addr() netip.Addr { return v.at.Addr() }

func vipNow() vip.Instant { return vip.Instant(sock.Monotonic()) }

// startVIPs begins to know of VIPs. What this node does not own for certain is silent.
func (n *Node) startVIPs(c *config.Config, o Options) error {
	k := &n.addresses
	k.kick = make(chan chan struct{})
	k.seats, k.peers = map[string]*vipSeat{}, map[string]*vipPeer{}
	if o.State != "" {
		k.dir = filepath.Join(o.State, "vips")
	}
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	if err := n.inheritVIPs(o.HostHeritage); err != nil {
		stop()
		return err
	}
	k.mu.Lock()
	err := n.syncVIPs(c)
	k.inherited = nil
	k.mu.Unlock()
	if err != nil {
		stop()
		return err
	}
	n.answerVIPs()
	k.done.Add(1)
	go func() { // ended by stopVIPs
		defer k.done.Done()
		n.tendVIPs(ctx)
	}()
	if client, ok := n.host.admin.(*netadmin.Client); ok {
		known := client.PID()
		k.done.Go(func() { n.watchNetadmin(ctx, client, known) }) // ended by stopVIPs
	}
	return nil
}

// stopVIPs ends what startVIPs began. A lease that is left runs out by itself, or is
// ended when the rules of the kernel are.
func (n *Node) stopVIPs() {
	k := &n.addresses
	if k.stop == nil {
		return
	}
	k.stop()
	k.done.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range k.seats {
		v.disk.close()
	}
	for _, p := range k.peers {
		p.end()
	}
	k.seats, k.peers = nil, nil
}

// circle are the nodes that must agree.
func circle(c *config.Config) vip.Circle {
	return vip.Circle{Nodes: slices.Sorted(maps.Keys(c.Cluster.Nodes)), Majority: c.Cluster.Majority, Lease: int64(c.Cluster.Lease)}
}

// syncVIPs brings what is known to what the configuration says. The caller holds mu.
func (n *Node) syncVIPs(c *config.Config) error {
	k := &n.addresses
	if maps.EqualFunc(k.of, c.VIPs, func(a, b *config.VIP) bool { return *a == *b }) {
		for _, v := range k.seats {
			v.seat.Govern(v.v.Home, circle(c))
		}
		return nil
	}
	if k.dir == "" {
		return errors.New("node: vips: who owns an address has to be kept on disk, and there is no state directory: run --state DIR")
	}
	for name, v := range k.seats {
		if now := c.VIPs[name]; now == nil || now.Address != v.at {
			_ = n.host.admin.Disown(v.addr()) // Fence takes it off as well
			v.disk.close()
			delete(k.seats, name)
		} else {
			v.v = now
			v.seat.Govern(now.Home, circle(c))
		}
	}
	// A process that takes over from another one on this host goes on with its leases,
	// and with none that has ended: others may own that address by now.
	left, asked := map[netip.Addr]time.Duration{}, time.Now()
	if s, err := n.host.admin.State(); err == nil {
		for _, x := range s.Owned {
			left[x.Addr.Addr()] = x.Left
		}
	}
	if err := n.fence(c.VIPs); err != nil {
		return err
	}
	k.of = c.VIPs
	for name, v := range c.VIPs {
		if k.seats[name] != nil {
			continue
		}
		d, r, err := openVIPDisk(k.dir, name)
		if err != nil {
			return fmt.Errorf("node: vips.%s: %w", name, err)
		}
		x := &vipSeat{name: name, at: v.Address, v: v, disk: d, since: time.Now()}
		until := vip.Instant(0)
		if r.Holder() == c.Node.Name {
			if d := min(left[v.Address.Addr()]-time.Since(asked), c.Cluster.Lease); d >= time.Millisecond {
				if !n.reader() { // else a predecessor has lengthened it by now, perhaps
					if err := n.host.admin.Own(v.Address, d); err != nil {
						return fmt.Errorf("node: vips.%s: %w", name, err)
					}
				}
				until, x.passes = vipNow()+vip.Instant(d), true
				x.lease, x.lasts = until, until
			}
		} else if err := n.host.admin.Disown(v.Address.Addr()); err != nil {
			return fmt.Errorf("node: vips.%s: %w", name, err)
		}
		x.seat = vip.NewSeat(c.Node.Name, v.Home, circle(c), r, until)
		if err := n.leftovers(x, c); err != nil {
			return fmt.Errorf("node: vips.%s: %w", name, err)
		}
		k.seats[name] = x
	}
	return nil
}

// fence keeps the kernel from letting VIPs pass without a lease.
func (n *Node) fence(vips map[string]*config.VIP) error {
	var fenced []netip.Prefix
	var routed []netip.Addr
	for _, v := range vips {
		fenced = append(fenced, v.Address)
		if v.Announce == config.AnnounceRoute {
			routed = append(routed, v.Address.Addr())
		}
	}
	err := n.host.admin.Fence(fenced)
	if err == nil {
		err = n.host.admin.Routed(routed)
	}
	if err != nil {
		return fmt.Errorf("node: vips: %w", err)
	}
	return nil
}

// leftovers ends what a process that died in the middle of a move has left in the kernel: new
// connections go nowhere else any more. What its flows are diverted by stays until those that the
// other node has had time to come back. The caller holds mu.
func (n *Node) leftovers(x *vipSeat, c *config.Config) error {
	if n.reader() { // that process lives, and what settles there goes on here
		x.guest = n.addresses.inherited[x.name]
		return nil
	}
	admin, a := n.host.admin, x.addr()
	x.guest = guesthood{to: "nobody", forget: time.Now().Add(c.Cluster.Settle)}
	return errors.Join(admin.Lead(a, netip.Addr{}), admin.Forward(a, netip.Addr{}), admin.Learn(nil), admin.Guest(a, 0))
}

// reader tells that another process of this node serves, and writes the records; this
// one only follows them. The caller holds the keeper's mu.
func (n *Node) reader() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.host.guest || n.successor != 0 || n.addresses.handed
}

var errNotServing = errors.New("another process of this node serves")

// carry does what a seat wants. The caller holds mu.
func (n *Node) carry(v *vipSeat, x vip.Step) error {
	if n.addresses.handed {
		return errNotServing
	}
	if x.Why != "" && x.Why != v.why {
		n.log.Warn("vip silent", "vip", v.name, "record", v.seat.Record().String(), "why", x.Why)
	}
	v.why = x.Why
	if x.Disown {
		if err := n.disown(v); err != nil && v.lasts > vipNow() {
			v.seat.Lasts(v.lasts) // what comes after its end has to wait
			return err
		}
	}
	if x.Write != nil {
		if n.reader() {
			return errNotServing
		}
		was := v.seat.Record()
		if err := v.disk.write(*x.Write); err != nil {
			return fmt.Errorf("node: vips.%s: record: %w", v.name, err)
		}
		v.seat.Wrote(*x.Write)
		n.vipChanged(v, was)
	}
	if x.Own > 0 {
		first, until := !v.passes, vipNow()+vip.Instant(x.Own)
		err := n.host.admin.Own(v.at, time.Duration(x.Own))
		v.lasts = max(v.lasts, vipNow()+vip.Instant(x.Own)) // what is not answered may have been done
		if err != nil {
			// The privileged process may have been killed; what it has given lasts.
			v.seat.Lapses(v.lease)
			v.passes = v.passes && v.lease > vipNow()
			v.why = err.Error()
			return fmt.Errorf("node: vips.%s: %w", v.name, err)
		}
		if vipNow() >= v.seat.Until() {
			// This process or the privileged one stood still: others may own it by now.
			return errors.Join(fmt.Errorf("node: vips.%s: its lease came later than its end", v.name), n.disown(v))
		}
		v.lease = until
		if v.passes = true; first {
			n.log.Info("vip owned", "vip", v.name, "address", v.at, "epoch", v.seat.Record().Epoch)
			if err := n.host.admin.Announce(v.addr()); err != nil {
				n.log.Warn("neighbours could not be told of a vip", "vip", v.name, "error", err)
			}
		}
	}
	if v.seat.Until() == 0 && v.seat.Record().Holder() == n.self() {
		v.passes = false // it has run out
	}
	return nil
}

// disown ends the kernel's lease. The caller holds mu.
func (n *Node) disown(v *vipSeat) error {
	if err := n.host.admin.Disown(v.addr()); err != nil {
		return fmt.Errorf("node: vips.%s: %w", v.name, err)
	}
	v.seat.Disowned()
	v.passes, v.lease, v.lasts = false, 0, 0
	return nil
}

// self is this node's name.
func (n *Node) self() string { return n.Config().Node.Name }

// vipChanged tells of a record that is another now. The caller holds mu.
func (n *Node) vipChanged(v *vipSeat, was vip.Record) {
	r := v.seat.Record()
	if was.Holder() != r.Holder() || was.Epoch != r.Epoch {
		v.since = time.Now()
	}
	n.log.Info("vip record", "vip", v.name, "record", r.String(), "was", was.String())
	n.events.note(Event{Kind: "move", Object: "vip/" + v.name, Text: r.String()})
}

// seatOf finds a VIP by its name. The caller holds mu.
func (k *vipKeeper) seatOf(name string) (*vipSeat, error) {
	if v := k.seats[name]; v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("node: no VIP %q; there are: %v", name, slices.Sorted(maps.Keys(k.seats)))
}

// VIPs are all VIPs of the configuration in the order of their names, as this node sees them.
func (n *Node) VIPs() []VIPStatus {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	self, now := n.self(), vipNow()
	out := []VIPStatus{}
	for _, name := range slices.Sorted(maps.Keys(k.seats)) {
		v := k.seats[name]
		r := v.seat.Record()
		s := VIPStatus{Name: name, Address: v.at, Home: v.v.Home, Owner: r.Owner, Epoch: r.Epoch, State: "elsewhere", Since: v.since}
		if r.Stage == vip.Moving {
			s.Owner, s.To = r.From, r.Owner
		}
		if until := v.seat.Until(); until > now {
			s.LeaseSeconds = time.Duration(until - now).Seconds()
		}
		switch {
		case v.seat.Holds(now) && r.Stage == vip.Moving:
			s.State = "moving"
		case v.seat.Holds(now):
			s.State = "owned"
		case r.Holder() == self, r.Stage == vip.Yielded && r.From == self, r.Stage == vip.Unknown && v.v.Home == self:
			s.State, s.Why = "silent", v.why
			if s.Why == "" {
				s.Why = "the other nodes have not answered yet"
			}
		case v.guest.on:
			s.State = "guest"
		}
		out = append(out, s)
	}
	return out
}

// VIPConflicts counts how often two nodes were found to have changed an owner at one time.
func (n *Node) VIPConflicts() uint64 {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conflicts
}
