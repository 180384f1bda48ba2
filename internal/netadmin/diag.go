package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The request and the answer of sock_diag for TCP, struct inet_diag_req_v2 and
// struct inet_diag_msg (include/uapi/linux/inet_diag.h), without the
// attributes that cost the kernel most.
const (
	diagRequestLen = 56
	diagMessageLen = 72

	// Sets of states. SYN_RECV stands for handshakes without a socket, too.
	allStates  = 0xfff &^ (1 << unix.BPF_TCP_LISTEN)
	handshakes = 1 << unix.BPF_TCP_SYN_RECV
	closing    = 1<<unix.BPF_TCP_FIN_WAIT1 | 1<<unix.BPF_TCP_FIN_WAIT2 | 1<<unix.BPF_TCP_CLOSING | 1<<unix.BPF_TCP_LAST_ACK
)

// sockets lists the sockets of this host in some states with a local address in
// own, and their states. One in TIME_WAIT counts: it has yet to answer a FIN that
// comes again. The kernel passes over others much faster than it tells of them.
func (a *Admin) sockets(own map[netip.Addr]bool, states uint32) (map[Tuple]uint8, error) {
	out := map[Tuple]uint8{}
	// Sockets for both families have addresses of either.
	families := []uint8{unix.AF_INET6}
	for addr := range own {
		if addr.Is4() {
			families = []uint8{unix.AF_INET, unix.AF_INET6}
		}
	}
	for _, fam := range families {
		// Another dump at the same moment may interrupt this one.
		for try := 0; ; try++ {
			err := a.dumpSockets(fam, own, states, out)
			if err == nil {
				break
			}
			if !errors.Is(err, errInterrupted) || try == 5 {
				return nil, fmt.Errorf("netadmin: list sockets: %w", err)
			}
		}
	}
	return out, nil
}

var errInterrupted = errors.New("the list has changed meanwhile")

func (a *Admin) dumpSockets(fam uint8, own map[netip.Addr]bool, states uint32, out map[Tuple]uint8) error {
	a.diagMu.Lock()
	defer a.diagMu.Unlock()
	a.diagSeq++
	req := make([]byte, unix.NLMSG_HDRLEN+diagRequestLen)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], 20 /* SOCK_DIAG_BY_FAMILY */)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], a.diagSeq)
	r := req[unix.NLMSG_HDRLEN:]
	r[0], r[1] = fam, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], states)
	if err := unix.Sendto(a.diag, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	interrupted := false
	for {
		n, _, err := unix.Recvfrom(a.diag, a.diagBuf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for b := a.diagBuf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			l := int(binary.NativeEndian.Uint32(b))
			if l < unix.NLMSG_HDRLEN || l > len(b) {
				return errors.New("a message of sock_diag that has no end")
			}
			kind, flags, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])
			m := b[unix.NLMSG_HDRLEN:l]
			b = b[min((l+3)&^3, len(b)):]
			if seq != a.diagSeq {
				continue // of a dump that was given up
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NLMSG_DONE:
				if interrupted {
					return errInterrupted
				}
				return nil
			case unix.NLMSG_ERROR:
				if len(m) >= 4 {
					return unix.Errno(-int32(binary.NativeEndian.Uint32(m)))
				}
				return errors.New("an error of sock_diag without a number")
			}
			if len(m) < diagMessageLen {
				continue
			}
			end := func(port, addr []byte) netip.AddrPort {
				x := netip.AddrFrom4([4]byte(addr))
				if m[0] == unix.AF_INET6 {
					x = netip.AddrFrom16([16]byte(addr)).Unmap() // of a socket for both
				}
				return netip.AddrPortFrom(x, binary.BigEndian.Uint16(port))
			}
			t := Tuple{Local: end(m[4:], m[8:]), Remote: end(m[6:], m[24:])}
			if t.Remote.Port() != 0 && own[t.Local.Addr()] {
				out[t] = m[1]
			}
		}
	}
}
