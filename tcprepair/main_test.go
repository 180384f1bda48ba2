package tcprepair

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const nsMark = "TCPREPAIR_TEST_NAMESPACE"

// TestMain runs the tests in a user and network namespace of their own, in
// which this process is privileged and alone: no root is needed, nothing of
// the host is touched, and the kernel's counters count these tests only.
func TestMain(m *testing.M) {
	if os.Getenv(nsMark) == "" {
		os.Exit(reexec())
	}
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "tcprepair tests: loopback:", err)
		os.Exit(1)
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
		fmt.Fprintln(os.Stderr, "tcprepair tests need unprivileged user namespaces:", err)
		return 1
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	// Segments as on an Ethernet, so that queues consist of many buffers.
	ifr.SetUint32(1500)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr); err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// families are the loopback addresses of the two ends.
var families = []struct {
	name        string
	ours, peers netip.Addr
}{
	{"ipv4", netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")},
	{"ipv6", netip.IPv6Loopback(), netip.IPv6Loopback()},
}

func eachFamily(t *testing.T, f func(t *testing.T, ours, peers netip.Addr)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam.ours, fam.peers) })
	}
}

// conn is a connection whose two ends live in this process: ours is moved,
// the peer's never. Each direction carries a stream of predictable octets.
type conn struct {
	t           testing.TB
	ours, peers int
	// Octets written so far and expected at the other end.
	oursWrote, peersWrote int
	oursRead, peersRead   int
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func listen(t testing.TB, at netip.AddrPort, set func(fd int)) (fd int, addr netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(domain(at.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	must(t, "socket", err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, "SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if set != nil {
		set(fd)
	}
	must(t, "bind", unix.Bind(fd, sockaddr(at)))
	must(t, "listen", unix.Listen(fd, 8))
	return fd, localAddr(t, fd)
}

// newConn connects the peer to a listener of ours; ours is the accepted end.
// set, if not nil, is called for the listener, whose options ours inherits,
// and for the peer's socket before it connects.
func newConn(t testing.TB, ours, peers netip.Addr, set func(fd int, our bool)) *conn {
	t.Helper()
	return newConnAt(t, netip.AddrPortFrom(ours, 0), peers, set)
}

// newConnAt is newConn with a listener on a port of its own.
func newConnAt(t testing.TB, ours netip.AddrPort, peers netip.Addr, set func(fd int, our bool)) *conn {
	t.Helper()
	ln, at := listen(t, ours, func(fd int) {
		if set != nil {
			set(fd, true)
		}
	})
	c := &conn{t: t, ours: -1, peers: -1}
	var err error
	c.peers, err = unix.Socket(domain(peers), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	must(t, "socket", err)
	if set != nil {
		set(c.peers, false)
	}
	must(t, "bind", unix.Bind(c.peers, sockaddr(netip.AddrPortFrom(peers, 0))))
	must(t, "connect", unix.Connect(c.peers, sockaddr(at)))
	c.ours, _, err = unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	must(t, "accept", err)
	must(t, "nonblock", unix.SetNonblock(c.peers, true))
	unix.Close(ln)
	t.Cleanup(func() {
		for _, fd := range []int{c.ours, c.peers} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	})
	return c
}

// octet is the octet at offset i of a stream; seed tells the directions apart.
func octet(seed byte, i int) byte { return byte(i*31) ^ byte(i>>8) ^ byte(i>>16) ^ seed }

const (
	seedOurs  = 0x00
	seedPeers = 0xa5
)

func stream(seed byte, from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = octet(seed, from+i)
	}
	return b
}

// write writes up to n octets, as many as the kernel takes without waiting.
func (c *conn) write(our bool, n int) (wrote int) {
	c.t.Helper()
	fd, at, seed := c.ours, &c.oursWrote, byte(seedOurs)
	if !our {
		fd, at, seed = c.peers, &c.peersWrote, seedPeers
	}
	for wrote < n {
		m, err := unix.SendmsgN(fd, stream(seed, *at, min(n-wrote, 16<<10)), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			return wrote
		}
		must(c.t, "write", err)
		wrote += m
		*at += m
	}
	return wrote
}

// mustWrite writes all n octets.
func (c *conn) mustWrite(our bool, n int) {
	c.t.Helper()
	if m := c.write(our, n); m != n {
		c.t.Fatalf("wrote %d of %d octets", m, n)
	}
}

// wrote counts octets that GoLive returned and the test wrote itself.
func (c *conn) writeRest(rest []byte) {
	c.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for len(rest) > 0 {
		m, err := unix.SendmsgN(c.ours, rest, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			if time.Now().After(deadline) {
				c.t.Fatalf("%d octets cannot be written", len(rest))
			}
			c.drain(false)
			time.Sleep(time.Millisecond)
			continue
		}
		must(c.t, "write", err)
		rest = rest[m:]
	}
}

// drain reads what is there and verifies each octet. It reports the end of
// the stream.
func (c *conn) drain(our bool) (eof bool) {
	c.t.Helper()
	fd, at, seed := c.ours, &c.oursRead, byte(seedPeers)
	if !our {
		fd, at, seed = c.peers, &c.peersRead, seedOurs
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			c.t.Fatalf("read (our end: %v) at offset %d: %v", our, *at, err)
		case n == 0:
			return true
		}
		if want := stream(seed, *at, n); !bytes.Equal(buf[:n], want) {
			for i := range want {
				if buf[i] != want[i] {
					c.t.Fatalf("octet %d of the stream (our end: %v) is %#x, want %#x", *at+i, our, buf[i], want[i])
				}
			}
		}
		*at += n
	}
}

// want waits until an end has read n octets in all and, if eof is set, the
// end of the stream.
func (c *conn) want(our bool, n int, eof bool) {
	c.t.Helper()
	at := &c.oursRead
	if !our {
		at = &c.peersRead
	}
	ended := false
	wait(c.t, "octets", func() bool {
		ended = c.drain(our) || ended
		return *at >= n && (ended || !eof)
	})
	if *at != n {
		c.t.Fatalf("read %d octets (our end: %v), %d were written", *at, our, n)
	}
}

// finish ends the conversation: each side that may still write writes more
// and shuts down, and both read everything to the end.
func (c *conn) finish(oursOpen, peersOpen bool) {
	c.t.Helper()
	const more = 200 << 10
	todo := map[bool]int{}
	if oursOpen {
		todo[true] = more
	}
	if peersOpen {
		todo[false] = more
	}
	wait(c.t, "the rest of the conversation", func() bool {
		for our, n := range todo {
			if n -= c.write(our, n); n > 0 {
				todo[our] = n
				continue
			}
			fd := c.peers
			if our {
				fd = c.ours
			}
			must(c.t, "shutdown", unix.Shutdown(fd, unix.SHUT_WR))
			delete(todo, our)
		}
		c.drain(true)
		c.drain(false)
		return len(todo) == 0
	})
	c.want(true, c.peersWrote, true)
	c.want(false, c.oursWrote, true)
}

func wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 15 s", what)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

func stateOf(t testing.TB, fd int) TCPState {
	t.Helper()
	i, err := readInfo(fd)
	must(t, "TCP_INFO", err)
	return i.state
}

func awaitTest(t testing.TB, fd int, want TCPState) {
	t.Helper()
	wait(t, "state "+want.String(), func() bool { return stateOf(t, fd) == want })
}

// deafen makes a socket lose everything that arrives for it: a filter that
// keeps no octet. The other side notices nothing but silence.
func deafen(t testing.TB, fd int) {
	t.Helper()
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	must(t, "SO_ATTACH_FILTER", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &nothing[0]}))
}

