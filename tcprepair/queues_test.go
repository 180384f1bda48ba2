package tcprepair

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func smallBuffers(fd int, our bool) {
	if our {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 100<<10)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 20<<10)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 20<<10)
}

// fill writes until the peer's window and our send buffer are full.
func (c *conn) fill(our bool) {
	c.t.Helper()
	idle := 0
	for idle < 20 {
		if c.write(our, 1<<20) == 0 {
			idle++
			time.Sleep(time.Millisecond)
		} else {
			idle = 0
		}
	}
}

// A receive queue of several hundred KiB, every octet read after the move.
func TestReceiveQueue(t *testing.T) {
	const octets = 300 << 10
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, func(fd int, our bool) {
			if our {
				must(t, "SO_RCVBUF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20))
			}
		})
		wait(t, "a full queue", func() bool {
			if c.peersWrote < octets {
				c.write(false, octets-c.peersWrote)
			}
			n, err := ioctlInt(c.ours, unix.SIOCINQ, "SIOCINQ")
			must(t, "SIOCINQ", err)
			return n == octets
		})
		s, _ := c.move(Established)
		if len(s.RecvQueue) != octets {
			t.Fatalf("moved %d octets of receive queue, want %d", len(s.RecvQueue), octets)
		}
		c.finish(true, true)
	})
}

// The receive queue is full and the window closed: the peer waits with more,
// and learns of the window from the restored socket.
func TestReceiveQueueZeroWindow(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.fill(false)
		s, _ := c.move(Established)
		if len(s.RecvQueue) < 8<<10 {
			t.Fatalf("receive queue of %d octets", len(s.RecvQueue))
		}
		c.finish(true, true)
	})
}

// What a restored socket says of its window when it goes live the peer does not
// hear, so it must say it again when its queue is read. It is deaf here: by an
// answer to one of the peer's own probes the peer would learn it, late.
func TestReadingOpensWindow(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.fill(false)
		unsent := func() int {
			n, err := ioctlInt(c.peers, unix.SIOCOUTQNSD, "SIOCOUTQNSD")
			must(t, "SIOCOUTQNSD", err)
			return n
		}
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Discard", Discard(c.ours))
		// Segments of few octets take far more room than a queue that is restored
		// in one piece; so it has more room here.
		s.RecvBuffer = 256 << 10
		c.ours, err = Restore(s, Options{})
		must(t, "Restore", err)
		deafen(t, c.ours)
		_, err = GoLive(c.ours, s)
		must(t, "GoLive", err)
		if n, err := getInt(c.ours, unix.SOL_SOCKET, unix.SO_RCVBUF, "SO_RCVBUF"); err != nil || n != int(s.RecvBuffer) {
			t.Errorf("a receive buffer of %d, want %d: %v", n, s.RecvBuffer, err)
		}
		kept := unsent()
		c.drain(true)
		wait(t, "the peer to send more", func() bool { return unsent() < kept })
		undeafen(t, c.ours)
		c.finish(true, true)
	})
}

// A restored socket sends segments as large as before.
func TestSegmentSize(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		c := newConn(t, ours, peers, nil)
		size := func() uint32 {
			i, err := unix.GetsockoptTCPInfo(c.ours, unix.SOL_TCP, unix.TCP_INFO)
			must(t, "TCP_INFO", err)
			return i.Snd_mss
		}
		c.mustWrite(true, 5000)
		before := size()
		c.move(Established)
		// Now: over loopback, unlike Ethernet, the first write would correct it.
		if after := size(); after != before {
			t.Errorf("segments of %d octets, %d before", after, before)
		}
		c.finish(true, true)
	})
}

// Octets that were sent and not acknowledged: the restored socket sends them
// again.
func TestUnacked(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		deafen(t, c.peers)
		c.mustWrite(true, 9000)
		s, _ := c.move(Established)
		if len(s.unacked()) != 9000 || s.Unsent != 0 {
			t.Fatalf("moved %d unacknowledged and %d unsent octets", len(s.unacked()), s.Unsent)
		}
		undeafen(t, c.peers)
		c.finish(true, true)
	})
}

