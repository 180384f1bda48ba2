package netadmin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// The file of these tests.
var (
	guardVIP  = netip.MustParsePrefix("10.55.0.100/24")
	guardFrom = netip.MustParseAddr("fd55::7") // what a backend is dialled from
	guardPeer = PortRange{First: 20000, Last: 29999, To: netip.MustParseAddr("10.55.0.2")}
	guardFile = Rights{Movable: []netip.Addr{guardFrom}, VIPs: []netip.Prefix{guardVIP}, Nodes: []PortRange{guardPeer}}
)

// recorder is a kernel that does nothing but note what it was asked for, and of what.
type recorder struct {
	mu     sync.Mutex
	calls  []string
	moved  []netip.Addr // addresses that it is to move
	owned  []netip.Addr // that it is to own, fence, lead and so on
	sentTo []netip.Addr
	ranges []PortRange
	leases []time.Duration
	state  State
	modes  []int // of repair
	fails  int   // this one's repair mode cannot be set; 0: all can
}

func (k *recorder) note(name string, moved, owned []netip.Addr, to ...netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, name)
	k.moved, k.owned, k.sentTo = append(k.moved, moved...), append(k.owned, owned...), append(k.sentTo, to...)
	return nil
}

func (k *recorder) tuples(name string, ts []Tuple, to ...netip.Addr) error {
	var all []netip.Addr
	for _, t := range ts {
		all = append(all, t.Local.Addr())
	}
	return k.note(name, all, nil, to...)
}

func (k *recorder) of(name string, owned ...netip.Addr) error { return k.note(name, nil, owned) }

func (k *recorder) lease(name string, a netip.Addr, d time.Duration) error {
	k.leases = append(k.leases, d)
	return k.of(name, a)
}

func (k *recorder) send(name string, a, to netip.Addr) error {
	if !to.IsValid() { // the end of it
		return k.of(name, a)
	}
	return k.note(name, nil, []netip.Addr{a}, to)
}

func (k *recorder) Hold(ts []Tuple) error                  { return k.tuples("Hold", ts) }
func (k *recorder) Release(ts []Tuple) (int, error)        { return 0, k.tuples("Release", ts) }
func (k *recorder) Drop(ts []Tuple) error                  { return k.tuples("Drop", ts) }
func (k *recorder) Divert(ts []Tuple, to netip.Addr) error { return k.tuples("Divert", ts, to) }
func (k *recorder) Undivert(ts []Tuple) error              { return k.tuples("Undivert", ts) }
func (k *recorder) Here(ts []Tuple) error                  { return k.tuples("Here", ts) }
func (k *recorder) Holds(t Tuple) bool                     { return t.Remote.Port() == 1 }
func (k *recorder) Inject(packet []byte) error {
	t, err := injected(packet)
	return errors.Join(err, k.tuples("Inject", []Tuple{t}))
}
func (k *recorder) Repair(fds, modes []int) []error {
	_ = k.of("Repair")
	k.mu.Lock()
	defer k.mu.Unlock()
	k.modes = append(k.modes, modes...)
	if k.fails == 0 {
		return nil
	}
	errs := make([]error, len(fds))
	errs[k.fails] = errors.New("not this one")
	return errs
}
func (k *recorder) Sockets(specs []tcprepair.SocketSpec) ([]int, error) {
	var all []netip.Addr
	for _, s := range specs {
		all = append(all, s.Local.Addr())
	}
	return nil, k.note("Sockets", all, nil)
}
func (k *recorder) Steer(addrs []netip.Addr, ranges []PortRange) error {
	k.ranges = append(k.ranges, ranges...)
	return k.note("Steer", addrs, nil)
}
func (k *recorder) Counters() (Counters, error) { return Counters{}, k.of("Counters") }
func (k *recorder) State() (State, error)       { return k.state, k.of("State") }
func (k *recorder) Fence(ps []netip.Prefix) error {
	for _, p := range ps {
		_ = k.of("Fence", p.Addr())
	}
	return nil
}
func (k *recorder) Routed(addrs []netip.Addr) error           { return k.of("Routed", addrs...) }
func (k *recorder) Own(p netip.Prefix, d time.Duration) error { return k.lease("Own", p.Addr(), d) }
func (k *recorder) Disown(a netip.Addr) error                 { return k.of("Disown", a) }
func (k *recorder) Guest(a netip.Addr, d time.Duration) error { return k.lease("Guest", a, d) }
func (k *recorder) Announce(a netip.Addr) error               { return k.of("Announce", a) }
func (k *recorder) Handshakes(a netip.Addr) ([]Tuple, error)  { return nil, k.of("Handshakes", a) }
func (k *recorder) Closing(a netip.Addr) ([]Tuple, error)     { return nil, k.of("Closing", a) }
func (k *recorder) Lead(a, to netip.Addr) error               { return k.send("Lead", a, to) }
func (k *recorder) Forward(a, to netip.Addr) error            { return k.send("Forward", a, to) }
func (k *recorder) Forget(a netip.Addr) error                 { return k.of("Forget", a) }
func (k *recorder) Learn(on []netip.AddrPort) error {
	for _, x := range on {
		_ = k.of("Learn", x.Addr())
	}
	return nil
}

