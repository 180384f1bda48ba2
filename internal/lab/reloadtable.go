package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reloadColumns are those of the table.
var reloadColumns = []string{"balancer", "effective", "late", "until effective p50 / p99 / max ms", "new lost", "requests lost on kept connections",
	"idle connections closed", "told to close", "held broken", "new p99 / max ms", "kept p99 / max ms", "held p99 / max ms", "processes", "memory MB: most / at the end, shared once"}

// cells are a run's.
func (x *reloadResult) cells() []string {
	c := &x.report.Counts
	held := ReloadDelay{}
	for k := range heldKinds {
		d := x.delay(delayOf(heldKind(k)))
		held.P99, held.Max = max(held.P99, d.P99), max(held.Max, d.Max)
	}
	pair := func(d ReloadDelay) string { return fmt.Sprintf("%.1f / %.0f", millis(d.P99), millis(d.Max)) }
	effective, late, took := "-", "-", "-"
	if x.tried > 0 {
		effective, late = fmt.Sprintf("%d of %d", x.effective, x.due), fmt.Sprint(x.late+x.due-x.effective)
		took = fmt.Sprintf("%.1f / %.1f / %.0f", millis(x.took.Quantile(0.5)), millis(x.took.Quantile(0.99)), millis(x.took.Max))
	}
	return []string{x.who, effective, late, took, fmt.Sprintf("%d of %d", c.NewLost, c.New), fmt.Sprintf("%d of %d", c.AskedLost+c.IdleLost, c.Asked),
		fmt.Sprint(x.idleClosed()), fmt.Sprint(c.KeptTold), fmt.Sprintf("%d of %d", x.heldBroken(), x.held), pair(x.delay(delayNew)), pair(x.delay(delayKept)), pair(held),
		fmt.Sprint(x.most.processes), fmt.Sprintf("%.0f / %.0f", megabytes(x.most.rss), megabytes(x.own))}
}

// say prints a run.
func (r *reloadLab) say(x *reloadResult) {
	r.v.Say("%s", x.who)
	for i, c := range x.cells()[1:] {
		r.v.Say("    %-36s %s", reloadColumns[i+1], c)
	}
	for k, name := range []string{"new connections", "requests on kept connections", "TCP", "WebSocket", "streamed responses"} {
		d := x.delay(k)
		r.v.Say("    delay of %-27s %7d: %v", name, d.N, d)
	}
	if x.asked.N > 0 {
		r.v.Say("    until the answer of apply            %s", quantiles(&x.asked))
	}
	r.v.Say("    memory at the end %.1f MB, %d descriptors; clients and servers took %.2f of a core", megabytes(x.rss), x.files, x.report.CPU)
	var counters []string
	for _, k := range reloadCounters {
		if n := x.counters[k]; n != 0 {
			counters = append(counters, fmt.Sprintf("%s %d", k, n))
		}
	}
	r.v.Say("    of the kernel: %s", strings.Join(counters, ", "))
	if len(x.silent) > 0 {
		r.v.Say("    as the reports of applies say of the kernel: %v", x.silent)
	}
	if x.ended != "" {
		r.v.Say("    ended early: %s", x.ended)
	}
	for i, w := range append(x.wrong, x.report.Faults...) {
		if i == 12 {
			r.v.Say("    ...")
			break
		}
		r.v.Say("    %s", w)
	}
	c := x.report.Counts
	r.v.Figure(strings.NewReplacer(" ", "_", ",", "").Replace(x.who), map[string]any{
		"due": x.due, "effective": x.effective, "late": x.late, "new": c.New, "new_lost": c.NewLost, "kept": c.Asked, "kept_lost": c.AskedLost + c.IdleLost,
		"idle_closed": x.idleClosed(), "told_to_close": c.KeptTold, "held": x.held, "held_broken": x.heldBroken(), "processes": x.most.processes,
		"rss_mb": megabytes(x.most.rss), "took_p50_ms": millis(x.took.Quantile(0.5)), "took_p99_ms": millis(x.took.Quantile(0.99)),
		"took_max_ms": millis(x.took.Max), "traffic_cores": x.report.CPU,
	})
}