// Octets that the peer has acknowledged although we do not know it: the
// restored socket must not confuse the stream by sending them again.
func TestUnackedButReceived(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		deafen(t, c.ours)
		c.mustWrite(true, 9000)
		c.want(false, 9000, false)
		s, _ := c.move(Established)
		if len(s.unacked()) != 9000 {
			t.Fatalf("moved %d unacknowledged octets", len(s.unacked()))
		}
		c.finish(true, true)
	})
}

// Both parts of the send queue at once: in flight and never sent.
func TestUnsentTail(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.fill(true)
		s, rest := c.move(Established)
		if s.Unsent == 0 {
			t.Fatal("nothing unsent")
		}
		t.Logf("%v, rest %d", s, len(rest))
		c.writeRest(rest)
		c.finish(true, true)
	})
}

// In flight, unsent and unread together, with the acknowledgements lost too.
func TestAllQueues(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.mustWrite(false, 10<<10)
		deafen(t, c.peers)
		c.fill(true)
		s, rest := c.move(Established)
		if len(s.unacked()) == 0 || s.Unsent == 0 || len(s.RecvQueue) != 10<<10 {
			t.Fatalf("queues: %v", s)
		}
		undeafen(t, c.peers)
		c.writeRest(rest)
		c.finish(true, true)
	})
}

// Sequence numbers wrap in the middle of both queues. Both ends are saved,
// shifted to just below 2^32 and restored.
func TestSequenceWrap(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		a, err := Save(c.ours)
		must(t, "Save ours", err)
		b, err := Save(c.peers)
		must(t, "Save the peer's", err)
		must(t, "Discard", Discard(c.ours))
		must(t, "Discard", Discard(c.peers))
		// One shift for each direction of the stream.
		out, in := -a.SendSeq+hello/2, -a.RecvSeq+hello/3
		for _, x := range []struct {
			s         *State
			send, rcv uint32
		}{{a, out, in}, {b, in, out}} {
			x.s.SendSeq += x.send
			x.s.RecvSeq += x.rcv
			x.s.Window.SendWL1 += x.rcv
			x.s.Window.RecvWup += x.rcv
		}
		c.ours, err = Restore(a, Options{})
		must(t, "Restore ours", err)
		c.peers, err = Restore(b, Options{})
		must(t, "Restore the peer's", err)
		_, err = GoLive(c.peers, b)
		must(t, "GoLive", err)
		_, err = GoLive(c.ours, a)
		must(t, "GoLive", err)
		c.move(Established)
		c.finish(true, true)
	})
}

// A segment beyond a gap: refused at first, dropped if asked for. The octets
// in it come again, from the peer.
func TestOutOfOrder(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.mustWrite(false, 100)
		c.want(true, 100, false)
		// What the peer will write at offset 600 arrives before offset 100.
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Resume", Resume(c.ours))
		must(t, "inject", InjectRaw(dataSegment(s, s.RecvSeq+500, stream(seedPeers, 600, 200))))
		wait(t, "a segment out of order", func() bool {
			i, err := readInfo(c.ours)
			must(t, "TCP_INFO", err)
			return i.oooPackets > 0
		})
		_, err = Save(c.ours)
		wantUnsupported(t, err, "out-of-order queue", true)
		on, err := getInt(c.ours, unix.IPPROTO_TCP, unix.TCP_REPAIR, "TCP_REPAIR")
		if err != nil || on != 0 {
			t.Errorf("still in repair mode after a refusal: %d, %v", on, err)
		}
		s, err = SaveWith(c.ours, SaveOptions{AllowOutOfOrder: true})
		must(t, "SaveWith", err)
		if !s.OutOfOrder {
			t.Error("not recorded")
		}
		must(t, "Discard", Discard(c.ours))
		c.ours, err = Restore(s, Options{})
		must(t, "Restore", err)
		_, err = GoLive(c.ours, s)
		must(t, "GoLive", err)
		c.finish(true, true)
	})
}

