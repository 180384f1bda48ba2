package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// Service is one VIP of the balancer under test, and where its flows go.
type Service struct {
	Name  string
	VIP   netip.AddrPort
	To    netip.AddrPort
	Slots int // connections at a time, requests at a time of HTTP; 0: no limit
	HTTP  bool
}

// A Balancer is what is under test: the product, or a substitute that shows
// whether the lab can tell good from bad.
type Balancer interface {
	// Start runs it and returns when it accepts connections.
	Start(context.Context) error
	// Move moves every flow at a distance.
	Move(context.Context, Label) (*MoveReport, error)
	// Serving says where the flows are now.
	Serving() Place
	// Status is the balancer's own account; nil if it gives none.
	Status(context.Context) (*Status, error)
	// Logs is the end of what its processes wrote.
	Logs() string
}

// Place is a process on a host.
type Place struct {
	Host *Host
	PID  int
}

// MoveReport is what the product says of a move. The lab believes it only
// where the kernel says nothing else.
type MoveReport struct {
	Distance   string         `json:"distance"`
	Flows      int            `json:"flows"`
	Octets     uint64         `json:"octets"`
	Refused    int            `json:"refused"`
	Reasons    map[string]int `json:"reasons"`
	Lost       int            `json:"lost"`
	Pause      PauseMicros    `json:"pause_us"`
	States     map[string]int `json:"states"`
	WithOctets int            `json:"with_octets"`
	PID        int            `json:"pid"`
	Millis     float64        `json:"millis"`
}

// PauseMicros is how long flows were not served during a move.
type PauseMicros struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Status is the part of the product's status that the lab judges.
type Status struct {
	Node       string            `json:"node"`
	PID        int               `json:"pid"`
	Generation uint64            `json:"generation"`
	Flows      int               `json:"flows"`
	OnOld      int               `json:"flows_on_old_objects"`
	ByState    map[string]int    `json:"flows_by_state"`
	Moves      map[string]uint64 `json:"moves"`
	Queued     map[string]int    `json:"queued"` // by backend
	Host       map[string]uint64 `json:"host"`   // of moves between hosts
	// Counters that must stay zero.
	Lost        uint64 `json:"lost"`
	LostTotal   uint64 `json:"flows_lost_total"`
	ResetByMove uint64 `json:"flows_reset_by_move_total"`
}

// FlowStatus is the part of the product's list of flows that the lab looks at.
type FlowStatus struct {
	Client string `json:"client"`
	Kind   string `json:"kind"`
	Moves  int    `json:"moves"`
}

// distanceNames are the moves that a lab may be asked to make.
var distanceNames = map[string]Label{"config": Config, "loop": Loop, "process": ProcessMove, "host": HostMove}

func distances(names []string) ([]Label, error) {
	var out []Label
	for _, n := range names {
		l, ok := distanceNames[n]
		if !ok {
			return nil, fmt.Errorf("lab: distance %q: one of config, loop, process, host", n)
		}
		out = append(out, l)
	}
	return out, nil
}

// The VIPs: on lo of both balancers, and on the device of the owner.
var (
	vip4 = netip.MustParseAddr("10.9.0.100")
	vip6 = netip.MustParseAddr("fd09::100")
)

// hostPrefix is a prefix of one address.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// evacuable makes n1 and n2 able to own the VIPs in turn: both have them, but
// only the owner's neighbours hear of it. arp_ignore 1 answers only for
// addresses of the device that was asked; NDP does so anyway.
func evacuable(owner *Host, all ...*Host) error {
	for _, h := range all {
		for _, set := range [][2]string{
			{"net/ipv4/conf/all/arp_ignore", "1"}, {"net/ipv4/conf/all/arp_announce", "2"},
			{"net/ipv4/conf/eth0/arp_ignore", "1"}, {"net/ipv4/conf/eth0/arp_announce", "2"},
		} {
			if err := h.Sysctl(set[0], set[1]); err != nil {
				return err
			}
		}
		for _, a := range []netip.Addr{vip4, vip6} {
			if err := h.AddAddress("lo", hostPrefix(a)); err != nil {
				return err
			}
			if h == owner {
				if err := h.AddAddress("eth0", hostPrefix(a)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkOwnership makes sure that the world is what it should be: a neighbour
// that asks for a VIP hears the owner, and hears nobody when the owner has
// taken the address from its device, though both have it on lo.
func checkOwnership(from, owner *Host) error {
	for _, a := range []netip.Addr{vip4, vip6} {
		mac, err := from.Ask(a, 5*time.Second) // a lost request is repeated after one
		if err != nil {
			return err
		}
		if mac.String() != owner.MAC.String() {
			return fmt.Errorf("lab: %v is at %v for %s, want %s's %v", a, mac, from.Name, owner.Name, owner.MAC)
		}
		if err := owner.RemoveAddress("eth0", hostPrefix(a)); err != nil {
			return err
		}
		mac, err = from.Ask(a, 150*time.Millisecond)
		if err != nil {
			return err
		}
		if mac != nil {
			return fmt.Errorf("lab: %v answers for %v, which is on lo only", mac, a)
		}
		if err := from.ForgetNeighbour(a); err != nil {
			return err
		}
		if err := owner.AddAddress("eth0", hostPrefix(a)); err != nil {
			return err
		}
	}
	return nil
}
