package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
)

// Options are what a person may ask of a lab.
type Options struct {
	Short       bool
	Sabotage    string
	Distances   []string
	Flows       int // 0: as the lab likes
	Moves       int // of each distance; 0: as the lab likes
	Seed        uint64
	Binary      string // of the product
	Balancer    string // "holdfast", or a substitute: "direct", "haproxy"
	FiguresOnly bool   // a missed goal is no failure
	Corpus      string // a directory of further streams for the lab corpora; "": none
	VTC         string // a directory of further cases for the lab vtc; "": none
	Applies     int    // of the lab reload: only so many changes, one after another; 0: all that it does
	Out         string // a directory for the tables of the lab reload; "": none
	Systemd     string // a directory with another one than the machine's; "": that
	Previous    string // binary of the release before this one; "": build it

	dir   string    // of this run
	began time.Time // the user's clock, building included
}

// scene is what the labs have in common: hosts, doors, a balancer, and the
// traffic between them.
type scene struct {
	Options
	ctx     context.Context
	out     io.Writer
	v       *Verdict
	world   *World
	traffic *Traffic
	web     *HTTPTraffic
	clients *engine
	servers *engine

	services []Service
	doors    map[string]*Door
	balancer Balancer
	mover    *mover
	saboteur *saboteur
	counters map[string]map[string]int64 // of hosts, at the beginning
}

// hosts of every lab. The ghost is a second client, which can vanish.
var hosts = []HostSpec{
	{Name: "client", V4: "10.9.0.20/24", V6: "fd09::20/64"},
	{Name: "ghost", V4: "10.9.0.21/24", V6: "fd09::21/64"},
	{Name: "n1", V4: "10.9.0.11/24", V6: "fd09::11/64"},
	{Name: "n2", V4: "10.9.0.12/24", V6: "fd09::12/64"},
	{Name: "server", V4: "10.9.0.30/24", V6: "fd09::30/64"},
}

// serviceSpec says where a service's door stands.
type serviceSpec struct {
	name  string
	vip   string
	port  uint16 // of the door
	slots int
	shut  bool
	http  bool
}

// setScene builds all up to a balancer that is ready. Servers run on the host
// servedBy.
func setScene(ctx context.Context, o Options, out io.Writer, v *Verdict, servedBy string, specs []serviceSpec) (*scene, error) {
	s, err := setStage(ctx, o, out, v, servedBy, specs)
	if err != nil {
		return s, err
	}
	b, err := s.cast(s.world.Host("n1"), s.world.Host("n2"))
	if err != nil {
		return nil, err
	}
	s.phase("balancer: %s", s.playedBy())
	return s, s.castAs(b)
}

// castAs runs b as the balancer.
func (s *scene) castAs(b Balancer) error {
	if err := b.Start(s.ctx); err != nil {
		return err
	}
	s.balancer = b
	s.mover = &mover{world: s.world, balancer: s.balancer, traffic: s.traffic, from: s.world.Host("client"), say: s.phase}
	for _, x := range s.services {
		if x.HTTP {
			s.mover.pooled = append(s.mover.pooled, x.To)
		}
	}
	s.counters = s.count()
	return nil
}

// setStage builds all but the balancer.
func setStage(ctx context.Context, o Options, out io.Writer, v *Verdict, servedBy string, specs []serviceSpec) (*scene, error) {
	s := &scene{Options: o, ctx: ctx, out: out, v: v, doors: map[string]*Door{}}
	s.phase("world: hosts on a bridge")
	var err error
	if s.world, err = NewWorld(o.dir, hosts); err != nil {
		return nil, err
	}
	if err := countGreetings(s.world); err != nil {
		return nil, err
	}
	n1, n2 := s.world.Host("n1"), s.world.Host("n2")
	if err := evacuable(n1, n1, n2); err != nil {
		return nil, err
	}
	if err := checkOwnership(s.world.Host("client"), n1); err != nil {
		return nil, err
	}
	s.traffic = NewTraffic(o.Seed, o.Short)
	s.web = NewHTTPTraffic(s.traffic, s.world.Host("client"))
	s.web.direct = o.Balancer == "direct" && o.Sabotage != BlindRelay
	if s.servers, err = s.traffic.NewEngine(s.world.Host(servedBy)); err != nil {
		return nil, err
	}
	if s.clients, err = s.traffic.NewEngine(s.world.Host("client")); err != nil {
		return nil, err
	}
	for _, x := range specs {
		at := s.world.Host(servedBy).V4
		vip := netip.MustParseAddrPort(x.vip)
		if vip.Addr().Is6() {
			at = s.world.Host(servedBy).V6
		}
		d, err := s.servers.Listen(netip.AddrPortFrom(at, x.port), x.shut)
		if err != nil {
			return nil, err
		}
		if x.http {
			s.web.Serve(d)
		}
		s.doors[x.name] = d
		s.services = append(s.services, Service{Name: x.name, VIP: vip, To: d.Addr, Slots: x.slots, HTTP: x.http})
	}
	return s, nil
}

