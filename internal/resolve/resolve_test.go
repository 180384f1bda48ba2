package resolve

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// zone is a DNS server, over UDP and TCP, whose answers the test changes.
type zone struct {
	t    *testing.T
	addr netip.AddrPort

	mu      sync.Mutex
	records map[string][]string // of "name A" and the like: the rest of the records, as in "60 A 10.0.0.1"
	rcode   int
	cut     bool // answers over UDP are truncated
	wrong   bool // it answers another question
	silent  bool
	asked   map[string]int // by "udp name A"
}

func serve(t *testing.T) *zone {
	t.Helper()
	z := &zone{t: t, records: map[string][]string{}, asked: map[string]int{}}
	var udp net.PacketConn
	var tcp net.Listener
	for try := 0; ; try++ { // one port for both
		var err error
		if udp, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp4", udp.LocalAddr().String()); err == nil {
			break
		}
		_ = udp.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
	z.addr = netip.MustParseAddrPort(udp.LocalAddr().String())
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: z}, {Listener: tcp, Handler: z}} {
		up, done := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(up) }
		go func() { done <- s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
	return z
}

// ServeDNS answers as the test has said.
func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	ask := q.Question[0]
	key := ask.Name + " " + dns.TypeToString[ask.Qtype]
	udp := w.LocalAddr().Network() == "udp"
	z.asked[w.LocalAddr().Network()+" "+key]++
	if z.silent {
		return
	}
	m := new(dns.Msg)
	m.SetRcode(q, z.rcode)
	if z.wrong {
		m.Question[0].Name = "other."
	}
	for _, rest := range z.records[key] {
		name := ask.Name
		if n, r, ok := strings.Cut(rest, "|"); ok { // of a chain
			name, rest = n, r
		}
		fields := strings.SplitN(rest, " ", 2)
		rr, err := dns.NewRR(name + " " + fields[0] + " IN " + fields[1])
		if err != nil {
			z.t.Errorf("%q: %v", rest, err)
			return
		}
		m.Answer = append(m.Answer, rr)
	}
	if udp && z.cut {
		m.Answer, m.Truncated = m.Answer[:1], true
	}
	_ = w.WriteMsg(m)
}

// set changes what the zone says.
func (z *zone) set(do func(z *zone)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	do(z)
}

func (z *zone) count(key string) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked[key]
}

// watched is a resolver and what it has said.
type watched struct {
	*Resolver
	t       *testing.T
	changed chan struct{}
	failed  chan string
}

func watchNames(t *testing.T, known map[string]Answer, servers []netip.AddrPort, hosts ...string) *watched {
	t.Helper()
	w := &watched{t: t, changed: make(chan struct{}, 1000), failed: make(chan string, 100)}
	none := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(none, []byte("# none\n192.0.2.7 In-File in-file.example # as written\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Resolver = New(Options{Servers: servers, HostsFile: none,
		Changed: func() { w.changed <- struct{}{} },
		Failed:  func(host string, err error) { w.failed <- host + ": " + err.Error() }})
	t.Cleanup(w.Stop)
	w.Set(hosts, known)
	w.Wait(10 * time.Second)
	return w
}

func (w *watched) want(host, addrs string) {
	w.t.Helper()
	var got []string
	for _, a := range w.Answers()[host].Addrs {
		got = append(got, a.String())
	}
	if s := strings.Join(got, " "); s != addrs {
		w.t.Fatalf("%s is %q, want %q", host, s, addrs)
	}
}

// await waits until the answer has changed.
func (w *watched) await() {
	w.t.Helper()
	select {
	case <-w.changed:
	case <-time.After(20 * time.Second):
		w.t.Fatal("no change was told")
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		records map[string][]string
		cut     bool
		want    string
		ttl     time.Duration // the longest that may be left
	}{
		{"both families, sorted", map[string][]string{"app. A": {"60 A 10.0.0.2", "60 A 10.0.0.1"}, "app. AAAA": {"30 AAAA 2001:db8::1"}}, false, "10.0.0.1 10.0.0.2 2001:db8::1", 30 * time.Second},
		{"one twice", map[string][]string{"app. A": {"60 A 10.0.0.2", "60 A 10.0.0.2"}}, false, "10.0.0.2", time.Minute},
		{"one family", map[string][]string{"app. AAAA": {"30 AAAA 2001:db8::1"}}, false, "2001:db8::1", 30 * time.Second},
		{"an alias", map[string][]string{"app. A": {"5 CNAME real.", "real.|60 A 10.0.0.9"}}, false, "10.0.0.9", 5 * time.Second},
		{"a TTL of 0 is a second", map[string][]string{"app. A": {"0 A 10.0.0.1"}}, false, "10.0.0.1", time.Second},
		{"a TTL of weeks is an hour", map[string][]string{"app. A": {"2000000 A 10.0.0.1"}}, false, "10.0.0.1", time.Hour},
		{"truncated", map[string][]string{"app. A": {"60 A 10.0.0.1", "60 A 10.0.0.2", "60 A 10.0.0.3"}, "app. AAAA": {"60 AAAA 2001:db8::1"}}, true, "10.0.0.1 10.0.0.2 10.0.0.3 2001:db8::1", time.Minute},
		{"none", nil, false, "", retryMin},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := serve(t)
			z.set(func(z *zone) { z.records, z.cut = c.records, c.cut })
			w := watchNames(t, nil, []netip.AddrPort{z.addr}, "app")
			w.want("app", c.want)
			if a := w.Answers()["app"]; a.Left > c.ttl || c.ttl > 10*time.Second && a.Left < c.ttl/2 {
				t.Errorf("it is good for %v, want up to %v", a.Left, c.ttl)
			}
			if c.cut && z.count("tcp app. A") == 0 {
				t.Error("TCP was not asked")
			}
		})
	}
}

