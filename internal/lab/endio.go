package lab

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// event handles what epoll says of the end's socket.
func (x *end) event(events uint32) {
	switch {
	case events&unix.EPOLLERR != 0:
		x.broken()
	case x.opening:
		x.opened()
	default:
		if events&unix.EPOLLOUT != 0 {
			x.blocked = false
			x.pump()
		}
		if !x.closed && events&(unix.EPOLLIN|unix.EPOLLHUP) != 0 {
			x.read()
		}
	}
	x.rearm()
}

// broken asks the kernel for the socket's error and fails by it.
func (x *end) broken() {
	n, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil {
		err = unix.Errno(n)
	}
	k := Reset
	if x.opening {
		k = Refused
	}
	x.fail(k, err)
}

func (x *end) opened() {
	x.opening = false
	x.eng.opening--
	x.eng.openNext()
	f := x.flow
	f.Opened.Store(max(x.t.now(), 1))
	if f.Kind == Short {
		x.t.mu.Lock()
		x.t.shorts.Connect.Add(time.Duration(f.Opened.Load() - f.born.Load()))
		x.t.mu.Unlock()
	}
	x.begin()
}

// wants says which events matter now. Errors are reported always, so a reset
// is seen while the end rests.
func (x *end) wants() uint32 {
	var w uint32
	if !x.eof && !x.resting && !x.opening {
		w |= unix.EPOLLIN
	}
	if x.blocked || x.opening {
		w |= unix.EPOLLOUT
	}
	return w
}

func (x *end) rearm() {
	if w := x.wants(); !x.closed && w != x.armed {
		x.armed = w
		ev := unix.EpollEvent{Events: w, Fd: int32(x.fd), Pad: int32(x.serial)}
		_ = unix.EpollCtl(x.eng.epoll, unix.EPOLL_CTL_MOD, x.fd, &ev)
	}
}

// writesPerTurn and readsPerTurn bound what one flow does while others wait.
const (
	writesPerTurn = 2
	readsPerTurn  = 2
)

// floodOctets is how far a flood looks ahead of the kernel.
const floodOctets = 64 << 10

// pump sends what is due, and FIN behind it.
func (x *end) pump() {
	if x.closed || x.opening || x.blocked || x.finSent || x.flow == nil {
		return
	}
	for x.side == client && x.greeted < greetingOctets {
		n, err := unix.Write(x.fd, x.greeting[x.greeted:])
		if err != nil {
			x.wrote(err)
			return
		}
		x.greeted += n
	}
	for turn := 0; ; turn++ {
		if x.prog.flood && !x.finDue() {
			x.due = x.pos + floodOctets
		}
		if x.prog.flood && x.finDue() {
			x.due = x.pos // no more than what the kernel took
		}
		if x.pos == x.due {
			break
		}
		if turn == writesPerTurn {
			x.blocked = true // not so, but epoll shall give us another turn
			return
		}
		b := x.eng.buf[:min(x.due-x.pos, scratchOctets)]
		x.stream.Fill(b, x.pos)
		n, err := unix.Write(x.fd, b)
		if err != nil {
			x.wrote(err)
			return
		}
		x.pos += uint64(n)
		x.out.sent.Store(x.pos)
		if n < len(b) {
			x.blocked = true
			return
		}
	}
	if x.finDue() {
		x.finSent = true
		// Before the FIN can arrive: the peer checks it against this.
		x.out.finAt.Store(x.pos + 1)
		if err := unix.Shutdown(x.fd, unix.SHUT_WR); err != nil {
			x.fail(Reset, fmt.Errorf("shutdown: %w", err))
			return
		}
		x.leave()
	}
}

func (x *end) wrote(err error) {
	switch {
	case errors.Is(err, unix.EAGAIN):
		x.blocked = true
	case errors.Is(err, unix.EINTR):
		x.blocked = true // epoll tells at once
	default:
		x.fail(Reset, fmt.Errorf("write at %d: %w", x.pos, err))
	}
}

// finDue says whether this end has nothing more to send once what is due has
// been sent.
func (x *end) finDue() bool {
	p := &x.prog
	switch {
	case p.finEarly:
		return true
	case p.exchanges > 0:
		return x.exchange >= p.exchanges && (p.finFirst || x.eof)
	case p.asks:
		return x.finishing && !x.awaiting
	case x.side == client:
		return x.finishing
	case x.flow.Kind == ClientHalf:
		return x.finishing
	default:
		return x.eof // a server goes on until its client has ended
	}
}

