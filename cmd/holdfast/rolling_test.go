package main

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/demo"
)

// page is one of the demo's servers, here in the test's own process, which ends
// as servers do: at once, once what it was asked is answered.
type page struct {
	name, address string
	server        *http.Server
}

func (p *page) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	p.address = l.Addr().String()
	p.server = &http.Server{Handler: demo.Page(p.name), ReadHeaderTimeout: time.Minute}
	go func() { _ = p.server.Serve(l) }() // ends with stop
}

func (p *page) stop() { _ = p.server.Close() }

// Four servers restart while somebody asks all the time: each in its turn, by
// quiesce; all at once, by hold; each in its turn, by its check's own port. No
// request fails, and no octet of any is wrong. That they really end shows in
// that without any of this requests do fail.
func TestRollingRestarts(t *testing.T) {
	text := `
node: { loops: 2, admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners:
  web: { vip: "${VIP}", protocol: http, backend: web }
backends:
  web:
    check: { tcp: {}, interval: 100ms, fastInterval: 50ms, downInterval: 50ms, fall: 1, rise: 1 }
    endpoints:
`
	var pages []*page
	checks := make([]net.Listener, 4)
	for i := range checks {
		p := &page{name: fmt.Sprintf("a%d", i), address: "127.0.0.1:0"}
		p.start(t)
		pages = append(pages, p)
		t.Cleanup(p.stop)
		var err error
		if checks[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("      - { name: %s, address: %q, check: { port: %s } }\n", p.name, p.address, portOf(checks[i].Addr().String()))
	}
	defer func() {
		for _, l := range checks {
			_ = l.Close()
		}
	}()
	vip := freshAddress(t)
	h := runFile(t, text, "VIP="+vip)
	up := func(name string) func() bool {
		return func() bool { return strings.Contains(states(h, "up"), "web/"+name+" ") }
	}
	for _, p := range pages {
		eventually(t, p.name+" is up", up(p.name))
	}
	w := demo.Browse(vip)
	defer w.Stop()
	enough := func(more uint64) {
		from := w.Look().Requests
		eventually(t, "requests go on", func() bool { return w.Look().Requests >= from+more })
	}
	whole := func(how string) {
		t.Helper()
		if f := w.Look(); f.Errors != 0 || f.Wrong != 0 {
			t.Fatalf("%s: %d errors, %d wrong octets: %q", how, f.Errors, f.Wrong, f.Faults)
		}
	}
	enough(20)

	for _, p := range pages {
		h.must(0, []string{"endpoint", "maint", "web/" + p.name, "--wait"}, "in flight 0: done in ")
		p.stop()
		enough(10)
		p.start(t)
		// The next one is taken out at once: this one serves by then.
		h.must(0, []string{"endpoint", "ready", "web/" + p.name, "--wait", "--timeout", "20s"}, "web/"+p.name+" ")
		if !up(p.name)() {
			t.Errorf("%s is not up", p.name)
		}
	}
	whole("by maint")

	h.must(0, []string{"endpoint", "hold", "web/*", "--wait"}, "web/* held on all 2 loops", "in flight 0: done in ")
	for _, p := range pages {
		p.stop()
	}
	for _, p := range pages {
		p.start(t)
	}
	h.must(0, []string{"endpoint", "ready", "web/*"}, "on all 2 loops")
	enough(20)
	whole("by hold")

	for i, p := range pages {
		at := checks[i].Addr().String()
		_ = checks[i].Close()
		eventually(t, p.name+" has left", func() bool { return strings.Contains(states(h, "down"), "web/"+p.name+" ") })
		eventually(t, p.name+" is idle", func() bool {
			all, _ := clientOf(h.socket, false).endpoints() // none at all is not idle
			for _, e := range all {
				if e.Name == "web/"+p.name {
					return e.InFlight == 0
				}
			}
			return false
		})
		p.stop()
		enough(10)
		p.start(t)
		var err error
		if checks[i], err = net.Listen("tcp", at); err != nil {
			t.Fatal(err)
		}
		eventually(t, p.name+" is up", up(p.name))
	}
	enough(20)
	whole("by the check's port")
	for _, p := range pages {
		if w.Look().Servers[p.name] < 20 {
			t.Errorf("%s has served %d", p.name, w.Look().Servers[p.name])
		}
	}

	// All end without a word.
	for _, p := range pages {
		p.stop()
	}
	eventually(t, "a request fails", func() bool { return w.Look().Errors > 0 })
}