// dataSegment is a segment of the peer of s with a payload.
func dataSegment(s *State, seq uint32, payload []byte) []byte {
	p := segment(s.Remote, s.Local, seq, s.SendSeq, flagACK, s.Window.SendWindow>>s.SendScale)
	ip := len(p) - 20
	p = append(p, payload...)
	tcp := p[ip:]
	tcp[16], tcp[17] = 0, 0
	sum := checksum(checksum(checksum(0, s.Remote.Addr().AsSlice()), s.Local.Addr().AsSlice()), tcp)
	c := fold(sum + unix.IPPROTO_TCP + uint32(len(tcp)))
	tcp[16], tcp[17] = byte(c>>8), byte(c)
	if s.Local.Addr().Is4() {
		p[2], p[3] = byte(len(p)>>8), byte(len(p))
		p[10], p[11] = 0, 0
		c := fold(checksum(0, p[:ip]))
		p[10], p[11] = byte(c>>8), byte(c)
	} else {
		p[4], p[5] = byte(len(tcp)>>8), byte(len(tcp))
	}
	return p
}

// A segment that gets past the diversion between Save and Discard is noticed,
// and the socket goes on.
func TestVerifyMoved(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		for what, act := range map[string]func(c *conn){
			"octets": func(c *conn) { c.mustWrite(false, 10) },
			"FIN":    func(c *conn) { c.shutdown(false) },
		} {
			c := newConn(t, ours, peers, nil)
			c.bothWrote()
			s, err := Save(c.ours)
			must(t, "Save", err)
			act(c)
			wait(t, what+" to be noticed", func() bool {
				err = Verify(c.ours, s)
				return err != nil
			})
			if !errors.Is(err, ErrMoved) {
				t.Errorf("%s: %v, want ErrMoved", what, err)
			}
			must(t, "Resume", Resume(c.ours))
			c.finish(true, what != "FIN")
		}
	})
}

// Unsent octets that the socket could send at any time stay unsent while it
// is saved, or it is known that they did not, though the kernel tries: the socket is saved as soon as it is
// written to, again and again, and watched for a while.
func TestNothingNewWhileSaved(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		saved, unsent, more := 0, 0, 0
		for range 40 {
			c.write(true, 1<<20)
			c.drain(false)
			s, err := Save(c.ours)
			must(t, "Save", err)
			saved++
			if s.Unsent > 0 {
				unsent++
			}
			// The peer must not read now: that would open its window.
			time.Sleep(3 * time.Millisecond)
			waiting, err := unix.IoctlGetInt(c.peers, unix.SIOCINQ)
			must(t, "SIOCINQ", err)
			if has, end := c.peersRead+waiting, c.oursWrote-int(s.Unsent); has > end {
				// An acknowledgement that was under way opens the window again.
				// While a socket moves it is held; here it arrives, and then
				// the move must not be made.
				more++
				if Verify(c.ours, s) == nil {
					t.Fatalf("the peer has %d octets, %d were sent when saved, and nobody knows", has, end)
				}
			}
			c.drain(false)
			must(t, "Resume", Resume(c.ours))
		}
		t.Logf("%d of %d times something was unsent, %d times an acknowledgement let it go", unsent, saved, more)
		if more > saved/4 {
			t.Errorf("%d of %d times more was sent: the window was not closed", more, saved)
		}
		c.finish(true, true)
	})
}

// Outside ESTABLISHED no probe follows a resumption; unsent octets that only
// the closed window kept back leave all the same.
func TestResumeHalfClosed(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.shutdown(false)
		awaitTest(t, c.ours, CloseWait)
		must(t, "TCP_REPAIR", setRepair(c.ours, unix.TCP_REPAIR_ON))
		must(t, "close the window", setSendWindow(c.ours, 0))
		must(t, "TCP_REPAIR", setRepair(c.ours, unix.TCP_REPAIR_OFF))
		c.mustWrite(true, 5000)
		s, err := Save(c.ours)
		must(t, "Save", err)
		if s.Unsent != 5000 {
			t.Fatalf("%d octets unsent", s.Unsent)
		}
		must(t, "Resume", Resume(c.ours))
		if k, err := readCounters2(c.ours); err != nil || k.unsent != 0 {
			t.Errorf("%d octets unsent after Resume, %v", k.unsent, err)
		}
		c.finish(true, false)
	})
}

// A refused move: both ends go on as if nothing had been.
func TestResume(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.fill(true)
		c.fill(false)
		for range 3 {
			s, err := Save(c.ours)
			must(t, "Save", err)
			must(t, "Verify", Verify(c.ours, s))
			must(t, "Resume", Resume(c.ours))
		}
		c.finish(true, true)
	})
}
