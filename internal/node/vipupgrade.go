package node

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// While this process is replaced both processes renew leases, by the same records on
// the disk, which the old one alone writes. Before the new one may write them the old one has
// let go of all that is about VIPs, for good: a lease that it renewed by what it knew a moment
// ago would be that of an address that has gone.

// incomingTime bounds how long an upgrade waits for VIPs that are on their way here.
const incomingTime = 15 * time.Second

// stillVIPs waits until no VIP is on its way from here or to here, and lets none begin
// until end. An end of ctx, or a VIP that does not come to its end, is an error that names it.
func (n *Node) stillVIPs(ctx context.Context, tell func(Progress)) (end func(), err error) {
	k := &n.addresses
	said := false
	wait := func(what string) error {
		if !said {
			said = true
			tell(Progress{Phase: "waiting", Text: what + "; the upgrade begins after that", PID: pid})
		}
		return sleep(ctx, 20*time.Millisecond)
	}
	for !k.turn.TryLock() {
		if err := wait("a VIP is being moved from here, or taken"); err != nil {
			return nil, fmt.Errorf("node: a VIP is being moved from here, or taken: %w", err)
		}
	}
	k.mu.Lock()
	k.still = true
	k.mu.Unlock()
	end = func() {
		k.mu.Lock()
		k.still = false
		k.mu.Unlock()
		k.turn.Unlock()
	}
	for deadline := time.Now().Add(incomingTime); ; {
		k.mu.Lock()
		coming := n.incomingVIPs()
		k.mu.Unlock()
		if len(coming) == 0 {
			return end, nil
		}
		what := strings.Join(coming, ", ")
		err := wait(what)
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("not done after %v; if its former owner is dead: holdfast vips take", incomingTime)
		}
		if err != nil {
			end()
			return nil, fmt.Errorf("node: %s: %w", what, err)
		}
	}
}

// incomingVIPs names what is on its way here. The caller holds mu.
func (n *Node) incomingVIPs() (all []string) {
	for name, v := range n.addresses.seats {
		r := v.seat.Record()
		mine := r.Owner == n.self() && (r.Stage == vip.Moving || r.Stage == vip.Yielded)
		switch {
		case mine:
			all = append(all, fmt.Sprintf("VIP %s is being moved here from %s", name, r.From))
		case v.guest.giver != "" && r.Holder() != n.self():
			all = append(all, fmt.Sprintf("flows of VIP %s are being given back to %s", name, v.guest.giver))
		}
	}
	return all
}

// letGoOfVIPs ends, or begins again, all that this process does for VIPs. It returns when
// nothing of it is under way.
func (n *Node) letGoOfVIPs(is bool) {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.handed && !is {
		n.follow() // the other may have written
	}
	k.handed = is
}

// heirloom is what a successor is told of a VIP, beside its record: times are what is left
// of them.
type heirloom struct {
	On      bool             `json:"on,omitempty"`
	Giver   string           `json:"giver,omitempty"`
	To      string           `json:"to,omitempty"`
	Forget  time.Duration    `json:"forget,omitempty"`
	Stays   *heirloomStays   `json:"stays,omitempty"`
	Dialled []netadmin.Tuple `json:"dialled,omitempty"`
}

type heirloomStays struct {
	Flows   []uint64         `json:"flows"`
	Tuples  []netadmin.Tuple `json:"tuples"`
	Reasons map[string]int   `json:"reasons"`
	Left    time.Duration    `json:"left"`
}

// heritageVIPs is the part of the host's heritage that is about VIPs.
type heritageVIPs struct {
	Guests map[string]heirloom `json:"guests,omitempty"`
}

// tellVIPs is what a successor has to know of VIPs that settle here.
func (n *Node) tellVIPs() (h heritageVIPs) {
	k := &n.addresses
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for name, v := range k.seats {
		g := v.guest
		if !g.on && g.to == "" {
			continue
		}
		x := heirloom{On: g.on, Giver: g.giver, To: g.to, Dialled: g.dialled}
		if g.to != "" {
			x.Forget = g.forget.Sub(now)
		}
		if s := g.stays; s != nil {
			x.Stays = &heirloomStays{Tuples: s.tuples, Reasons: s.reasons, Left: s.until.Sub(now)}
			for id := range s.flows {
				x.Stays.Flows = append(x.Stays.Flows, id)
			}
		}
		if h.Guests == nil {
			h.Guests = map[string]heirloom{}
		}
		h.Guests[name] = x
	}
	return h
}

// inheritVIPs reads what the predecessor has told; one of a release that tells nothing
// leaves nothing that is known to settle.
func (n *Node) inheritVIPs(heritage json.RawMessage) error {
	if len(heritage) == 0 {
		return nil
	}
	var h heritageVIPs
	if err := json.Unmarshal(heritage, &h); err != nil {
		return fmt.Errorf("node: vips: heritage: %w", err)
	}
	k, now := &n.addresses, time.Now()
	k.inherited = map[string]guesthood{}
	for name, x := range h.Guests {
		g := guesthood{on: x.On, giver: x.Giver, to: x.To, dialled: x.Dialled}
		if x.To != "" {
			g.forget = now.Add(x.Forget)
		}
		if s := x.Stays; s != nil {
			g.stays = &residueOf{vip: name, flows: map[uint64]bool{}, tuples: s.Tuples, reasons: s.Reasons, until: now.Add(s.Left)}
			for _, id := range s.Flows {
				g.stays.flows[id] = true
			}
		}
		k.inherited[name] = g
	}
	return nil
}

// remainsOf is how many flows of a VIP drain in processes that were replaced, and in which
// of them.
func (u *upgrades) remainsOf(name string) (flows, pid int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for p, vips := range u.vips {
		if k := vips[name]; k > 0 {
			flows, pid = flows+k, p
		}
	}
	return flows, pid
}

// remainVIPs notes how many flows of which VIPs drain in a process that was replaced.
func (u *upgrades) remainVIPs(pid int, vips map[string]int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.vips, pid)
	if len(vips) == 0 {
		return
	}
	if u.vips == nil {
		u.vips = map[int]map[string]int{}
	}
	u.vips[pid] = vips
}

// followedMost bounds how long a process that is replaced answers those who follow what
// they have ordered of it.
const followedMost = time.Second

// letPeersGo ends what peers say to this process, whose successor hears them from now on. Who
// follows an order hears first what has come of it.
func (n *Node) letPeersGo() {
	_ = n.host.listener.Close()
	m := &n.moves
	followed := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, o := range m.orders {
			o.mu.Lock()
			fresh := time.Since(o.seen) < 3*orderLook
			o.mu.Unlock()
			if fresh {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(followedMost); followed() && time.Now().Before(end); {
		_ = sleep(n.ends, orderLook/5)
		if n.ends.Err() != nil {
			break
		}
	}
	n.host.closePeers()
}
