package mainjob

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"time"
)

// verdict collects what was found. A run that is out of time is judged by what
// there is.
type verdict struct {
	mu      sync.Mutex // guards all below
	began   time.Time
	checks  []check
	figures map[string]any
	closed  bool
}

// check is one figure that must hold.
type check struct {
	what, got, want string
	ok              bool
}

func newVerdict(o options) *verdict {
	return &verdict{began: o.began, figures: map[string]any{"lab": o.lab, "short": o.short, "sabotage": o.sabotage}}
}

func (v *verdict) must(ok bool, what, got, want string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.checks = append(v.checks, check{what, got, want, ok})
	}
}

// zero notes a count that must be 0, and what was counted.
func (v *verdict) zero(what string, all []string) {
	const shown = 5
	got := fmt.Sprint(len(all))
	for _, x := range all[:min(len(all), shown)] {
		got += "\n        " + x
	}
	v.must(len(all) == 0, what, got, "0")
}

// broken notes that the lab could not go on.
func (v *verdict) broken(err error) { v.must(false, "the run", err.Error(), "no error") }

func (v *verdict) figure(name string, value any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.figures[name] = value
	}
}

// say prints a line of progress.
func (v *verdict) say(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		fmt.Printf("%6.1f s  %s\n", time.Since(v.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// holds says whether every figure so far does.
func (v *verdict) holds() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !slices.ContainsFunc(v.checks, func(c check) bool { return !c.ok })
}

// conclude prints the report and the JSON object, and says whether every
// figure holds.
func (v *verdict) conclude() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	failures := []string{}
	fmt.Printf("\n== report of %s\n", v.figures["lab"])
	for _, c := range v.checks {
		word, line := "ok", fmt.Sprintf("%s: %s; want %s", c.what, c.got, c.want)
		if !c.ok {
			word = "FAILED"
			failures = append(failures, line)
		}
		fmt.Printf("%-6s  %s\n", word, line)
	}
	ok := len(v.checks) > 0 && len(failures) == 0
	v.figures["ok"], v.figures["failures"] = ok, failures
	v.figures["seconds"] = round(time.Since(v.began).Seconds())
	b, err := json.Marshal(v.figures)
	if err != nil {
		panic(fmt.Sprintf("mainjob: figures: %v", err)) // one of a strange type
	}
	fmt.Printf("\n%s\n", b)
	_ = os.Stdout.Sync() // a pipe cannot, and need not
	return ok
}

// round leaves two digits behind the point.
func round(x float64) float64 { return math.Round(x*100) / 100 }

func millis(d time.Duration) float64 { return round(float64(d.Microseconds()) / 1000) }
