package netadmin

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A port of a leg that has moved away is given to no new connection, until the
// leg is back; by its number it can be had. What was reserved before stays so.
func TestReserve(t *testing.T) {
	l := newLab(t)
	const before = "5000,6000-6010"
	l.a.do("reserve", func() error { return setProc("ipv4/ip_local_reserved_ports=" + before) })
	reserved := func(want string) {
		t.Helper()
		l.a.do("reserved", func() error {
			got, err := readSysctl(reservedPorts)
			if err == nil && got != want {
				err = fmt.Errorf("got %q, want %q", got, want)
			}
			return err
		})
	}
	a := l.a.open(Config{})
	ln := l.server.listen(l.server.addr[0])
	sa, err := unix.Getsockname(ln)
	must(t, "getsockname", err)
	ts := []Tuple{{Local: netip.AddrPortFrom(src[0], 40001), Remote: addrPort(sa)}}
	dial := func() error { // from the only port 40001
		fd := l.a.socket(src[0])
		defer unix.Close(fd)
		must(t, "no port", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
		must(t, "range", unix.SetsockoptInt(fd, unix.SOL_IP, 51 /* IP_LOCAL_PORT_RANGE */, 40001<<16|40001))
		must(t, "bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(src[0], 0))))
		return unix.Connect(fd, sa)
	}
	must(t, "Divert", a.Divert(ts, l.b.addr[0]))
	reserved(before + ",40001")
	if err := dial(); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("a new connection from the port: %v", err)
	}

	// More than one write of the kernel takes.
	var many []Tuple
	for p := range uint16(2000) {
		many = append(many, Tuple{Local: netip.AddrPortFrom(src[0], 20000+2*p), Remote: addrPort(sa)})
	}
	must(t, "Divert many", a.Divert(many, l.b.addr[0]))
	_, err = a.Release(ts)
	must(t, "Release", err)
	wait(t, "the port to be free", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return !a.reserved.stale
	})
	must(t, "a new connection from the port", dial())
	must(t, "Undivert many", a.Undivert(many[1:]))
	wait(t, "the ports to be free", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return !a.reserved.stale
	})
	reserved(before + ",20000")
	must(t, "Close", a.Close())
	reserved(before)
}
