package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Pair is two hosts on one bridge, n1 and n3, each with a node of one cluster, for labs
// of other packages. Clients run in this process's namespace, which has an address on
// the bridge; servers run on n1, where the VIP is at first. One goroutine uses it.
type Pair struct {
	VIP   netip.Addr
	N1    *Host
	b     *cluster
	world *World
	wire  *Wire
	asker *Asker
	moves []*hostMove
}

// PairService is a port of the VIP and the port of its server on n1.
type PairService struct {
	Name     string
	Port, To uint16
	HTTP     bool
}

// NewPair makes the hosts. The caller must be inside namespaces of its own.
func NewPair(dir, binary string) (*Pair, error) {
	nodes := []string{"n1", "n3"}
	w, err := newWorld(dir, clusterHosts(nodes)[1:], false) // this namespace is the client
	if err != nil {
		return nil, err
	}
	p := &Pair{VIP: vip4, N1: w.Host("n1"), world: w}
	br, err := w.nl.LinkByName("br0")
	if err != nil {
		return p, fmt.Errorf("lab: bridge: %w", err)
	}
	here := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 20), Mask: net.CIDRMask(24, 32)}}
	if err := w.nl.AddrAdd(br, here); err != nil {
		return p, fmt.Errorf("lab: address of the bridge: %w", err)
	}
	p.b = &cluster{binary: binary, dir: dir, hosts: []*Host{w.Host("n1"), w.Host("n3")}, vips: []clusterVIP{{"shop", vip4, "n1"}},
		doors: map[string]map[string]*Door{}, settings: map[string]string{"settle": "1s"}}
	if p.wire, err = NewWire(w, p.b.hosts...); err != nil {
		return p, err
	}
	p.wire.About(vip4)
	p.asker, err = Ask(w.Host("judge"), askEvery, vip4)
	return p, err
}

// Start runs both nodes.
func (p *Pair) Start(ctx context.Context, services ...PairService) error {
	for _, s := range services {
		p.b.services = append(p.b.services, clusterService{name: s.Name, vip: "shop", port: s.Port, on: []string{"n1"}, http: s.HTTP})
		p.b.doors[s.Name] = map[string]*Door{"n1": {Addr: netip.AddrPortFrom(p.N1.V4, s.To)}}
	}
	if err := p.b.Start(ctx); err != nil {
		return err
	}
	return p.b.awaitHome(ctx, readyPatience)
}

// Migrate moves the VIP to the other node.
func (p *Pair) Migrate(ctx context.Context) (*MoveReport, error) {
	m := &hostMove{vip: p.b.vips[0], from: p.b.active, to: p.b.other(), began: time.Now()}
	r, err := p.b.migrate(ctx, m.vip, m.from, m.to)
	if err != nil {
		return nil, err
	}
	m.ended, m.report = time.Now(), r
	p.moves = append(p.moves, m)
	p.b.active = m.to
	return &r.MoveReport, nil
}

// Serving says where the VIP should be.
func (p *Pair) Serving() Place { return p.b.Serving() }

// Lost is how many flows were lost or reset by moves, by the nodes' own accounts.
func (p *Pair) Lost(ctx context.Context) (n uint64, err error) {
	for name := range p.b.nodes {
		s, err := p.b.statusOf(ctx, name)
		if err != nil {
			return n, err
		}
		n += s.Lost + s.LostTotal + s.ResetByMove
	}
	return n, nil
}

// Judge gives what was wrong on the wire: claims of the VIP by who does not own it,
// resets, and frames that were not looked at.
func (p *Pair) Judge() (wrong []string) {
	macs := [][6]byte{[6]byte(p.N1.MAC)}
	var windows [][2]time.Time
	for _, m := range p.moves {
		macs = append(macs, [6]byte(p.b.hostOf(m.to).MAC))
		windows = append(windows, [2]time.Time{m.began, m.ended})
	}
	wrong, _ = judgeTenures(p.wire.Claims(p.VIP), macs, windows)
	_, resets := p.wire.Resets()
	for _, r := range resets {
		wrong = append(wrong, "RST at "+r.String())
	}
	if n := p.wire.Missed(); n > 0 {
		wrong = append(wrong, fmt.Sprintf("%d frames were not looked at", n))
	}
	return wrong
}

// Logs is the end of what both nodes wrote.
func (p *Pair) Logs() string { return p.b.Logs() }

// Close ends it.
func (p *Pair) Close() {
	if p.asker != nil {
		p.asker.Close()
	}
	if p.wire != nil {
		p.wire.Close()
	}
	p.world.Close()
}
