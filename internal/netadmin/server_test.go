package netadmin

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// served is a privileged process, which is this one, and the address that it lets
// move.
type served struct {
	server *Server
	path   string
	addr   netip.Addr
}

func serve(t testing.TB, more ...func(*Server)) *served {
	t.Helper()
	s := &served{path: filepath.Join(t.TempDir(), "s"), addr: netip.MustParseAddr("10.55.0.100")}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "srv0"}, PeerName: "srv1"}
	must(t, "veth", netlink.LinkAdd(link))
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	for _, name := range []string{"lo", "srv0", "srv1"} {
		l, err := netlink.LinkByName(name)
		must(t, name, err)
		must(t, name, netlink.LinkSetUp(l))
	}
	a, err := Open(Config{Device: "srv0", Table: "served"})
	must(t, "open", err)
	t.Cleanup(func() { must(t, "close", a.Close()) })
	l, err := Listen(s.path, 0)
	must(t, "listen", err)
	s.server = NewServer(a, 0, func() (Rights, bool) { return Rights{VIPs: []netip.Prefix{netip.PrefixFrom(s.addr, 24)}}, false }, nil)
	s.server.HeldTime = 20 * time.Millisecond
	for _, f := range more {
		f(s.server)
	}
	ended := make(chan error)
	go func() { ended <- s.server.Serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		s.server.Close()
		must(t, "serve", <-ended)
	})
	return s
}

func (s *served) dial(t testing.TB) *Client {
	t.Helper()
	c, err := Dial(s.path)
	must(t, "dial", err)
	return c
}

// What a client asks for is done, for addresses that move and for no others.
func TestClient(t *testing.T) {
	s := serve(t)
	if i, err := os.Stat(s.path); err != nil || i.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v", i.Mode(), err)
	}
	c := s.dial(t)
	defer func() { must(t, "close", c.Close()) }()
	mine := Tuple{Local: netip.AddrPortFrom(s.addr, 443), Remote: netip.MustParseAddrPort("10.55.0.9:40000")}
	other := Tuple{Local: netip.MustParseAddrPort("10.55.0.7:443"), Remote: mine.Remote}
	must(t, "hold", c.Hold([]Tuple{mine}))
	if err := c.Hold([]Tuple{mine, other}); err == nil || !strings.Contains(err.Error(), "10.55.0.7 is no address that moves") {
		t.Errorf("hold another's: %v", err)
	}
	x, err := c.State()
	must(t, "state", err)
	if !slices.Equal(x.Held, []Tuple{mine}) {
		t.Errorf("held: %v", x.Held)
	}
	n, err := c.Release([]Tuple{mine})
	if err != nil || n != 0 {
		t.Errorf("release: %d %v", n, err)
	}
	p := netip.PrefixFrom(s.addr, 24)
	must(t, "fence", c.Fence([]netip.Prefix{p}))
	must(t, "own", c.Own(p, 5*time.Second))
	if x, err = c.State(); err != nil || len(x.Owned) != 1 || x.Owned[0].Addr != p {
		t.Errorf("owned: %v %v", x.Owned, err)
	}
	must(t, "disown", c.Disown(s.addr))
	if err := c.Own(netip.MustParsePrefix("10.55.0.7/24"), time.Second); err == nil {
		t.Error("owns what is not in the file")
	}
	for _, bits := range []int{0, 1, 23} { // a route to all hosts there would come with it
		wide := netip.PrefixFrom(s.addr, bits)
		if err := c.Own(wide, time.Second); err == nil {
			t.Errorf("owns %v", wide)
		}
		if err := c.Fence([]netip.Prefix{wide}); err == nil {
			t.Errorf("fences %v", wide)
		}
	}
	if err := c.Inject(make([]byte, 40)); err == nil {
		t.Error("injects what is no packet")
	}
	if _, err := c.Counters(); err != nil {
		t.Error(err)
	}
}

// Sockets are made, bound and in repair mode, and leave it when the client says so; a
// client cannot have others made, nor those of others repaired.
func TestClientSockets(t *testing.T) {
	s := serve(t)
	link, err := netlink.LinkByName("srv0")
	must(t, "link", err)
	must(t, "address", netlink.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet(s.addr.AsSlice())}))
	c := s.dial(t)
	defer func() { must(t, "close", c.Close()) }()
	var specs []tcprepair.SocketSpec
	for i := range socketsMax + 3 { // more than one message
		specs = append(specs, tcprepair.SocketSpec{Local: netip.AddrPortFrom(s.addr, uint16(10000+i)), RecvBuffer: 1 << 20, SendBuffer: 1 << 18})
	}
	fds, err := c.Sockets(specs)
	must(t, "sockets", err)
	defer closeAll(fds)
	if len(fds) != len(specs) {
		t.Fatalf("%d sockets", len(fds))
	}
	mode := func(fd int) int {
		v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
		must(t, "TCP_REPAIR", err)
		return v
	}
	for i, fd := range fds {
		sa, err := unix.Getsockname(fd)
		must(t, "getsockname", err)
		if sa.(*unix.SockaddrInet4).Port != 10000+i || mode(fd) != 1 {
			t.Fatalf("socket %d: %+v, repair %d", i, sa, mode(fd))
		}
	}
	must(t, "repair", errors.Join(c.Repair(fds, make([]int, len(fds)))...))
	if mode(fds[0]) != 0 || mode(fds[len(fds)-1]) != 0 {
		t.Error("still in repair mode")
	}
	if v, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || v == 0 {
		t.Errorf("SO_REUSEADDR %d, %v: it would bar a listener if its owner died now", v, err)
	}
	before := descriptors(t)
	for name, spec := range map[string]tcprepair.SocketSpec{
		"another address": {Local: netip.MustParseAddrPort("127.0.0.1:9")},
		"a mark":          {Local: specs[0].Local, Mark: 7},
		"transparent":     {Local: specs[0].Local, Transparent: true},
	} {
		if got, err := c.Sockets([]tcprepair.SocketSpec{{Local: netip.AddrPortFrom(s.addr, 30000)}, spec}); err == nil {
			t.Errorf("%s: made %v", name, got)
			closeAll(got)
		}
	}
	strange, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, "socket", err)
	if errs := tcprepair.EnterRepair([]int{strange}, c.Repair); errs == nil {
		t.Error("repairs a socket of no address that moves")
	}
	_ = unix.Close(strange)
	if now := descriptors(t); now != before {
		t.Errorf("%d descriptors, were %d", now, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, "descriptors", err)
	return len(all)
}

