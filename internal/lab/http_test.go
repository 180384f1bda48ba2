package lab

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// httpRig is HTTP traffic over loopback, without a balancer.
type httpRig struct {
	t     *testing.T
	web   *HTTPTraffic
	door  *Door
	eng   *engine
	flows []*HTTPFlow
}

func newHTTPRig(t *testing.T) *httpRig {
	t.Helper()
	traffic := NewTraffic(5, true)
	r := &httpRig{t: t, web: NewHTTPTraffic(traffic, nil)}
	r.web.direct = true
	var err error
	if r.eng, err = traffic.NewEngine(nil); err != nil {
		t.Fatal(err)
	}
	r.door = r.listen(false)
	t.Cleanup(func() { r.web.Stop(); traffic.Stop() })
	return r
}

func (r *httpRig) listen(shut bool) *Door {
	r.t.Helper()
	d, err := r.eng.Listen(netip.MustParseAddrPort("127.0.0.1:0"), shut)
	if err != nil {
		r.t.Fatal(err)
	}
	r.web.Serve(d)
	return d
}

func (r *httpRig) open(k HTTPKind, n int, to netip.AddrPort) []*HTTPFlow {
	var fs []*HTTPFlow
	for range n {
		fs = append(fs, r.web.NewFlow(k, to))
	}
	r.web.Open(fs...)
	r.flows = append(r.flows, fs...)
	return fs
}

func (r *httpRig) served(fs []*HTTPFlow) {
	r.t.Helper()
	err := r.web.AwaitEach(20*time.Second, "flows to be served", fs, func(f *HTTPFlow) bool { return f.Served.Load() != 0 })
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *httpRig) wantLost(n int) []Fault {
	r.t.Helper()
	by, total, faults := r.web.Lost()
	if total != n {
		r.t.Fatalf("lost %v, want %d: %v", by, n, faults)
	}
	return faults
}

// TestHTTPTrafficIsRight runs every kind without a balancer: no fault may be
// found, and each flow must have had answers and be over.
func TestHTTPTrafficIsRight(t *testing.T) {
	r := newHTTPRig(t)
	for k := range HTTPKind(httpKinds) {
		if k != HTTPShort {
			r.open(k, 6, r.door.Addr)
		}
	}
	stop := r.web.Churn(HTTPShort, 3*time.Millisecond, r.door.Addr)
	r.served(r.flows)
	time.Sleep(2 * time.Second)
	if err := stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	r.web.Finish(20*time.Second, r.flows)
	r.wantLost(0)
	for k, c := range r.web.Counts() {
		if c.opened == 0 || c.done != c.opened || c.exchanges < c.opened || c.octets == 0 {
			t.Errorf("%v: %+v", HTTPKind(k), c)
		}
		t.Logf("%v: %+v", HTTPKind(k), c)
	}
	if n := r.web.halfHeads.Load() + r.web.idleResets.Load(); n != 0 {
		t.Errorf("%d connections ended in a head or by RST", n)
	}
	if n := r.web.MostInFlight(r.door); n < 6 {
		t.Errorf("at most %d requests in flight", n)
	}
}

// meddler is a relay that does one bad thing to the octets of one direction.
type meddler struct {
	addr   netip.AddrPort
	way    Direction
	how    string
	struck atomic.Bool
	now    atomic.Bool
}

func newMeddler(t *testing.T, to netip.AddrPort, d Direction, how string) *meddler {
	t.Helper()
	lis, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &meddler{addr: lis.Addr().(*net.TCPAddr).AddrPort(), way: d, how: how}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp4", to.String())
			if err != nil {
				_ = c.Close()
				return
			}
			t.Cleanup(func() { _, _ = c.Close(), b.Close() })
			ends := [2]*net.TCPConn{Up: c.(*net.TCPConn), Down: b.(*net.TCPConn)}
			for i := range ends {
				// Little room: who pushes shall find it full, now.
				_ = ends[i].SetReadBuffer(slowBufferBytes)
				_ = ends[i].SetWriteBuffer(slowBufferBytes)
				go m.relay(ends[i], ends[1-i], Direction(i) == d)
			}
		}
	}()
	return m
}

