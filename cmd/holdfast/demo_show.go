package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// show writes the demo's lines. On a terminal the line of figures is drawn
// again and again in one place.
type show struct {
	terminal  bool
	before    demo.Figures
	beforeWeb demo.WebFigures
	at        time.Time // of both

	mu     sync.Mutex // guards what follows: the tour says, too
	line   string     // of figures, if it stands there now
	failed error      // of writing: nobody reads any more
}

// Sequences of a terminal (ECMA-48): clear the line; a line that is too long
// is cut off, not wrapped.
const (
	clearLine = "\r\x1b[K"
	wrapOff   = "\x1b[?7l"
	wrapOn    = "\x1b[?7h"
)

// write prints text and keeps line as the one of figures that it ends with.
func (s *show) write(text, line string) {
	s.line = line
	if _, err := os.Stdout.WriteString(text); err != nil {
		s.failed = err
	}
}

// say prints a line that stays.
func (s *show) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...) + "\n"
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.line != "" {
		text = clearLine + text + s.line
	}
	s.write(text, s.line)
}

// unread tells whether nobody reads any more.
func (s *show) unread() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed != nil
}

// figuresLine tells of one second of HTTP and of TCP, apart: while all requests
// are held, round trips of TCP go on, and one sum would hide that.
func (s *show) figuresLine(f demo.Figures, web demo.WebFigures, status *node.Status, seconds float64) string {
	var moves []string
	for _, distance := range []string{"config", "loop", "process", "host"} {
		moves = append(moves, fmt.Sprintf("%s %d", distance, status.Moves[distance]))
	}
	waiting := 0
	for _, n := range status.Queued {
		waiting += n
	}
	return fmt.Sprintf("HTTP %.0f requests/s (p99 %.1f ms, waiting %d, errors %d)  TCP %.0f round trips/s (p99 %.1f ms)  lost %d  flows %d  %.1f MiB/s  moves: %s  wrong octets %d",
		float64(web.Requests-s.beforeWeb.Requests)/seconds, millis(web.P99), waiting, web.Errors,
		float64(f.RoundTrips-s.before.RoundTrips)/seconds, millis(f.P99), lost(f, status),
		f.Open+web.Open, float64(f.Octets-s.before.Octets+web.Octets-s.beforeWeb.Octets)/seconds/(1<<20),
		strings.Join(moves, ", "), f.Wrong+web.Wrong)
}

// figures prints the line of this second.
func (s *show) figures(f demo.Figures, web demo.WebFigures, status *node.Status) {
	line := s.figuresLine(f, web, status, time.Since(s.at).Seconds())
	s.before, s.beforeWeb, s.at = f, web, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		s.write(line+"\n", "")
		return
	}
	line = clearLine + wrapOff + line + wrapOn
	s.write(line, line)
}

// lost is what the clients miss, or what Holdfast says it lost, if that is more.
func lost(f demo.Figures, status *node.Status) int {
	return max(f.Lost, int(status.LostInAll()))
}

// demoSummary is the last line of the demo.
type demoSummary struct {
	OK         bool              `json:"ok"`
	Seconds    float64           `json:"seconds"`
	Flows      int               `json:"flows"`
	Requests   uint64            `json:"requests"` // of HTTP, answered well
	Errors     int               `json:"errors"`   // of HTTP: all others
	Servers    map[string]uint64 `json:"servers"`  // requests by server
	Opened     uint64            `json:"connections"`
	Octets     uint64            `json:"octets"`
	RoundTrips uint64            `json:"round_trips"`
	P99        float64           `json:"p99_ms"`
	Max        float64           `json:"max_ms"`
	Moves      map[string]uint64 `json:"moves"`       // by distance
	MovedFlows map[string]uint64 `json:"moved_flows"` // by distance
	Lost       int               `json:"lost"`
	Wrong      int               `json:"wrong_octets"`
	Faults     []string          `json:"faults"`
}

func summarize(seconds float64, flows int, f demo.Figures, web demo.WebFigures, status *node.Status, trouble error) *demoSummary {
	s := &demoSummary{
		Seconds: seconds, Flows: flows, Opened: f.Opened, Octets: f.Octets + web.Octets, RoundTrips: f.RoundTrips,
		Requests: web.Requests, Errors: web.Errors, Servers: web.Servers,
		P99: millis(max(f.P99, web.P99)), Max: millis(max(f.Max, web.Max)), Moves: status.Moves, MovedFlows: status.MovedFlows,
		Lost: lost(f, status), Wrong: f.Wrong + web.Wrong, Faults: append(append([]string{}, f.Faults...), web.Faults...),
	}
	if trouble != nil {
		s.Faults = append(s.Faults, trouble.Error())
	}
	s.OK = s.Lost == 0 && s.Wrong == 0 && s.Errors == 0 && trouble == nil
	return s
}

func (s *show) summary(d *demoSummary, asJSON bool) {
	s.mu.Lock()
	if s.line != "" { // the last figures stay
		s.write("\n", "")
	}
	s.mu.Unlock()
	for _, fault := range d.Faults {
		s.say("fault: %s", fault)
	}
	moves, moved := uint64(0), uint64(0)
	for distance, n := range d.Moves {
		moves, moved = moves+n, moved+d.MovedFlows[distance]
	}
	s.say("done: %.0f s, %d requests of HTTP, %d round trips of TCP on %d long flows and %d short ones, %.1f MiB checked, p99 %.1f ms, max %.1f ms, %d moves of %d flows, HTTP errors %d, lost %d, wrong octets %d",
		d.Seconds, d.Requests, d.RoundTrips, d.Flows, max(0, int(d.Opened)-d.Flows), float64(d.Octets)/(1<<20), d.P99, d.Max, moves, moved, d.Errors, d.Lost, d.Wrong)
	if asJSON {
		b, err := json.Marshal(d)
		if err != nil {
			panic(err) // numbers and texts
		}
		s.say("%s", b)
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
