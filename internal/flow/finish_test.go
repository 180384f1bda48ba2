package flow

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// A response whose end only FIN tells its client, and of which all is here, is sent
// to its end when an operator ends its flow: FIN tells the truth.
func TestFinishOfWhatIsWhole(t *testing.T) {
	c, _, err := config.Parse("test.yaml", []byte("listeners: { l: { vip: \"192.0.2.1:80\", protocol: http, backend: b } }\nbackends: { b: { endpoints: [ { address: \"192.0.2.2:80\" } ] } }\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var lender Lender
	d := NewDesk(&lender)
	d.Config = c
	f := New(1, 1, c.Listeners["l"], nil, AddressOf(netip.MustParseAddrPort("192.0.2.3:1")), &lender)
	step := func(e Event) {
		e.Desk = d
		f.Step(1, e)
		if f.Unsettled() {
			f.Settle(&lender)
		}
	}
	wants := func() Wants {
		var w Wants
		f.Wants(&w)
		return w
	}
	hears := func(s Side, text string) { step(Event{Kind: Received, Leg: s, Octets: []byte(text), N: len(text)}) }
	hears(Client, "GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	step(Event{Kind: Secured, Endpoint: c.Backends["b"].Endpoints[0]})
	step(Event{Kind: Dialed})
	step(Event{Kind: Wrote, Leg: Backend, N: len(wants().Out[Backend])})
	hears(Backend, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	if due := string(wants().Out[Client]); !strings.HasSuffix(due, "\r\n\r\nhello") || f.State() != Relaying {
		t.Fatalf("%q is due, and it is %v", due, f.State())
	}
	step(Event{Kind: Finish})
	w := wants()
	if f.State() == Done || !strings.HasSuffix(string(w.Out[Client]), "hello") || w.Abort[Client] {
		t.Fatalf("it is %v, %q is due, abort %v", f.State(), w.Out[Client], w.Abort)
	}
	step(Event{Kind: Wrote, Leg: Client, N: len(w.Out[Client])})
	if w := wants(); !w.Shut[Client] {
		t.Errorf("it has all, and FIN is not wanted: %+v", w)
	}
	step(Event{Kind: HasShut, Leg: Client})
	step(Event{Kind: Ended, Leg: Client})
	if f.State() != Done || f.Cause() != Killed || wants().Abort[Client] {
		t.Errorf("it is %v by %v", f.State(), f.Cause())
	}
	f.Drop(&lender)
}