// guarded is a server of a recorder.
type guarded struct {
	*served
	kernel *recorder
	ended  chan error
}

func guard(t *testing.T, more ...func(*Server)) *guarded {
	t.Helper()
	g := &guarded{served: &served{path: filepath.Join(t.TempDir(), "s")}, kernel: &recorder{}, ended: make(chan error, 1)}
	l, err := Listen(g.path, 0)
	must(t, "listen", err)
	g.server = NewServer(g.kernel, 0, func() (Rights, bool) { return guardFile, false }, nil)
	for _, f := range more {
		f(g.server)
	}
	go func() { g.ended <- g.server.Serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		g.server.Close()
		must(t, "serve", <-g.ended)
	})
	return g
}

// greet is a client that then does what it likes.
func (g *guarded) greet(t *testing.T) *channel {
	t.Helper()
	ch := g.connect(t)
	hello, err := json.Marshal(clientHello{Version: wireVersion, Session: "x"})
	must(t, "encode", err)
	must(t, "send", ch.send(actHello, hello))
	if what, _, _, err := ch.receive(); err != nil || what != answerDone {
		t.Fatalf("greeting: %d %v", what, err)
	}
	return ch
}

func (g *guarded) connect(t *testing.T) *channel {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: g.path, Net: "unix"})
	must(t, "dial", err)
	t.Cleanup(func() { _ = c.Close() })
	must(t, "deadline", c.SetDeadline(time.Now().Add(20*time.Second))) // of a server that does nothing
	return newChannel(c)
}

// wantRefusal wants an answer that says all of these.
func wantRefusal(t *testing.T, ch *channel, words ...string) {
	t.Helper()
	what, body, fds, err := ch.receive()
	closeAll(fds)
	if err != nil || what != answerFailed {
		t.Fatalf("answer %d, %v", what, err)
	}
	wantWords(t, errors.New(string(body)), words...)
}

func wantWords(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("it was done; want %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// wantEnd wants the other side to have ended the connection.
func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection goes on")
	}
}

func second(_ any, err error) error { return err }

