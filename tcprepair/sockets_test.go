package tcprepair

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func wantUnsupported(t testing.TB, err error, what string, retry bool) {
	t.Helper()
	var u *Unsupported
	if !errors.As(err, &u) {
		t.Fatalf("%v, want *Unsupported", err)
	}
	if u.What != what || u.Retry != retry || u.Why == "" {
		t.Errorf("%+v, want %s, retry %v", *u, what, retry)
	}
}

func TestProbe(t *testing.T) {
	must(t, "Probe", Probe())

	// Without the capability, on a thread that nobody else uses again.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&hdr, &caps[0]); err != nil {
			done <- err
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&hdr, &caps[0]); err != nil {
			done <- err
			return
		}
		done <- Probe()
	}()
	var np *NotPermitted
	if err := <-done; !errors.As(err, &np) || !errors.Is(err, unix.EPERM) {
		t.Errorf("without CAP_NET_ADMIN: %v, want *NotPermitted", err)
	}
}

func TestUnsupported(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		t.Run("MPTCP", func(t *testing.T) {
			fd, err := unix.Socket(domain(ours), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protoMPTCP)
			must(t, "MPTCP socket (the kernel needs CONFIG_MPTCP)", err)
			defer unix.Close(fd)
			_, err = Save(fd)
			wantUnsupported(t, err, "MPTCP", false)
		})
		t.Run("UDP", func(t *testing.T) {
			fd, err := unix.Socket(domain(ours), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			must(t, "socket", err)
			defer unix.Close(fd)
			_, err = Save(fd)
			wantUnsupported(t, err, "protocol 17", false)
		})
		t.Run("kTLS", func(t *testing.T) {
			c := newConn(t, ours, peers, nil)
			err := unix.SetsockoptString(c.ours, unix.IPPROTO_TCP, unix.TCP_ULP, "tls")
			if errors.Is(err, unix.ENOENT) {
				t.Skip("this kernel has no kTLS (CONFIG_TLS)")
			}
			must(t, "TCP_ULP", err)
			_, err = Save(c.ours)
			wantUnsupported(t, err, "ULP tls", false)
		})
	})
}

// The options of a socket survive; c.move compares them all.
func TestSocketOptions(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		for _, o := range [][3]int{
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 71},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 17},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 12345},
			{unix.SOL_SOCKET, unix.SO_RCVBUF, 150000},
			{unix.SOL_SOCKET, unix.SO_SNDBUF, 90000},
			{unix.SOL_SOCKET, unix.SO_MARK, 0x1234},
			{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
		} {
			must(t, "setsockopt", unix.SetsockoptInt(c.ours, o[0], o[1], o[2]))
		}
		level, opt := unix.SOL_IP, unix.IP_TOS
		if ours.Is6() {
			level, opt = unix.SOL_IPV6, unix.IPV6_TCLASS
		}
		must(t, "TOS", unix.SetsockoptInt(c.ours, level, opt, 0xb8))
		must(t, "TCP_CONGESTION", unix.SetsockoptString(c.ours, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"))
		s, _ := c.move(Established)
		if !s.NoDelay || !s.KeepAlive || s.KeepIdle != 71 || s.KeepInterval != 17 || s.KeepCount != 5 ||
			s.UserTimeout != 12345 || s.RecvBuffer != 300000 || s.SendBuffer != 180000 || s.Congestion != "reno" ||
			s.BufferLock != 3 || s.Mark != 0x1234 || s.TOS != 0xb8 || !s.OOBInline || !s.SACK || !s.Timestamps || !s.WindowScaling || s.MSS == 0 {
			t.Errorf("saved %+v", *s)
		}
		flags, err := unix.FcntlInt(uintptr(c.ours), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("not nonblocking: %#x, %v", flags, err)
		}
		flags, err = unix.FcntlInt(uintptr(c.ours), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("not close-on-exec: %#x, %v", flags, err)
		}
		c.finish(true, true)
	})
}

// An algorithm that this host lacks does not stop the move.
func TestUnknownCongestionControl(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Discard", Discard(c.ours))
		s.Congestion = "nosuchcc"
		c.ours, err = Restore(s, Options{})
		must(t, "Restore", err)
		_, err = GoLive(c.ours, s)
		must(t, "GoLive", err)
		c.finish(true, true)
	})
}

// Without timestamps, SACK and window scaling.
func TestNoOptions(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		for _, name := range []string{"tcp_timestamps", "tcp_sack", "tcp_window_scaling"} {
			defer sysctl(t, name, "0")()
		}
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		s, _ := c.move(Established)
		if s.SACK || s.Timestamps || s.WindowScaling {
			t.Errorf("options %+v", *s)
		}
		c.finish(true, true)
	})
}

