package loop

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/balance"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// settle turns the loop until it has nothing to do for a while.
func (w *web) settle() {
	for quiet := 0; quiet < 20; quiet++ {
		if w.l.Turn(false) {
			quiet = 0
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// ends tells how a connection ends that nothing is said on: by FIN, by RST, or
// not yet.
func (w *web) ends(c net.Conn) (how string) {
	w.t.Helper()
	w.until("the end of a connection", func() bool {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		switch {
		case errors.Is(err, syscall.ECONNRESET):
			how = "RST"
		case errors.Is(err, io.EOF):
			how = "FIN"
		}
		return how != ""
	})
	return how
}

func (w *web) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp4", w.vip)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Who may not come is reset, holds no place, and is counted.
func TestDenied(t *testing.T) {
	for _, rule := range []string{"deny: [ 127.0.0.0/8 ]", "allow: [ 10.0.0.0/8 ]"} {
		w := newWebOf(t, rule, "")
		c := w.dial()
		if how := w.ends(c); how != "RST" {
			t.Errorf("%s: it ends by %s", rule, how)
		}
		if n := w.l.Count.Refused[Denied]; n != 1 || w.l.Load() != 0 || w.l.shared.Ledger.Node.InUse() != 0 {
			t.Errorf("%s: %d counted, %d flows, %d places", rule, n, w.l.Load(), w.l.shared.Ledger.Node.InUse())
		}
	}
	w := newWebOf(t, "allow: [ 127.0.0.0/8 ], deny: [ 127.0.0.2/32 ]", "")
	w.dial()
	w.until("a flow", func() bool { return w.l.Load() == 1 })
}

// What comes faster than the listener's rate waits in the backlog, where no
// moment of the rate is spent on it, until it is time.
func TestConnectionRate(t *testing.T) {
	w := newWebOf(t, "rate: { connections: 60/m, burst: 2 }", "")
	clock := &stopped{Kernel: w.l.k, at: w.l.k.Now()}
	w.l.k = clock
	for range 5 {
		w.dial()
	}
	for _, want := range []int{2, 3, 4, 5} {
		w.until(fmt.Sprintf("flow %d", want), func() bool { return w.l.Load() == want })
		if w.settle(); w.l.Load() != want {
			t.Fatalf("%d flows, want %d", w.l.Load(), want)
		}
		clock.at += flow.Instant(time.Second)
	}
	// What the calls in vain have counted has gone back: as many are tried at once
	// as if they came in bursts, and two may come in one moment.
	clock.at += flow.Instant(10 * time.Second)
	for _, want := range []int{6, 7} {
		w.l.eager = acceptsMax
		w.dial()
		w.until(fmt.Sprintf("flow %d", want), func() bool { return w.l.Load() == want })
	}
}

// A source that opens more than it may uses up nothing of the listener's rate.
func TestRefusedAreNotRated(t *testing.T) {
	w := newWebOf(t, "rate: { connections: 60/m, burst: 2 }, sourceConnectionsMax: 1", "")
	w.l.k = &stopped{Kernel: w.l.k, at: w.l.k.Now()}
	w.dial()
	w.until("a flow", func() bool { return w.l.Load() == 1 })
	for range 5 {
		if how := w.ends(w.dial()); how != "RST" {
			t.Fatalf("it ends by %s", how)
		}
	}
	w.l.Kill(w.l.Slots(1, nil)[0])
	w.dial()
	w.until("a flow", func() bool { return w.l.Load() == 1 })
	w.dial()
	if w.settle(); w.l.Count.Refused[SourceRefused] != 5 {
		t.Errorf("%d are refused; the next one has to wait for the rate", w.l.Count.Refused[SourceRefused])
	}
}

// stopped is a kernel whose clock only the test moves.
type stopped struct {
	Kernel
	at flow.Instant
}

func (k *stopped) Now() flow.Instant { return k.at }

// A source that has as many connections as it may is reset, also when some have
// moved, until one of them ends.
func TestSourceConnections(t *testing.T) {
	w := newWebOf(t, "sourceConnectionsMax: 2", "")
	one, two := w.dial(), w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	w.l.SendTo(w.l, w.l.Slots(0, nil), nil)
	w.until("their return", func() bool { return w.l.Load() == 2 })
	w.l.Remake(w.l.Slots(0, nil), w.l.shared.Objects, nil)
	if how := w.ends(w.dial()); how != "RST" || w.l.Count.Refused[SourceRefused] != 1 {
		t.Fatalf("the third ends by %s, %d refused", how, w.l.Count.Refused[SourceRefused])
	}
	_ = one.Close()
	w.until("one flow", func() bool { return w.l.Load() == 1 })
	w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	// What goes to another process counts here no longer.
	parked, _ := w.l.ParkMany(w.l.Slots(0, nil))
	for i := range parked {
		parked[i].LeaveSource(w.l.shared.Ledger)
		for _, fd := range parked[i].FDs {
			fd.Close()
		}
	}
	w.dial()
	w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	_ = two
}

// What a source has open is counted once, also after the limit was taken away and
// came back while flows followed the configuration.
func TestSourcesFollowTheConfiguration(t *testing.T) {
	w := newWebOf(t, "sourceConnectionsMax: 2", "")
	w.dial()
	w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	limited := w.l.gen.Config
	free := *limited.Listeners["e"]
	free.Ref.Version, free.SourceConnectionsMax = 1, 0
	again := *limited.Listeners["e"]
	again.Ref.Version = 2
	for _, lis := range []*config.Listener{&free, &again} {
		c := *limited
		c.Listeners = map[string]*config.Listener{"e": lis}
		x := *w.l.gen.Listening["e"]
		x.Object = lis
		w.l.SetGeneration(&Generation{Number: w.l.gen.Number + 1, Config: &c, Listening: map[string]*Listening{"e": &x}})
		w.l.shared.Objects = under{exact{&c}, lis}
		w.l.Remake(w.l.Slots(0, nil), w.l.shared.Objects, nil)
		w.l.SendTo(w.l, w.l.Slots(0, nil), nil)
		w.until("their return", func() bool { return w.l.Load() == 2 })
	}
	if how := w.ends(w.dial()); how != "RST" {
		t.Fatalf("the third ends by %s", how)
	}
	w.l.Kill(w.l.Slots(1, nil)[0])
	w.dial()
	w.until("two flows", func() bool { return w.l.Load() == 2 })
	if how := w.ends(w.dial()); how != "RST" {
		t.Fatalf("the next third ends by %s", how)
	}
	for _, i := range w.l.Slots(0, nil) {
		w.l.Kill(i)
	}
	if n := w.l.shared.Ledger.Rates()["e"].Tracked; n != 0 {
		t.Errorf("%d sources are remembered, though all have left", n)
	}
}

// under has flows come under a listener, whichever version they were under.
type under struct {
	exact
	listener *config.Listener
}

func (u under) Listener(string, uint64) *config.Listener { return u.listener }

// Who waits while the last endpoint goes down is given what the backend falls back
// to at once.
func TestWaitersFallBack(t *testing.T) {
	w := newWebOf(t, "", ", limits: { connectionsPerEndpoint: 1, queueTime: 1h }, fallback: { respond: { status: 200, type: text/plain, body: sorry } }")
	far := w.ask(w.client())
	near := w.client()
	w.says(near, plainGet)
	b := w.l.shared.Ledger.Backend("b")
	w.until("a waiter", func() bool { return b.Waiting() == 1 })
	b.Stand(w.l.gen.Config.Backends["b"].Endpoints[0].Ref.Name, func(s *ledger.Standing) { s.Health = ledger.Down })
	w.hears(near, "sorry")
	w.says(far, plainAnswer)
}

// While memory is short nobody is accepted, and clients that are between two
// requests can be sent away.
func TestShedding(t *testing.T) {
	w := newWeb(t, "")
	idle := w.dial()
	near := w.client()
	far := w.exchange(near)
	busy := w.client()
	w.says(busy, plainGet)
	w.hears(far, "\r\n\r\n")
	w.l.shared.Shedding.Store(true)
	w.dial()
	if w.settle(); w.l.Load() != 3 {
		t.Fatalf("%d flows, want 3", w.l.Load())
	}
	if n := w.l.ShedIdle(100); n != 2 || w.l.Load() != 1 || w.l.Count.Ended[flow.Shed] != 2 {
		t.Errorf("%d are shed, %d flows are left, %d ended so", n, w.l.Load(), w.l.Count.Ended[flow.Shed])
	}
	if how := w.ends(idle); how != "FIN" {
		t.Errorf("a client that is shed ends by %s", how)
	}
	w.says(far, plainAnswer)
	w.hears(busy, "hello")
	w.l.shared.Shedding.Store(false)
	w.until("who waited", func() bool { return w.l.Load() == 2 })
}

// A leg to an endpoint that is out of service is closed when its request is
// answered, and one that is idle when the loop is told.
func TestLegOutOfService(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	w.exchange(near)
	b := w.l.shared.Ledger.Backend("b")
	full := w.l.gen.Config.Backends["b"].Endpoints[0].Ref.Name
	stand := func(admin ledger.Admin) {
		b.Stand(full, func(s *ledger.Standing) { s.Admin = admin })
	}
	if n := w.l.CloseIdle("b/other"); n != 0 || w.l.IdleTo(full) != 1 {
		t.Fatalf("%d legs of another endpoint closed", n)
	}
	stand(ledger.Quiescing)
	if n := w.l.CloseIdle(full); n != 1 || w.l.Idle() != 0 {
		t.Fatalf("%d legs closed, %d idle", n, w.l.Idle())
	}
	stand(ledger.Ready)
	far := w.ask(near)
	stand(ledger.Maintenance)
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	w.until("the end of the leg", func() bool {
		n, e := sock.Recv(far, make([]byte, 1))
		return n == 0 && e == 0
	})
	if n := w.l.Idle(); n != 0 {
		t.Errorf("%d idle legs", n)
	}
}

// A flow that comes from another process teaches the ledger here where its client
// has been, and counts under its source here.
func TestAdoptionTeaches(t *testing.T) {
	w := newWebOf(t, "sourceConnectionsMax: 1", ", sticky: { source: {} }")
	near := w.client()
	far := w.ask(near)
	parked, _ := w.l.ParkMany(w.l.Slots(0, nil))
	p, err := Pack(parked)
	if err != nil || len(parked) != 1 {
		t.Fatal(len(parked), err)
	}
	p.Sources = nil // they do not travel
	c := w.l.gen.Config
	to := ledger.New(ledger.Options{Policy: balance.Policy{}, Ring: func(_ int, token uint64) { w.l.Ring(token) }, Open: func() {}})
	to.Backend("b").Govern(c.Backends["b"])
	to.Node.Admit()
	to.Listener("e").Admit()
	full := c.Backends["b"].Endpoints[0].Ref.Name
	to.Backend("b").Endpoint(full).Import(1)
	w.l.shared.Ledger = to // as if this were the other process
	w.l.lodges = lodges{listeners: map[*config.Listener]*lodge{}, backends: map[*config.Backend]*lodge{}}
	w.l.Deliver(p)
	w.until("the flow", func() bool { return w.l.Load() == 1 })
	if b := to.Tables()["b"]; b == nil || len(b.Keys) != 1 || b.Endpoints[b.Of[0]] != full {
		t.Errorf("the table has %+v", b)
	}
	lis, source := c.Listeners["e"], netip.MustParseAddr("127.0.0.1")
	if to.EnterSource(int64(w.l.Now()), lis, source) {
		t.Error("its source may have one more connection")
	}
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	w.l.Kill(w.l.Slots(0, nil)[0])
	if !to.EnterSource(int64(w.l.Now()), lis, source) {
		t.Error("its source may have none, though it has left")
	}
}

// What attempts have shown stands in the endpoint's account, as do those that
// never came to be connected.
func TestOutcomes(t *testing.T) {
	w := newWeb(t, ", retry: { max: 0 }")
	near := w.client()
	w.exchange(near)
	account := w.l.shared.Ledger.Backend("b").Endpoint(w.l.gen.Config.Backends["b"].Endpoints[0].Ref.Name)
	if n, bad := account.Tries(); n != 1 || bad != 0 || account.Latency() <= 0 {
		t.Errorf("%d attempts, %d failed, latency %v", n, bad, account.Latency())
	}
	far := w.open
	for fd := range far {
		fd.CloseReset()
		delete(w.open, fd)
	}
	w.until("no idle leg", func() bool { return w.l.Idle() == 0 })
	w.server.Close()
	w.says(near, plainGet)
	w.hears(near, "is ready\n")
	if n, bad := account.Tries(); n != 2 || bad != 1 || account.Consecutive() != 1 {
		t.Errorf("%d attempts, %d failed, %d in a row", n, bad, account.Consecutive())
	}
}

// What is there at once, as a connection over loopback is, is measured: else what
// is farther away would look better.
func TestQuickOutcome(t *testing.T) {
	w := newWeb(t, "")
	w.l.k = &stopped{Kernel: w.l.k, at: w.l.k.Now()}
	w.exchange(w.client())
	account := w.l.shared.Ledger.Backend("b").Endpoint(w.l.gen.Config.Backends["b"].Endpoints[0].Ref.Name)
	if n, _ := account.Tries(); n != 1 || account.Latency() <= 0 {
		t.Errorf("%d attempts, latency %v", n, account.Latency())
	}
}

// An endpoint that does not answer a connect in time has failed, and so has what
// waited for it longer than it may: it stands in no queue any more.
func TestExpired(t *testing.T) {
	w := newWeb(t, ", retry: { max: 0 }, connectTimeout: 1s, limits: { connectionsPerEndpoint: 1, queueTime: 500ms }")
	clock := &warped{Kernel: &undecided{w.l.k}}
	w.l.k = clock
	near, next := w.client(), w.client()
	w.says(near, plainGet)
	b := w.l.shared.Ledger.Backend("b")
	account := b.Endpoint(w.l.gen.Config.Backends["b"].Endpoints[0].Ref.Name)
	w.until("an attempt", func() bool { return account.InUse() == 1 })
	w.says(next, plainGet)
	w.until("a waiter", func() bool { return b.Waiting() == 1 })
	clock.ahead += flow.Instant(600 * time.Millisecond)
	w.hears(next, "is ready\n")
	if n := b.Waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
	clock.ahead += flow.Instant(600 * time.Millisecond)
	w.hears(near, "to respond\n")
	if n, bad := account.Tries(); n != 1 || bad != 1 || account.Errors() != 1 || account.InUse() != 0 {
		t.Errorf("%d attempts, %d failed, %d errors, %d connections", n, bad, account.Errors(), account.InUse())
	}
}

// undecided is a kernel whose connects come to no end.
type undecided struct{ Kernel }

func (k *undecided) Dial(s *sock.DialSpec) (sock.FD, bool, sock.Errno) {
	fd, _, e := k.Kernel.Dial(s)
	return fd, true, e
}

func (k *undecided) DialResult(sock.FD) sock.Errno { return sock.InProgress }

// Where the address to dial from is not here, the endpoint has not failed: a node that has lost its
// VIP for a moment would eject all its servers, and tell other nodes so.
func TestNoAddressToDialFrom(t *testing.T) {
	w := newWeb(t, ", retry: { max: 0 }")
	w.l.k = &homeless{w.l.k}
	w.says(w.client(), plainGet)
	w.until("an attempt", func() bool { return w.l.Count.Retries > 0 })
	account := w.l.shared.Ledger.Backend("b").Endpoint(w.l.gen.Config.Backends["b"].Endpoints[0].Ref.Name)
	if n, bad := account.Tries(); n != 0 || bad != 0 || account.Errors() != 0 {
		t.Errorf("%d attempts, %d failed, %d errors", n, bad, account.Errors())
	}
}

// homeless is a kernel without an address to dial from.
type homeless struct{ Kernel }

func (k *homeless) Dial(*sock.DialSpec) (sock.FD, bool, sock.Errno) {
	return sock.NoFD, false, sock.NoAddress
}

// Each exchange is counted once and told once, and the sink is flushed soon
// after; so is a flow that is removed in the midst of one.
func TestRecords(t *testing.T) {
	w := newWeb(t, "")
	clock := &warped{Kernel: w.l.k}
	w.l.k = clock
	near := w.client()
	far := w.exchange(near)
	w.until("a record", func() bool { return w.sink.n == 1 })
	if w.sink.flushed != 0 {
		t.Error("it is flushed at once")
	}
	clock.ahead += flow.Instant(flushEvery)
	w.until("a flush", func() bool { return w.sink.flushed == 1 })
	key := SeriesKey{Listener: "e", Route: 0, Backend: "b", Endpoint: w.l.gen.Config.Backends["b"].Endpoints[0].Name}
	got := map[SeriesKey]Series{}
	look := func() {
		clear(got)
		w.l.Series(func(k SeriesKey, x *Series) { got[k] = *x })
	}
	look()
	x := got[key]
	if len(got) != 1 || x.Requests[2] != 1 || x.Took.Count() != 1 || x.Answer.Count() != 1 || x.In != uint64(len(plainGet)) || x.Out == 0 {
		t.Errorf("%+v", got)
	}
	w.says(near, plainGet)
	w.hears(far, "\r\n\r\n")
	w.l.Kill(w.l.Slots(0, nil)[0])
	if look(); w.sink.n != 2 || got[key].Requests[0] != 1 || got[key].Causes[flow.Killed] != 1 {
		t.Errorf("%d records, %+v", w.sink.n, got)
	}
	if w.l.Flush(); w.sink.flushed != 2 {
		t.Errorf("%d flushes", w.sink.flushed)
	}
	if w.l.Flush(); w.sink.flushed != 2 {
		t.Error("a flush of nothing")
	}
}

// What ends a loop's run flushes its sink.
func TestStopFlushes(t *testing.T) {
	w := newWeb(t, "")
	near := w.client()
	w.exchange(near)
	w.until("a record", func() bool { return w.sink.n == 1 })
	go w.l.Run()
	w.l.Stop()
	if w.sink.flushed != 1 {
		t.Errorf("%d flushes", w.sink.flushed)
	}
}

// The desk's clock is the wall's, also when somebody has set that.
func TestWall(t *testing.T) {
	w := newWeb(t, "")
	clock := &setClock{Kernel: w.l.k, epoch: 1_000_000_000_500_000_000 - w.l.k.Now()}
	w.l.k = clock
	w.l.setWall()
	if w.l.desk.Wall != 1_000_000_000 {
		t.Fatalf("it is %d", w.l.desk.Wall)
	}
	clock.epoch += flow.Instant(time.Hour)
	w.until("the hour", func() bool { return w.l.desk.Wall >= 1_000_003_600 })
}

type setClock struct {
	Kernel
	epoch flow.Instant
}

func (k *setClock) Epoch() flow.Instant { return k.epoch }

// There are never too many series, whatever becomes of names; and what was
// counted stays.
func TestSeriesAreBounded(t *testing.T) {
	var b seriesBook
	lis := &config.Listener{Ref: config.Ref{Name: "l"}}
	to := &config.Backend{Ref: config.Ref{Name: "b"}}
	const names = seriesMax + 1000
	for i := range names {
		end := &config.Endpoint{Ref: config.Ref{Version: uint64(i)}, Name: fmt.Sprint(i)}
		for range 2 {
			b.of(lis, 0, to, end).Requests[2]++
		}
	}
	sum := func() (n uint64) {
		for _, x := range b.all {
			n += x.Requests[2]
		}
		return n
	}
	if len(b.all) != seriesMax+1 || sum() != 2*names {
		t.Fatalf("%d series with %d requests", len(b.all), sum())
	}
	kept := &config.Endpoint{Name: "7"}
	last := &config.Endpoint{Ref: config.Ref{Version: 3}, Name: "3"}
	b.of(lis, 0, to, last)
	// Each change of the configuration looks at some of them.
	for range names / pruneAtOnce {
		b.prune(&config.Config{
			Listeners: map[string]*config.Listener{"l": lis},
			Backends:  map[string]*config.Backend{"b": {Endpoints: []*config.Endpoint{kept}}},
		})
	}
	if len(b.all) >= seriesMax/2 || len(b.all) != len(b.order) || sum() != 2*names || b.all[SeriesKey{"l", 0, "b", "7"}].Requests[2] != 2 {
		t.Fatalf("%d series with %d requests are left", len(b.all), sum())
	}
	for _, x := range b.order {
		if b.all[x.key] != x.series {
			t.Fatalf("%v is told of and is gone", x.key)
		}
	}
	// Who still comes by an old object is counted where it will be looked for.
	b.of(lis, 0, to, last).Requests[2]++
	if sum() != 2*names+1 {
		t.Errorf("%d requests, one more has come by an endpoint that has left", sum())
	}
}

// sinkOf counts what it is told.
type sinkOf struct {
	n, flushed int
	target     [64]byte
}

func (s *sinkOf) Note(_ flow.Instant, r *flow.Record) {
	s.n++
	copy(s.target[:], r.Note.Target)
}

func (s *sinkOf) Flush(flow.Instant) { s.flushed++ }

// newWebOf is newWeb with more said of the listener.
func newWebOf(t testing.TB, listener, backend string) *web {
	if listener != "" {
		listener = ", " + strings.TrimPrefix(listener, ", ")
	}
	return newWebAs(t, listener, backend)
}

// Where the VIP to dial from is not here, a flow waits until it is: its client could not be told of
// anything else, for nothing leaves from that VIP either.
func TestNoVIPToDialFrom(t *testing.T) {
	w := newWeb(t, "")
	w.l.gen.Config.Listeners["e"].Movable = true // of a VIP, which this host has not
	kernel := &away{Kernel: w.l.k, until: 3, e: sock.NoAddress}
	w.l.k = kernel
	near := w.client()
	w.says(near, plainGet)
	far := w.accept()
	w.hears(far, "\r\n\r\n")
	if kernel.until != 0 || w.l.Count.Retries != 0 {
		t.Errorf("%d retries, %d dials left", w.l.Count.Retries, kernel.until)
	}
	w.says(far, plainAnswer)
	w.hears(near, "hello")
}

// Where it is here and has no port left towards an endpoint, that attempt is over.
func TestNoPortOfVIP(t *testing.T) {
	w := newWeb(t, "")
	w.l.gen.Config.Listeners["e"].Movable = true
	w.l.k = &away{Kernel: w.l.k, until: 1 << 30, e: sock.NoPort}
	w.says(w.client(), plainGet)
	w.until("another attempt", func() bool { return w.l.Count.Retries > 0 })
}

// away is a kernel that can dial again at a later attempt.
type away struct {
	Kernel
	until int
	e     sock.Errno
}

func (k *away) Dial(s *sock.DialSpec) (sock.FD, bool, sock.Errno) {
	if k.until > 0 {
		k.until--
		return sock.NoFD, false, k.e
	}
	return k.Kernel.Dial(s)
}
