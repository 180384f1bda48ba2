package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// residueOf is what could not move with a VIP and goes on at the node that gave it away.
type residueOf struct {
	vip     string
	flows   map[uint64]bool
	tuples  []netadmin.Tuple // of these flows, and of some that have ended here but for what the kernel still sends
	reasons map[string]int
	until   time.Time // they are ended then
}

// askGuest makes a node a guest of a VIP, or ends that.
const askGuest = "vip.guest"

type vipGuest struct {
	VIP string `json:"vip"`
	On  bool   `json:"on"`
}

// hearGuest makes this node ready to take flows of a VIP that it does not own: TCP of it
// passes, and what is here for flows that have not come goes to the node that has them.
func (n *Node) hearGuest(peer string, q vipGuest) (struct{}, error) {
	err := n.beGuest(peer, q)
	if err != nil && refusedBy(err) == nil {
		err = &frozen.Refused{What: "vip " + q.VIP, Why: err.Error()}
	}
	return struct{}{}, err
}

func (n *Node) beGuest(peer string, q vipGuest) error {
	c := n.Config()
	if err := n.knownNode(peer); err != nil {
		return err
	}
	at := c.Cluster.Peers[peer].Addr()
	var here []netadmin.Tuple
	if v := c.VIPs[q.VIP]; v != nil {
		n.flowsOn(v.Address.Addr(), &here) // that stayed here when it left
	}
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	if (k.still || k.leaves) && q.On || n.reader() {
		return errUpgrade
	}
	v, err := k.seatOf(q.VIP)
	if err != nil {
		return err
	}
	r := v.seat.Record()
	if r.Stage != vip.Moving || r.From != peer || r.Owner != n.self() {
		return fmt.Errorf("it is not being moved here: %v", r)
	}
	if !q.On {
		return n.endGuest(v)
	}
	admin := n.host.admin
	// What a former move from here has left is over.
	if err := admin.Forget(v.addr()); err != nil {
		return err
	}
	if len(here) > 0 {
		if err := admin.Here(here); err != nil {
			return err
		}
	}
	if err := admin.Forward(v.addr(), at); err != nil {
		return err
	}
	v.guest = guesthood{on: true, giver: peer}
	return admin.Guest(v.addr(), c.Cluster.Lease)
}

// endGuest ends what beGuest began. The caller holds mu.
func (n *Node) endGuest(v *vipSeat) error {
	v.guest = guesthood{}
	admin := n.host.admin
	return errors.Join(admin.Guest(v.addr(), 0), admin.Forward(v.addr(), netip.Addr{}), admin.Forget(v.addr()))
}

// askStays names tuples of a VIP that stay at its former owner, or have ended there.
const askStays = "vip.stays"

type vipStays struct {
	VIP    string           `json:"vip"`
	Tuples []netadmin.Tuple `json:"tuples"`
	Over   bool             `json:"over,omitempty"`
}

// hearStays sends what comes for such tuples on to the peer.
func (n *Node) hearStays(peer string, q vipStays) (struct{}, error) {
	if err := n.knownNode(peer); err != nil {
		return struct{}{}, err
	}
	c := n.Config()
	v := c.VIPs[q.VIP]
	if v == nil {
		return struct{}{}, &frozen.Refused{What: "vip " + q.VIP, Why: "it is not known here"}
	}
	for _, t := range q.Tuples {
		if t.Local.Addr() != v.Address.Addr() {
			return struct{}{}, &frozen.Refused{What: "vip " + q.VIP, Why: fmt.Sprintf("%v is not on it", t.Local)}
		}
	}
	err := error(nil)
	if q.Over {
		err = n.host.admin.Undivert(q.Tuples)
	} else {
		k := &n.addresses
		k.mu.Lock()
		if v, e := k.seatOf(q.VIP); e == nil && len(v.guest.dialled) > 0 {
			stays := map[netadmin.Tuple]bool{}
			for _, t := range q.Tuples {
				stays[t] = true
			}
			v.guest.dialled = slices.DeleteFunc(v.guest.dialled, func(t netadmin.Tuple) bool { return stays[t] })
		}
		k.mu.Unlock()
		err = n.host.admin.Divert(q.Tuples, c.Cluster.Peers[peer].Addr())
	}
	if err != nil {
		err = &frozen.Refused{What: "vip " + q.VIP, Why: err.Error()}
	}
	return struct{}{}, err
}