// A client that was taken over asks for whatever it likes: the file says what it gets.
func TestRights(t *testing.T) {
	g := guard(t)
	c := g.dial(t)
	defer func() { must(t, "close", c.Close()) }()
	vip, node, far := guardVIP.Addr(), guardPeer.To, netip.MustParseAddr("10.55.0.101")
	tuple := func(a netip.Addr) []Tuple {
		r := netip.MustParseAddrPort("10.55.0.9:1")
		if a.Is6() {
			r = netip.MustParseAddrPort("[fd55::9]:1")
		}
		return []Tuple{{netip.AddrPortFrom(a, 443), r}}
	}
	segment := func(change func([]byte)) []byte { // from 10.55.0.9:1, which the recorder holds
		p := append([]byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 10, 55, 0, 9}, vip.AsSlice()...)
		p = append(p, 0, 1, 1, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 5<<4, ackFlag|finFlag, 0, 0, 0, 0, 0, 0)
		change(p)
		return p
	}
	on := func(n int) (all []netip.AddrPort) {
		for i := range n {
			all = append(all, netip.AddrPortFrom(vip, uint16(1+i)))
		}
		return all
	}
	spec := func(s tcprepair.SocketSpec) error { return second(c.Sockets([]tcprepair.SocketSpec{s})) }

	for name, err := range map[string]error{
		"Hold": c.Hold(tuple(vip)), "Drop": c.Drop(tuple(guardFrom)), "Divert": c.Divert(tuple(vip), node), "Undivert": c.Undivert(tuple(vip)),
		"Here": c.Here(tuple(vip)), "Release": second(c.Release(tuple(vip))), "Inject": c.Inject(segment(func([]byte) {})),
		"Steer": c.Steer([]netip.Addr{vip, guardFrom}, []PortRange{guardPeer}), "Steer no more": c.Steer(nil, []PortRange{{To: node}}),
		"Fence": c.Fence([]netip.Prefix{guardVIP}), "Routed": c.Routed([]netip.Addr{vip}), "Own": c.Own(guardVIP, leaseMax), "Disown": c.Disown(vip),
		"Guest": c.Guest(vip, time.Second), "Announce": c.Announce(vip), "Learn": c.Learn(on(2)), "Handshakes": second(c.Handshakes(vip)), "Closing": second(c.Closing(vip)),
		"Lead": c.Lead(vip, node), "Lead no more": c.Lead(vip, netip.Addr{}), "Forward": c.Forward(vip, node), "Forget": c.Forget(vip),
	} {
		must(t, name, err)
	}
	g.kernel.calls = nil
	for name, x := range map[string]struct {
		err  error
		says []string
	}{
		"Hold":                       {c.Hold(tuple(far)), []string{"10.55.0.101", "the closest is 10.55.0.100"}},
		"Hold 6":                     {c.Hold(tuple(netip.MustParseAddr("fd55::8"))), []string{"fd55::8", "the closest is fd55::7"}},
		"Here":                       {c.Here(append(tuple(vip), tuple(far)...)), []string{"10.55.0.101"}},
		"Divert":                     {c.Divert(tuple(far), node), []string{"10.55.0.101"}},
		"Divert to a client":         {c.Divert(tuple(vip), netip.MustParseAddr("10.55.0.9")), []string{"10.55.0.9", "no node", "the closest is 10.55.0.2"}},
		"Lead to a client":           {c.Lead(vip, netip.MustParseAddr("10.55.0.9")), []string{"10.55.0.9", "no node"}},
		"Forward to a client":        {c.Forward(vip, netip.MustParseAddr("10.55.0.9")), []string{"10.55.0.9", "no node"}},
		"Steer to a client":          {c.Steer([]netip.Addr{vip}, []PortRange{{20000, 20001, far}}), []string{"10.55.0.101", "no node"}},
		"Steer other ports":          {c.Steer([]netip.Addr{vip}, []PortRange{{1, 65535, node}}), []string{"1-65535", "20000-29999"}},
		"Steer":                      {c.Steer([]netip.Addr{far}, []PortRange{guardPeer}), []string{"10.55.0.101"}},
		"Fence":                      {c.Fence([]netip.Prefix{guardVIP, netip.PrefixFrom(far, 24)}), []string{"10.55.0.101", "vips"}},
		"Fence what is dialled from": {c.Fence([]netip.Prefix{netip.PrefixFrom(guardFrom, 128)}), []string{"fd55::7", "vips"}},
		"Own all of a network":       {c.Own(netip.PrefixFrom(vip, 8), time.Second), []string{"10.55.0.100/8", "24 bits"}},
		"Own":                        {c.Own(netip.PrefixFrom(far, 24), time.Second), []string{"10.55.0.101"}},
		"Own for ever":               {c.Own(guardVIP, 24*time.Hour), []string{"24h", "1m0s"}},
		"Guest for ever":             {c.Guest(vip, 24*time.Hour), []string{"24h", "1m0s"}},
		"Guest":                      {c.Guest(far, time.Second), []string{"10.55.0.101"}},
		"Disown":                     {c.Disown(far), []string{"10.55.0.101"}},
		"Announce":                   {c.Announce(far), []string{"10.55.0.101"}},
		"Routed":                     {c.Routed([]netip.Addr{far}), []string{"10.55.0.101"}},
		"Learn":                      {c.Learn([]netip.AddrPort{netip.AddrPortFrom(far, 443)}), []string{"10.55.0.101"}},
		"Learn on all":               {c.Learn(on(learnOnMax + 1)), []string{"4097", "4096"}},
		"Handshakes":                 {second(c.Handshakes(far)), []string{"10.55.0.101"}},
		"Closing":                    {second(c.Closing(far)), []string{"10.55.0.101"}},
		"Lead":                       {c.Lead(far, node), []string{"10.55.0.101"}},
		"Forward":                    {c.Forward(guardFrom, node), []string{"fd55::7"}},
		"Forget":                     {c.Forget(far), []string{"10.55.0.101"}},
		"Sockets":                    {spec(tcprepair.SocketSpec{Local: netip.AddrPortFrom(far, 1)}), []string{"10.55.0.101"}},
		"a mark":                     {spec(tcprepair.SocketSpec{Local: netip.AddrPortFrom(vip, 1), Mark: 7}), []string{"mark 7"}},
		"transparent":                {spec(tcprepair.SocketSpec{Local: netip.AddrPortFrom(vip, 1), Transparent: true}), []string{"transparent"}},
		"Inject of another":          {c.Inject(segment(func(p []byte) { p[19]++ })), []string{"10.55.0.101"}},
		"Inject what is not held":    {c.Inject(segment(func(p []byte) { p[21]++ })), []string{"10.55.0.9:2", "not held"}},
		"Inject a SYN":               {c.Inject(segment(func(p []byte) { p[33] = synFlag })), []string{"empty segment"}},
		"Inject a reset":             {c.Inject(segment(func(p []byte) { p[33] |= rstFlag })), []string{"empty segment"}},
		"Inject UDP":                 {c.Inject(segment(func(p []byte) { p[9] = unix.IPPROTO_UDP })), []string{"empty segment"}},
		"Inject a fragment":          {c.Inject(segment(func(p []byte) { p[6] = 0x20 })), []string{"empty segment"}},
		"Inject octets":              {c.Inject(append(segment(func([]byte) {}), 'x')), []string{"empty segment"}},
	} {
		t.Run(name, func(t *testing.T) { wantWords(t, x.err, x.says...) })
	}
	// What is in force is looked at, for it may be ended.
	if did := slices.DeleteFunc(g.kernel.calls, func(s string) bool { return s == "State" }); len(did) > 0 {
		t.Errorf("the kernel was asked for %v", did)
	}
	if err := c.Divert(tuple(vip), netip.AddrFrom16(node.As16())); err != nil {
		t.Errorf("a node's address, written as IPv6: %v", err)
	}
}

