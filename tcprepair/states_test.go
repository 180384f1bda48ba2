package tcprepair

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// move saves our end, sends it through the codec, and restores it, checking
// on the way that nothing is on the wire and that the restored socket reads
// back as what was saved.
func (c *conn) move(want TCPState) (s *State, rest []byte) {
	t := c.t
	t.Helper()
	s, err := Save(c.ours)
	must(t, "Save", err)
	if s.TCP != want {
		t.Fatalf("saved in %v, want %v", s.TCP, want)
	}
	must(t, "Verify", Verify(c.ours, s))
	if n := c.sent(func() { must(t, "Discard", Discard(c.ours)) }); n != 0 {
		t.Errorf("Discard sent %d segments", n)
	}
	c.ours = -1

	b, err := s.AppendBinary(nil)
	must(t, "AppendBinary", err)
	var moved State
	must(t, "UnmarshalBinary", moved.UnmarshalBinary(b))

	n := c.sent(func() {
		c.ours, err = Restore(&moved, Options{Inject: InjectRaw})
		must(t, "Restore", err)
	})
	// The injected FIN is acknowledged with the next tick, which may be now, in
	// CLOSING at once; see the package comment.
	if n != 0 && !(want.finReceived() && n == 1) {
		t.Errorf("Restore sent %d segments", n)
	}
	c.wantSame(s)
	rest, err = GoLive(c.ours, &moved)
	must(t, "GoLive", err)
	return &moved, rest
}

// sent counts the segments that f makes us send, without what the peer's timers
// sent meanwhile.
func (c *conn) sent(f func()) int {
	peers := func() int {
		i, err := unix.GetsockoptTCPInfo(c.peers, unix.SOL_TCP, unix.TCP_INFO)
		must(c.t, "TCP_INFO", err)
		return int(i.Segs_out)
	}
	before := peers()
	n := sent(c.t, f)
	return n - (peers() - before)
}

// wantSame reads the restored socket, still in repair mode, and compares it
// with what was saved.
func (c *conn) wantSame(s *State) {
	c.t.Helper()
	got, err := Save(c.ours)
	must(c.t, "Save of the restored socket", err)
	must(c.t, "window", writeWindow(c.ours, got.Window)) // as it was before Save
	want := *s
	// The unsent tail and the FIN behind it come with GoLive.
	want.SendQueue, want.Unsent = s.unacked(), 0
	want.SendSeq -= s.Unsent
	if s.FinUnsent {
		want.FinUnsent, want.SendSeq = false, want.SendSeq-1
		want.TCP = map[TCPState]TCPState{FinWait1: Established, LastAck: CloseWait, Closing: CloseWait}[s.TCP]
	}
	if !bytes.Equal(got.RecvQueue, want.RecvQueue) {
		c.t.Errorf("receive queue differs: %d octets, want %d", len(got.RecvQueue), len(want.RecvQueue))
	}
	if !bytes.Equal(got.SendQueue, want.SendQueue) {
		c.t.Errorf("send queue differs: %d octets, want %d", len(got.SendQueue), len(want.SendQueue))
	}
	if d := got.Timestamp - want.Timestamp; want.Timestamps && (d < timestampSlack || d > 5000*timestampSlack) {
		c.t.Errorf("timestamp %d after %d", got.Timestamp, want.Timestamp)
	}
	if s.TCP.finReceived() && got.Window.RecvWup == s.RecvSeq {
		// The kernel's tick has acknowledged the FIN meanwhile.
		want.Window.RecvWup, want.Window.RecvWindow = got.Window.RecvWup, got.Window.RecvWindow
	}
	for _, x := range []*State{got, &want} {
		x.Timestamp, x.RecvQueue, x.SendQueue, x.OutOfOrder, x.ECN = 0, nil, nil, false, false
		if !x.KeepAlive {
			x.KeepIdle, x.KeepInterval, x.KeepCount = 0, 0, 0
		}
		if x.BufferLock&1 == 0 {
			x.SendBuffer = 0 // the kernel tunes it
		}
		if x.BufferLock&2 == 0 {
			x.RecvBuffer = 0
		}
	}
	if a, b := mustAppend(c.t, got), mustAppend(c.t, &want); !bytes.Equal(a, b) {
		c.t.Errorf("restored socket differs:\n got %+v\nwant %+v", *got, want)
	}
}

func mustAppend(t testing.TB, s *State) []byte {
	t.Helper()
	b, err := s.AppendBinary(nil)
	must(t, "AppendBinary", err)
	return b
}

const (
	hello = 5000 // octets in either direction before the move, unread
	stuck = 7000 // octets that the peer does not get before the move
)

// bothWrote leaves octets unread at both ends.
func (c *conn) bothWrote() {
	c.t.Helper()
	c.mustWrite(true, hello)
	c.mustWrite(false, hello)
	wait(c.t, "octets in the queue and acknowledged", func() bool {
		k, err := readCounters2(c.ours)
		must(c.t, "counters", err)
		return k.inQueue == hello && k.outQueue == 0
	})
}

// counts reads the queues of a socket that is not in repair mode.
type counts struct{ outQueue, unsent, inQueue int }

func readCounters2(fd int) (c counts, err error) {
	if c.outQueue, err = ioctlInt(fd, unix.SIOCOUTQ, "SIOCOUTQ"); err != nil {
		return c, err
	}
	if c.unsent, err = ioctlInt(fd, unix.SIOCOUTQNSD, "SIOCOUTQNSD"); err != nil {
		return c, err
	}
	c.inQueue, err = ioctlInt(fd, unix.SIOCINQ, "SIOCINQ")
	return c, err
}