func (m *meddler) relay(from, to *net.TCPConn, bad bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		b := buf[:n]
		if n > 0 && bad && m.now.Load() && m.struck.CompareAndSwap(false, true) {
			i := n / 2
			switch m.how {
			case "drop":
				b = append(b[:i:i], b[i+1:]...)
			case "double":
				b = append(b[:i+1:i+1], b[i:]...)
			case "change":
				b[i] ^= 1
			case "reset":
				_ = to.SetLinger(0)
				_ = to.Close()
				_ = from.SetLinger(0)
				_ = from.Close()
				return
			case "end":
				_ = to.CloseWrite()
				_, _ = from.Close(), to.Close()
				return
			}
		}
		if _, err := to.Write(b); err != nil {
			return
		}
		if err != nil {
			_ = to.CloseWrite()
			return
		}
	}
}

// TestHTTPTrafficFindsSabotage proves for every kind, both directions and five
// things that can happen to octets that it is found, and in that flow alone.
func TestHTTPTrafficFindsSabotage(t *testing.T) {
	r := newHTTPRig(t)
	var victims []*HTTPFlow
	var meddlers []*meddler
	for k := range HTTPKind(httpKinds) {
		r.open(k, 1, r.door.Addr)
		for _, d := range []Direction{Up, Down} {
			for _, how := range []string{"drop", "double", "change", "reset", "end"} {
				// A body that nobody reads may end anywhere; short ones and
				// those that dial do what others do.
				if k == HTTPShort || k == HTTPDialing || k == HTTPEarly && (d == Up || how == "end") {
					continue
				}
				m := newMeddler(t, r.door.Addr, d, how)
				meddlers = append(meddlers, m)
				if k == HTTPConnectHalf && (r.web.nextID+1)%2 != uint32(1-d) {
					_ = r.web.NewFlow(k, m.addr) // the next one sends on in this direction
				}
				victims = append(victims, r.open(k, 1, m.addr)...)
			}
		}
	}
	r.served(r.flows)
	time.Sleep(300 * time.Millisecond)
	r.wantLost(0)
	for _, m := range meddlers {
		m.now.Store(true)
	}
	// Some say something in their direction only now and then.
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) &&
		slices.ContainsFunc(meddlers, func(m *meddler) bool { return !m.struck.Load() }); {
		time.Sleep(50 * time.Millisecond)
	}
	_ = r.web.AwaitEach(7*time.Second, "the faults", victims, func(*HTTPFlow) bool { return false })
	bad := map[*HTTPFlow]bool{}
	for _, f := range victims {
		bad[f] = true
	}
	r.web.Finish(20*time.Second, slices.DeleteFunc(slices.Clone(r.flows), func(f *HTTPFlow) bool { return bad[f] }))
	r.web.Finish(time.Second, victims) // one that waits for what will not come is a fault now
	for i, f := range victims {
		switch m := meddlers[i]; {
		case !m.struck.Load():
			t.Errorf("%v: nothing was done (%v, %v)", f.Kind, m.way, m.how)
		case len(f.Faults()) == 0:
			t.Errorf("%v: the fault was not found (%v, %v)", f.Kind, m.way, m.how)
		}
	}
	for _, f := range r.flows {
		if x := f.Faults(); len(x) > 0 && !bad[f] {
			t.Errorf("%v: %v", f.Kind, x)
		}
	}
	_, total, faults := r.web.Lost()
	t.Logf("%d victims, %d faults, such as", len(victims), total)
	for _, x := range faults {
		t.Log(x)
	}
}

// TestHTTPMix proves that a mix has every kind that stands, and that some of
// those who queue have to wait.
func TestHTTPMix(t *testing.T) {
	for _, n := range []int{0, 64, 640} {
		m := httpMixOf(n)
		sum := 0
		for k, c := range m {
			if stands := HTTPKind(k) != HTTPEarly && HTTPKind(k) != HTTPShort; stands != (c >= 2) {
				t.Errorf("%d flows: %d of %v", n, c, HTTPKind(k))
			}
			sum += c
		}
		if sum > max(n, 2*httpKinds) || httpSlots(m) >= m[HTTPQueued] {
			t.Errorf("%d flows: the mix has %d, %d slots for %d", n, sum, httpSlots(m), m[HTTPQueued])
		}
	}
}
