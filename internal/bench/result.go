package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// Result is what a run yields: the last line of standard output, and the file
// of the row below the directory for results. Its fields are a contract.
type Result struct {
	Row   string `json:"row"`
	Title string `json:"title"`
	Unit  string `json:"unit"` // of Figures: "us/op", "us/MiB", "octets/pair", "octets/connection" or "ratio"

	// Peer is the best of the others in this run, and Ratio is Holdfast's
	// figure over its; null unless both were measured. On control-busy there
	// is no peer, and the ratio is that of the 99th percentiles.
	Peer  string   `json:"peer"`
	Ratio *float64 `json:"ratio"`
	// Goal is what the ratio is to be at most; absent where none is set.
	Goal float64 `json:"goal,omitempty"`

	// Medians over the rounds, by proxy. An operation is one MiB on a bulk
	// row and one pair of connections, or an idle client by HTTP, on an idle one.
	CPUMicrosPerOp       map[string]float64 `json:"cpu_us_per_op"`
	ResidentBytesPerPair map[string]float64 `json:"rss_bytes_per_pair,omitempty"`
	Rate                 map[string]float64 `json:"rate"` // operations per second
	P50Micros            map[string]float64 `json:"p50_us"`
	P99Micros            map[string]float64 `json:"p99_us"`
	MaxMicros            map[string]float64 `json:"max_us"`

	// Spread is the least and the greatest of the compared figure, by proxy.
	Spread map[string][2]float64 `json:"spread"`
	Rounds int                   `json:"rounds"`
	Short  bool                  `json:"short"`

	Busy    *Busy   `json:"busy,omitempty"` // control-busy only
	Machine Machine `json:"machine"`
	Command string  `json:"command"`
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// quotient is a over b, and 0 where b is 0.
func quotient(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// rounded keeps four significant digits: more is noise.
func rounded(x float64) float64 {
	if x == 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(x))))
	return math.Round(x*scale) / scale
}

// medianOf is the median of one figure of the samples.
func medianOf(samples []loadResult, figure func(loadResult) float64) float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = figure(s)
	}
	return rounded(median(values))
}

func cpuPerOp(r loadResult) float64 { return quotient(micros(r.CPU), r.Ops) }

// figures is the one that the row compares.
func (r *Result) figures() map[string]float64 {
	if r.ResidentBytesPerPair != nil {
		return r.ResidentBytesPerPair
	}
	return r.CPUMicrosPerOp
}

// summarize fills r from the samples of all sides.
func (r *Result) summarize(sides []*side) {
	r.CPUMicrosPerOp, r.Rate = map[string]float64{}, map[string]float64{}
	r.P50Micros, r.P99Micros, r.MaxMicros = map[string]float64{}, map[string]float64{}, map[string]float64{}
	r.Spread = map[string][2]float64{}
	for _, s := range sides {
		figures := s.resident
		if figures == nil {
			for _, x := range s.samples {
				figures = append(figures, cpuPerOp(x))
			}
		} else {
			if r.ResidentBytesPerPair == nil {
				r.ResidentBytesPerPair = map[string]float64{}
			}
			r.ResidentBytesPerPair[s.name] = rounded(median(s.resident))
		}
		r.CPUMicrosPerOp[s.name] = medianOf(s.samples, cpuPerOp)
		r.Rate[s.name] = medianOf(s.samples, func(x loadResult) float64 { return quotient(x.Ops, x.Seconds) })
		if medianOf(s.samples, func(x loadResult) float64 { return micros(x.P50) }) > 0 {
			r.P50Micros[s.name] = medianOf(s.samples, func(x loadResult) float64 { return micros(x.P50) })
			r.P99Micros[s.name] = medianOf(s.samples, func(x loadResult) float64 { return micros(x.P99) })
			r.MaxMicros[s.name] = medianOf(s.samples, func(x loadResult) float64 { return micros(x.Max) })
		}
		low, high := math.Inf(1), math.Inf(-1)
		for _, f := range figures {
			low, high = min(low, f), max(high, f)
		}
		r.Spread[s.name] = [2]float64{rounded(low), rounded(high)}
	}
	r.compare()
}