func (c *conn) shutdown(our bool) {
	c.t.Helper()
	fd := c.peers
	if our {
		fd = c.ours
	}
	must(c.t, "shutdown", unix.Shutdown(fd, unix.SHUT_WR))
}

func TestEstablished(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.move(Established)
		c.finish(true, true)
	})
}

// A connection that has done nothing yet.
func TestEstablishedIdle(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.move(Established)
		c.finish(true, true)
	})
}

// Moving twenty times in a row, with traffic between.
func TestEstablishedManyTimes(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		for i := range 20 {
			c.mustWrite(true, 100+i)
			c.mustWrite(false, 3000+i)
			c.move(Established)
			c.want(true, c.peersWrote, false)
			c.want(false, c.oursWrote, false)
		}
		c.finish(true, true)
	})
}

func TestCloseWait(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.shutdown(false)
		awaitTest(t, c.ours, CloseWait)
		c.move(CloseWait)
		c.finish(true, false)
	})
}

// The end of the stream was read before the move; it is read again after it.
func TestCloseWaitAfterEOF(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.shutdown(false)
		c.want(true, hello, true)
		c.move(CloseWait)
		c.finish(true, false)
	})
}

// Unacknowledged octets and an unsent tail in a half-closed connection.
func TestCloseWaitWithQueues(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.shutdown(false)
		awaitTest(t, c.ours, CloseWait)
		c.fill(true)
		s, rest := c.move(CloseWait)
		if s.Unsent == 0 {
			t.Error("nothing was unsent")
		}
		c.writeRest(rest)
		c.finish(true, false)
	})
}

func TestFinWait2(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.shutdown(true)
		awaitTest(t, c.ours, FinWait2)
		c.move(FinWait2)
		c.finish(false, true)
	})
}

func TestFinWait1(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		deafen(t, c.peers)
		c.mustWrite(true, stuck)
		c.shutdown(true)
		awaitTest(t, c.ours, FinWait1)
		c.move(FinWait1)
		undeafen(t, c.peers)
		c.finish(false, true)
	})
}

func TestLastAck(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.shutdown(false)
		awaitTest(t, c.ours, CloseWait)
		deafen(t, c.peers)
		c.mustWrite(true, stuck)
		c.shutdown(true)
		awaitTest(t, c.ours, LastAck)
		c.move(LastAck)
		undeafen(t, c.peers)
		c.finish(false, false)
		awaitTest(t, c.ours, Closed)
	})
}

func TestClosing(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		deafen(t, c.peers)
		c.mustWrite(true, stuck)
		c.shutdown(true)
		c.shutdown(false)
		awaitTest(t, c.ours, Closing)
		c.move(Closing)
		undeafen(t, c.peers)
		c.finish(false, false)
	})
}

// The states after shutdown when the FIN itself waits behind unsent octets:
// restored without, shut down again by GoLive or by the caller.
func TestFinUnsent(t *testing.T) {
	for _, want := range []TCPState{FinWait1, LastAck, Closing} {
		t.Run(want.String(), func(t *testing.T) {
			eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
				wantNoReset(t)
				c := newConn(t, ours, peers, smallBuffers)
				if want == LastAck {
					c.shutdown(false)
					awaitTest(t, c.ours, CloseWait)
				}
				c.fill(true)
				c.shutdown(true)
				if want == Closing {
					c.shutdown(false)
				}
				awaitTest(t, c.ours, want)
				s, err := Save(c.ours)
				must(t, "Save", err)
				if !s.FinUnsent || s.Unsent == 0 {
					t.Fatalf("FIN unsent: %v, unsent octets: %d", s.FinUnsent, s.Unsent)
				}
				must(t, "Resume", Resume(c.ours))
				s, rest := c.move(want)
				if len(rest) > 0 {
					c.writeRest(rest)
					c.shutdown(true)
				}
				_ = s
				c.finish(false, want == FinWait1)
			})
		})
	}
}

// Only the peer of a half-closed connection can say that half of it is over,
// so Restore needs a way to say it in its place, and says so.
func TestHalfClosedNeedsInject(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.shutdown(false)
		awaitTest(t, c.ours, CloseWait)
		s, err := Save(c.ours)
		must(t, "Save", err)
		_, err = Restore(s, Options{})
		wantUnsupported(t, err, "CLOSE_WAIT", false)
		must(t, "Resume", Resume(c.ours))
		c.finish(true, false)
	})
}

// An injected segment that does not arrive is an error before the point of
// no return, and leaves no socket behind: the tuple can be used again.
func TestInjectLost(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		c.shutdown(false)
		awaitTest(t, c.ours, CloseWait)
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Discard", Discard(c.ours))
		c.ours = -1
		if n := sent(t, func() {
			_, err = Restore(s, Options{Inject: func([]byte) error { return nil }})
		}); n != 0 {
			t.Errorf("%d segments sent", n)
		}
		if err == nil {
			t.Fatal("restored without its FIN")
		}
		c.ours, err = Restore(s, Options{Inject: InjectRaw})
		must(t, "Restore", err)
		_, err = GoLive(c.ours, s)
		must(t, "GoLive", err)
		c.finish(true, false)
	})
}