// The file says more now: that counts at once.
func TestRightsAgain(t *testing.T) {
	var vips []netip.Prefix
	changed := false
	g := guard(t, func(s *Server) {
		s.Rights = func() (Rights, bool) { return Rights{VIPs: vips}, changed }
	})
	c := g.dial(t)
	defer func() { must(t, "close", c.Close()) }()
	wantWords(t, c.Announce(guardVIP.Addr()), "no address of vips")
	g.server.mu.Lock()
	vips = []netip.Prefix{guardVIP}
	g.server.mu.Unlock()
	wantWords(t, c.Announce(guardVIP.Addr()), "no address of vips")
	g.server.mu.Lock()
	changed = true
	g.server.mu.Unlock()
	must(t, "what the file says now", c.Announce(guardVIP.Addr()))
}

// What has left the file and is still in force may be ended, and nothing else done with it.
func TestEndOfWhatHasLeftTheFile(t *testing.T) {
	held := Tuple{netip.MustParseAddrPort("10.55.0.200:443"), netip.MustParseAddrPort("10.55.0.9:1")}
	away := Tuple{netip.MustParseAddrPort("10.55.0.201:443"), held.Remote}
	gone := netip.MustParsePrefix("10.55.0.202/24")
	strange := Tuple{netip.MustParseAddrPort("10.55.0.203:443"), held.Remote}
	g := guard(t)
	g.kernel.state = State{Fenced: []netip.Prefix{gone}, Held: []Tuple{held}, Diverted: []Diversion{{away, guardPeer.To}}}
	c := g.dial(t)
	defer func() { must(t, "close", c.Close()) }()
	release := func(ts []Tuple) error { _, err := c.Release(ts); return err }
	for name, end := range map[string]func([]Tuple) error{"release": release, "drop": c.Drop, "undivert": c.Undivert} {
		must(t, name, end([]Tuple{held, away}))
		wantWords(t, end([]Tuple{held, strange}), strange.Local.Addr().String())
	}
	none := netip.Addr{}
	must(t, "disown", c.Disown(gone.Addr()))
	must(t, "forget", c.Forget(gone.Addr()))
	must(t, "guest no more", c.Guest(gone.Addr(), 0))
	must(t, "lead no more", c.Lead(gone.Addr(), none))
	must(t, "forward no more", c.Forward(gone.Addr(), none))
	for _, err := range []error{c.Hold([]Tuple{held}), c.Here([]Tuple{held}), c.Divert([]Tuple{held}, guardPeer.To), c.Own(gone, time.Second), c.Guest(gone.Addr(), time.Second),
		c.Announce(gone.Addr()), c.Lead(gone.Addr(), guardPeer.To), c.Forward(gone.Addr(), guardPeer.To), c.Forget(strange.Local.Addr())} {
		wantWords(t, err, "by the file of this process")
	}
}

