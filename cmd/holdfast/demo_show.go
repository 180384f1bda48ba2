package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// show writes the demo's lines. On a terminal the line of figures is drawn
// again and again in one place.
type show struct {
	terminal bool
	line     string // of figures, if it stands there now
	failed   error  // of writing: nobody reads any more
	before   demo.Figures
	at       time.Time // of before
}

// Sequences of a terminal (ECMA-48): clear the line; a line that is too long
// is cut off, not wrapped.
const (
	clearLine = "\r\x1b[K"
	wrapOff   = "\x1b[?7l"
	wrapOn    = "\x1b[?7h"
)

func (s *show) write(text string) {
	if _, err := os.Stdout.WriteString(text); err != nil {
		s.failed = err
	}
}

// say prints a line that stays.
func (s *show) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...) + "\n"
	if s.line != "" {
		text = clearLine + text + s.line
	}
	s.write(text)
}

// figures prints the line of this second.
func (s *show) figures(f demo.Figures, status *node.Status) {
	seconds := time.Since(s.at).Seconds()
	var moves []string
	for _, distance := range []string{"config", "loop", "process", "host"} {
		moves = append(moves, fmt.Sprintf("%s %d", distance, status.Moves[distance]))
	}
	line := fmt.Sprintf("flows %d  %.1f MiB/s  %.0f new/s  p99 %.1f ms  moves: %s  lost %d  wrong octets %d",
		f.Open, float64(f.Octets-s.before.Octets)/seconds/(1<<20), float64(f.Opened-s.before.Opened)/seconds,
		millis(f.P99), strings.Join(moves, ", "), lost(f, status), f.Wrong)
	s.before, s.at = f, time.Now()
	if !s.terminal {
		s.write(line + "\n")
		return
	}
	s.line = clearLine + wrapOff + line + wrapOn
	s.write(s.line)
}

// lost is what the clients miss, or what Holdfast says it lost, if that is more.
func lost(f demo.Figures, status *node.Status) int {
	return max(f.Lost, int(status.Lost), int(status.ResetByMove))
}

// demoSummary is the last line of the demo.
type demoSummary struct {
	OK         bool              `json:"ok"`
	Seconds    float64           `json:"seconds"`
	Flows      int               `json:"flows"`
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

func summarize(seconds float64, flows int, f demo.Figures, status *node.Status, trouble error) *demoSummary {
	s := &demoSummary{
		Seconds: seconds, Flows: flows, Opened: f.Opened, Octets: f.Octets, RoundTrips: f.RoundTrips,
		P99: millis(f.P99), Max: millis(f.Max), Moves: status.Moves, MovedFlows: status.MovedFlows,
		Lost: lost(f, status), Wrong: f.Wrong, Faults: append([]string{}, f.Faults...),
	}
	if trouble != nil {
		s.Faults = append(s.Faults, trouble.Error())
	}
	s.OK = s.Lost == 0 && s.Wrong == 0 && trouble == nil
	return s
}

func (s *show) summary(d *demoSummary, asJSON bool) {
	if s.line != "" { // the last figures stay
		s.line = ""
		s.write("\n")
	}
	for _, fault := range d.Faults {
		s.say("fault: %s", fault)
	}
	moves, moved := uint64(0), uint64(0)
	for distance, n := range d.Moves {
		moves, moved = moves+n, moved+d.MovedFlows[distance]
	}
	s.say("done: %.0f s, %d long flows and %d short ones, %.1f MiB and %d round trips checked, p99 %.1f ms, max %.1f ms, %d moves of %d flows, lost %d, wrong octets %d",
		d.Seconds, d.Flows, max(0, int(d.Opened)-d.Flows), float64(d.Octets)/(1<<20), d.RoundTrips, d.P99, d.Max, moves, moved, d.Lost, d.Wrong)
	if asJSON {
		b, err := json.Marshal(d)
		if err != nil {
			panic(err) // numbers and texts
		}
		s.say("%s", b)
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
