package tcprepair

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The rows of the table of TCP states (docs/limits.md) for sockets that are not
// moved as they are: each shows that it is refused, why, and that what is to be
// done instead works. The others are in states_test.go.

// openPeer makes a nonblocking socket at an address and begins to connect it.
func openPeer(t testing.TB, from netip.Addr, to netip.AddrPort, set func(fd int)) int {
	t.Helper()
	fd, err := unix.Socket(domain(from), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	must(t, "socket", err)
	t.Cleanup(func() { unix.Close(fd) })
	if set != nil {
		set(fd)
	}
	must(t, "bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))))
	if err := unix.Connect(fd, sockaddr(to)); !errors.Is(err, unix.EINPROGRESS) && err != nil {
		t.Fatal("connect:", err)
	}
	return fd
}

// accept returns the next connection of a nonblocking listener, or -1.
func accept(t testing.TB, ln int) int {
	t.Helper()
	fd, _, err := unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if errors.Is(err, unix.EAGAIN) {
		return -1
	}
	must(t, "accept", err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// handshakes counts what this namespace has in SYN_RECV.
func handshakes(t testing.TB, v6 bool) (n int) {
	t.Helper()
	path := "/proc/thread-self/net/tcp"
	if v6 {
		path += "6"
	}
	b, err := os.ReadFile(path)
	must(t, path, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "03" { // TCP_SYN_RECV
			n++
		}
	}
	return n
}

// SYN_SENT: refused. Closing it says nothing, and the new owner dials from the
// very tuple.
func TestSynSent(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		ln, at := listen(t, netip.AddrPortFrom(peers, 0), func(fd int) { deafen(t, fd) })
		fd := openPeer(t, ours, at, nil)
		from := localAddr(t, fd)
		awaitTest(t, fd, SynSent)
		_, err := Save(fd)
		wantUnsupported(t, err, "SYN_SENT", false)
		if st := stateOf(t, fd); st != SynSent {
			t.Errorf("refused, and now in %v", st)
		}
		if n := sent(t, func() { must(t, "shutdown", unix.Shutdown(fd, unix.SHUT_RDWR)) }); n != 0 {
			t.Errorf("giving up a dial sent %d segments", n)
		}
		undeafen(t, ln)
		c := &conn{t: t}
		c.ours, err = unix.Socket(domain(ours), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		must(t, "socket", err)
		defer unix.Close(c.ours)
		must(t, "SO_REUSEADDR", unix.SetsockoptInt(c.ours, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		must(t, "bind", unix.Bind(c.ours, sockaddr(from)))
		must(t, "connect", unix.Connect(c.ours, sockaddr(at)))
		must(t, "nonblock", unix.SetNonblock(c.ours, true))
		c.peers, _, err = unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		must(t, "accept", err)
		defer unix.Close(c.peers)
		c.move(Established) // a leg that was dialled moves like one that was accepted
		c.finish(true, true)
	})
}

// SYN_RECV: no descriptor has it, so nobody can save it. The handshake is let
// finish; then it waits in the accept queue.
func TestSynRecv(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		ln, at := listen(t, netip.AddrPortFrom(ours, 0), nil)
		must(t, "nonblock", unix.SetNonblock(ln, true))
		c := &conn{t: t, ours: -1}
		c.peers = openPeer(t, peers, at, func(fd int) { deafen(t, fd) }) // the SYN-ACK is lost
		wait(t, "a handshake", func() bool { return handshakes(t, ours.Is6()) == 1 })
		if fd := accept(t, ln); fd >= 0 {
			t.Fatal("accepted before its time")
		}
		undeafen(t, c.peers)
		wait(t, "the end of the handshake", func() bool {
			c.ours = accept(t, ln)
			return c.ours >= 0
		})
		if n := handshakes(t, ours.Is6()); n != 0 {
			t.Errorf("%d handshakes left", n)
		}
		c.bothWrote()
		c.move(Established)
		c.finish(true, true)
	})
}

// The accept queue and LISTEN: a listener is not saved, nor can it be closed
// silently, since repair mode is not for listeners. Its queue is accepted until
// it is empty, octets that came early included, and what was accepted moves.
func TestAcceptQueue(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		ln, at := listen(t, netip.AddrPortFrom(ours, 0), nil)
		must(t, "nonblock", unix.SetNonblock(ln, true))
		var waiting []*conn
		for range 3 {
			c := &conn{t: t, ours: -1}
			c.peers = openPeer(t, peers, at, nil)
			awaitTest(t, c.peers, Established)
			c.mustWrite(false, hello)
			waiting = append(waiting, c)
		}
		_, err := Save(ln)
		wantUnsupported(t, err, "LISTEN", false)
		if err := errors.Join(EnterRepair([]int{ln}, nil)...); !isNotPermitted(err) {
			t.Errorf("repair mode on a listener: %v", err)
		}
		for _, c := range waiting {
			c.ours = accept(t, ln)
			if c.ours < 0 {
				t.Fatal("the queue is empty too early")
			}
			wait(t, "early octets", func() bool {
				n, err := ioctlInt(c.ours, unix.SIOCINQ, "SIOCINQ")
				must(t, "SIOCINQ", err)
				return n == hello
			})
			c.move(Established)
		}
		if accept(t, ln) >= 0 {
			t.Error("one more in the queue")
		}
		// Empty, it is closed without a word; the moved ones do not mind.
		if n := sent(t, func() { must(t, "shutdown", unix.Shutdown(ln, unix.SHUT_RDWR)) }); n != 0 {
			t.Errorf("closing the listener sent %d segments", n)
		}
		for _, c := range waiting {
			c.finish(true, true)
		}
	})
}

// TIME_WAIT: the kernel keeps it apart from the socket, which reads CLOSE and is
// refused. What it is there for it does without: the peer's late FIN is
// acknowledged.
func TestTimeWait(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.want(true, hello, false)
		c.shutdown(true)
		awaitTest(t, c.ours, FinWait2)
		c.shutdown(false)
		awaitTest(t, c.ours, Closed)
		_, err := Save(c.ours)
		wantUnsupported(t, err, "CLOSE", false)
		awaitTest(t, c.peers, Closed) // LAST_ACK is over: its FIN was acknowledged
	})
}

