package sim

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// storm is a time in which the configuration changes again and again, in all that it
// has: names, VIPs, listeners that come and go, routes, weights. Clients that keep
// their connections ask which revision rules them, and must be told one that was in
// force while they asked.
type storm struct {
	w       *World
	renamed bool // the listener for TCP has another name
	swapped bool // the two for HTTP have each other's VIP
	extra   bool // there is one more
	weights [8]int
	askers  []*asker
	// revision is the latest that a reload was begun with, effective the latest that
	// all loops of a process have.
	revision, effective int
}

// extraVIP is that of the listener that comes and goes.
var extraVIP = netip.MustParseAddrPort("10.0.0.5:90")

// askersMost are the clients that ask for the revision.
const askersMost = 6

// answersMost is after how many an asker is content, and only stays.
const answersMost = 60

// tcpName is the name of the listener for TCP.
func (s *storm) tcpName() string {
	if s != nil && s.renamed {
		return "shop"
	}
	return "web"
}

// more is what else listens.
func (s *storm) more(b *strings.Builder) {
	if s != nil && s.extra {
		fmt.Fprintf(b, "  extra: { vip: %q, backend: pool, idleTimeout: %s }\n", extraVIP, s.w.shape.idle)
	}
}

// site is the name of the listener at VIP i of those for HTTP.
func (s *storm) site(i int) string {
	if s != nil && s.swapped {
		i = 1 - i
	}
	return fmt.Sprintf("site%d", i)
}

// route is one more route.
func (s *storm) route(b *strings.Builder, revision int) {
	if s != nil {
		fmt.Fprintf(b, "      - { match: { path: { exact: /gen } }, respond: { status: 200, body: \"gen %d\\n\" } }\n", revision)
	}
}

// weight is that of an endpoint.
func (s *storm) weight(i int) string {
	if s == nil || s.weights[i] == 0 {
		return ""
	}
	return fmt.Sprintf(", weight: %d", s.weights[i])
}

// change alters what the next reload brings.
func (s *storm) change() {
	if s == nil {
		return
	}
	r := s.w.net.rng
	switch r.IntN(5) {
	case 0:
		s.renamed = !s.renamed
	case 1:
		s.swapped = !s.swapped
	case 2, 3:
		if s.extra { // some come just then
			for range 3 {
				s.w.clientAt(extraVIP, true)
			}
		}
		s.extra = !s.extra
	case 4:
		s.weights[r.IntN(len(s.weights))] = 1 + r.IntN(200)
	}
	s.revision = s.w.shape.revision
}

// inForce notes that all loops rule by the latest revision.
func (s *storm) inForce(revision int) {
	if s != nil {
		s.effective = max(s.effective, revision)
	}
}

// vip is where a client of TCP connects.
func (s *storm) vip() netip.AddrPort {
	if s != nil && s.extra && s.w.net.rng.IntN(2) == 0 {
		return extraVIP
	}
	return vip
}

// asker is a client that keeps its connection and asks again and again.
type asker struct {
	name        string
	s           *Sock
	asked       int // revision in force when the question was put
	waits, over bool
	answers     int
	got         []byte
	excused     string
}

const question = "GET /gen HTTP/1.1\r\nHost: h\r\n\r\n"

func (a *asker) excuse(why string) { a.excused = why }

// begin begins an asker, if there may be more.
func (s *storm) begin() {
	if s == nil || len(s.askers) >= askersMost {
		return
	}
	n := s.w.net
	at := webVIPs[n.rng.IntN(len(webVIPs))]
	near, _ := n.pair(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 3}), n.port()), at)
	a := &asker{name: fmt.Sprintf("asker-%d", len(s.askers)), s: near}
	near.owner = a
	s.askers = append(s.askers, a)
	n.connect(near, at)
}

// step lets one asker do something.
func (s *storm) step(last bool) bool {
	if s == nil {
		return false
	}
	did := false
	for _, a := range s.askers {
		did = s.ask(a, last) || did
	}
	return did
}

func (s *storm) ask(a *asker, last bool) bool {
	if a.over || !a.s.connected && !a.s.dead {
		return false
	}
	if !a.waits {
		if last {
			a.over = true
			a.s.close()
			return true
		}
		if a.answers >= answersMost || s.w.net.rng.IntN(20) != 0 {
			return false
		}
		a.asked, a.waits = s.effective, true
		if n, e := a.s.send([]byte(question)); n < len(question) {
			s.ended(a, e)
		}
		return true
	}
	var room [4096]byte
	n, e := a.s.recv(room[:])
	if n == 0 {
		if e == sock.Again {
			return false
		}
		s.ended(a, e)
		return true
	}
	a.got = append(a.got, room[:n]...)
	head, body, whole := bytes.Cut(a.got, []byte("\r\n\r\n"))
	line, _, whole2 := bytes.Cut(body, []byte("\n"))
	if !whole || !whole2 {
		return true
	}
	text, _ := strings.CutPrefix(string(line), "gen ")
	revision, err := strconv.Atoi(text)
	switch {
	case err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")):
		s.w.fail("%s got %q", a.name, a.got)
	case revision < a.asked || revision > s.revision:
		s.w.fail("%s is ruled by revision %d after %d answers; %d was in force when it asked, the latest is %d", a.name, revision, a.answers, a.asked, s.revision)
	case bytes.Contains(head, []byte("Connection: close")):
		s.w.fail("%s is sent away by %q, though its VIP is served", a.name, head)
	}
	a.answers++
	a.waits, a.got = false, nil
	return true
}

// ended judges the end of an asker's connection: nothing that changes is a reason.
func (s *storm) ended(a *asker, e sock.Errno) {
	a.over = true
	a.s.orphan = true
	if a.excused == "" {
		s.w.fail("%s is cut off after %d answers: %v", a.name, a.answers, e)
	}
}

func (s *storm) open() (n int) {
	if s == nil {
		return 0
	}
	for _, a := range s.askers {
		if !a.over {
			n++
		}
	}
	return n
}

// checkLodges wants that what a loop counts by object is what a look at all flows
// finds.
func (w *World) checkLodges(p *Proc, l *loop.Loop, slots []uint32) {
	under, to := map[*config.Listener]int{}, map[*config.Backend]int{}
	for _, i := range slots {
		f := l.Flow(i)
		under[f.Listener()]++
		if f.Endpoint() != nil {
			to[f.Backend()]++
		}
	}
	for x, n := range under {
		if got := l.FlowsUnder(x); got != n {
			w.fail("%s: %d flows are counted under %v, there are %d", p.name, got, x.Ref, n)
		}
	}
	for x, n := range to {
		if got := l.FlowsTo(x); got != n {
			w.fail("%s: %d flows are counted at %v, there are %d", p.name, got, x.Ref, n)
		}
	}
	l.OldObjects(func(o loop.OldObject) {
		n := 0
		for x, k := range under {
			if x.Ref == o.Ref {
				n += k
			}
		}
		for x, k := range to {
			if x.Ref == o.Ref {
				n += k
			}
		}
		if n != o.Flows {
			w.fail("%s: %d flows are counted under the old %v, there are %d", p.name, o.Flows, o.Ref, n)
		}
	})
}

// stormy is what happens in a history of changes.
func stormy(seed uint64) Scenario {
	sc := Scenario{Storm: true, Clients: 12, Web: 8, Reloads: 40, Rebalances: int(seed % 4), Calm: seed%3 == 0}
	switch seed % 4 {
	case 1:
		sc.Upgrades = 1
	case 2:
		sc.Limited = true
	}
	return sc
}