// compare finds the best peer and what Holdfast is to it.
func (r *Result) compare() {
	if r.Busy != nil {
		ratio := rounded(r.Busy.P99Ratio)
		r.Ratio = &ratio
		return
	}
	figures := r.figures()
	for name, f := range figures {
		if name == holdfast {
			continue
		}
		if r.Peer == "" || f < figures[r.Peer] || f == figures[r.Peer] && name < r.Peer {
			r.Peer = name
		}
	}
	if ours, ok := figures[holdfast]; ok && r.Peer != "" {
		ratio := rounded(quotient(ours, figures[r.Peer]))
		r.Ratio = &ratio
	}
}

// report prints the table, writes the files if asked to, and prints the JSON
// object as the last line.
func (m *run) report() error {
	r := &m.result
	r.Row, r.Title, r.Unit, r.Goal = m.row.name, m.row.title, m.row.unit, m.row.goal
	r.Rounds, r.Short, r.Command = m.roundsN, m.opt.Short, m.opt.Command
	r.summarize(m.sides)
	names := make([]string, len(m.sides))
	for i, s := range m.sides {
		names[i] = s.name
	}
	writeTable(m.out, r, names)
	if m.opt.Out != "" {
		if err := r.save(m.opt.Out); err != nil {
			return err
		}
	}
	return json.NewEncoder(m.out).Encode(r)
}

// writeTable prints r for a reader.
func writeTable(w io.Writer, r *Result, names []string) {
	fmt.Fprintf(w, "%s: %s\n", r.Row, r.Title)
	fmt.Fprintf(w, "%s, %d CPUs, Linux %s, %s; %d rounds, medians\n\n", r.Machine.CPU, r.Machine.CPUs, r.Machine.Kernel, r.Machine.Congestion, r.Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "proxy\tCPU us/op\trate/s\tp50 us\tp99 us\tmax us\tRSS/pair\tfrom\tto\t")
	for _, n := range names {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", n, figure(r.CPUMicrosPerOp[n]), figure(r.Rate[n]),
			figure(r.P50Micros[n]), figure(r.P99Micros[n]), figure(r.MaxMicros[n]), figure(r.ResidentBytesPerPair[n]),
			figure(r.Spread[n][0]), figure(r.Spread[n][1]))
	}
	_ = t.Flush() // the writer is standard output or a buffer
	switch {
	case r.Busy != nil:
		fmt.Fprintf(w, "\nbusy/quiet: p99 %.2f (%s over %s us), max %.2f (%s over %s us)\n", r.Busy.P99Ratio,
			figure(r.Busy.BusyP99Micros), figure(r.Busy.QuietP99Micros), r.Busy.MaxRatio,
			figure(r.Busy.BusyMaxMicros), figure(r.Busy.QuietMaxMicros))
	case r.Ratio != nil:
		fmt.Fprintf(w, "\nholdfast/%s: %.3f%s\n", r.Peer, *r.Ratio, r.goalText())
	}
	fmt.Fprintln(w)
}

// figure prints x with the digits that mean something; nothing for 0, which
// says "not measured".
func figure(x float64) string {
	switch {
	case x == 0:
		return "-"
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// save writes DIR/ROW.json and renews the table of the page DIR.md.
func (r *Result) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, r.Row+".json"), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("bench: results: %w", err)
	}
	results, err := loadResults(dir)
	if err != nil {
		return err
	}
	page := filepath.Clean(dir) + ".md"
	old, err := os.ReadFile(page)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("bench: page: %w", err)
	}
	text, err := renewPage(string(old), results)
	if err != nil {
		return err
	}
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		return fmt.Errorf("bench: page: %w", err)
	}
	return nil
}

