package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// Rights are what the privileged process does for its clients, by the file of this
// host. A client tells it nothing of them: who has taken the process that serves over
// can ask for no more than the file says.
type Rights struct {
	// Movable are the addresses of flows that move: of VIPs and movable listeners, and
	// those that their flows are dialled from.
	Movable []netip.Addr
	// VIPs are the addresses that are owned, by leases, with the prefixes of their
	// networks.
	VIPs []netip.Prefix
	// Nodes are all hosts of the cluster, and the ports that each dials from: to them
	// segments are sent on, and to nobody else.
	Nodes []PortRange
}

// Bounds of what clients may have in force, beside those of Config.
const (
	// leaseMax is the longest lease, which the configuration's is not beyond: a host
	// that is taken over falls silent that soon after it has been stopped.
	leaseMax = time.Minute
	// learnOnMax bounds the addresses and ports that SYNs are learnt on.
	learnOnMax = 1 << 12
	// rangesMax bounds the ranges of ports that are steered, of all hosts together. The
	// kernel looks through them one after another.
	rangesMax = 1 << 12
)

// allowed is Rights, to look up.
type allowed struct {
	movable map[netip.Addr]bool
	vips    map[netip.Addr]int // bits of the network's prefix
	nodes   map[netip.Addr]PortRange
}

func lookup(from Rights) *allowed {
	r := &allowed{map[netip.Addr]bool{}, map[netip.Addr]int{}, map[netip.Addr]PortRange{}}
	for _, a := range from.Movable {
		r.movable[a.Unmap()] = true
	}
	for _, p := range from.VIPs {
		p = unmapped(p)
		r.movable[p.Addr()], r.vips[p.Addr()] = true, p.Bits()
	}
	for _, n := range from.Nodes {
		r.nodes[n.To.Unmap()] = n
	}
	return r
}

// and adds what rules speak of: it may be ended, also where the file has lost it since.
func (r *allowed) and(st State) *allowed {
	r = &allowed{maps.Clone(r.movable), maps.Clone(r.vips), r.nodes}
	for _, p := range st.Fenced { // whatever else there is of a VIP, it is fenced
		p = unmapped(p)
		r.movable[p.Addr()], r.vips[p.Addr()] = true, p.Bits()
	}
	for _, ts := range [...][]Tuple{st.Held, st.Here} {
		for _, t := range ts {
			r.movable[t.Local.Addr().Unmap()] = true
		}
	}
	for _, d := range st.Diverted {
		r.movable[d.Tuple.Local.Addr().Unmap()] = true
	}
	return r
}

// may asks a question about the rights, and once more when the answer is no and the file
// may have changed.
func (s *Server) may(check func(*allowed) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.allowed != nil {
		if err := check(s.allowed); err == nil {
			return nil
		}
	}
	if r, changed := s.Rights(); changed || s.allowed == nil {
		s.allowed = lookup(r)
	}
	return check(s.allowed)
}

// mayEnd is may of what only ends something: that is allowed for what is in force, too.
func (s *Server) mayEnd(check func(*allowed) error) error {
	err := s.may(check)
	if err == nil {
		return nil
	}
	st, failed := s.Admin.State()
	if failed != nil {
		return err
	}
	s.mu.Lock()
	r := s.allowed.and(st)
	s.mu.Unlock()
	return check(r)
}

// ends tells whether a request by name only ends something.
func (q *call) ends() bool {
	switch q.Name {
	case "Disown", "Forget":
		return true
	case "Guest":
		return q.Time == 0
	case "Lead", "Forward":
		return !q.To.IsValid()
	}
	return false
}

// moves: flows may be moved with this address.
func (r *allowed) moves(a netip.Addr) error {
	if a = a.Unmap(); r.movable[a] {
		return nil
	}
	return fmt.Errorf("netadmin: %v is no address that moves, by the file of this process%s", a, closest(a, r.movable))
}

// ends: all of these do.
func (r *allowed) ends(ts []Tuple) error {
	for i, t := range ts {
		if a := t.Local.Addr(); i == 0 || a != ts[i-1].Local.Addr() {
			if err := r.moves(a); err != nil {
				return err
			}
		}
	}
	return nil
}

// owned: this is the address of a VIP.
func (r *allowed) owned(a netip.Addr) error {
	if _, known := r.vips[a.Unmap()]; known {
		return nil
	}
	return fmt.Errorf("netadmin: %v is no address of vips, by the file of this process%s", a, closest(a.Unmap(), r.vips))
}

// prefix: this is the address of a VIP, and may be put on a device so: the kernel takes a
// shorter prefix than the network has for a way to hosts elsewhere.
func (r *allowed) prefix(p netip.Prefix) error {
	p = unmapped(p)
	if err := r.owned(p.Addr()); err != nil {
		return err
	}
	if bits := r.vips[p.Addr()]; p.Bits() < bits {
		return fmt.Errorf("netadmin: %v: the network of that address has %d bits, by the file of this process", p, bits)
	}
	return nil
}

