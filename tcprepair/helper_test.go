package tcprepair

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// helper is the privileged process of these tests: a thread that keeps what
// the test's own thread gives up.
type helper struct {
	asked chan func()
	calls int
}

func newHelper(t *testing.T) *helper {
	h := &helper{asked: make(chan func())}
	var done sync.WaitGroup
	done.Go(func() {
		for f := range h.asked {
			f()
		}
	})
	t.Cleanup(func() { close(h.asked); done.Wait() })
	return h
}

func (h *helper) do(f func()) {
	h.calls++
	done := make(chan struct{})
	h.asked <- func() { defer close(done); f() }
	<-done
}

func (h *helper) toggle(fds, modes []int) (errs []error) {
	h.do(func() { errs = SetRepair(fds, modes) })
	return errs
}

func (h *helper) open(p SocketSpec) (fd int, err error) {
	h.do(func() { fd, err = p.Open() })
	return fd, err
}

// unprivileged runs f on a thread without CAP_NET_ADMIN, which ends with it.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&hdr, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		for i := range caps {
			caps[i] = unix.CapUserData{}
		}
		if err := unix.Capset(&hdr, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		f()
	})
	done.Wait()
}

// An owner without any capability moves a lot of connections by a helper's
// hand: to freeze, to resume, to restore and to go live, with a call for
// all at each step. Buffers beyond net.core.rmem_max, a port below 1024.
func TestUnprivilegedOwner(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		h := newHelper(t)
		conns := []*conn{
			newConn(t, ours, peers, nil),
			newConnAt(t, netip.AddrPortFrom(ours, 443), peers, nil),
			newConn(t, ours, peers, smallBuffers),
		}
		conns[0].bothWrote()
		conns[1].mustWrite(false, hello)
		conns[2].fill(false)
		conns[2].fill(true)
		unprivileged(t, func() {
			lot := make([]Socket, len(conns))
			fds := make([]int, len(conns))
			for i, c := range conns {
				lot[i].FD, fds[i] = c.ours, c.ours
			}
			if _, err := Save(fds[0]); !isNotPermitted(err) {
				t.Errorf("Save without help: %v", err)
			}
			save := func() {
				h.calls = 0
				must(t, "freeze", errors.Join(EnterRepair(fds, h.toggle)...))
				for i := range lot {
					var err error
					lot[i].State, err = Save(fds[i])
					must(t, "Save", err)
					must(t, "Verify", Verify(fds[i], lot[i].State))
					if !InRepair(fds[i]) {
						t.Error("saved and not in repair mode")
					}
				}
			}
			save()
			ResumeAll(lot, h.toggle)
			for i := range lot {
				must(t, "ResumeAll", lot[i].Err)
				if InRepair(fds[i]) {
					t.Error("resumed and in repair mode")
				}
			}
			if h.calls != 2 {
				t.Errorf("%d calls to freeze and resume", h.calls)
			}
			save()
			h.calls = 0
			for i, c := range conns {
				must(t, "Discard", Discard(c.ours))
				s := lot[i].State
				if i == 0 {
					s.RecvBuffer, s.BufferLock = 3<<20, 3
				}
				fd, err := h.open(s.Spec(Options{}))
				must(t, "Open", err)
				must(t, "RestoreOn", RestoreOn(fd, s, Options{}))
				c.ours, lot[i].FD = fd, fd
			}
			has, err := readBuffers(lot[0].FD)
			if must(t, "SO_MEMINFO", err); has.recv != forced(t, 3<<20) {
				t.Errorf("a receive buffer of %d octets", has.recv)
			}
			h.calls = 0
			GoLiveAll(lot, h.toggle)
			if h.calls != 1 {
				t.Errorf("%d calls to go live", h.calls)
			}
			for i := range lot {
				must(t, "GoLiveAll", lot[i].Err)
			}
			for i, c := range conns {
				c.writeRest(lot[i].Rest)
			}
		})
		for _, c := range conns {
			c.finish(true, true)
		}
	})
}

// forced is what a receive buffer becomes of which n octets are asked by
// somebody who is privileged here: all of it if here is the whole machine.
func forced(t testing.TB, n uint32) uint32 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, "socket", err)
	defer unix.Close(fd)
	must(t, "receive buffer", setRecvBuffer(fd, n/2))
	has, err := readBuffers(fd)
	must(t, "SO_MEMINFO", err)
	return has.recv
}

func isNotPermitted(err error) bool {
	var np *NotPermitted
	return errors.As(err, &np)
}

// One socket that cannot go on does not keep the others of its lot.
func TestToggleFailsForOne(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		wantNoReset(t)
		for _, what := range []string{"ResumeAll", "GoLiveAll"} {
			conns := []*conn{newConn(t, ours, peers, nil), newConn(t, ours, peers, nil), newConn(t, ours, peers, nil)}
			lot := make([]Socket, len(conns))
			for i, c := range conns {
				s, err := Save(c.ours)
				must(t, "Save", err)
				if what == "GoLiveAll" {
					must(t, "Discard", Discard(c.ours))
					c.ours, err = Restore(s, Options{})
					must(t, "Restore", err)
				}
				lot[i] = Socket{FD: c.ours, State: s}
			}
			bad := lot[1].FD
			toggle := func(fds, modes []int) []error {
				fds = slices.Clone(fds)
				fds[slices.Index(fds, bad)] = -1
				return SetRepair(fds, modes)
			}
			if what == "ResumeAll" {
				ResumeAll(lot, toggle)
			} else {
				GoLiveAll(lot, toggle)
			}
			for i := range lot {
				if (lot[i].Err != nil) != (i == 1) {
					t.Errorf("%s: socket %d: %v", what, i, lot[i].Err)
				}
			}
			must(t, "Resume", Resume(bad))
			for _, c := range conns {
				c.finish(true, true)
			}
		}
	})
}

// What a helper is asked to make is input like any other.
func TestSocketSpecRefused(t *testing.T) {
	for _, p := range []SocketSpec{
		{},
		{Local: netip.MustParseAddrPort("0.0.0.0:80")},
		{Local: netip.MustParseAddrPort("[::]:80")},
		{Local: netip.MustParseAddrPort("127.0.0.1:0")},
		{Local: netip.MustParseAddrPort("224.0.0.1:80")},
		{Local: netip.MustParseAddrPort("[fe80::1%lo]:80")},
		{Local: netip.MustParseAddrPort("[::ffff:127.0.0.1]:80")},
		{Local: netip.MustParseAddrPort("127.0.0.1:80"), RecvBuffer: 1<<30 + 1},
	} {
		if fd, err := p.Open(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: fd %d, %v", p, fd, err)
		}
	}
}
