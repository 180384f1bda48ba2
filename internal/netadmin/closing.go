package netadmin

import (
	"maps"
	"net/netip"
	"slices"
)

// Closing lists the sockets of addr on this host whose own end is shut and whose connection is
// not over: most have no process any more, and the kernel alone still sends what is in
// their queues, and FIN. They cannot move, so until the list lacks them their segments
// have to come here. TIME_WAIT is not among them: nothing of it is due.
func (a *Admin) Closing(addr netip.Addr) ([]Tuple, error) {
	addr = addr.Unmap()
	sockets, err := a.sockets(map[netip.Addr]bool{addr: true}, closing)
	if err != nil {
		return nil, err
	}
	out := slices.Collect(maps.Keys(sockets))
	slices.SortFunc(out, compareTuples)
	return out, nil
}

// Closing is [Admin.Closing].
func (c *Client) Closing(addr netip.Addr) ([]Tuple, error) {
	r, err := c.call(call{Name: "Closing", Addr: addr})
	return r.Tuples, err
}
