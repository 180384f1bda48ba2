package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who was let in is served: while a listener goes away and comes back again and
// again, no client that was connected is reset, and each octet comes back.
func TestRetireResetsNobody(t *testing.T) {
	to, a, b := echo(t), free(t), free(t)
	one := fmt.Sprintf("node: { loops: 2 }\nlisteners:\n  a: { vip: %q, backend: e }\n", a)
	both := one + fmt.Sprintf("  b: { vip: %q, backend: e }\n", b)
	rest := fmt.Sprintf("backends:\n  e: { endpoints: [ { name: e, address: %q } ] }\n", to)
	n := start(t, both+rest)
	var end atomic.Bool
	var all sync.WaitGroup
	var served, refused, waited atomic.Int64
	for range 4 {
		all.Go(func() {
			d := net.Dialer{Timeout: 300 * time.Millisecond}
			for !end.Load() {
				c, err := d.Dial("tcp4", b)
				var late net.Error
				switch {
				case errors.Is(err, syscall.ECONNREFUSED):
					refused.Add(1)
					continue
				case errors.As(err, &late) && late.Timeout():
					waited.Add(1) // it came while the listener was about to be closed
					continue
				case err != nil:
					t.Error(err)
					return
				}
				_, err = c.Write([]byte("x"))
				var octet [1]byte
				if err == nil {
					_, err = io.ReadFull(c, octet[:])
				}
				_ = c.Close()
				if err != nil || octet[0] != 'x' {
					t.Errorf("let in, and then %v", err)
					return
				}
				served.Add(1)
			}
		})
	}
	for range 40 {
		was := served.Load()
		n.reload(one + rest)
		n.reload(both + rest)
		await(t, "nobody is served", func() bool { return served.Load() > was+8 || t.Failed() })
	}
	end.Store(true)
	all.Wait()
	if _, late := n.side.kernel.sums(); waited.Load() > 0 && late == 0 {
		t.Errorf("%d clients were left without an answer, and none is counted", waited.Load())
	}
	t.Logf("%d served, %d refused, %d without an answer", served.Load(), refused.Load(), waited.Load())
}

// A listener that comes back before its last handshake is over is the same socket;
// one that does not is closed when it is.
func TestRetireIsTakenBack(t *testing.T) {
	to, a, b := echo(t), free(t), free(t)
	one := fmt.Sprintf("listeners:\n  a: { vip: %q, backend: e }\n", a)
	both := one + fmt.Sprintf("  b: { vip: %q, backend: e }\n", b)
	rest := fmt.Sprintf("backends:\n  e: { endpoints: [ { name: e, address: %q } ] }\n", to)
	n := start(t, both+rest)
	begun := unheard(t, b)
	was := n.gen.Listening["b"].FD
	n.reload(one + rest)
	n.retiring.mu.Lock()
	under := len(n.retiring.by)
	n.retiring.mu.Unlock()
	if under != 1 {
		t.Fatalf("%d listeners are about to be closed, want the one with a handshake", under)
	}
	n.reload(both + rest)
	if is := n.gen.Listening["b"].FD; is != was {
		t.Errorf("another socket: %d, was %d", is, was)
	}
	c := dial(t, b)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var octet [1]byte
	if _, err := io.ReadFull(c, octet[:]); err != nil {
		t.Fatal(err)
	}
	n.reload(one + rest)
	begun() // its client has gone
	await(t, "it is never closed", func() bool {
		_, err := net.DialTimeout("tcp4", b, 100*time.Millisecond)
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// A listener with another name keeps its socket, and two that exchange their VIPs
// keep theirs: no connection is lost, and each comes under the right one.
func TestNamesAndVIPsKeepSockets(t *testing.T) {
	to, other, a, b := echo(t), shout(t), free(t), free(t)
	text := func(first, second, va, vb string) string {
		return fmt.Sprintf("listeners:\n  %s: { vip: %q, backend: e }\n  %s: { vip: %q, backend: o }\n", first, va, second, vb) +
			fmt.Sprintf("backends:\n  e: { endpoints: [ { name: e, address: %q } ] }\n  o: { endpoints: [ { name: e, address: %q } ] }\n", to, other)
	}
	n := start(t, text("a", "b", a, b))
	says := func(vip, want string) {
		t.Helper()
		c := dial(t, vip)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		var octet [1]byte
		if _, err := io.ReadFull(c, octet[:]); err != nil || string(octet[:]) != want {
			t.Fatalf("%q, %v, want %q", octet, err, want)
		}
	}
	says(a, "x")
	says(b, "X")
	fa, fb := n.gen.Listening["a"].FD, n.gen.Listening["b"].FD
	n.reload(text("a", "b", b, a))
	if n.gen.Listening["a"].FD != fb || n.gen.Listening["b"].FD != fa {
		t.Errorf("other sockets after the exchange of VIPs")
	}
	says(b, "x")
	says(a, "X")
	n.reload(text("c", "d", b, a))
	if n.gen.Listening["c"].FD != fb || n.gen.Listening["d"].FD != fa {
		t.Errorf("other sockets under other names")
	}
	says(b, "x")
	says(a, "X")
}

// shout is a server that says what it hears in capitals.
func shout(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				b := make([]byte, 64)
				for {
					k, err := c.Read(b)
					if err != nil {
						return
					}
					_, _ = c.Write([]byte(strings.ToUpper(string(b[:k]))))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// unheard begins a connection and hears nothing of the answer, so that its handshake
// does not end; what it gives ends it.
func unheard(t *testing.T, to string) (end func()) {
	t.Helper()
	addr, err := net.ResolveTCPAddr("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end = func() { once.Do(func() { _ = syscall.Close(s) }) }
	t.Cleanup(end)
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	if err := unix.SetsockoptSockFprog(s, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Connect(s, &syscall.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}); err != syscall.EINPROGRESS {
		t.Fatal(err)
	}
	return end
}