func (s *scene) playedBy() string {
	if s.Sabotage == BlindRelay {
		return "a blind relay, as sabotage"
	}
	return s.Balancer
}

// cast chooses who plays the balancer.
func (s *scene) cast(n1, n2 *Host) (Balancer, error) {
	if s.Sabotage == BlindRelay {
		return &Blind{At: n1, Services: s.services}, nil
	}
	switch s.Balancer {
	case "holdfast":
		if s.Previous != "" {
			return newAcrossReleases(s, n1, n2), nil
		}
		return &Holdfast{Binary: s.Binary, Services: s.services, Nodes: []*Host{n1, n2}, Cluster: slices.Contains(s.Distances, HostMove.String())}, nil
	case "haproxy":
		return &HAProxy{At: n1, Services: s.services}, nil
	case "direct":
		return Direct{At: n1}, nil
	}
	return nil, fmt.Errorf("lab: balancer %q: one of holdfast, haproxy, direct", s.Balancer)
}

// close ends all processes. What they wrote is shown if the run was bad.
func (s *scene) close() {
	if s.saboteur != nil {
		s.saboteur.Close()
	}
	if s.traffic != nil {
		s.web.Stop()
		s.traffic.Stop()
	}
	if s.world != nil {
		s.world.Close()
	}
}

// phase prints a line of progress with the time since the run began.
func (s *scene) phase(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "%6.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// left is the time until a moment after the beginning.
func (s *scene) left(until time.Duration) time.Duration { return time.Until(s.began.Add(until)) }

// to is where clients of a service connect.
func (s *scene) to(name string) netip.AddrPort {
	for _, x := range s.services {
		if x.Name == name {
			if _, direct := s.balancer.(Direct); direct {
				return x.To
			}
			return x.VIP
		}
	}
	panic("lab: no service " + name)
}

// open makes n flows of a kind to a service and begins to connect them. The
// victim of a sabotage is the first flow of the kind that is asked for.
func (s *scene) open(k Kind, n int, service string) []*Flow {
	var flows []*Flow
	for range n {
		f := s.traffic.NewFlow(k, s.to(service))
		if s.saboteur == nil && k == Exchange && (s.Sabotage == DropOctet || s.Sabotage == RSTOne) {
			addr := netip.AddrPortFrom(s.world.Host("client").V4, 7000)
			saboteur, err := newSaboteur(s.world.Host("client"), s.Sabotage, addr, f.To)
			if err != nil {
				s.v.Broken(err)
				return nil
			}
			s.saboteur, f.To = saboteur, saboteur.Addr
			s.phase("sabotage: flow %d goes through a relay that will %s", f.ID, s.Sabotage)
		}
		flows = append(flows, f)
	}
	s.clients.Open(flows...)
	return flows
}

// strike commits the sabotage, in mid-run.
func (s *scene) strike() {
	s.v.Figure("struck", s.Sabotage != "")
	switch s.Sabotage {
	case KillOne:
		p := s.balancer.Serving()
		s.phase("sabotage: kill -9 %d on %s", p.PID, p.Host.Name)
		killPID(p.PID)
	case DropOctet, RSTOne:
		s.phase("sabotage: %s", s.Sabotage)
		if s.saboteur != nil {
			s.saboteur.Strike()
		}
	}
}
