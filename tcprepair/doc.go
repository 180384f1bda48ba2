// Package tcprepair saves and restores one TCP socket, IPv4 or IPv6, so that
// a live connection continues on another host (or in another process) without
// its peer noticing more than a pause. It uses the kernel's TCP_REPAIR mode
// and nothing else: no kernel module, no packet library.
//
// # The contract
//
// The package handles sockets, not packets. Its caller promises:
//
//   - No packet reaches the socket from before [Save] until it is resumed, and
//     none reaches the tuple on either host while the tuple has no socket. A
//     segment that finds no socket draws a reset, and that is the end of the
//     connection. So divert or hold the tuple first, then save. Repair mode by
//     itself does not stop the stack: segments are still accepted, timers
//     still fire.
//   - Nobody reads, writes or shuts down the socket between Save and the
//     outcome ([Resume] or [Discard]).
//   - After [Discard] the [State] is the only truth. It is restored once and
//     once only; two sockets with one tuple corrupt the stream.
//
// The order of a move, with the way back:
//
//	divert the tuple              undo: stop diverting
//	Save(fd)                      undo: Resume(fd)
//	other side: Restore(state)    undo: Discard(fd there)
//	Verify(fd, state)             no longer the saved state: undo everything
//	Discard(fd)                   the point of no return
//	other side: GoLive(fd, state)
//	other side: let the held packets go
//
// # States
//
// [Save] takes a socket in ESTABLISHED, CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2,
// CLOSING and LAST_ACK. The others it refuses with an [*Unsupported], whose Why
// says what to do instead:
//
//	SYN_SENT          close it, which is silent, and dial from the new host
//	SYN_RECV          belongs to the kernel and has no descriptor: let the
//	                  handshake finish, then accept
//	accept queue      accept until it is empty, then save what was accepted
//	LISTEN            open it anew there; repair mode is not for listeners
//	TIME_WAIT, CLOSE  nothing is left to move
//
// Two refusals are for the moment only (Retry): segments that wait beyond a gap
// ([SaveOptions]) and urgent data that is not read yet.
//
// # What is kept and what is lost
//
// Kept: the four-tuple, the TCP state including half-closed ones, both queues
// to the octet, sequence numbers, windows (closed ones too), negotiated options
// (SACK, window scales, timestamps, MSS), buffer sizes and whether the kernel
// tunes them, keep-alive, user timeout, TCP_NODELAY, congestion control by name,
// TOS or traffic class, mark, and SO_OOBINLINE.
//
// Lost, since the kernel offers no way to set them: the congestion window and
// the round-trip estimate (the connection starts slow again), ECN (the peer
// goes on marking its segments, congestion marks are no longer echoed), the
// peer's last timestamp, the mark that an octet was urgent, segments that arrived
// out of order, and every option of the socket that State does not name.
//
// A socket with TCP-MD5 or TCP-AO keys cannot be recognised and must not be
// saved: the keys do not move, and the peer drops all that comes without.
//
// # Quiet
//
// A restored socket is in repair mode and has sent nothing. The kernel's
// timers run all the same: a restored socket with unacknowledged octets or an
// unacknowledged FIN retransmits after its first timeout (200 ms at the very
// least); one in CLOSE_WAIT or LAST_ACK acknowledges the peer's FIN with the
// kernel's next tick, one in CLOSING at once. All of these repeat what the
// saved socket had said or could have said, so they do no harm should the
// move be undone; but whoever holds restored sockets for long keeps their
// output guarded.
//
// A saved socket still retransmits, which does no harm either. It sends
// nothing new: Save closes its send window, since octets that left after they
// were saved as unsent would be the end of the connection.
//
// # Privilege
//
// Entering and leaving repair mode takes CAP_NET_ADMIN in the user namespace
// that owns the network namespace; see [Probe]. Everything else an owner of
// connections does without any capability, if a helper that has it
//
//   - sets repair mode on descriptors passed to it ([SetRepair]): [EnterRepair],
//     [GoLiveAll] and [ResumeAll] have it done through a [Toggle], and Save finds it set;
//   - makes the sockets to restore on ([SocketSpec.Open], then [RestoreOn]);
//   - delivers the segments of half-closed states ([Options].Inject).
//
// # Many at once
//
// A move of one idle connection takes some 15 microseconds of a processor on
// both sides together, and no allocation with [SaveTo] and a State that is used
// again (go test -bench Move). To keep the pause short, move few at a time: a
// connection stands still from its own Save to its own GoLive.
package tcprepair