// node: this host is of the cluster.
func (r *allowed) node(to netip.Addr) error {
	if _, known := r.nodes[to.Unmap()]; known {
		return nil
	}
	return fmt.Errorf("netadmin: %v is no node of the cluster, by the file of this process, and nothing is sent on to it%s", to, closest(to.Unmap(), r.nodes))
}

// dials: what this host dials comes from these ports; no ports are the end of it, also of
// a node that has left the file.
func (r *allowed) dials(x PortRange) error {
	if x.First == 0 && x.Last == 0 {
		return nil
	}
	if err := r.node(x.To); err != nil {
		return err
	}
	if n := r.nodes[x.To.Unmap()]; x.First < n.First || x.Last > n.Last {
		return fmt.Errorf("netadmin: steer ports %d-%d to %v: that node dials from %d-%d, by the file of this process", x.First, x.Last, x.To, n.First, n.Last)
	}
	return nil
}

// call: all that a request by name speaks of.
func (r *allowed) call(q *call) error {
	switch {
	case q.Time > leaseMax:
		return fmt.Errorf("netadmin: %s for %v: the longest is %v", q.Name, q.Time, leaseMax)
	case len(q.On) > learnOnMax:
		return fmt.Errorf("netadmin: %s on %d addresses and ports: the most are %d", q.Name, len(q.On), learnOnMax)
	}
	var errs []error
	for _, p := range q.Prefixes {
		errs = append(errs, r.prefix(p))
	}
	switch q.Name {
	case "Own":
		errs = append(errs, r.prefix(q.Prefix))
	case "Disown", "Guest", "Announce", "Handshakes", "Closing", "Lead", "Forward", "Forget":
		errs = append(errs, r.owned(q.Addr))
	case "Fence", "Routed", "Learn", "Steer", "Counters", "State":
	default:
		return unknownCall(q.Name) // what it may be asked for is not known either
	}
	for _, x := range q.On {
		errs = append(errs, r.owned(x.Addr()))
	}
	for _, a := range q.Addrs {
		if q.Name == "Steer" {
			errs = append(errs, r.moves(a))
		} else {
			errs = append(errs, r.owned(a))
		}
	}
	if q.To.IsValid() {
		errs = append(errs, r.node(q.To))
	}
	for _, x := range q.Ranges {
		errs = append(errs, r.dials(x))
	}
	for _, err := range errs {
		if err != nil {
			return err // one is enough to be told
		}
	}
	return nil
}

func unknownCall(name string) error {
	return fmt.Errorf("netadmin: no call %q in version %d", name, wireVersion)
}

// sockets: they are made for these.
func (r *allowed) sockets(specs []tcprepair.SocketSpec) error {
	if len(specs) == 0 || len(specs) > socketsMax {
		return fmt.Errorf("netadmin: %d sockets in one request: 1 to %d", len(specs), socketsMax)
	}
	for _, x := range specs {
		if err := r.moves(x.Local.Addr()); err != nil {
			return err
		}
		if x.Transparent || x.Mark != 0 {
			return fmt.Errorf("netadmin: a socket at %v with mark %d, transparent %v: it is made without either", x.Local, x.Mark, x.Transparent)
		}
	}
	return nil
}

// repaired: these are sockets of addresses that move.
func (r *allowed) repaired(fds []int) error {
	for _, fd := range fds {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return fmt.Errorf("netadmin: repair: %w", err)
		}
		var a netip.Addr
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			a = netip.AddrFrom4(sa.Addr)
		case *unix.SockaddrInet6:
			a = netip.AddrFrom16(sa.Addr)
		}
		if err := r.moves(a); err != nil {
			return err
		}
	}
	return nil
}

// closest says which of some addresses begins as a does.
func closest[T any](a netip.Addr, of map[netip.Addr]T) string {
	best, most := netip.Addr{}, -1
	for x := range of {
		if x.BitLen() != a.BitLen() {
			continue
		}
		bits := 0
		for p, err := x.Prefix(bits + 1); err == nil && p.Contains(a); p, err = x.Prefix(bits + 1) {
			bits++
		}
		if bits > most || bits == most && x.Less(best) {
			best, most = x, bits
		}
	}
	if most < 0 {
		return ""
	}
	return fmt.Sprintf("; the closest is %v", best)
}

// injected reads a packet of those that are injected: an empty segment, which acknowledges
// and may end the stream (see package tcprepair). Nothing else is let in past the rules.
func injected(packet []byte) (Tuple, error) {
	var src, dst netip.Addr
	var tcp []byte
	switch {
	case len(packet) == 40 && packet[0] == 0x45 && packet[9] == unix.IPPROTO_TCP && packet[6]&0x3f == 0 && packet[7] == 0:
		src, dst, tcp = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:])), packet[20:]
	case len(packet) == 60 && packet[0]>>4 == 6 && packet[6] == unix.IPPROTO_TCP:
		src, dst, tcp = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:])), packet[40:]
	}
	if tcp == nil || tcp[12]>>4 != 5 || tcp[13]&^finFlag != ackFlag {
		return Tuple{}, errors.New("netadmin: inject: not an empty segment of TCP with ACK, and perhaps FIN")
	}
	t := Tuple{Local: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])), Remote: netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))}
	return t, t.check()
}
