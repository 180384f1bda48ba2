package netadmin

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Closing lists the sockets of addr on this host whose own end is shut and whose connection is
// not over: most have no process any more, and the kernel alone still sends what is in
// their queues, and FIN. They cannot move, so until the list lacks them their segments
// have to come here. TIME_WAIT is not among them: nothing of it is due.
func (a *Admin) Closing(addr netip.Addr) ([]Tuple, error) {
	addr = addr.Unmap()
	sockets, err := a.sockets(map[netip.Addr]bool{addr: true})
	if err != nil {
		return nil, err
	}
	var out []Tuple
	for t, state := range sockets {
		switch state {
		case unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_FIN_WAIT2, unix.BPF_TCP_CLOSING, unix.BPF_TCP_LAST_ACK:
			out = append(out, t)
		}
	}
	slices.SortFunc(out, compareTuples)
	return out, nil
}

// Closing is [Admin.Closing].
func (c *Client) Closing(addr netip.Addr) ([]Tuple, error) {
	r, err := c.call(call{Name: "Closing", Addr: addr})
	return r.Tuples, err
}