// loadResults reads the results of all rows, in the order of the table; rows
// without a file are left out.
func loadResults(dir string) ([]Result, error) {
	var results []Result
	for _, row := range rows {
		b, err := os.ReadFile(filepath.Join(dir, row.name+".json"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bench: results: %w", err)
		}
		var r Result
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("bench: results of %s: %w", row.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

// The generated part of the page stands between these lines; what is around
// it is written by hand and kept.
const (
	pageBegin = "<!-- begin: generated by holdfast-bench -->\n"
	pageEnd   = "<!-- end: generated by holdfast-bench -->\n"
)

// pageNew is the page where there is none yet.
const pageNew = `# Benchmarks

All proxies stand on one machine and take turns in one run. Each is pinned to one CPU, the load
generator and the backend to another. What is compared is the CPU time of the proxy per operation
(per MiB of bulk), a median over the rounds; in brackets the least and the greatest. The same
options are on for all: timeouts, TCP keep-alive, TCP_NODELAY, splice where it exists. By HTTP all
have a time limit for each phase, count, add X-Forwarded-For and use their connections to the backend again; none logs.
Every answer is checked: its status, its length, its octets (of 1 MiB one in 16 whole, of the others
the first and the last 64 KiB), and whose it is. With two loops on two CPUs the generator and the backend
share these with the proxy. The configurations are in internal/bench/peers, the raw results beside this page.

` + pageBegin + pageEnd

// renewPage returns the page with its generated part made from results.
func renewPage(old string, results []Result) (string, error) {
	if old == "" {
		old = pageNew
	}
	before, rest, ok := strings.Cut(old, pageBegin)
	_, after, ok2 := strings.Cut(rest, pageEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("bench: page: the lines %q and %q are not both there", strings.TrimSpace(pageBegin), strings.TrimSpace(pageEnd))
	}
	return before + pageBegin + pageTable(results) + pageEnd + after, nil
}

// pageTable writes the results as tables of Markdown.
func pageTable(results []Result) string {
	var b strings.Builder
	b.WriteString("\n| row | unit | holdfast | haproxy | nginx | holdfast / best peer |\n|---|---|---|---|---|---|\n")
	for _, r := range results {
		ratio := "-"
		if r.Ratio != nil {
			ratio = fmt.Sprintf("**%.2f**", *r.Ratio)
			if r.Peer != "" {
				ratio += " (" + r.Peer + ")"
			}
			ratio += r.goalText()
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.Row, r.Unit, r.cell(holdfast), r.cell(haproxy), r.cell(nginx), ratio)
	}
	b.WriteString("\n| row | what is measured | rate per second, p50 / p99 in us |\n|---|---|---|\n")
	for _, r := range results {
		var says []string
		for _, n := range DefaultPeers() {
			if rate, ok := r.Rate[n]; ok {
				says = append(says, fmt.Sprintf("%s %s, %s / %s", n, figure(rate), figure(r.P50Micros[n]), figure(r.P99Micros[n])))
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.Row, r.Title, strings.Join(says, "; "))
	}
	b.WriteString("\n| row | machine | versions | command |\n|---|---|---|---|\n")
	for _, r := range results {
		var versions []string
		for _, n := range DefaultPeers() {
			if v := r.Machine.Versions[n]; v != "" {
				versions = append(versions, n+" "+v)
			}
		}
		fmt.Fprintf(&b, "| %s | %s, %d CPUs, Linux %s, %s, %s | %s | `%s` |\n", r.Row, r.Machine.CPU, r.Machine.CPUs,
			r.Machine.Kernel, r.Machine.Congestion, r.Machine.Go, strings.Join(versions, ", "), r.Command)
	}
	b.WriteString("\n")
	return b.String()
}

// goalText says what the ratio is to be, where a goal is set.
func (r *Result) goalText() string {
	if r.Goal == 0 {
		return ""
	}
	return fmt.Sprintf(", goal %.2f", r.Goal)
}

// cell is the figure of one proxy with its spread.
func (r *Result) cell(name string) string {
	if r.Busy != nil {
		if name != holdfast {
			return "-"
		}
		return fmt.Sprintf("p99 %.2f, max %.2f", r.Busy.P99Ratio, r.Busy.MaxRatio)
	}
	f, ok := r.figures()[name]
	if !ok {
		return "-"
	}
	s := r.Spread[name]
	return fmt.Sprintf("%s (%s-%s)", figure(f), figure(s[0]), figure(s[1]))
}