// What a process held that died is dropped; what one held that goes on stays.
func TestClientDies(t *testing.T) {
	s := serve(t)
	c := s.dial(t)
	mine := Tuple{Local: netip.AddrPortFrom(s.addr, 443), Remote: netip.MustParseAddrPort("10.55.0.9:40000")}
	must(t, "hold", c.Hold([]Tuple{mine}))
	heir := s.dial(t)
	kill := func(c *Client) { // without a word
		for ch := range c.open {
			_ = ch.conn.Close()
		}
	}
	kill(c)
	time.Sleep(5 * s.server.HeldTime)
	if x, err := heir.State(); err != nil || len(x.Held) != 1 {
		t.Errorf("with an heir: held %v, %v", x.Held, err)
	}
	kill(heir)
	// Nobody is there to ask, for that would be a client.
	wait(t, "nothing held", func() bool {
		x, err := s.server.Admin.State()
		must(t, "state", err)
		return len(x.Held) == 0
	})
}

// Somebody who only looks whether the privileged process answers, as doctor does and run
// before it begins, changes nothing for a process that died.
func TestVisitorAfterDeath(t *testing.T) {
	s := serve(t, func(x *Server) { x.HeldTime, x.LeftTime = 300*time.Millisecond, time.Millisecond })
	c := s.dial(t)
	must(t, "hold", c.Hold([]Tuple{{Local: netip.AddrPortFrom(s.addr, 443), Remote: netip.MustParseAddrPort("10.55.0.9:40000")}}))
	for ch := range c.open {
		_ = ch.conn.Close()
	}
	wait(t, "the death to be known", func() bool { return !s.server.Busy() })
	must(t, "close", s.dial(t).Close())
	wait(t, "what it held to be dropped", func() bool {
		x, err := s.server.Admin.State()
		must(t, "state", err)
		return len(x.Held) == 0
	})
	select {
	case <-s.server.Forsaken():
		t.Error("the visitor was taken for the one that serves")
	default:
	}
	c = s.dial(t)
	_, err := c.State()
	must(t, "state", err)
	must(t, "close", c.Close())
	wait(t, "the end, for the one that serves has gone in order", func() bool {
		select {
		case <-s.server.Forsaken():
			return true
		default:
			return false
		}
	})
}

// A lot of 16 sockets goes into repair mode and out of it, by the privileged process
// and by this one: the difference is two round trips.
func BenchmarkRepairLot(b *testing.B) {
	s := serve(b)
	link, err := netlink.LinkByName("srv0")
	must(b, "link", err)
	must(b, "address", netlink.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet(s.addr.AsSlice())}))
	c := s.dial(b)
	defer func() { must(b, "close", c.Close()) }()
	var specs []tcprepair.SocketSpec
	for i := range 16 {
		specs = append(specs, tcprepair.SocketSpec{Local: netip.AddrPortFrom(s.addr, uint16(10000+i))})
	}
	fds, err := c.Sockets(specs)
	must(b, "sockets", err)
	defer closeAll(fds)
	off := make([]int, len(fds))
	for name, repair := range map[string]tcprepair.Toggle{"client": c.Repair, "here": s.server.Admin.Repair} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				must(b, "on", errors.Join(tcprepair.EnterRepair(fds, repair)...))
				must(b, "off", errors.Join(repair(fds, off)...))
			}
		})
	}
}

// What comes over the socket is read or refused, and written again as it was.
func FuzzWire(f *testing.F) {
	ts := []Tuple{{netip.MustParseAddrPort("10.0.0.1:443"), netip.MustParseAddrPort("10.0.0.9:1")}, {netip.MustParseAddrPort("[fd00::1]:443"), netip.MustParseAddrPort("[fd00::2]:1")}}
	f.Add(appendTuples(nil, ts))
	f.Add(appendSpecs(nil, []tcprepair.SocketSpec{{Local: ts[0].Local, RecvBuffer: 1, SendBuffer: 2, Congestion: "cubic"}, {Local: ts[1].Local, Mark: 7, Transparent: true}}))
	f.Add(append([]byte{255}, make([]byte, 300)...))
	f.Add(appendFailures(nil, []error{errors.New("first"), nil, errors.New("third")}))
	f.Add(append(appendEnd(nil, ts[0].Local), append(append(make([]byte, 13), 250), make([]byte, 260)...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ts, err := readTuples(b); err == nil && !bytes.Equal(appendTuples(nil, ts), b) {
			t.Errorf("%v", ts)
		}
		if specs, err := readSpecs(b); err == nil && !bytes.Equal(appendSpecs(nil, specs), b) {
			t.Errorf("%+v", specs)
		}
		if errs, err := readFailures(b, 5); err == nil {
			again, err := readFailures(appendFailures(nil, errs), 5)
			for i := range errs {
				if err != nil || (errs[i] == nil) != (again[i] == nil) {
					t.Errorf("%v, %v: %v", errs, err, again)
				}
			}
		}
	})
}
