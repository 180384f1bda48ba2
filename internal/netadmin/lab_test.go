package netadmin

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const nsMark = "NETADMIN_TEST_NAMESPACE"

// TestMain runs the tests in a user and network namespace of their own, so
// that they need no root and touch nothing of the host.
func TestMain(m *testing.M) {
	if at := os.Getenv(muteEnv); at != "" {
		os.Exit(beMute(at))
	}
	if os.Getenv(nsMark) == "" {
		os.Exit(reexec())
	}
	os.Exit(m.Run())
}

func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), nsMark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig looks at the thread
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		fmt.Fprintln(os.Stderr, "netadmin tests need unprivileged user namespaces:", err)
		return 1
	}
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// namespace is a network namespace, kept by a thread of its own.
type namespace struct {
	t    testing.TB
	name string
	run  chan func()
	file *os.File
}

func newNamespace(t testing.TB, name string) *namespace {
	t.Helper()
	n := &namespace{t: t, name: name, run: make(chan func())}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		// Each connection's frames on one processor. Without it a frame that another processor
		// sends over a veth may overtake one that was sent before, and an ACK that FIN overtook is
		// answered with a reset. For devices made later; kernels before 6.3 lack it.
		_ = setProc(fmt.Sprintf("core/rps_default_mask=%x", uint64(1)<<min(runtime.NumCPU(), 32)-1))
		started <- err
		for f := range n.run {
			f()
		}
	}()
	must(t, "unshare "+name, <-started)
	t.Cleanup(func() {
		close(n.run)
		n.file.Close()
	})
	return n
}

// do runs f on the namespace's thread. f must not end the goroutine, so it
// returns an error rather than failing the test.
func (n *namespace) do(what string, f func() error) {
	n.t.Helper()
	done := make(chan error)
	n.run <- func() { done <- f() }
	if err := <-done; err != nil {
		n.t.Fatalf("%s: %s: %v", n.name, what, err)
	}
}

// host is a namespace with one Ethernet device, eth0, on the lab's bridge.
type host struct {
	*namespace
	addr [2]netip.Addr // IPv4, IPv6
	rst  *nftables.Conn
}

// The addresses of the lab. vip is what clients use, src what endpoints see.
var (
	vip = [2]netip.Addr{netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("fd00:9::100")}
	src = [2]netip.Addr{netip.MustParseAddr("10.9.0.101"), netip.MustParseAddr("fd00:9::101")}
)

// lab is a bridge with four hosts: a and b carry flows, client and server
// are their two ends. The movable addresses are on lo of a and b, and a
// answers for them: it has them on eth0 too.
type lab struct {
	t                    testing.TB
	a, b, client, server *host
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := newBareLab(t)
	l.place(l.a, l.b)
	return l
}

// newBareLab is a lab without the movable addresses.
func newBareLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t}
	bridge := newNamespace(t, "bridge")
	bridge.do("bridge", func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	})
	for i, h := range []**host{&l.a, &l.b, &l.client, &l.server} {
		name := []string{"a", "b", "client", "server"}[i]
		*h = l.newHost(bridge, name, 11+i)
	}
	return l
}

func (l *lab) place(hosts ...*host) {
	l.t.Helper()
	for _, h := range hosts {
		h.do("movable addresses", func() error {
			for _, s := range []string{"ipv4/conf/all/arp_ignore=1", "ipv4/conf/all/arp_announce=2"} {
				if err := setProc(s); err != nil {
					return err
				}
			}
			for i := range vip {
				for _, ip := range []netip.Addr{vip[i], src[i]} {
					if err := addAddr("lo", ip, true); err != nil {
						return err
					}
					if h == l.a {
						if err := addAddr("eth0", ip, true); err != nil {
							return err
						}
					}
				}
			}
			return nil
		})
	}
}

func (l *lab) newHost(bridge *namespace, name string, n int) *host {
	h := &host{namespace: newNamespace(l.t, name)}
	h.addr = [2]netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", n)), netip.MustParseAddr(fmt.Sprintf("fd00:9::%d", n)),
	}
	bridge.do("veth", func() error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v" + name}, PeerName: "eth0",
			PeerNamespace: netlink.NsFd(h.file.Fd())}
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(v, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(v)
	})
	h.do("addresses", func() error {
		// The link-local address that neighbour discovery uses is to be there
		// at once, without a second of looking for duplicates.
		if err := setProc("ipv6/conf/eth0/accept_dad=0"); err != nil {
			return err
		}
		for _, d := range []string{"lo", "eth0"} {
			link, err := netlink.LinkByName(d)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		for _, ip := range h.addr {
			if err := addAddr("eth0", ip, false); err != nil {
				return err
			}
		}
		return nil
	})
	h.do("reset counter", h.countResets)
	return h
}

