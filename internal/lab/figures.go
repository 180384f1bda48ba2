package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Verdict collects what a lab found. It may be read while a lab still writes:
// a run that is out of time is judged by what it has.
type Verdict struct {
	mu      sync.Mutex // guards all below
	lab     string
	began   time.Time
	checks  []check
	figures map[string]any
	text    []string
	closed  bool
}

// check is one figure that must hold.
type check struct {
	what, got, want string
	ok              bool
	// goal is a figure of speed: machines differ. The others are figures of
	// correctness: they do not.
	goal bool
}

func newVerdict(lab string, began time.Time) *Verdict {
	return &Verdict{lab: lab, began: began, figures: map[string]any{}}
}

// Must notes a figure of correctness.
func (v *Verdict) Must(ok bool, what, got, want string) {
	v.add(check{what, got, want, ok, false})
}

// Zero notes a figure that must be 0.
func (v *Verdict) Zero(what string, n int) { v.Must(n == 0, what, fmt.Sprint(n), "0") }

// Goal notes a figure of speed.
func (v *Verdict) Goal(ok bool, what, got, want string) {
	v.add(check{what, got, want, ok, true})
}

// Broken notes that the lab could not go on.
func (v *Verdict) Broken(err error) { v.Must(false, "the run", err.Error(), "no error") }

func (v *Verdict) add(c check) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.checks = append(v.checks, c)
	}
}

// Wrong says whether a figure of correctness does not hold.
func (v *Verdict) Wrong() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.checks {
		if !c.ok && !c.goal {
			return true
		}
	}
	return false
}

// Figure puts a number into the JSON object.
func (v *Verdict) Figure(name string, value any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.figures[name] = value
	}
}

// Say adds a line to the report.
func (v *Verdict) Say(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.text = append(v.text, fmt.Sprintf(format, args...))
}

// Conclude prints the report and the JSON object, and says whether the lab
// succeeded. figuresOnly forgives goals that were missed.
func (v *Verdict) Conclude(out io.Writer, figuresOnly bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	correct, goals := len(v.checks) > 0, true
	failures, missed := []string{}, []string{}
	_, _ = fmt.Fprintf(out, "\n== report of %s\n", v.lab)
	for _, t := range v.text {
		_, _ = fmt.Fprintln(out, t)
	}
	_, _ = fmt.Fprintln(out)
	for _, c := range v.checks {
		word := "ok"
		line := fmt.Sprintf("%s: %s, want %s", c.what, c.got, c.want)
		switch {
		case !c.ok && c.goal:
			word, goals = "MISSED", false
			missed = append(missed, line)
		case !c.ok:
			word, correct = "FAILED", false
			failures = append(failures, line)
		}
		_, _ = fmt.Fprintf(out, "%-6s  %s\n", word, line)
	}
	ok := correct && (goals || figuresOnly)
	v.figures["lab"] = v.lab
	v.figures["ok"] = ok
	v.figures["figures_hold"] = correct
	v.figures["goals_met"] = goals
	v.figures["failures"] = failures
	v.figures["missed"] = missed
	v.figures["seconds"] = float64(time.Since(v.began).Milliseconds()) / 1000
	b, err := json.Marshal(v.figures)
	if err != nil {
		panic(fmt.Sprintf("lab: figures: %v", err)) // a figure of a strange type
	}
	_, _ = fmt.Fprintf(out, "\n%s\n", b)
	return ok
}

// millis is a duration in milliseconds, for people and JSON.
func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ms writes a duration in milliseconds.
func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", millis(d)) }