// Timestamps in microseconds are marked by an odd value.
func TestMicrosecondTimestamps(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		s, err := Save(c.ours)
		must(t, "Save", err)
		must(t, "Discard", Discard(c.ours))
		s.Timestamp |= 1
		c.ours, err = Restore(s, Options{})
		must(t, "Restore", err)
		ts, err := getInt(c.ours, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP, "TCP_TIMESTAMP")
		must(t, "TCP_TIMESTAMP", err)
		if d := uint32(ts) - s.Timestamp; ts&1 == 0 || d < 1000*timestampSlack || d > 1000*1000 {
			t.Errorf("timestamp %d after %d", uint32(ts), s.Timestamp)
		}
		_, err = GoLive(c.ours, s)
		must(t, "GoLive", err)
		c.move(Established)
		c.finish(true, true)
	})
}

// An IPv4 connection accepted by a dual-stack listener is moved as IPv4.
func TestMappedAddress(t *testing.T) {
	wantNoReset(t)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, "socket", err)
	must(t, "IPV6_V6ONLY", unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0))
	must(t, "bind", unix.Bind(fd, &unix.SockaddrInet6{}))
	must(t, "listen", unix.Listen(fd, 1))
	defer unix.Close(fd)
	at := localAddr(t, fd)
	c := &conn{t: t}
	c.peers, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, "socket", err)
	must(t, "connect", unix.Connect(c.peers, &unix.SockaddrInet4{Port: int(at.Port()), Addr: [4]byte{127, 0, 0, 1}}))
	c.ours, _, err = unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	must(t, "accept", err)
	must(t, "nonblock", unix.SetNonblock(c.peers, true))
	c.bothWrote()
	s, _ := c.move(Established)
	if !s.Local.Addr().Is4() || !s.Remote.Addr().Is4() {
		t.Errorf("addresses %v, %v", s.Local, s.Remote)
	}
	c.finish(true, true)
	unix.Close(c.ours)
	unix.Close(c.peers)
}

// The local address may be missing if the socket is transparent.
func TestTransparent(t *testing.T) {
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		t.Run(a, func(t *testing.T) {
			addr := netip.MustParseAddr(a)
			s := &State{TCP: Established, MSS: 1400, Timestamps: true, Timestamp: 4,
				Local: netip.AddrPortFrom(addr, 80), Remote: netip.AddrPortFrom(families[0].ours, 4000)}
			if addr.Is6() {
				s.Remote = netip.AddrPortFrom(families[1].ours, 4000)
			}
			if _, err := Restore(s, Options{}); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("without Transparent: %v, want EADDRNOTAVAIL", err)
			}
			fd, err := Restore(s, Options{Transparent: true})
			must(t, "Restore", err)
			must(t, "Discard", Discard(fd))
		})
	}
}

// A tuple that has a socket is not given a second one.
func TestRestoreTwice(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		s, _ := c.move(Established)
		if fd, err := Restore(s, Options{}); err == nil {
			t.Errorf("a second socket: fd %d", fd)
		}
		c.finish(true, true)
	})
}

// A listener can be opened on the port of a restored connection.
func TestListenAfterwards(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		for _, how := range []string{"GoLive", "Resume"} {
			c := newConn(t, ours, peers, nil)
			at := localAddr(t, c.ours)
			if how == "GoLive" {
				c.move(Established)
			} else {
				_, err := Save(c.ours)
				must(t, "Save", err)
				must(t, "Resume", Resume(c.ours))
			}
			listen(t, at, nil)
			c.finish(true, true)
		}
	})
}

// Discard says nothing although octets are unread, in flight and unsent, and
// ends the connection for duplicates of the descriptor too.
func TestDiscardIsSilent(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, smallBuffers)
		c.mustWrite(false, 5000)
		c.fill(true)
		dup, err := unix.Dup(c.ours)
		must(t, "dup", err)
		defer unix.Close(dup)
		s, err := Save(c.ours)
		must(t, "Save", err)
		if n := sent(t, func() { must(t, "Discard", Discard(c.ours)) }); n != 0 {
			t.Errorf("%d segments sent", n)
		}
		c.ours = -1
		if st := stateOf(t, dup); st != Closed {
			t.Errorf("duplicate is in %v", st)
		}
		// The tuple is free, and the connection alive.
		c.ours, err = Restore(s, Options{})
		must(t, "Restore", err)
		rest, err := GoLive(c.ours, s)
		must(t, "GoLive", err)
		c.writeRest(rest)
		c.finish(true, true)
	})
}

// A helper with the capability may have set repair mode for us: then Save
// does not need it.
func TestSaveInRepairMode(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		must(t, "TCP_REPAIR", setRepair(c.ours, unix.TCP_REPAIR_ON))
		c.move(Established)
		c.finish(true, true)
	})
}

// Descriptors are not leaked by failures.
func TestRestoreFailureLeaksNothing(t *testing.T) {
	s := &State{TCP: CloseWait, MSS: 1400, Local: netip.MustParseAddrPort("127.0.0.1:80"),
		Remote: netip.MustParseAddrPort("127.0.0.2:4000"), RecvSeq: 1, Window: Window{RecvWup: 1}}
	fail := errors.New("no device")
	before := openFiles(t)
	for range 10 {
		if _, err := Restore(s, Options{Inject: func([]byte) error { return fail }}); !errors.Is(err, fail) {
			t.Fatal(err)
		}
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d descriptors before, %d after", before, n)
	}
}