// What is asked in another way than this version's is refused by name, and the connection
// goes on.
func TestUnknownRequests(t *testing.T) {
	g := guard(t)
	ch := g.greet(t)
	for _, x := range []struct {
		what act
		body string
		says []string
	}{
		{77, "", []string{"request 77", "2 to 12"}},
		{actHello, "{}", []string{"request 1"}},
		{answerDone, "", []string{"request 128"}},
		{actCall, `{"name":"Reboot"}`, []string{`"Reboot"`, "version 1"}},
		{actCall, `{"name":"Own","forever":true}`, []string{`"forever"`}},
		{actCall, `{"name":`, []string{"netadmin"}},
		{actHold, "\x04", []string{"too short"}},
		{actRepair, "\x01", []string{"too short"}},
		{actSockets, "", []string{"0 sockets", "1 to 128"}},
	} {
		must(t, "send", ch.send(x.what, []byte(x.body)))
		wantRefusal(t, ch, x.says...)
	}
	if len(g.kernel.calls) > 0 {
		t.Errorf("the kernel was asked for %v", g.kernel.calls)
	}
	for name, hello := range map[string]string{"version 0": "{}", "version 2": `{"version":2}`} {
		ch := g.connect(t)
		must(t, "send", ch.send(actHello, []byte(hello)))
		wantRefusal(t, ch, name, "version 1")
		wantEnd(t, ch.conn)
	}
}

// A process of a user that is not served hears so; it is asked for nothing.
func TestStranger(t *testing.T) {
	g := guard(t, func(s *Server) {
		s.UID = 990
		s.user = func(*net.UnixConn) (int, error) { return 1000, nil }
	})
	_, err := Dial(g.path)
	wantWords(t, err, "user 1000 is not served", "user 990")
	if uid, err := peerUser(g.connect(t).conn); err != nil || uid != os.Geteuid() {
		t.Errorf("who listens is user %d, %v", uid, err)
	}
}

// As many connections are served as may be, and the next one hears why it is not.
func TestManyClients(t *testing.T) {
	g := guard(t)
	var all []*Client
	for range connsMax {
		all = append(all, g.dial(t))
	}
	_, err := Dial(g.path)
	wantWords(t, err, "64 connections")
	wantWords(t, all[0].Inject(make([]byte, requestMax)), "1048577 octets", "at most 1048576")
	must(t, "state of one that is served", second(all[0].State()))
	must(t, "close", all[0].Close())
	wait(t, "a place", func() bool {
		c, err := Dial(g.path)
		if err == nil {
			all[0] = c
		}
		return err == nil
	})
	for _, c := range all {
		must(t, "close", c.Close())
	}
}

// Who begins a message and does not go on, sends more than may be, or does not read the
// answers, is let go of; others are served meanwhile.
func TestClientStalls(t *testing.T) {
	half := []byte{0, 0, 0, 100, byte(actHold), 4}
	for name, stall := range map[string]func(g *guarded, t *testing.T) net.Conn{
		"before the greeting": func(g *guarded, t *testing.T) net.Conn { return g.connect(t).conn },
		"in its greeting": func(g *guarded, t *testing.T) net.Conn {
			c := g.connect(t).conn
			_, err := c.Write([]byte{0, 0, 0, 9, byte(actHello), '{'})
			must(t, "write", err)
			return c
		},
		"in the head of a request": func(g *guarded, t *testing.T) net.Conn {
			c := g.greet(t).conn
			_, err := c.Write(half[:3])
			must(t, "write", err)
			return c
		},
		"in a request": func(g *guarded, t *testing.T) net.Conn {
			c := g.greet(t).conn
			_, err := c.Write(half)
			must(t, "write", err)
			return c
		},
		"with a request that is too long": func(g *guarded, t *testing.T) net.Conn {
			ch := g.greet(t)
			_ = ch.send(actHold, make([]byte, requestMax)) // which may end in its middle
			return ch.conn
		},
		"with a greeting that is too long": func(g *guarded, t *testing.T) net.Conn {
			ch := g.connect(t)
			_ = ch.send(actHello, append([]byte(`{"version":1}`), bytes.Repeat([]byte{0x20}, greetingMax)...))
			return ch.conn
		},
		"with the answers": func(g *guarded, t *testing.T) net.Conn {
			for range 1000 {
				g.kernel.state.Here = append(g.kernel.state.Here, Tuple{netip.AddrPortFrom(guardFrom, 1), netip.AddrPortFrom(guardFrom, 2)})
			}
			ch := g.greet(t)
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); { // all that may wait, waits
				must(t, "deadline", ch.conn.SetWriteDeadline(time.Now().Add(g.server.RequestTime)))
				if err := ch.send(actCall, []byte(`{"name":"State"}`)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return ch.conn
				}
			}
			t.Error("the connection goes on")
			return ch.conn
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := guard(t, func(s *Server) { s.RequestTime = 50 * time.Millisecond })
			before := descriptors(t)
			idle := g.dial(t) // asks for nothing for as long as it likes
			c := stall(g, t)
			other := g.dial(t)
			must(t, "another client", second(other.Counters()))
			wantEnd(t, c)
			must(t, "who was idle", second(idle.Counters()))
			must(t, "close", errors.Join(other.Close(), idle.Close(), c.Close()))
			wait(t, "its descriptors to be closed", func() bool { return descriptors(t) <= before })
		})
	}
}