// judgeClients judges what clients of ours saw.
func (r *reloadLab) judgeClients(who string, rep *ReloadReport) {
	c := &rep.Counts
	broken, unopened, opened := 0, 0, 0
	for k := range heldKinds {
		broken, unopened, opened = broken+c.Broken[k], unopened+c.Unopened[k], opened+c.Opened[k]
	}
	r.v.Zero(who+": new connections lost", c.NewLost)
	r.v.Zero(who+": requests lost on kept connections", c.AskedLost)
	r.v.Zero(who+": requests lost on connections that idled", c.IdleLost)
	r.v.Zero(who+": idle connections closed", c.IdleClosed+c.KeptClosed)
	r.v.Zero(who+": connections told to close", c.KeptTold)
	r.v.Zero(who+": held flows that could not be opened", unopened)
	r.v.Zero(who+": held flows broken", broken)
	r.v.Must(c.New > 0 && c.Asked > 0 && c.Idle > 0 && opened > 0, who+": new connections, requests, idle connections, held flows",
		fmt.Sprintf("%d, %d, %d, %d", c.New, c.Asked, c.Idle, opened), "more than 0 of each")
	stray := int64(0)
	for _, s := range rep.Servers {
		stray += s.Strayed
	}
	r.v.Zero(who+": what came to the servers and makes no sense", int(stray))
}

// judge is about ours; what the peers do is shown beside it.
func (r *reloadLab) judge() {
	still, moving := r.results[0], r.results[1]
	for _, x := range []*reloadResult{still, moving} {
		r.judgeClients(x.who, &x.report)
		r.v.Must(x.most.processes == 1, x.who+": processes", fmt.Sprint(x.most.processes), "1")
		r.v.Must(len(x.wrong) == 0, x.who+": what is wrong", strings.Join(x.wrong[:min(3, len(x.wrong))], "; "), "nothing")
	}
	r.v.Must(moving.tried > 0 && moving.effective == moving.tried, "configurations that showed in requests sent after the answer of apply", fmt.Sprint(moving.effective), fmt.Sprintf("%d, as many as were applied", moving.tried))
	r.v.Goal(moving.tried == moving.due, fmt.Sprintf("configurations in %d s", moving.seconds), fmt.Sprint(moving.tried), fmt.Sprint(moving.due))
	r.v.Goal(moving.late == 0, "late, by more than "+ms(lateAfter), fmt.Sprint(moving.late), "0")
	limit := still.most.rss + still.most.rss/10
	r.v.Goal(moving.most.rss <= limit, "memory, at most", fmt.Sprintf("%.1f MB", megabytes(moving.most.rss)), fmt.Sprintf("at most %.1f MB, 1.1 of the run without applies", megabytes(limit)))
	for k, name := range []string{"new connections", "requests on kept connections", "TCP", "WebSocket", "streamed responses"} {
		q, m := still.delay(k), moving.delay(k)
		stall := max(2*q.Max, stallLimit)
		r.v.Goal(m.Max <= stall, "longest delay of "+name, ms(m.Max), fmt.Sprintf("at most %s (twice the noise of %s, or %s)", ms(stall), ms(q.Max), ms(stallLimit)))
	}
	for i := range r.singles {
		x := &r.singles[i]
		limit := effectiveLimit
		if x.file {
			limit = effectiveGoal
		}
		r.v.Goal(x.effective.Quantile(0.99) <= limit, "effective, p99: "+x.what, ms(x.effective.Quantile(0.99)), "at most "+ms(limit))
		if x.durable.N > 0 {
			most := x.client.Quantile(0.99) + r.fsync.Quantile(0.99)
			r.v.Goal(x.durable.Quantile(0.99) <= most+most/4, "durable, p99: "+x.what, ms(x.durable.Quantile(0.99)),
				fmt.Sprintf("at most %s (effective and one fsync, and a quarter)", ms(most+most/4)))
		}
	}
	if r.v.Wrong() {
		r.v.Say("%d services, %d descriptors for each process", r.services, r.nofile)
	}
}

// stallLimit is what nobody's octets shall wait beyond the noise.
const stallLimit = 50 * time.Millisecond