// CLOSE: reset by the peer, or never connected.
func TestClosed(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		c := newConn(t, ours, peers, nil)
		must(t, "SO_LINGER", unix.SetsockoptLinger(c.peers, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		unix.Close(c.peers)
		c.peers = -1
		awaitTest(t, c.ours, Closed)
		_, err := Save(c.ours)
		wantUnsupported(t, err, "CLOSE", false)
		fd, err := unix.Socket(domain(ours), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, "socket", err)
		defer unix.Close(fd)
		_, err = Save(fd)
		wantUnsupported(t, err, "CLOSE", false)
	})
}

// A reset that gets past the diversion while the socket is saved is noticed
// before the point of no return, and ends the connection here, not twice.
func TestResetWhileSaved(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "SO_LINGER", unix.SetsockoptLinger(c.peers, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		unix.Close(c.peers)
		c.peers = -1
		wait(t, "the reset to be noticed", func() bool { err = Verify(c.ours, s); return err != nil })
		if !errors.Is(err, ErrMoved) {
			t.Errorf("%v, want ErrMoved", err)
		}
		must(t, "Resume", Resume(c.ours))
		if n, err := unix.Read(c.ours, make([]byte, 2*hello)); n != hello || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		if _, err := unix.Read(c.ours, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
	})
}

// ECN was negotiated and the peer marks its segments: recorded and lost, the
// stream is the same.
func TestECN(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		defer sysctl(t, "tcp_ecn", "1")()
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		s, _ := c.move(Established)
		if !s.ECN {
			t.Error("not recorded")
		}
		if s.TOS != 0 {
			t.Errorf("the kernel's own bits taken for a TOS of %#x", s.TOS)
		}
		i, err := readInfo(c.ours)
		if must(t, "TCP_INFO", err); i.options&infoECN != 0 {
			t.Error("restored after all: then docs/limits.md is wrong")
		}
		c.finish(true, true)
	})
}

// Urgent octets of a socket that takes them in line are octets like any other.
func TestUrgentInLine(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, func(fd int, our bool) {
			must(t, "SO_OOBINLINE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
		})
		c.mustWrite(false, 100)
		must(t, "urgent", unix.Sendto(c.peers, stream(seedPeers, c.peersWrote, 1), unix.MSG_OOB, nil))
		c.peersWrote++
		c.mustWrite(false, 50)
		wait(t, "octets", func() bool { n, _ := ioctlInt(c.ours, unix.SIOCINQ, "SIOCINQ"); return n >= 101 })
		s, _ := c.move(Established)
		if !s.OOBInline {
			t.Error("SO_OOBINLINE not saved")
		}
		c.finish(true, true)
	})
}