// Descriptors that nobody asked for are closed: with a request that takes none, a
// greeting, and a half request.
func TestStrangeDescriptors(t *testing.T) {
	g := guard(t, func(s *Server) { s.RequestTime = 50 * time.Millisecond })
	pass := func(what string, send func(fd int)) {
		t.Helper()
		var p [2]int
		must(t, "pipe", unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
		r := os.NewFile(uintptr(p[0]), what)
		must(t, "deadline", r.SetReadDeadline(time.Now().Add(20*time.Second)))
		defer func() { _ = r.Close() }()
		send(p[1])
		_ = unix.Close(p[1])
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF { // nobody else has the other end
			t.Errorf("%s: %d %v", what, n, err)
		}
	}
	ch := g.greet(t)
	pass("with a request", func(fd int) {
		must(t, "send", ch.send(actHold, nil, fd, fd))
		wantRefusal(t, ch, "2 descriptors", "request 2")
	})
	pass("with repair mode, of no socket", func(fd int) {
		must(t, "send", ch.send(actRepair, []byte{1}, fd))
		wantRefusal(t, ch, "repair")
	})
	must(t, "send", ch.send(actCall, []byte(`{"name":"Counters"}`)))
	if what, _, _, err := ch.receive(); err != nil || what != answerDone {
		t.Errorf("after that: %d %v", what, err)
	}
	pass("with a greeting", func(fd int) {
		ch := g.connect(t)
		must(t, "send", ch.send(actHello, []byte(`{"version":1}`), fd))
	})
	pass("with half a request", func(fd int) {
		ch := g.greet(t)
		_, _, err := ch.conn.WriteMsgUnix([]byte{0, 0}, unix.UnixRights(fd), nil)
		must(t, "send", err)
	})
	pass("in the middle of a request", func(fd int) {
		ch := g.greet(t)
		_, err := ch.conn.Write([]byte{0, 0, 0, 3, byte(actHold), 4})
		must(t, "send", err)
		_, _, err = ch.conn.WriteMsgUnix([]byte{1}, unix.UnixRights(fd), nil)
		must(t, "send", err)
		wantRefusal(t, ch, "too short")
	})
}

// Sockets of answers that nobody reads count to nobody's limit: there are no more of them
// than one request's.
func TestUnreadSockets(t *testing.T) {
	g := guard(t)
	ch := g.greet(t)
	request := appendSpecs(nil, []tcprepair.SocketSpec{{Local: netip.AddrPortFrom(guardVIP.Addr(), 1)}})
	must(t, "send", ch.send(actSockets, request))
	must(t, "send", ch.send(actSockets, request))
	wait(t, "both answers", func() bool { // the second one is longer than nothing
		n := 0
		raw, err := ch.conn.SyscallConn()
		must(t, "raw", err)
		must(t, "control", raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }))
		must(t, "SIOCINQ", err)
		return n > len(ch.head)
	})
	if what, _, _, err := ch.receive(); err != nil || what != answerDone {
		t.Fatalf("the first: %d %v", what, err)
	}
	wantRefusal(t, ch, "sockets", "read the answer")
	must(t, "send", ch.send(actSockets, request))
	if what, _, _, err := ch.receive(); err != nil || what != answerDone {
		t.Fatalf("with nothing unread: %d %v", what, err)
	}
}

// complaints tells that something was logged.
type complaints struct {
	slog.Handler
	said chan struct{}
}

func (c complaints) Handle(context.Context, slog.Record) error {
	select {
	case c.said <- struct{}{}:
	default:
	}
	return nil
}