// write makes the page of the results.
func (r *reloadLab) write() error {
	if r.Out == "" {
		return nil
	}
	var s strings.Builder
	moving := r.results[1]
	short := map[bool]string{true: "SHORT=1 "}[r.Short]
	fmt.Fprintf(&s, "# Reloads\n\nWritten by `make lab LAB=reload %sLABFLAGS=\"-out docs/benchmarks\"`.\n\n", short)
	fmt.Fprintf(&s, "%d services, a fifth each of five kinds: an only endpoint is replaced by another one; all weight goes from one endpoint to another; a route\n"+
		"comes and goes; an endpoint goes and comes; TCP without HTTP. Each %v one service of each kind is changed, and a listener is added while another one\n"+
		"goes, for %d s. A change is *effective* when requests that are sent afterwards show all of it: the generation in a field of the answer, and who answers.\n"+
		"*Late* is what took longer than %v, or could not be made in time for that. Meanwhile: %d new connections a second, %d kept ones with\n"+
		"10 requests a second each, %d that only idle, %d that say something each %v, and up to %d more that stay open (TCP, WebSocket, streamed responses),\n"+
		"opened evenly over all generations on what has just been changed: as many as %d descriptors for each process allow. Every octet is checked at both ends. \"Told to close\" is\n"+
		"an answer with `Connection: close`. Memory is what all processes have resident: the most at any time, shared pages in each of them; and at the end, shared pages once.\n\n",
		r.services, lateAfter, moving.seconds, lateAfter, r.load.PerSec, r.load.Kept, r.load.Idle, 3*r.probes, probePeriod, r.held, r.nofile)
	row := func(cells []string) { fmt.Fprintf(&s, "| %s |\n", strings.Join(cells, " | ")) }
	row(reloadColumns)
	s.WriteString(strings.Repeat("|---", len(reloadColumns)) + "|\n")
	for _, x := range r.results {
		row(x.cells())
	}
	for _, x := range r.results {
		if x.ended != "" {
			fmt.Fprintf(&s, "\n%s ended early: %s.\n", x.who, x.ended)
		}
	}
	fmt.Fprintf(&s, "\n## One change among %d services\n\nMilliseconds, p50 / p99 / max, under the same load. One fsync of the journal's disk took %s at the same time.\n\n", r.services, triple(&r.fsync))
	row([]string{"change", "effective, as the report says", "for who asked", "for who waited until it was durable"})
	s.WriteString("|---|---|---|---|\n")
	for i := range r.singles {
		x := &r.singles[i]
		row([]string{x.what, triple(&x.effective), triple(&x.client), triple(&x.durable)})
	}
	s.WriteString("\n## Route A while another one is changed\n\n8 connections ask by one route of a listener every 5 ms; another route of the same listener, and its backend, are changed ten times a second.\n\n")
	row([]string{"meanwhile", "applies", "requests", "p50 / p99 / p99.9 / max ms", "new connections to its server"})
	s.WriteString("|---|---|---|---|---|\n")
	for _, x := range r.aparts {
		d := x.request
		row([]string{x.what, fmt.Sprint(x.applies), fmt.Sprint(d.N), fmt.Sprintf("%.2f / %.2f / %.2f / %.1f", millis(d.P50), millis(d.P99), millis(d.P999), millis(d.Max)), fmt.Sprint(x.dialed)})
	}
	fmt.Fprintf(&s, "\n%s. Clients and servers took %.2f of a core.\n", r.machine(), moving.report.CPU)
	return os.WriteFile(filepath.Join(r.Out, "reload.md"), []byte(s.String()), 0o644)
}

func triple(h *Histogram) string {
	if h.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f / %.2f / %.2f", millis(h.Quantile(0.5)), millis(h.Quantile(0.99)), millis(h.Max))
}

// machine says on what it ran, and against what.
func (r *reloadLab) machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	said := []string{fmt.Sprintf("%d CPUs", runtime.NumCPU()), "Linux " + unix.ByteSliceToString(u.Release[:]), runtime.Version()}
	for _, argv := range [][]string{{haproxyPath, "-v"}, {nginxPath, "-v"}} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if line, _, _ := strings.Cut(string(out), "\n"); err == nil {
			said = append(said, strings.TrimPrefix(strings.Split(line, " - ")[0], "nginx version: "))
		}
	}
	return strings.Join(said, ", ")
}
