package demo

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// run lets traffic flow through tamper for d: it may change what the relay
// passes on, and says whether the flow is to be reset.
func run(t *testing.T, d time.Duration, tamper func(b []byte) ([]byte, bool)) Figures {
	t.Helper()
	tr, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var opened atomic.Bool // what is wrong before that keeps all from opening
	spoil := tamper
	if tamper != nil {
		spoil = func(b []byte) ([]byte, bool) {
			if !opened.Load() {
				return b, false
			}
			return tamper(b)
		}
	}
	if err := tr.Open(ctx, relay(t, tr.Server(), spoil), 40); err != nil {
		t.Fatal(err)
	}
	opened.Store(true)
	time.Sleep(d)
	if look := tr.Look(); tamper == nil && (look.Open != 40 || look.P99 == 0) {
		t.Errorf("%d flows open, want 40; p99 %v", look.Open, look.P99)
	}
	return tr.Stop(2 * time.Second)
}

// relay passes octets and half-closes on to the server.
func relay(t *testing.T, to string, tamper func([]byte) ([]byte, bool)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	pass := func(to, from *net.TCPConn, tamper func([]byte) ([]byte, bool)) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			b, reset := buf[:n], false
			if tamper != nil && n > 0 {
				b, reset = tamper(b)
			}
			if reset {
				_ = to.SetLinger(0)
				_ = to.Close()
			}
			if _, werr := to.Write(b); werr != nil || (err != nil && err != io.EOF) {
				_ = to.Close()
				_ = from.Close()
				return
			}
			if err == io.EOF {
				_ = to.CloseWrite()
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			go pass(s.(*net.TCPConn), c.(*net.TCPConn), nil)
			go pass(c.(*net.TCPConn), s.(*net.TCPConn), tamper)
		}
	}()
	return l.Addr().String()
}

func TestWhatIsRightIsCountedRight(t *testing.T) {
	f := run(t, time.Second, nil)
	if f.Lost != 0 || f.Wrong != 0 {
		t.Errorf("lost %d, wrong octets %d, want none: %q", f.Lost, f.Wrong, f.Faults)
	}
	if f.Open != 0 || f.Opened < 60 || f.RoundTrips < 100 || f.Octets < 1<<20 {
		t.Errorf("too little came through: %+v", f)
	}
	if f.P99 <= 0 || f.Max < f.P99 {
		t.Errorf("p99 %v, max %v", f.P99, f.Max)
	}
}

// Each of these happens once, to some flow, and must be found.
func TestWhatIsWrongIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		do    func([]byte) ([]byte, bool)
		wrong bool
	}{
		"an octet changes":     {func(b []byte) ([]byte, bool) { b[len(b)/2] ^= 1; return b, false }, true},
		"an octet is left out": {func(b []byte) ([]byte, bool) { return b[1:], false }, false},
		"octets come twice":    {func(b []byte) ([]byte, bool) { return append(b, b...), false }, false},
		"a flow is reset":      {func([]byte) ([]byte, bool) { return nil, true }, false},
	} {
		t.Run(name, func(t *testing.T) {
			var reads atomic.Int64
			f := run(t, 300*time.Millisecond, func(b []byte) ([]byte, bool) {
				if reads.Add(1) == 20 {
					return c.do(b)
				}
				return b, false
			})
			if f.Lost != 1 || len(f.Faults) != 1 || c.wrong && f.Wrong != 1 {
				t.Errorf("lost %d, wrong octets %d, want one: %q", f.Lost, f.Wrong, f.Faults)
			}
		})
	}
}

// The octets of a stream do not depend on how it is cut, and a shift shows.
func TestStreams(t *testing.T) {
	whole := make([]byte, 1000)
	(&stream{seed: 7}).next(whole)
	s, r := stream{seed: 7}, stream{seed: 7}
	for n, at := 1, 0; at < len(whole); n++ {
		b := make([]byte, min(n, len(whole)-at))
		s.next(b)
		if wrong := r.check(b); wrong != 0 {
			t.Fatalf("at %d, cut by %d: %d wrong", at, n, wrong)
		}
		if string(b) != string(whole[at:at+len(b)]) {
			t.Fatalf("at %d, cut by %d: other octets than at once", at, n)
		}
		at += len(b)
	}
	if wrong := (&stream{seed: 7}).check(whole[1:]); wrong < 900 {
		t.Errorf("after a shift %d of 999 are wrong", wrong)
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	if got := h.quantile(0.99); got < 990*time.Millisecond || got > 1000*time.Millisecond {
		t.Errorf("p99 %v, want about 990ms", got)
	}
	if got := h.quantile(0.5); got < 500*time.Millisecond || got > 565*time.Millisecond {
		t.Errorf("p50 %v, want about 500ms", got)
	}
	var all histogram
	all.merge(&h)
	if h.count() != 0 || all.count() != 1000 || time.Duration(all.longest.Load()) != time.Second {
		t.Errorf("merged: %d left, %d there, longest %v", h.count(), all.count(), time.Duration(all.longest.Load()))
	}
}
