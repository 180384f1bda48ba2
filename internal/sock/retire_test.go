package sock

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listenAt(t *testing.T, at string, dual bool) (FD, netip.AddrPort) {
	t.Helper()
	l, err := Listen(ListenSpec{Addr: netip.MustParseAddrPort(at), DualStack: dual, Backlog: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, LocalAddr(l)
}

// eventually asks until it is so; the test ends by its own time if it never is.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for range 5000 {
		if so() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s: never", what)
}

// A listener that is barred takes nothing new, gives what it has, counts what
// comes, and can be opened again.
func TestBarNew(t *testing.T) {
	l, at := listenAt(t, "127.0.0.1:0", false)
	early, _, e := Dial(&DialSpec{Addr: at})
	if e != 0 && e != InProgress {
		t.Fatal(e)
	}
	defer early.Close()
	eventually(t, "the early one is connected", func() bool { return DialResult(early) == 0 })
	before, ok := Drops(l)
	if !ok {
		t.Fatal("the kernel does not tell what a socket drops")
	}
	if err := BarNew(l); err != nil {
		t.Fatal(err)
	}
	late, _, e := Dial(&DialSpec{Addr: at})
	if e != 0 {
		t.Fatal(e)
	}
	defer late.Close()
	if e := DialResult(late); e != InProgress {
		t.Fatalf("dial at a barred listener: %v, want that it waits", e)
	}
	eventually(t, "the late one is counted", func() bool { n, _ := Drops(l); return n == before+1 })
	if n, err := Handshakes([]netip.AddrPort{at}, []bool{false}); err != nil || n[0] != 0 {
		t.Errorf("%d handshakes, %v", n, err)
	}
	conn, _, e := Accept(l)
	if e != 0 {
		t.Fatalf("what waited is not accepted: %v", e)
	}
	defer conn.Close()
	if _, _, e := Accept(l); e != Again {
		t.Errorf("another one is accepted: %v", e)
	}
	// The filter that the connection has inherited means nothing to it.
	if n, e := Send(early, []byte("x")); n != 1 || e != 0 {
		t.Fatal(e)
	}
	var b [4]byte
	eventually(t, "an octet", func() bool { n, e := Recv(conn, b[:]); return n == 1 && e == 0 })
	if err := Unbar(l); err != nil {
		t.Fatal(err)
	}
	if err := Unbar(l); err != nil {
		t.Error("twice:", err)
	}
	eventually(t, "the late one is let in", func() bool { return DialResult(late) == 0 })
}

// Handshakes that are under way are counted: here the clients do not hear the
// answer, so they do not end.
func TestHandshakes(t *testing.T) {
	for _, c := range []struct {
		at, from string
		dual     bool
	}{{"127.0.0.1:0", "127.0.0.1", false}, {"[::1]:0", "::1", false}, {"[::]:0", "127.0.0.1", true}, {"[::]:0", "::1", true}} {
		_, at := listenAt(t, c.at, c.dual)
		_, other := listenAt(t, c.at, c.dual)
		to := netip.AddrPortFrom(netip.MustParseAddr(c.from), at.Port())
		for i := range 3 {
			deaf(t, to)
			both, err := Handshakes([]netip.AddrPort{at, other}, []bool{c.dual, c.dual})
			one, err2 := Handshakes([]netip.AddrPort{at}, []bool{c.dual})
			if want := []int{i + 1, 0}; !slices.Equal(both, want) || !slices.Equal(one, want[:1]) {
				t.Errorf("%s from %s: %d handshakes there and at another port, %d there alone; want %d (%v, %v)", c.at, c.from, both, one, want, err, err2)
			}
		}
	}
}

// deaf opens a connection that hears nothing.
func deaf(t *testing.T, to netip.AddrPort) {
	t.Helper()
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte{127, 0, 0, 1}}
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	s, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s) })
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	if err := unix.SetsockoptSockFprog(s, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(s, sa); err != unix.EINPROGRESS {
		t.Fatal(err)
	}
}