func addAddr(dev string, ip netip.Addr, single bool) error {
	bits := 24
	if ip.Is6() {
		bits = 64
	}
	if single {
		bits = ip.BitLen()
	}
	return withAddr(dev, netip.PrefixFrom(ip, bits), netlink.AddrAdd)
}

func delAddr(dev string, ip netip.Addr) error {
	return withAddr(dev, netip.PrefixFrom(ip, ip.BitLen()), netlink.AddrDel)
}

func withAddr(dev string, p netip.Prefix, change func(netlink.Link, *netlink.Addr) error) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD // no second of waiting for duplicates
	return change(link, a)
}

func setProc(s string) error {
	k, v, _ := strings.Cut(s, "=")
	return os.WriteFile(filepath.Join("/proc/sys/net", k), []byte(v), 0)
}

// countResets counts RST segments that leave the host, behind our own guard,
// and that arrive.
func (h *host) countResets() error {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	h.rst = c
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "count"})
	c.AddObj(&nftables.CounterObj{Table: t, Name: "rst"})
	for name, hook := range map[string]*nftables.ChainHook{"out": nftables.ChainHookOutput, "in": nftables.ChainHookPrerouting} {
		ch := c.AddChain(&nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(300)})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: reg0},
			&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{4}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: []byte{0}},
			&expr.Objref{Type: objCounter, Name: "rst"},
		}})
	}
	return c.Flush()
}

func (h *host) resets() uint64 {
	h.t.Helper()
	objs, err := h.rst.GetObjects(&nftables.Table{Family: nftables.TableFamilyINet, Name: "count"})
	must(h.t, "reset counter", err)
	if len(objs) != 1 {
		h.t.Fatalf("%d counters", len(objs))
	}
	return objs[0].(*nftables.CounterObj).Packets
}

// wantNoReset fails the test if any host has seen a reset.
func (l *lab) wantNoReset() {
	l.t.Helper()
	for _, h := range []*host{l.a, l.b, l.client, l.server} {
		if n := h.resets(); n != 0 {
			l.t.Errorf("host %s: %d resets", h.name, n)
		}
	}
}

func (h *host) open(cfg Config) *Admin {
	h.t.Helper()
	if cfg.Device == "" {
		cfg.Device = "eth0"
	}
	var a *Admin
	h.do("Open", func() (err error) {
		a, err = Open(cfg)
		return err
	})
	h.t.Cleanup(func() {
		h.do("Close", func() error {
			if err := a.Close(); !errors.Is(err, ErrClosed) {
				return err
			}
			return nil
		})
	})
	return a
}

func (h *host) counters(a *Admin) Counters {
	h.t.Helper()
	c, err := a.Counters()
	must(h.t, "Counters", err)
	return c
}

// snmp reads a counter of /proc/net/snmp or netstat in the namespace.
func (h *host) snmp(name string) (v int) {
	h.t.Helper()
	h.do(name, func() error {
		for _, f := range []string{"snmp", "netstat"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + f)
			if err != nil {
				return err
			}
			lines := strings.Split(string(b), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				keys, vals := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				for j, k := range keys {
					if k == name && strings.HasPrefix(keys[0], "Tcp") {
						v, err = strconv.Atoi(vals[j])
						return err
					}
				}
			}
		}
		return errors.New("no such counter")
	})
	return v
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch v := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(v.Addr), uint16(v.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(v.Addr), uint16(v.Port))
	}
	return netip.AddrPort{}
}