// No descriptor is left to accept with: who waits is served when there is one again.
func TestServeWithoutDescriptors(t *testing.T) {
	log := complaints{slog.DiscardHandler, make(chan struct{}, 1)}
	g := guard(t, func(s *Server) { s.Log = slog.New(alwaysOn{log}) })
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, "socket", err)
	var was unix.Rlimit
	must(t, "limit", unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	must(t, "limit", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(c) + 16, Max: was.Max}))
	var taken []int
	give := func() {
		closeAll(taken)
		taken = nil
		must(t, "limit", unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	}
	defer give()
	for {
		fd, err := unix.FcntlInt(uintptr(c), unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		must(t, "dup", err)
		taken = append(taken, fd)
	}
	must(t, "connect", unix.Connect(c, &unix.SockaddrUnix{Name: g.path}))
	select {
	case <-log.said: // it could not accept
	case err := <-g.ended:
		g.ended <- nil
		t.Fatalf("it serves nobody any more: %v", err)
	}
	give()
	_ = unix.Close(c)
	must(t, "close", g.dial(t).Close())
}

type alwaysOn struct{ complaints }

func (alwaysOn) Enabled(context.Context, slog.Level) bool { return true }

// A lot costs one request where it is put down, and one where it goes live: first
// diverted and then frozen, first live and then released. Each socket has its own outcome.
func TestOneRequestALot(t *testing.T) {
	g := guard(t)
	c := g.dial(t)
	defer func() { must(t, "close", c.Close()) }()
	var fds []int
	for range 3 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, "socket", err)
		defer unix.Close(fd)
		must(t, "freebind", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1))
		must(t, "bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(guardVIP.Addr(), 0))))
		fds = append(fds, fd)
	}
	ts := []Tuple{{netip.AddrPortFrom(guardVIP.Addr(), 443), netip.MustParseAddrPort("10.55.0.9:1")}}
	want := func(what string, calls []string, modes []int, errs []error, err error) {
		t.Helper()
		must(t, what, err)
		g.kernel.mu.Lock()
		defer g.kernel.mu.Unlock()
		if !slices.Equal(g.kernel.calls, calls) || !slices.Equal(g.kernel.modes, modes) {
			t.Errorf("%s: %q with modes %v, want %q with %v", what, g.kernel.calls, g.kernel.modes, calls, modes)
		}
		for i := range 3 {
			if (errs != nil && errs[i] != nil) != (g.kernel.fails == i && i > 0) {
				t.Errorf("%s: %v where %d fails", what, errs, g.kernel.fails)
			}
		}
		g.kernel.calls, g.kernel.modes = nil, nil
	}
	off := []int{tcprepair.RepairOff, tcprepair.RepairOffNoProbe, tcprepair.RepairOff}
	for _, fails := range []int{0, 1, 2} {
		g.kernel.mu.Lock()
		g.kernel.fails = fails
		g.kernel.mu.Unlock()
		errs, err := c.Freeze(ts, guardPeer.To, fds)
		want("freeze", []string{"Divert", "Repair"}, []int{1, 1, 1}, errs, err)
		errs, _, err = c.Live(fds, off, ts)
		want("live", []string{"Repair", "Release"}, off, errs, err)
	}
	want("repair", []string{"Repair"}, off, c.Repair(fds, off), nil)
	_, _, err := c.Live(fds, []int{0, 1, 0}, ts) // held segments for a socket that hears nothing
	wantWords(t, err, "released when their sockets leave repair mode")
	_, _, err = c.Live(fds, []int{0, 7, 0}, ts)
	wantWords(t, err, "no repair mode 7")
	_, err = c.Freeze(ts, guardVIP.Addr(), fds)
	wantWords(t, err, guardVIP.Addr().String())
	g.kernel.mu.Lock()
	defer g.kernel.mu.Unlock()
	if len(g.kernel.calls) != 0 {
		t.Errorf("%q of what was refused", g.kernel.calls)
	}
}

