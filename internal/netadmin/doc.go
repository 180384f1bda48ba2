// Package netadmin is the kernel's side of moving flows and addresses between
// hosts. While a tuple moves, the receiving host holds its segments and the
// sending host diverts them, and neither answers them with a reset. A movable
// address passes a host only while the kernel has leave to let it pass. One
// Admin owns the nftables tables, the devices, the addresses and the sysctls
// that this takes; it knows nothing of flows, or of hosts beyond their
// addresses. Its methods take and return values, so that they may be messages
// to a privileged process.
//
// # Order of an address
//
// Every host calls Fence for all movable addresses, and nothing of them passes
// any more. The owner calls Own, again before each lease ends, and Announce
// the first time. From A to B:
//
//	B: Forward to A, Guest        B's own endpoints go on to reach A
//	A: Learn, Handshakes, Lead    new handshakes go to B, which is a guest
//	flows, as below
//	A: Handshakes until none is left, Learn(nil), Handshakes once more
//	A: Here (what stays), Forward to B, Guest, Disown
//	B: Divert (what stays) to A, Forward to nobody, Own, Announce, Guest ends
//	A: Forget, Guest ends         when neighbours know
//
// and each may be undone by its contrary, in the contrary order. What a host
// sends on it marks, and Forward sends nothing on that has the mark: A and B may
// forward to each other.
//
// # Order of flows
//
// From host A to host B, all for the same tuples:
//
//	B: Hold             undo: Drop
//	A: Divert to B      undo: Undivert, before B's Drop
//	A: save and discard the sockets, B: restore them
//	B: GoLive each, then Release
//
// A's Divert stays until segments no longer arrive at A, that is, until the
// address itself has moved; or until a Release on A, when the tuple is back.
//
// What several hosts dial from one movable address needs no order: Steer sends
// answers to the host that has dialled, by ranges of ports.
//
// # What a host needs
//
// A movable address must be local to the host that restores a socket on it,
// or held and injected segments are not for it. On hosts that do not own the
// address it is configured on lo, which Guest does, with arp_ignore=1 and
// arp_announce=2, which Open sets, so that they do not answer for it. For a
// fenced address the rules see to that as well.
//
// The endpoint may run on the very host that flows leave. Its segments never
// pass the network device, they pass lo; that is why Config.LocalDevices are
// hooked as well. They go to the peer and come back by the network device,
// where a packet between two addresses of this host must be accepted
// (accept_local, set by Open). The endpoint may as well run on the host that
// flows go to, which has the movable address on lo too: there, Divert to the
// owner comes before the connection, and Hold takes its place when it moves.
//
// # Limits
//
// A connection that was opened over lo has agreed on segments of nearly
// 64 KiB. After the move the endpoint still sends such segments, the
// diversion puts them on an Ethernet whole, and they are lost if they exceed
// its MTU: unlike a router, the diversion tells nobody to send less. So
// sockets on movable addresses need TCP_MAXSEG at most the device's MTU less
// headers from the beginning, and the endpoint then keeps to it.
//
// Peers are on the same Ethernet segment, or behind routers with a tunnel
// (Config.Tunnel). The tunnel adds 50 octets, or 70 over IPv6: over IPv4 the
// kernel makes fragments of what does not fit, over IPv6 the network between
// the hosts needs the larger MTU. Segments in VLANs on top of Device, and
// fragments of IPv4, are not recognized; TCP makes none of the latter. Large
// receive offload in hardware (LRO) makes packets that cannot be sent on; GRO
// does not.
//
// Fence looks at Device and the tunnel. A host with another device on the
// Ethernet of a movable address must not have the address there.
//
// A program that dials a movable address on a host that has it, without binding
// another first, has the address at both ends of the connection. Such a
// connection stays with its host, and cannot move.
//
// A diverted tuple stays so until it is released or undiverted here: nobody
// tells this host that its leg has ended elsewhere. Its port stays reserved as
// long, and a host whose range of ports is used up by such legs cannot dial.
//
// A movable address is for flows alone: what other programs dial from it, from
// a port in a range that is steered, is lost.
//
// After a crash the rules remain: held tuples stay silent, diverted ones
// diverted, and a lease ends when its time is up. The next Open of the same
// Config.Table removes them, Adopt takes them over. Sysctls changed by a
// process that crashed stay changed.
package netadmin