// askDialled names legs of flows on a VIP whose ports are those from which the new owner
// dials: it dialled them when it had the VIP before.
const askDialled = "vip.dialled"

// dialledMost is how many are named at once.
const dialledMost = 500

type vipDialled struct {
	VIP    string           `json:"vip"`
	Tuples []netadmin.Tuple `json:"tuples"`
}

// hearDialled keeps the ports of such legs from what this node dials as a guest: a server
// would take a second connection of the same ports for the first one. What comes for them goes to
// the giver, until they have come.
func (n *Node) hearDialled(peer string, q vipDialled) (struct{}, error) {
	refused := func(err error) (struct{}, error) {
		return struct{}{}, &frozen.Refused{What: "vip " + q.VIP, Why: err.Error()}
	}
	if err := n.knownNode(peer); err != nil {
		return struct{}{}, err
	}
	at := n.Config().Cluster.Peers[peer].Addr()
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	v, err := k.seatOf(q.VIP)
	if err != nil {
		return refused(err)
	}
	if !v.guest.on || v.guest.giver != peer {
		return refused(errors.New("it is not being moved here"))
	}
	for _, t := range q.Tuples {
		if t.Local.Addr() != v.addr() {
			return refused(fmt.Errorf("%v is not on it", t.Local))
		}
	}
	if err := n.host.admin.Divert(q.Tuples, at); err != nil {
		return refused(err)
	}
	v.guest.dialled = append(v.guest.dialled, q.Tuples...)
	return struct{}{}, nil
}

// undialled ends what hearDialled began for legs that have not come, and will not. The
// caller holds mu.
func (n *Node) undialled(v *vipSeat) {
	ts := v.guest.dialled
	v.guest.dialled = nil
	if len(ts) == 0 {
		return
	}
	if err := n.host.admin.Undivert(ts); err != nil {
		n.log.Warn("ports of legs that ended while their vip moved are not free", "vip", v.name, "error", err)
	}
}

// hearBack gives back what has come of a VIP whose move is being undone.
func (n *Node) hearBack(peer string, q vipNamed) (struct{}, error) {
	k := &n.addresses
	k.mu.Lock()
	v, err := k.seatOf(q.VIP)
	mine := err == nil && v.guest.on && v.guest.giver == peer
	k.mu.Unlock()
	if mine {
		ctx, cancel := context.WithTimeout(n.ends, backTime)
		defer cancel()
		err = n.giveBack(ctx, v, peer)
	}
	if err != nil {
		return struct{}{}, &frozen.Refused{What: "vip " + q.VIP, Why: err.Error(), Retry: true}
	}
	return struct{}{}, nil
}

// giveBack moves the flows on a VIP to the node that was about to give it to us, and
// ends being its guest.
func (n *Node) giveBack(ctx context.Context, v *vipSeat, peer string) error {
	t, err := n.talk(ctx, peer)
	if err != nil {
		return err
	}
	defer t.Close()
	n.askAll(func(l *loop.Loop) { l.CloseIdle("") })
	of := func(f *flow.Flow) bool { return isOn(f, v.addr()) }
	for end := time.Now().Add(handshakesTime); ; {
		r, err := t.Flows(ctx, of, nil)
		if err != nil {
			return err
		}
		ts, err := n.host.admin.Handshakes(v.addr())
		if err != nil {
			return err
		}
		if len(ts) == 0 && r.Flows == 0 || time.Now().After(end) {
			break
		}
	}
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	n.log.Info("flows of a vip given back, for its move was undone", "vip", v.name, "to", peer)
	return n.endGuest(v)
}

