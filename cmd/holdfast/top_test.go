package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// topLooks are two looks, a second apart.
func topLooks() (before, now *look) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	make := func(at time.Time, requests float64) *look {
		l := &look{at: at, status: &node.Status{}, listeners: map[string]*counts{}, backends: map[string]*counts{}, byAddress: map[string]*counts{}}
		l.status.Node, l.status.Flows = "n1", 3
		l.status.Listeners = []node.ListenerStatus{{Name: "web", VIP: "127.0.0.1:80", Connections: 3}}
		l.listeners["web"] = &counts{requests: requests}
		for i, state := range []string{"up", "down", "quiescing"} {
			e := node.EndpointState{Name: fmt.Sprintf("web/a%d", i), Backend: "web", State: state, Admin: "ready", Health: state, Serves: i == 0, Why: "refused", InFlight: int64(i)}
			l.endpoints = append(l.endpoints, e)
		}
		for i := range 300 {
			l.flows = append(l.flows, node.FlowStatus{ID: fmt.Sprintf("f-%d", i), Listener: "web", In: uint64(i % 7), AgeSeconds: float64(300 - i)})
		}
		return l
	}
	return make(at, 100), make(at.Add(time.Second), 4912)
}

func shown(m *topModel) string { return strings.Join(m.page(), "\n") }

func press(t *testing.T, m *topModel, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if cmd := m.key(k); cmd != nil {
			t.Fatalf("key %s ends it", k)
		}
	}
}

func TestTopViews(t *testing.T) {
	before, now := topLooks()
	m := &topModel{before: before, now: now, width: 200, height: 30, colour: true}
	for _, want := range []string{"node n1", "requests 4,812/s", "lost 0", "[overview]", "LISTENER", "BACKEND", "ENDPOINT", "FLOW", "web/a1", "down", "refused", "... and "} {
		if !strings.Contains(shown(m), want) {
			t.Errorf("the overview has no %q:\n%s", want, shown(m))
		}
	}
	if n := len(m.page()); n > 30 {
		t.Errorf("%d lines on a screen of 30", n)
	}
	press(t, m, "tab", "right", "tab")
	if text := shown(m); !strings.Contains(text, "[endpoints]") || strings.Contains(text, "LISTENER") || strings.Contains(text, "FLOW") {
		t.Errorf("endpoints:\n%s", text)
	}
	// The one with most in flight comes first.
	press(t, m, "s", "s")
	if text := shown(m); !strings.Contains(text, "sorted by in flight") || strings.Index(text, "web/a2") > strings.Index(text, "web/a0") {
		t.Errorf("sorted:\n%s", text)
	}
	press(t, m, "r")
	if text := shown(m); strings.Index(text, "web/a2") < strings.Index(text, "web/a0") {
		t.Errorf("reversed:\n%s", text)
	}
	press(t, m, "5")
	if text := shown(m); !strings.Contains(text, "f-0 ") || strings.Contains(text, "f-100 ") {
		t.Errorf("flows, the oldest first:\n%s", text)
	}
	press(t, m, "pgdown", "pgdown", "down", "up")
	if text := shown(m); strings.Contains(text, "f-0 ") || !strings.Contains(text, "f-30 ") {
		t.Errorf("flows, from the 31st:\n%s", text)
	}
	press(t, m, "home", "left", "shift+tab")
	if text := shown(m); !strings.Contains(text, "[backends]") || !strings.Contains(text, "1/3") {
		t.Errorf("backends:\n%s", text)
	}
	if cmd := m.key("q"); cmd == nil {
		t.Error("q does not end it")
	}
}

// On a narrow screen the columns go that say least; why an endpoint does not serve
// stays, and a wide one has all.
func TestTopOnANarrowScreen(t *testing.T) {
	before, now := topLooks()
	for i := range now.endpoints {
		e := &now.endpoints[i]
		e.Address, e.Tries, e.Failures, e.LatencyMillis, e.Weight, e.SinceSeconds = "192.168.100.100:30000", 1234567, 12345, 3.1, 100, 17
		e.Why = "connect: connection refused"
	}
	m := &topModel{before: before, now: now, width: 100, height: 40}
	press(t, m, "4")
	for _, line := range m.page()[3:] {
		if len(line) > 100 {
			t.Errorf("%d columns: %q", len(line), line)
		}
	}
	if text := shown(m); !strings.Contains(text, "SINCE, WHY") || !strings.Contains(text, "17.0 s, connect: connection refused") || strings.Contains(text, "TRIES") || !strings.Contains(text, "IN FLIGHT") {
		t.Errorf("narrow:\n%s", text)
	}
	m.width = 160
	if text := shown(m); !strings.Contains(text, "TRIES") || !strings.Contains(text, "192.168.100.100:30000") {
		t.Errorf("wide:\n%s", text)
	}
}