// Whatever is asked, the kernel is asked for what the file says and for nothing else.
func FuzzServer(f *testing.F) {
	ours := Tuple{netip.AddrPortFrom(guardVIP.Addr(), 443), netip.MustParseAddrPort("10.55.0.9:1")}
	theirs := Tuple{netip.MustParseAddrPort("10.55.0.101:443"), ours.Remote}
	for _, what := range []act{actHold, actRelease, actDrop, actUndivert, actHere} {
		f.Add(byte(what), appendTuples(nil, []Tuple{ours}))
		f.Add(byte(what), appendTuples(nil, []Tuple{ours, theirs}))
	}
	f.Add(byte(actDivert), appendTuples(appendAddr(nil, guardPeer.To), []Tuple{ours}))
	f.Add(byte(actDivert), appendTuples(appendAddr(nil, theirs.Local.Addr()), []Tuple{ours}))
	f.Add(byte(actSockets), appendSpecs(nil, []tcprepair.SocketSpec{{Local: ours.Local}, {Local: theirs.Local}}))
	packet := append([]byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 10, 55, 0, 9, 10, 55, 0, 100}, make([]byte, 20)...)
	packet[21], packet[23], packet[32], packet[33] = 1, 80, 5<<4, ackFlag
	f.Add(byte(actInject), packet)
	for _, q := range []string{
		`{"name":"Fence","prefixes":["10.55.0.100/24"]}`, `{"name":"Own","prefix":"10.55.0.100/24","time":1000000000}`,
		`{"name":"Own","prefix":"10.55.0.100/24","time":99999999999999}`, `{"name":"Guest","addr":"10.55.0.100","time":1}`,
		`{"name":"Learn","on":["10.55.0.100:443"]}`, `{"name":"Lead","addr":"10.55.0.100","to":"10.55.0.2"}`,
		`{"name":"Forward","addr":"::ffff:10.55.0.100","to":"10.55.0.9"}`, `{"name":"Steer","addrs":["fd55::7"],"ranges":[{"first":20000,"last":20001,"to":"10.55.0.2"}]}`,
		`{"name":"Routed","addrs":["10.55.0.100"]}`, `{"name":"Handshakes","addr":"10.55.0.101"}`, `{"name":"Own","prefix":"fd55::7/128","time":1}`, `{"name":"Learn","on":null,"addr":""}`,
		`{"name":"Handshakes"}`, `{"name":"Forget"}`, `{"name":"Own","time":5}`,
	} {
		f.Add(byte(actCall), []byte(q))
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	file := os.NewFile(uintptr(pair[0]), "pair")
	conn, err := net.FileConn(file)
	if err != nil {
		f.Fatal(err)
	}
	ch := newChannel(conn.(*net.UnixConn))
	legal := lookup(guardFile)
	f.Fuzz(func(t *testing.T, what byte, body []byte) {
		k := &recorder{}
		s := NewServer(k, 0, func() (Rights, bool) { return guardFile, false }, nil)
		if _, _, err := s.do(ch, act(what), body, nil); err != nil {
			// What is in force is looked at, for it may be ended.
			if k.calls = slices.DeleteFunc(k.calls, func(s string) bool { return s == "State" }); len(k.calls) > 0 {
				t.Errorf("%v was asked for before it was refused: %v", k.calls, err)
			}
			return
		}
		for _, a := range k.moved {
			if !legal.movable[a.Unmap()] {
				t.Errorf("%v of %v", k.calls, a)
			}
		}
		for _, a := range k.owned {
			if _, is := legal.vips[a.Unmap()]; !is {
				t.Errorf("%v of %v", k.calls, a)
			}
		}
		for _, to := range k.sentTo {
			if to.Unmap() != guardPeer.To {
				t.Errorf("%v to %v", k.calls, to)
			}
		}
		for _, r := range k.ranges {
			if r.To.Unmap() != guardPeer.To || r.Last != 0 && (r.First < guardPeer.First || r.Last > guardPeer.Last) {
				t.Errorf("%v", r)
			}
		}
		if slices.ContainsFunc(k.leases, func(d time.Duration) bool { return d > leaseMax }) {
			t.Errorf("leases %v", k.leases)
		}
	})
}

// What is held, diverted and here is bounded together, and what has been released is
// forgotten; a request that has no room changes nothing.
func TestTupleBound(t *testing.T) {
	l := newBareLab(t)
	const most = 4
	a := l.a.open(Config{MaxTuples: most})
	ts := manyTuples(0, 2*most)
	must(t, "Hold", a.Hold(ts[:2]))
	must(t, "Here", a.Here(ts[2:3]))
	must(t, "Divert", a.Divert(append(ts[:2:2], ts[3]), l.b.addr[0])) // of which two are held already
	for name, err := range map[string]error{
		"Hold": a.Hold(ts[2:5]), "Here": a.Here(ts[4:5]), "Divert": a.Divert(ts[3:6], l.b.addr[0]),
	} {
		t.Run(name, func(t *testing.T) { wantWords(t, err, ts[2].Local.String(), "4 tuples", "4 at most") })
	}
	x, err := a.State()
	must(t, "State", err)
	if len(x.Held) != 2 || len(x.Here) != 1 || len(x.Diverted) != 3 {
		t.Errorf("in force: %+v", x)
	}
	must(t, "Drop", a.Drop(ts))
	must(t, "Undivert", a.Undivert(ts))
	must(t, "Hold", a.Hold(ts[4:4+most-1]))
	if _, err := a.Release(manyTuples(0, 1000)); err != nil { // of which few were held
		t.Error(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.released) > most || len(a.tuples) != 0 {
		t.Errorf("%d released, %d tuples", len(a.released), len(a.tuples))
	}
}

// More ranges of ports than are looked through are refused, and those before stay.
func TestSteerBound(t *testing.T) {
	a := serve(t).server.Admin.(*Admin)
	addr := []netip.Addr{guardVIP.Addr()}
	ranges := func(n, at int) (all []PortRange) {
		for i := range n {
			all = append(all, PortRange{First: uint16(1 + i), Last: uint16(1 + i), To: netip.AddrFrom4([4]byte{10, 55, 0, byte(at)})})
		}
		return all
	}
	must(t, "Steer", a.Steer(addr, ranges(3, 7)))
	wantWords(t, a.Steer(addr, ranges(rangesMax-2, 8)), "4097 ranges", "at most 4096")
	if n := len(a.steering.ranges); n != 3 {
		t.Errorf("%d ranges are wanted", n)
	}
}
