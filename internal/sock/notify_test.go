package sock

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A listener that another program opened gets the bounds of the one that it becomes,
// and keeps them where there are none.
func TestRelistenSetsBounds(t *testing.T) {
	fd, err := Listen(ListenSpec{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	at := LocalAddr(fd)
	for _, s := range []ListenSpec{{Addr: at, Backlog: 8, MSS: 700, Buffer: 30000}, {Addr: at, Backlog: 8}} {
		if err := Relisten(fd, s); err != nil {
			t.Fatal(err)
		}
		// The kernel doubles what it is asked for, to account for its own (socket(7)).
		for _, want := range []struct{ level, opt, v int }{
			{unix.SOL_SOCKET, unix.SO_RCVBUF, 60000}, {unix.SOL_SOCKET, unix.SO_SNDBUF, 60000},
		} {
			if got, e := getInt(fd, want.level, want.opt); e != 0 || got != want.v {
				t.Errorf("%+v: option %d is %d (%v), want %d", s, want.opt, got, e, want.v)
			}
		}
	}
	// A listening socket tells no clamp; one that was accepted does.
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(c) }()
	if err := unix.Connect(c, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.GetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_MAXSEG); err != nil || got > 700 {
		t.Errorf("a client may send segments of %d octets (%v), want 700 at most", got, err)
	}
}
