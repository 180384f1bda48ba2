package netadmin

import "net/netip"

// Tunnel is the vxlan device that carries segments between hosts that are not
// on one Ethernet.
type Tunnel struct {
	Device string     // name of the device, which Open creates
	Local  netip.Addr // by which the other hosts name this one
	ID     int        // of the vxlan network
	Port   int        // UDP
}
