package loop

import (
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// bellData marks the loop's own bell among the events.
const bellData = ^uint64(0)

// Epoll is the Kernel that is real.
type Epoll struct {
	poller sock.Poller
	bell   sock.Bell
}

// NewEpoll makes a Kernel over an epoll instance of its own.
func NewEpoll() (*Epoll, error) {
	p, err := sock.NewPoller()
	if err != nil {
		return nil, err
	}
	b, err := sock.NewBell()
	if err != nil {
		p.Close()
		return nil, err
	}
	if e := p.WatchLevel(b.FD(), bellData); e != 0 {
		b.Close()
		p.Close()
		return nil, e
	}
	return &Epoll{poller: p, bell: b}, nil
}

// Free gives the epoll instance and the bell back.
func (k *Epoll) Free() {
	k.bell.Close()
	k.poller.Close()
}

// Now reads CLOCK_MONOTONIC.
func (k *Epoll) Now() flow.Instant { return flow.Instant(sock.Monotonic()) }

// Epoch compares CLOCK_REALTIME with it.
func (k *Epoll) Epoch() flow.Instant { return flow.Instant(time.Now().UnixNano() - sock.Monotonic()) }

// Wait is epoll_pwait. Waits are rounded up to whole milliseconds.
func (k *Epoll) Wait(ev []sock.PollEvent, d time.Duration) int {
	millis := -1
	if d >= 0 {
		millis = int((d + time.Millisecond - 1) / time.Millisecond)
	}
	n := k.poller.Wait(ev, millis)
	for i := range n {
		if ev[i].Data() == bellData {
			k.bell.Quiet()
			n--
			ev[i] = ev[n]
			break
		}
	}
	return n
}

// Wake rings the bell.
func (k *Epoll) Wake() { k.bell.Ring() }

// The rest is the system call of the same name.

func (k *Epoll) Watch(fd sock.FD, r sock.Ready, data uint64) sock.Errno {
	return k.poller.Watch(fd, r, data)
}
func (k *Epoll) Rewatch(fd sock.FD, r sock.Ready, data uint64) sock.Errno {
	return k.poller.Rewatch(fd, r, data)
}
func (k *Epoll) WatchShared(fd sock.FD, data uint64) sock.Errno {
	return k.poller.WatchShared(fd, data)
}
func (k *Epoll) Unwatch(fd sock.FD) sock.Errno { return k.poller.Unwatch(fd) }
func (k *Epoll) Accept(l sock.FD) (sock.FD, netip.AddrPort, sock.Errno) {
	return sock.Accept(l)
}
func (k *Epoll) Peek(fd sock.FD) (int, sock.Errno)                 { return sock.Peek(fd) }
func (k *Epoll) Recv(fd sock.FD, b []byte) (int, sock.Errno)       { return sock.Recv(fd, b) }
func (k *Epoll) Send(fd sock.FD, b []byte) (int, sock.Errno)       { return sock.Send(fd, b) }
func (k *Epoll) Splice(from, to sock.FD, n int) (int, sock.Errno)  { return sock.Splice(from, to, n) }
func (k *Epoll) Pipe(size int) (r, w sock.FD, err error)           { return sock.Pipe(size) }
func (k *Epoll) ReadPipe(fd sock.FD, b []byte) (int, sock.Errno)   { return sock.Read(fd, b) }
func (k *Epoll) Dial(s *sock.DialSpec) (sock.FD, bool, sock.Errno) { return sock.Dial(s) }
func (k *Epoll) DialResult(fd sock.FD) sock.Errno                  { return sock.DialResult(fd) }
func (k *Epoll) NoDelay(fd sock.FD)                                { sock.NoDelay(fd) }
func (k *Epoll) Enliven(fd sock.FD, life sock.Life)                { sock.Enliven(fd, life) }
func (k *Epoll) Threshold(fd sock.FD, octets int)                  { sock.Threshold(fd, octets) }
func (k *Epoll) Vanished(fd sock.FD, d time.Duration) bool         { return sock.Vanished(fd, d) }
func (k *Epoll) Sent(fd sock.FD) (time.Duration, bool)             { return sock.Sent(fd) }
func (k *Epoll) Shutdown(fd sock.FD)                               { fd.Shutdown() }
func (k *Epoll) Close(fd sock.FD)                                  { fd.Close() }
func (k *Epoll) CloseReset(fd sock.FD)                             { fd.CloseReset() }
func (k *Epoll) Cookie(fd sock.FD) (uint64, error)                 { return sock.Cookie(fd) }
func (k *Epoll) CloseLent(fd sock.FD)                              { fd.CloseLent() }
func (k *Epoll) CloseResetLent(fd sock.FD)                         { fd.CloseResetLent() }