// tendGuests renews what this node may say for VIPs that it does not own, and ends what is
// over.
func (n *Node) tendGuests(ctx context.Context, c *config.Config) {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.handed {
		return
	}
	reader := n.reader()
	for _, v := range k.seats {
		r, g := v.seat.Record(), v.guest // until a turn comes it may be another one
		if v.guest.on {
			if err := n.host.admin.Guest(v.addr(), c.Cluster.Lease); err != nil {
				n.log.Warn("a guest could not be renewed", "vip", v.name, "error", err)
			}
		}
		switch {
		case reader:
			// The predecessor goes on with it.
		case v.guest.giver != "" && r.Holder() == n.self():
			n.guestNoMore(v) // hearYield could not, for the lease came after it
		case v.guest.giver != "" && r.Stage != vip.Moving && r.Stage != vip.Yielded:
			n.inTurn(ctx, v, func(ctx context.Context) error { return n.giveBack(ctx, v, g.giver) })
		case r.Stage == vip.Yielded && r.From == n.self():
			n.inTurn(ctx, v, func(ctx context.Context) error { return n.confirm(ctx, v, r) })
		case k.still:
			// Some of its flows are in another process now, and counted nowhere.
		case v.guest.to != "" && time.Now().After(v.guest.forget):
			n.inTurn(ctx, v, func(ctx context.Context) error { return n.settled(ctx, v, g) })
		}
	}
}

// inTurn does something for a VIP while leases are renewed on; one thing at a time for
// each. The caller holds mu.
func (n *Node) inTurn(ctx context.Context, v *vipSeat, f func(context.Context) error) {
	if v.working {
		return
	}
	v.working = true
	k := &n.addresses
	k.done.Add(1)
	go func() { // ends with ctx at the latest
		defer k.done.Done()
		bounded, cancel := context.WithTimeout(ctx, backTime)
		defer cancel()
		err := f(bounded)
		k.mu.Lock()
		v.working = false
		k.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			n.log.Warn("vip", "vip", v.name, "error", err)
		}
	}()
}