// ? shows what the keys and the columns mean, and the next key goes back.
func TestTopHelp(t *testing.T) {
	before, now := topLooks()
	m := &topModel{before: before, now: now, width: 110, height: 30, colour: true}
	press(t, m, "?")
	if text := shown(m); !strings.Contains(text, "shift+tab") || !strings.Contains(text, "LATENCY") || strings.Contains(text, "web/a0") || len(m.page()) > 24 {
		t.Errorf("help:\n%s", text)
	}
	press(t, m, "tab")
	if text := shown(m); !strings.Contains(text, "[overview]") || !strings.Contains(text, "? help") || !strings.Contains(text, "web/a0") {
		t.Errorf("back:\n%s", text)
	}
}

// One page of text is short however much there is, and those that do not serve
// stand in it.
func TestTopOnceIsShort(t *testing.T) {
	before, now := topLooks()
	for i := range 1000 {
		e := node.EndpointState{Name: fmt.Sprintf("web/b%03d", i), Backend: "web", State: "up", Admin: "ready", Health: "up", Serves: i != 999}
		now.endpoints = append(now.endpoints, e)
	}
	m := &topModel{before: before, now: now, width: 160, height: endless}
	if text := shown(m); len(m.page()) > 60 || !strings.Contains(text, "web/b999") || !strings.Contains(text, "... and 983 more") {
		t.Errorf("%d lines:\n%s", len(m.page()), text)
	}
}

// An answer that does not come is told, and what was there stays.
func TestTopWithoutAnswer(t *testing.T) {
	before, now := topLooks()
	m := &topModel{before: before, now: now, width: 200, height: 30}
	m.Update(topLook{err: errors.New("no holdfast answers at /x\nstart one")})
	if text := shown(m); !strings.Contains(text, "no answer: no holdfast answers at /x; figures are ") || !strings.Contains(text, "web/a0") {
		t.Errorf("%s", text)
	}
	m.Update(topLook{look: now})
	if text := shown(m); strings.Contains(text, "no answer") {
		t.Errorf("%s", text)
	}
}

// The promises are red when one is broken: a colour and the number.
func TestTopPromises(t *testing.T) {
	before, now := topLooks()
	m := &topModel{before: before, now: now, width: 40, height: 30, colour: true}
	good := m.View().Content
	now.status.Lost = 1
	bad := m.View().Content
	if line := func(s string) string { return strings.Split(s, "\n")[2] }; line(good) == line(bad) || !strings.Contains(line(bad), "lost 1") ||
		line(bad) != topBad.Render("promises   lost 1   reset by a move 0   ") || !strings.HasPrefix(line(good), topGood.Render("promises")[:4]) {
		t.Errorf("%q and %q", line(good), line(bad))
	}
}

// The live program draws on a terminal and ends by q.
func TestTopLive(t *testing.T) {
	s, vip := newSlowServer(t), freshAddress(t)
	h := runFile(t, oneServer, "VIP="+vip, "A1="+s.address())
	c := clientOf(h.socket, false)
	first, err := c.look()
	if err != nil {
		t.Fatal(err)
	}
	keys, typed := io.Pipe()
	var screen bytes.Buffer
	m := &topModel{client: c, every: 50 * time.Millisecond, now: first, width: 100, height: 30}
	p := tea.NewProgram(m, tea.WithInput(keys), tea.WithOutput(&screen), tea.WithWindowSize(100, 30), tea.WithoutSignals())
	ended := make(chan error, 1)
	go func() { // ends with q
		_, err := p.Run()
		ended <- err
	}()
	for _, key := range []string{"\t", "s", "q"} {
		if _, err := io.WriteString(typed, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	_ = typed.Close()
	if text := screen.String(); !strings.Contains(text, "holdfast top") || !strings.Contains(text, "\x1b[?1049h") || !strings.Contains(text, "\x1b[?1049l") {
		t.Errorf("%q", text)
	}
}