// read takes what has arrived and verifies it.
func (x *end) read() {
	for range readsPerTurn {
		b := x.eng.buf
		if x.flow == nil {
			b = x.greeting[x.greeted:]
		} else if x.prog.readBurst > 0 && !x.finishing {
			b = b[:min(x.readLeft, len(b))]
		}
		n, err := unix.Read(x.fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			return
		case err != nil:
			x.fail(Reset, fmt.Errorf("read at %d: %w", x.verifier.Off, err))
			return
		case n == 0:
			x.ended()
			return
		case x.flow == nil:
			if x.greeted += n; x.greeted == greetingOctets {
				x.meet()
			}
		default:
			x.arrived(b[:n])
		}
		if x.closed || x.resting || n < len(b) {
			return
		}
	}
}

// meet finds the flow that greeted this server.
func (x *end) meet() {
	id, err := readGreeting(x.t.Seed, x.greeting)
	if err != nil {
		x.fail(Intruder, err)
		return
	}
	f := x.t.flow(id)
	if f == nil {
		x.fail(Intruder, fmt.Errorf("flow %d is over or never was", id))
		return
	}
	if !f.serverEnd.CompareAndSwap(nil, x) {
		x.flow = f
		x.fail(Intruder, errors.New("a second connection for the flow"))
		return
	}
	x.take(f)
	x.buffers()
	f.Order.Store(x.order)
	f.Served.Store(max(x.t.now(), 1))
	x.begin()
}

func (x *end) arrived(b []byte) {
	now := x.t.now()
	if gap := now - x.lastArrival; gap > x.in.gap.Load() {
		x.in.gap.Store(gap)
	}
	x.lastArrival = now
	wrong := x.verifier.Feed(b)
	x.in.got.Store(x.verifier.Off)
	if wrong != nil {
		x.fail(WrongOctet, wrong)
		return
	}
	if at := x.in.markAt.Load(); at != 0 && x.verifier.Off >= x.in.markOff.Load() {
		way := Down
		if x.side == server {
			way = Up
		}
		x.eng.stalls.add(Stall{Flow: x.flow.ID, Of: x.flow.Kind, Way: way,
			During: Label(x.t.label.Load()), When: time.Now(), Took: time.Duration(now - at)})
		x.in.markAt.Store(0)
	}
	if x.prog.readBurst > 0 && !x.finishing {
		if x.readLeft -= len(b); x.readLeft <= 0 {
			x.restNow()
		}
	}
	x.progress()
}

// restNow stops reading for a while.
func (x *end) restNow() {
	x.resting = true
	x.eng.after(int64(x.prog.rest), x, wakeReader)
}

// ended handles the peer's FIN.
func (x *end) ended() {
	if x.flow == nil {
		if x.greeted > 0 {
			x.fail(Intruder, fmt.Errorf("FIN after %d octets of a greeting", x.greeted))
			return
		}
		// A dial that was given up for another one, as a move may do.
		x.t.mu.Lock()
		x.t.empty++
		x.t.mu.Unlock()
		x.close()
		return
	}
	switch at := x.in.finAt.Load(); {
	case at == 0:
		x.fail(EarlyEOF, fmt.Errorf("FIN at %d, the peer sent none", x.verifier.Off))
		return
	case at-1 != x.verifier.Off:
		x.fail(EarlyEOF, fmt.Errorf("FIN at %d, the peer sent it at %d", x.verifier.Off, at-1))
		return
	}
	x.eof = true
	x.pump()
	x.leave()
}

// leave closes the end once both directions are over.
func (x *end) leave() {
	if x.closed || !x.eof || !x.finSent {
		return
	}
	x.close()
	if x.flow.ends.Add(1) == 2 {
		x.t.over(x.flow)
	}
}

// fail reports a fault and closes: what follows on a broken flow says nothing.
func (x *end) fail(k FaultKind, err error) {
	if x.closed {
		return
	}
	if x.opening {
		x.opening = false
		x.eng.opening--
		defer x.eng.openNext()
	}
	// First tell, then close: what the close does to the other end is a
	// consequence, not the fault.
	x.t.fault(x.flow, k, x.side.String(), err)
	x.close()
}

func (x *end) close() {
	if x.closed {
		return
	}
	x.closed = true
	if x.door != nil {
		x.door.Active.Add(-1)
	}
	if x.fd >= 0 {
		if x.fd < len(x.eng.ends) && x.eng.ends[x.fd] == x {
			x.eng.ends[x.fd] = nil
		}
		_ = unix.Close(x.fd)
	}
}