// An urgent octet that is to be read out of line cannot be restored, and must
// not be cut off with all that follows: refused until it is read over.
func TestUrgentOutOfLine(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		for _, before := range []int{0, 100} {
			wantNoReset(t)
			c := newConn(t, ours, peers, nil)
			c.mustWrite(false, before)
			must(t, "urgent", unix.Sendto(c.peers, []byte{0xff}, unix.MSG_OOB, nil))
			c.mustWrite(false, 50)
			wait(t, "the urgent octet", func() bool {
				n, _, err := unix.Recvfrom(c.ours, make([]byte, 1), unix.MSG_OOB)
				return n == 1 && err == nil
			})
			wait(t, "the octets behind it", func() bool {
				i, err := unix.GetsockoptTCPInfo(c.ours, unix.SOL_TCP, unix.TCP_INFO)
				must(t, "TCP_INFO", err)
				return i.Bytes_received == uint64(before)+51
			})
			_, err := Save(c.ours)
			wantUnsupported(t, err, "urgent data", true)
			c.want(true, before+50, false)
			c.move(Established)
			c.finish(true, true)
		}
	})
}

// Segments beyond a gap while the queue before it is not empty: nobody can tell
// whether any wait, so it is recorded that they may; every octet arrives.
func TestOutOfOrderBehindQueue(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.mustWrite(false, 100)
		wait(t, "octets", func() bool { n, _ := ioctlInt(c.ours, unix.SIOCINQ, "SIOCINQ"); return n == 100 })
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Resume", Resume(c.ours))
		must(t, "inject", InjectRaw(dataSegment(s, s.RecvSeq+500, stream(seedPeers, 600, 200))))
		wait(t, "a segment out of order", func() bool {
			i, err := readInfo(c.ours)
			must(t, "TCP_INFO", err)
			return i.oooPackets > 0
		})
		s, _ = c.move(Established)
		if !s.OutOfOrder || len(s.RecvQueue) != 100 {
			t.Errorf("%v, out of order: %v", s, s.OutOfOrder)
		}
		c.finish(true, true)
	})
}

// A gap that is closed before the second try: refused with Retry, then moved
// with nothing lost and nothing to record.
func TestOutOfOrderRetry(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Resume", Resume(c.ours))
		must(t, "inject", InjectRaw(dataSegment(s, s.RecvSeq+500, stream(seedPeers, 500, 200))))
		wait(t, "a segment out of order", func() bool {
			i, err := readInfo(c.ours)
			must(t, "TCP_INFO", err)
			return i.oooPackets > 0
		})
		_, err = Save(c.ours)
		wantUnsupported(t, err, "out-of-order queue", true)
		c.mustWrite(false, 700) // the peer's own, over the gap and all
		c.want(true, 700, false)
		s, _ = c.move(Established)
		if s.OutOfOrder {
			t.Error("recorded although nothing waited")
		}
		c.finish(true, true)
	})
}

// The kernel of the restored socket probes a silent peer as before.
func TestKeepAliveGoesOn(t *testing.T) {
	wantNoReset(t)
	var conns []*conn
	for _, f := range families {
		c := newConn(t, f.ours, f.peers, nil)
		for _, o := range [][3]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		} {
			must(t, "setsockopt", unix.SetsockoptInt(c.ours, o[0], o[1], o[2]))
		}
		c.move(Established)
		conns = append(conns, c)
	}
	for _, c := range conns {
		// The probe for the window, sent when it went live, is not counted here.
		wait(t, "a probe", func() bool {
			i, err := unix.GetsockoptTCPInfo(c.ours, unix.SOL_TCP, unix.TCP_INFO)
			must(t, "TCP_INFO", err)
			return i.Segs_in >= 2
		})
		c.finish(true, true)
	}
}

// A connection whose peer takes small segments only sends none that are larger.
func TestSmallSegments(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, func(fd int, our bool) {
			if !our {
				must(t, "TCP_MAXSEG", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 600))
			}
		})
		c.bothWrote()
		s, _ := c.move(Established)
		if s.MSS != 600 {
			t.Errorf("MSS %d", s.MSS)
		}
		c.mustWrite(true, 9000)
		i, err := unix.GetsockoptTCPInfo(c.ours, unix.SOL_TCP, unix.TCP_INFO)
		if must(t, "TCP_INFO", err); i.Snd_mss > 600 {
			t.Errorf("segments of %d octets", i.Snd_mss)
		}
		c.finish(true, true)
	})
}

// The peer has no room and says so; the saved window is as closed, and the
// peer's word that it has room again is heard.
func TestPeersWindowClosed(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.fill(true)
		wait(t, "a closed window", func() bool {
			i, err := unix.GetsockoptTCPInfo(c.ours, unix.SOL_TCP, unix.TCP_INFO)
			must(t, "TCP_INFO", err)
			return i.Unacked == 0
		})
		s, rest := c.move(Established)
		if s.Unsent == 0 || len(s.unacked()) != 0 {
			t.Errorf("%v: the window was not closed", s)
		}
		c.drain(false)
		c.writeRest(rest)
		c.finish(true, true)
	})
}