func undeafen(t testing.TB, fd int) {
	t.Helper()
	must(t, "SO_DETACH_FILTER", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0))
}

// snmp reads one TCP counter of the namespace.
func snmp(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/snmp")
	must(t, "snmp", err)
	var keys []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != "Tcp:" {
			continue
		}
		if keys == nil {
			keys = f
			continue
		}
		for i, k := range keys {
			if k == name {
				v, err := strconv.Atoi(f[i])
				must(t, name, err)
				return v
			}
		}
	}
	t.Fatalf("no counter %s", name)
	return 0
}

// wantNoReset fails the test if the namespace sent a reset while it ran.
func wantNoReset(t *testing.T) {
	before := snmp(t, "OutRsts")
	t.Cleanup(func() {
		if n := snmp(t, "OutRsts") - before; n != 0 && !t.Failed() {
			t.Errorf("%d resets were sent", n)
		}
	})
}

// sent counts the segments that f makes this namespace send.
func sent(t testing.TB, f func()) int {
	t.Helper()
	before := snmp(t, "OutSegs")
	f()
	return snmp(t, "OutSegs") - before
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// localAddr is the address that a socket is bound to.
func localAddr(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	a, _, err := name(fd, unix.SYS_GETSOCKNAME)
	must(t, "getsockname", err)
	return a
}
