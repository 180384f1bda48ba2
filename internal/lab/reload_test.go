package lab

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// reloadRig is the traffic of the lab reload against its own server, directly.
type reloadRig struct {
	t    *testing.T
	d    *reloadDriver
	port int
}

func newReloadRig(t *testing.T) *reloadRig {
	t.Helper()
	d, err := newReloadDriver(3, []string{"a=127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(); _ = d.servers[0].lis.Close() })
	return &reloadRig{t, d, d.servers[0].lis.Addr().(*net.TCPAddr).Port}
}

func (r *reloadRig) load(port int) {
	r.t.Helper()
	q := ReloadLoad{Ports: []int{port}, All: []int{port}, PerSec: 100, Kept: 3, Idle: 5, Apart: []string{fmt.Sprintf("%d/a/x", r.port)}, ApartIn: 5 * time.Millisecond}
	if err := r.d.Load(q, new(bool)); err != nil {
		r.t.Fatal(err)
	}
}

// held opens two flows of each kind.
func (r *reloadRig) held(generation int) (opened int) {
	r.t.Helper()
	var all []ReloadHeld
	for k := range heldKinds {
		all = append(all, ReloadHeld{Kind: k, Generation: generation, Port: r.port, Period: 5 * time.Millisecond, N: 2})
	}
	if err := r.d.Open(all, &opened); err != nil {
		r.t.Fatal(err)
	}
	return opened
}

// until waits for what clients count.
func (r *reloadRig) until(what string, f func(c ReloadCounts) bool) {
	r.t.Helper()
	var rep ReloadReport
	ok := eventually(10*time.Second, func() bool {
		if err := r.d.Look(true, &rep); err != nil {
			r.t.Fatal(err)
		}
		return f(rep.Counts)
	})
	if !ok {
		r.t.Fatalf("never %s: %+v\n%s", what, rep.Counts, strings.Join(rep.Faults, "\n"))
	}
}

func (r *reloadRig) finish() *ReloadReport {
	r.t.Helper()
	var rep ReloadReport
	if err := r.d.Finish(true, &rep); err != nil {
		r.t.Fatal(err)
	}
	return &rep
}

// Without a balancer nothing may be lost, and every kind of client must have done
// something.
func TestReloadTrafficIsRight(t *testing.T) {
	r := newReloadRig(t)
	r.load(r.port)
	if n := r.held(0); n != 2*heldKinds {
		t.Fatalf("opened %d of %d", n, 2*heldKinds)
	}
	r.until("all at work", func(c ReloadCounts) bool { return c.New > 20 && c.Asked > 10 && c.Idle == 5 && c.Apart > 20 })
	rep := r.finish()
	c := rep.Counts
	if lost := c.NewLost + c.AskedLost + c.IdleLost + c.IdleClosed + c.KeptClosed + c.KeptTold; lost > 0 || len(rep.Faults) > 0 {
		t.Errorf("lost %d: %+v\n%s", lost, c, strings.Join(rep.Faults, "\n"))
	}
	for k := range heldKinds {
		if c.Ended[k] != 2 || c.Broken[k] != 0 || rep.Delays[phaseBefore][delayOf(heldKind(k))].N == 0 {
			t.Errorf("%v: %d ended, %d broken, %d pieces", heldKind(k), c.Ended[k], c.Broken[k], rep.Delays[phaseBefore][delayOf(heldKind(k))].N)
		}
	}
	if s := rep.Servers["a"]; s.Strayed != 0 || s.Served == 0 {
		t.Errorf("server: %+v", s)
	}
}

// What the traffic is there to find, it finds.
func TestReloadTrafficNotices(t *testing.T) {
	for _, how := range []string{DropOctet, RSTOne} {
		t.Run(how, func(t *testing.T) {
			r := newReloadRig(t)
			r.held(0)
			if err := r.d.Strike(how, new(bool)); err != nil {
				t.Fatal(err)
			}
			eventually(10*time.Second, func() bool {
				r.d.mu.Lock()
				defer r.d.mu.Unlock()
				for _, f := range r.d.flows {
					if f.broken() != nil {
						return true
					}
				}
				return false
			})
			rep := r.finish()
			if n := rep.Counts.Broken; n[0]+n[1]+n[2] != 1 {
				t.Errorf("broken %v, want 1 in all: %v", n, rep.Faults)
			}
		})
	}
	t.Run("another generation", func(t *testing.T) {
		r := newReloadRig(t)
		// The server says nothing of generations, and TCP cannot.
		if n := r.held(7); n != 2 || r.d.counts.Unopened != [heldKinds]int{0, 2, 2} {
			t.Errorf("opened %d, not opened %v", n, r.d.counts.Unopened)
		}
	})
	t.Run("closed while idle", func(t *testing.T) {
		r := newReloadRig(t)
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lis.Close() })
		go func() { // ends with the listener
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				go relayOnce(c, fmt.Sprintf("127.0.0.1:%d", r.port))
			}
		}()
		r.load(lis.Addr().(*net.TCPAddr).Port)
		r.until("closed", func(c ReloadCounts) bool { return c.IdleClosed > 0 && c.KeptClosed > 0 })
		r.finish()
	})
	t.Run("nobody there", func(t *testing.T) {
		r := newReloadRig(t)
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = lis.Close()
		r.load(lis.Addr().(*net.TCPAddr).Port)
		r.until("lost", func(c ReloadCounts) bool { return c.NewLost > 10 })
		r.finish()
	})
}

// relayOnce passes one request and its answer, then closes.
func relayOnce(c net.Conn, to string) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		return
	}
	if _, err := s.Write(b[:n]); err != nil {
		return
	}
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, _ = io.Copy(c, s)
}

// Each generation is a file that is right, differs from the one before in what it
// should, and has a proof for each thing that can be proved at once.
func TestServiceFleet(t *testing.T) {
	f, y := newServiceFleet(50), holdfastSyntax()
	before, _, err := config.Parse("0", []byte(strings.Replace(y.file(f), "SOCKET", "/run/x.sock", 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 60; i++ {
		proofs := f.next(i)
		now, _, err := config.Parse(fmt.Sprint(i), []byte(strings.Replace(y.file(f), "SOCKET", "/run/x.sock", 1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		plan := config.Diff(before, now).String()
		for _, want := range []string{
			fmt.Sprintf("s%d", f.at(classEndpoint, i)), fmt.Sprintf("s%d", f.at(classWeight, i)), fmt.Sprintf("s%d", f.at(classRoutes, i)),
			fmt.Sprintf("s%d", f.at(classMembers, i)), fmt.Sprintf("s%d", f.at(classTCP, i)), fmt.Sprintf("n%d", i), "apart",
		} {
			if !strings.Contains(plan, want) {
				t.Errorf("generation %d: the plan has nothing of %s:\n%s", i, want, plan)
			}
		}
		if len(proofs) < 5 {
			t.Errorf("generation %d: %d proofs", i, len(proofs))
		}
		before = now
	}
	// Nothing but the change is rendered again, and it must be what a whole
	// rendering is.
	again := holdfastSyntax()
	for i := range f.services {
		f.dirty[i] = true
	}
	if again.file(f) != y.file(f) {
		t.Error("what was kept from file to file is not what is there")
	}
}
