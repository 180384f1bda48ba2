package lab

import (
	"net/netip"
	"testing"
	"time"
)

// rig is traffic between two engines over loopback, without a balancer.
type rig struct {
	t       *testing.T
	traffic *Traffic
	from    *engine
	door    *Door
	flows   []*Flow
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, traffic: NewTraffic(5, true)}
	to, err := r.traffic.NewEngine(nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.from, err = r.traffic.NewEngine(nil); err != nil {
		t.Fatal(err)
	}
	if r.door, err = to.Listen(netip.MustParseAddrPort("127.0.0.1:0"), false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.traffic.Stop() })
	return r
}

func (r *rig) open(k Kind, n int, to netip.AddrPort) []*Flow {
	var fs []*Flow
	for range n {
		fs = append(fs, r.traffic.NewFlow(k, to))
	}
	r.from.Open(fs...)
	r.flows = append(r.flows, fs...)
	return fs
}

func (r *rig) served(fs []*Flow) {
	r.t.Helper()
	err := r.traffic.AwaitEach(30*time.Second, "flows to be served", fs, func(f *Flow) bool { return f.Served.Load() != 0 })
	if err != nil {
		r.t.Fatal(err)
	}
}

// lost waits until a flow is, and fails unless it is one.
func (r *rig) lost() {
	r.t.Helper()
	eventually(30*time.Second, func() bool { return r.traffic.LostTotal() > 0 })
	if n := r.traffic.LostTotal(); n != 1 {
		r.t.Fatalf("%d flows lost, want 1", n)
	}
}

// wantLost fails unless exactly one flow was lost in the way k, or none if n
// is 0.
func (r *rig) wantLost(n int, k FaultKind) {
	r.t.Helper()
	by, faults := r.traffic.Lost()
	if by[k] != n || r.traffic.LostTotal() != n {
		r.t.Fatalf("lost %v, want %d by %v: %v", by, n, k, faults)
	}
}

// TestTrafficIsRight runs every kind without a balancer: no fault may be
// found, and each flow must have moved octets and be over.
func TestTrafficIsRight(t *testing.T) {
	r := newRig(t)
	for k := range Flood { // without those that take all of a processor
		r.open(k, 8, r.door.Addr)
	}
	r.served(r.flows)
	time.Sleep(time.Second)
	r.traffic.Finish(30*time.Second, r.flows)
	r.wantLost(0, 0)
	for _, f := range r.flows {
		if f.Finished.Load() == 0 || f.Octets() == 0 {
			t.Errorf("flow %d (%v): finished %v, %d octets", f.ID, f.Kind, f.Finished.Load() != 0, f.Octets())
		}
	}
	if cpu := r.traffic.CPU(); cpu > 0.9 {
		t.Errorf("%.2f of a core", cpu)
	}
	if n := r.traffic.Stalled().by[Opening].N; n == 0 {
		t.Error("no stall was measured")
	}
}

// TestFloods proves that flows which send as fast as they are read are right, too, and
// come to an end.
func TestFloods(t *testing.T) {
	r := newRig(t)
	r.open(Flood, 1, r.door.Addr)
	r.open(FloodUp, 1, r.door.Addr)
	r.served(r.flows)
	for _, f := range r.flows {
		for end := time.Now().Add(30 * time.Second); f.Octets() < 1<<20; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%v: %d octets in 30 s", f.Kind, f.Octets())
			}
		}
	}
	r.traffic.Finish(30*time.Second, r.flows)
	r.wantLost(0, 0)
}

// TestTrafficFindsSabotage proves that the ends see one octet that is missing
// and one reset, each in the right way, and nothing else.
func TestTrafficFindsSabotage(t *testing.T) {
	for how, want := range map[string]FaultKind{DropOctet: WrongOctet, RSTOne: Reset} {
		for _, k := range []Kind{Bulk, Exchange, ClientHalf, SlowClient, SlowServer} {
			t.Run(how+"/"+k.String(), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				s, err := newSaboteur(nil, how, netip.MustParseAddrPort("127.0.0.1:0"), r.door.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				victim := r.open(k, 1, s.Addr)[0]
				r.open(k, 3, r.door.Addr)
				r.served(r.flows)
				time.Sleep(300 * time.Millisecond)
				r.wantLost(0, 0)
				s.Strike()
				eventually(30*time.Second, func() bool { return r.traffic.LostTotal() > 0 })
				r.traffic.Finish(30*time.Second, r.flows)
				if len(victim.Faults()) == 0 {
					t.Fatal("the fault was not found")
				}
				if how == DropOctet {
					r.wantLost(1, want)
				} else if by, _ := r.traffic.Lost(); by[Reset]+by[EarlyEOF] != 1 {
					t.Fatalf("lost %v", by)
				}
			})
		}
	}
}

// TestTrafficFindsLostFlows proves that a flow that nobody serves, one that is
// never over and one that a balancer closes are found.
func TestTrafficFindsLostFlows(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		r := newRig(t)
		r.open(Exchange, 1, netip.MustParseAddrPort("127.0.0.1:1"))
		r.lost()
		r.wantLost(1, Refused)
	})
	t.Run("unfinished", func(t *testing.T) {
		r := newRig(t)
		shut, err := r.traffic.engines[0].Listen(netip.MustParseAddrPort("127.0.0.1:0"), true)
		if err != nil {
			t.Fatal(err)
		}
		fs := r.open(Dialing, 1, shut.Addr)
		r.traffic.Finish(300*time.Millisecond, fs)
		r.wantLost(1, Unfinished)
	})
	t.Run("early EOF", func(t *testing.T) {
		r := newRig(t)
		s, err := newSaboteur(nil, "", netip.MustParseAddrPort("127.0.0.1:0"), r.door.Addr)
		if err != nil {
			t.Fatal(err)
		}
		fs := r.open(Idle, 1, s.Addr)
		r.served(fs)
		time.Sleep(100 * time.Millisecond)
		s.Close()
		r.lost()
	})
}

// TestShutDoor proves that a shut door keeps a client waiting, and that the
// client is served once it opens.
func TestShutDoor(t *testing.T) {
	r := newRig(t)
	door, err := r.traffic.engines[0].Listen(netip.MustParseAddrPort("127.0.0.1:0"), true)
	if err != nil {
		t.Fatal(err)
	}
	f := r.open(Dialing, 1, door.Addr)[0]
	time.Sleep(500 * time.Millisecond)
	if f.Opened.Load() != 0 {
		t.Fatal("the door was not shut")
	}
	if err := door.Unshut(); err != nil {
		t.Fatal(err)
	}
	r.served(r.flows)
	r.traffic.Finish(30*time.Second, r.flows)
	r.wantLost(0, 0)
}

// TestChurn proves that short connections are counted from their beginning to
// their end.
func TestChurn(t *testing.T) {
	r := newRig(t)
	stop := r.traffic.Churn(r.from, 5*time.Millisecond, r.door.Addr)
	// It is their number that makes the figures mean something, however long that takes.
	if !eventually(30*time.Second, func() bool { return r.traffic.Shorts().Opened >= 30 }) {
		t.Fatalf("%d opened", r.traffic.Shorts().Opened)
	}
	if err := stop(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	s := r.traffic.Shorts()
	if s.Opened < 30 || s.Done != s.Opened || s.Connect.N != uint64(s.Opened) {
		t.Fatalf("%d opened, %d connected, %d done", s.Opened, s.Connect.N, s.Done)
	}
	r.wantLost(0, 0)
}
