// Package netadmin is the kernel's side of moving flows between hosts. While
// a tuple moves, the receiving host holds its segments and the sending host
// diverts them, and neither answers them with a reset. One Admin owns the
// nftables tables, the TAP device and the sysctls that this takes; it knows
// nothing of sockets, flows or hosts beyond their addresses. Its methods take
// and return values, so that they may become messages to a privileged process.
//
// # Order
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
// address it is configured on lo, with arp_ignore=1 and arp_announce=2, so
// that they do not answer for it.
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
// Peers are on the same Ethernet segment. Segments in VLANs on top of Device,
// and fragments of IPv4, are not recognized; TCP makes none of the latter.
// Large receive offload in hardware (LRO) makes packets that cannot be sent
// on; GRO does not.
//
// A diverted tuple stays so until it is released or undiverted here: nobody
// tells this host that its leg has ended elsewhere. Its port stays reserved as
// long, and a host whose range of ports is used up by such legs cannot dial.
//
// A movable address is for flows alone: what other programs dial from it, from
// a port in a range that is steered, is lost.
//
// After a crash the rules remain: held and diverted tuples stay silent until
// the next Open, which removes them. Sysctls changed by a process that
// crashed stay changed.
package netadmin