// An answer is asked for again when its time is over, and a change is told.
func TestFollowsTheTTL(t *testing.T) {
	z := serve(t)
	z.set(func(z *zone) {
		z.records = map[string][]string{"app. A": {"1 A 10.0.0.1"}, "slow. A": {"3600 A 10.0.9.9"}}
	})
	w := watchNames(t, nil, []netip.AddrPort{z.addr}, "app", "slow")
	w.await()
	w.await()
	w.want("app", "10.0.0.1")
	z.set(func(z *zone) { z.records["app. A"] = []string{"1 A 10.0.0.2", "1 A 10.0.0.3"} })
	w.await()
	w.want("app", "10.0.0.2 10.0.0.3")
	if n := z.count("udp slow. A"); n != 1 {
		t.Errorf("an answer that is good for an hour was asked for %d times", n)
	}
	// The same in another order is no change.
	z.set(func(z *zone) { z.records["app. A"] = []string{"1 A 10.0.0.3", "1 A 10.0.0.2"} })
	was := z.count("udp app. A")
	for z.count("udp app. A") < was+3 {
		time.Sleep(10 * time.Millisecond)
	}
	if len(w.changed) != 0 {
		t.Error("another order counts as a change")
	}
	// Nobody asks for what is not watched any more.
	w.Set(nil, nil)
	w.Wait(time.Second)
	if len(w.Answers()) != 0 {
		t.Errorf("still known: %v", w.Answers())
	}
}

// Whatever a server does that is no good answer, the last good one stays.
func TestKeepsTheLastGoodAnswer(t *testing.T) {
	for _, c := range []struct {
		name, says string
		do         func(z *zone)
	}{
		{"SERVFAIL", "SERVFAIL", func(z *zone) { z.rcode = dns.RcodeServerFailure }},
		{"the name is gone", "no such name", func(z *zone) { z.rcode, z.records = dns.RcodeNameError, nil }},
		{"it has no address any more", "no address", func(z *zone) { z.records = nil }},
		{"another question", "another question", func(z *zone) { z.wrong = true }},
		{"silence", "no answer", func(z *zone) { z.silent = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := serve(t)
			z.set(func(z *zone) {
				z.records = map[string][]string{"app. A": {"1 A 10.0.0.1"}, "app. AAAA": {"1 AAAA 2001:db8::1"}}
			})
			w := watchNames(t, nil, []netip.AddrPort{z.addr}, "app")
			w.want("app", "10.0.0.1 2001:db8::1")
			z.set(c.do)
			select {
			case why := <-w.failed:
				if !strings.Contains(why, c.says) {
					t.Errorf("%q does not say %q", why, c.says)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("no failure was told")
			}
			w.want("app", "10.0.0.1 2001:db8::1")
			if a := w.Answers()["app"]; a.Err == "" || a.Left > retryMax {
				t.Errorf("the answer does not tell: %+v", a)
			}
		})
	}
}

// A server that does not know is passed over; one family that fails keeps what
// it had while the other changes.
func TestServersInTurn(t *testing.T) {
	bad, good := serve(t), serve(t)
	bad.set(func(z *zone) { z.rcode = dns.RcodeRefused })
	good.set(func(z *zone) { z.records = map[string][]string{"app. A": {"60 A 10.0.0.1"}} })
	w := watchNames(t, nil, []netip.AddrPort{bad.addr, good.addr}, "app", "IN-file", "in-file.example.")
	w.want("app", "10.0.0.1")
	w.want("IN-file", "192.0.2.7") // the hosts file is asked first
	w.want("in-file.example.", "192.0.2.7")
	if bad.count("udp app. A") == 0 || len(w.failed) != 0 {
		t.Errorf("the first server was asked %d times; failures %d", bad.count("udp app. A"), len(w.failed))
	}
}

// What a predecessor knew is believed for as long as it would have.
func TestKnownAnswersAreNotAskedFor(t *testing.T) {
	z := serve(t)
	z.set(func(z *zone) { z.records = map[string][]string{"new. A": {"60 A 10.0.0.1"}} })
	known := map[string]Answer{"old": {Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("2001:db8::7")}, Left: time.Minute}}
	w := watchNames(t, known, []netip.AddrPort{z.addr}, "old", "new")
	w.want("old", "10.0.0.7 2001:db8::7")
	w.want("new", "10.0.0.1")
	if z.count("udp old. A") != 0 {
		t.Error("it was asked for")
	}
}

// Many names are asked for at once, but no more than asksMax.
func TestManyNames(t *testing.T) {
	z := serve(t)
	var hosts []string
	for i := range 500 {
		h := fmt.Sprintf("h%d", i)
		hosts = append(hosts, h)
		z.set(func(z *zone) { z.records[h+". A"] = []string{fmt.Sprintf("60 A 10.1.%d.%d", i/250, i%250+1)} })
	}
	w := watchNames(t, nil, []netip.AddrPort{z.addr}, hosts...)
	for i, h := range hosts {
		if got := w.Answers()[h].Addrs; !slices.Equal(got, []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 1)})}) {
			t.Fatalf("%s is %v", h, got)
		}
	}
}