func (h *host) socket(at netip.Addr) (fd int) {
	h.t.Helper()
	d := unix.AF_INET
	if at.Is6() {
		d = unix.AF_INET6
	}
	h.do("socket", func() (err error) {
		fd, err = unix.Socket(d, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		// As for all sockets on movable addresses: see the package comment.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return fd
}

// stream is one connection: ours on a (later b), peers on another host. Each
// end writes octets that tell their offset.
type stream struct {
	t           testing.TB
	ours, peers int
	tuple       Tuple // as ours sees it
	oursWrote, peersWrote,
	oursRead, peersRead int
	rest []byte
	buf  []byte
}

// connect makes a connection between ourAddr on our host and peerAddr on
// another; the listening side is ours if listen is set.
func connect(t testing.TB, our *host, ourAddr netip.Addr, peer *host, peerAddr netip.Addr, listen bool) *stream {
	t.Helper()
	s := &stream{t: t, buf: make([]byte, 256<<10)}
	lh, la, dh, da := peer, peerAddr, our, ourAddr
	if listen {
		lh, la, dh, da = our, ourAddr, peer, peerAddr
	}
	ln, d := lh.socket(la), dh.socket(da)
	defer unix.Close(ln)
	must(t, "bind", unix.Bind(ln, sockaddr(netip.AddrPortFrom(la, 0))))
	must(t, "listen", unix.Listen(ln, 4))
	sa, err := unix.Getsockname(ln)
	must(t, "getsockname", err)
	must(t, "bind", unix.Bind(d, sockaddr(netip.AddrPortFrom(da, 0))))
	must(t, "send timeout", unix.SetsockoptTimeval(d, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}))
	must(t, "connect", unix.Connect(d, sa))
	must(t, "receive timeout", unix.SetsockoptTimeval(ln, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	acc, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
	must(t, "accept", err)
	s.ours, s.peers = d, acc
	if listen {
		s.ours, s.peers = acc, d
	}
	for _, fd := range []int{s.ours, s.peers} {
		must(t, "nonblock", unix.SetNonblock(fd, true))
	}
	l, err := unix.Getsockname(s.ours)
	must(t, "getsockname", err)
	r, err := unix.Getpeername(s.ours)
	must(t, "getpeername", err)
	s.tuple = Tuple{Local: addrPort(l), Remote: addrPort(r)}
	t.Cleanup(func() {
		unix.Close(s.ours)
		unix.Close(s.peers)
	})
	return s
}

func octets(seed byte, from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		o := from + i
		b[i] = byte(o*31) ^ byte(o>>8) ^ byte(o>>16) ^ seed
	}
	return b
}

func (s *stream) write(our bool, n int) {
	s.t.Helper()
	fd, at, seed := s.ours, &s.oursWrote, byte(0)
	if !our {
		fd, at, seed = s.peers, &s.peersWrote, 0xa5
	}
	b := octets(seed, *at, n)
	if our && len(s.rest) > 0 {
		// What GoLive could not write comes first.
		m, err := unix.SendmsgN(fd, s.rest, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		must(s.t, "write rest", err)
		s.rest = s.rest[m:]
		return
	}
	m, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	must(s.t, "write", err)
	*at += m
}

// drain reads and verifies what is there.
func (s *stream) drain(our bool) (eof bool) {
	s.t.Helper()
	fd, at, seed := s.ours, &s.oursRead, byte(0xa5)
	if !our {
		fd, at, seed = s.peers, &s.peersRead, 0
	}
	for {
		n, err := unix.Read(fd, s.buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			s.t.Fatalf("read (our end: %v) at offset %d: %v", our, *at, err)
		case n == 0:
			return true
		}
		if !bytes.Equal(s.buf[:n], octets(seed, *at, n)) {
			s.t.Fatalf("wrong octets (our end: %v) in %d at offset %d", our, n, *at)
		}
		*at += n
	}
}

// pump lets both ends talk for a while, chunk octets at once.
func (s *stream) pump(d time.Duration, chunk int) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.write(true, chunk)
		s.write(false, chunk)
		s.drain(true)
		s.drain(false)
		if chunk < 10000 {
			time.Sleep(time.Millisecond)
		}
	}
}

func wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// settle waits until everything written has been read.
func (s *stream) settle() {
	s.t.Helper()
	wait(s.t, "all octets", func() bool {
		if len(s.rest) > 0 {
			s.write(true, 0)
		}
		s.drain(true)
		s.drain(false)
		return s.oursRead == s.peersWrote && s.peersRead == s.oursWrote
	})
}

// finish closes both directions in order and reads to both ends.
func (s *stream) finish(oursOpen, peersOpen bool) {
	s.t.Helper()
	s.settle()
	if oursOpen {
		must(s.t, "shutdown", unix.Shutdown(s.ours, unix.SHUT_WR))
	}
	if peersOpen {
		must(s.t, "shutdown", unix.Shutdown(s.peers, unix.SHUT_WR))
	}
	wait(s.t, "the end of our stream", func() bool { return s.drain(false) })
	wait(s.t, "the end of the peer's stream", func() bool { return s.drain(true) })
}

// eachFamily runs f with 0 for IPv4 and 1 for IPv6.
func eachFamily(t *testing.T, f func(t *testing.T, fam int)) {
	for i, name := range []string{"ipv4", "ipv6"} {
		t.Run(name, func(t *testing.T) { f(t, i) })
	}
}