// settled ends what is left of a VIP that has gone, when neighbours know where it is and
// no flow of it is here any more. g is what the guest was when its time was over.
func (n *Node) settled(ctx context.Context, v *vipSeat, g guesthood) error {
	k := &n.addresses
	if g.stays != nil {
		left := 0
		for id := range n.flowsOn(v.addr(), nil) {
			if g.stays.flows[id] {
				left++
			}
		}
		old, _ := n.upgrades.remainsOf(v.name)
		closing, err := n.host.admin.Closing(v.addr())
		if err != nil {
			return err
		}
		ours := map[netadmin.Tuple]bool{}
		for _, t := range g.stays.tuples {
			ours[t] = true
		}
		closing = slices.DeleteFunc(closing, func(t netadmin.Tuple) bool { return !ours[t] })
		if left+old+len(closing) > 0 && time.Now().Before(g.stays.until) {
			return nil
		}
		if left > 0 {
			wanted := func(_ *loop.Loop, _ uint32, f *flow.Flow) bool { return g.stays.flows[f.ID()] }
			if _, err := n.killFlows(ctx, "rst", 0, newPacer(time.Now(), 0, 0, rand.Float64), wanted); err != nil {
				return err
			}
			n.log.Warn("flows that could not move with a vip were ended", "vip", v.name, "flows", left)
		}
		t, err := n.talk(ctx, g.to)
		if err == nil {
			for part := range slices.Chunk(g.stays.tuples, dialledMost) {
				err = errors.Join(err, t.Ask(ctx, askStays, vipStays{VIP: v.name, Tuples: part, Over: true}, nil))
			}
			t.Close()
		}
		if err != nil {
			n.log.Warn("the owner of a vip could not be told that no flow of it is here any more", "vip", v.name, "to", g.to, "error", err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if v.guest.forget != g.forget || v.guest.to != g.to {
		return nil // it has been moved again
	}
	admin := n.host.admin
	err := admin.Forget(v.addr())
	if v.seat.Record().Holder() != n.self() {
		err = errors.Join(err, admin.Guest(v.addr(), 0))
	}
	if err != nil {
		v.guest.forget = time.Now().Add(settleAgain)
		return err
	}
	v.guest = guesthood{}
	n.log.Info("vip settled: nothing of it is here any more", "vip", v.name, "owner", v.seat.Record().Owner)
	return nil
}

// settleAgain is the time until what could not be ended is tried again.
const settleAgain = time.Second

// HostResidues are flows that could not move with their VIPs and are still here.
func (n *Node) HostResidues() (out []HostResidue) {
	k := &n.addresses
	k.mu.Lock()
	all := map[string]guesthood{}
	addrs := map[string]netip.Addr{}
	for name, v := range k.seats {
		if v.guest.stays != nil {
			all[name], addrs[name] = v.guest, v.addr()
		}
	}
	k.mu.Unlock()
	for name, g := range all {
		left := 0
		for id := range n.flowsOn(addrs[name], nil) {
			if g.stays.flows[id] {
				left++
			}
		}
		if left > 0 {
			out = append(out, HostResidue{VIP: name, To: g.to, Flows: left, Reasons: maps.Clone(g.stays.reasons), Until: g.stays.until})
		}
	}
	return out
}

// TakeVIP makes this node the owner of a VIP whose owner is dead, as an operator says. The
// leases of whoever owned it have ended before.
func (n *Node) TakeVIP(ctx context.Context, name string, tell func(Progress)) error {
	if tell == nil {
		tell = func(Progress) {}
	}
	k := &n.addresses
	if !k.turn.TryLock() {
		return fmt.Errorf("node: %w", errTurn)
	}
	defer k.turn.Unlock()
	if err := n.inCharge(); err != nil {
		return err
	}
	k.mu.Lock()
	v, err := k.seatOf(name)
	if err == nil && n.reader() {
		err = fmt.Errorf("node: %w", errTurn)
	}
	var q vipBeat
	if err == nil {
		q.Records = map[string]vip.Record{name: v.seat.Record()}
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	c := n.Config()
	if c.Cluster == nil {
		return fmt.Errorf("node: VIP %s: the configuration has no cluster section any more", name)
	}
	lease, others := c.Cluster.Lease, othersOf(c)
	answers, holds := map[string]vip.Record{}, ""
	for try := 0; try < 3; try++ { // who is in the middle of another question
		for peer, a := range n.askBeats(ctx, q, others, lease) {
			if r, ok := a.Records[name]; ok {
				answers[peer] = r
			}
			if a.Holds[name] {
				holds = peer
			}
		}
		if len(answers) == len(others) {
			break
		}
	}
	k.mu.Lock()
	step, err := v.seat.Take(vipNow(), answers, holds)
	if err == nil {
		err = n.carry(v, step)
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}
	tell(Progress{Phase: "address", VIP: name, To: n.self(), Text: fmt.Sprintf("%s is claimed; the lease of its former owner ends within %v", name, 2*lease)})
	for end := time.Now().Add(10 * lease); ; {
		n.roundNow(ctx)
		k.mu.Lock()
		holds, why := v.seat.Holds(vipNow()), v.why
		k.mu.Unlock()
		if holds {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("node: %s is claimed, and still silent: %s", name, why)
		}
		if err := sleep(ctx, lease/beatsOfLease); err != nil {
			return err
		}
	}
	tell(Progress{Phase: "done", Done: true, VIP: name, To: n.self(), Text: fmt.Sprintf("%s is on %s; flows that the former owner had are lost with it", name, n.self())})
	return nil
}
