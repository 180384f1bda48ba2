package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// singleResult is what one kind of change took, one at a time among many
// services under load.
type singleResult struct {
	what      string
	file      bool      // it is told by a whole file
	client    Histogram // from asking to the answer, for who asked
	effective Histogram // as the report says
	durable   Histogram // from asking to the answer, with the journal's fsync
	journal   Histogram // the same as the report says
}

// awaitDurable waits until the newest generation is on the disk.
func (n *shopNode) awaitDurable(ctx context.Context) error {
	for {
		var h struct {
			Generations []struct {
				Durable bool `json:"durable"`
			} `json:"generations"`
		}
		if err := n.call(ctx, "History", map[string]any{"max": 1}, &h); err != nil {
			return err
		}
		if len(h.Generations) > 0 && h.Generations[0].Durable {
			return nil
		}
		time.Sleep(500 * time.Microsecond) // who asks all the time is a load by itself
	}
}

// effectiveLimit is the goal for one change to be in force on every loop; the
// switch of 2002 took 20 to 25 ms. A whole file is more than one change.
const effectiveLimit = 2 * time.Millisecond

// single makes one change after another, each a different one, and then looks at
// who uses what is not changed at all.
func (r *reloadLab) single() error {
	f, y, side := newServiceFleet(r.services), holdfastSyntax(), r.holdfast("single")
	r.phase("single changes among %d services, %d of each kind", r.services, r.ones)
	d, err := r.begin("single", side, f, y)
	if d != nil {
		defer d.end()
	}
	defer side.stop()
	if err != nil {
		return err
	}
	if err := r.fsyncs(); err != nil {
		return err
	}
	if err := d.Call("Driver.Phase", phaseApplies, new(ReloadPhase)); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(r.Seed, 7))
	per := r.services / int(serviceClasses)
	at := func(c serviceClass) int { return rnd.IntN(per)*int(serviceClasses) + int(c) }
	edit := func(object, field, value string) map[string]any {
		return map[string]any{"edits": []map[string]any{{"object": object, "field": field, "value": value}}}
	}
	added := map[int]bool{}
	kinds := []struct {
		what  string
		order func(i int) map[string]any // to an endpoint, or
		edit  func(i int) map[string]any // of the desired state
		file  bool
	}{
		{what: "weight, an order", order: func(i int) map[string]any {
			return map[string]any{"backend": fmt.Sprintf("s%d", at(classWeight)), "endpoint": "a", "do": "weight", "weight": 1 + i%1000}
		}},
		{what: "quiesce", order: func(int) map[string]any {
			return map[string]any{"backend": fmt.Sprintf("s%d", at(classMembers)), "endpoint": "b", "do": "quiesce"}
		}},
		{what: "weight, an edit", edit: func(i int) map[string]any {
			return edit(fmt.Sprintf("endpoint/s%d/a", at(classWeight)), "weight", fmt.Sprint(1+i%1000))
		}},
		{what: "add an endpoint", edit: func(i int) map[string]any {
			k := at(classMembers)
			added[k*10000+i] = true
			return edit(fmt.Sprintf("endpoint/s%d/c%d", k, i), "", fmt.Sprintf("{ address: \"127.0.0.3:%d\" }", 7000+i))
		}},
		{what: "remove an endpoint", edit: func(int) map[string]any {
			for x := range added {
				delete(added, x)
				q := edit(fmt.Sprintf("endpoint/s%d/c%d", x/10000, x%10000), "", "")
				q["edits"].([]map[string]any)[0]["delete"] = true
				return q
			}
			return nil
		}},
		{what: "a whole file, one weight", file: true, edit: func(int) map[string]any {
			k := at(classWeight)
			f.services[k].second = !f.services[k].second
			f.dirty[k] = true
			return map[string]any{"source": side.node.filled(y.file(f))}
		}},
	}
	for _, kind := range kinds {
		x := singleResult{what: kind.what, file: kind.file}
		for i := range 2 * r.ones {
			durable := i%2 == 1
			var effective, journal float64
			var began time.Time
			if kind.order != nil {
				var rep struct {
					Millis float64 `json:"effective_ms"`
				}
				q := kind.order(i)
				began = time.Now()
				if err = side.node.order(r.ctx, q, &rep); err == nil && durable {
					err = side.node.awaitDurable(r.ctx) // its answer does not wait for the journal
				}
				effective = rep.Millis
			} else if q := kind.edit(i); q != nil {
				q["wait_durable"] = durable
				var rep changeReport
				began = time.Now()
				err = side.node.change(r.ctx, q, &rep)
				effective, journal = rep.EffectiveMillis, rep.DurableMillis
				if err == nil && rep.Unchanged {
					err = fmt.Errorf("lab: %s: nothing has changed: %v", kind.what, q["edits"])
				}
			} else {
				break
			}
			if err != nil {
				return fmt.Errorf("lab: %s: %w", kind.what, err)
			}
			took := time.Since(began)
			if durable {
				x.durable.Add(took)
				if journal > 0 {
					x.journal.Add(floatMillis(journal))
				}
			} else {
				x.client.Add(took)
			}
			x.effective.Add(floatMillis(effective))
			time.Sleep(10 * time.Millisecond)
		}
		r.singles = append(r.singles, x)
		r.v.Say("%-26s effective %s (for who asked %s), durable %s (the report %s)", x.what, quantiles(&x.effective), quantiles(&x.client), quantiles(&x.durable), quantiles(&x.journal))
	}
	r.v.Say("%-26s %s (4 KiB appended to a file on the disk of the journal, while the same load runs)", "one fsync", quantiles(&r.fsync))
	if err := r.setApart(d, side, f, y); err != nil {
		return err
	}
	var rep ReloadReport
	if err := d.Call("Driver.Finish", true, &rep); err != nil {
		return err
	}
	r.judgeApart(&rep)
	return nil
}

func floatMillis(x float64) time.Duration { return time.Duration(x * float64(time.Millisecond)) }

func quantiles(h *Histogram) string {
	if h.N == 0 {
		return "-"
	}
	return fmt.Sprintf("p50 %s p99 %s max %s", ms(h.Quantile(0.5)), ms(h.Quantile(0.99)), ms(h.Max))
}

// fsyncs measures what the disk takes by itself, on the directory where the
// journal is.
func (r *reloadLab) fsyncs() error {
	file, err := os.Create(filepath.Join(r.here.world.Dir, "fsync"))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	b := make([]byte, 4096)
	for range max(r.ones, 50) {
		if _, err := file.Write(b); err != nil {
			return err
		}
		began := time.Now()
		if err := file.Sync(); err != nil {
			return err
		}
		r.fsync.Add(time.Since(began))
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// apartResult is what those who use a route noticed while something went on with
// others.
type apartResult struct {
	what    string
	applies int
	request ReloadDelay
	dialed  int64 // new connections to their server
	served  int64
}

// counted is what the product and its server say of the route that nobody changes.
type counted struct {
	tries         uint64
	served, spoke int64
	since         float64 // seconds for which its endpoint's health is what it is
}

// setApart has clients use one route while nothing is applied, then the same
// configuration again and again, then ones that change another route of the same
// listener.
func (r *reloadLab) setApart(d *driver, side *reloadHoldfast, f *serviceFleet, y *syntax) error {
	r.phase("who uses a route while another one is changed, %v each", r.apart)
	q := ReloadLoad{ApartIn: 5 * time.Millisecond}
	for range 8 {
		q.Apart = append(q.Apart, fmt.Sprintf("%d/a/x", apartPort))
	}
	if err := d.Call("Driver.Load", q, new(bool)); err != nil {
		return err
	}
	opened := 0
	held := []ReloadHeld{{Kind: int(heldStream), Port: apartPort, Path: "/a", Period: probePeriod, N: 10},
		{Kind: int(heldWebSocket), Port: apartPort, Path: "/a", Period: probePeriod, N: 10}}
	if err := d.Call("Driver.Open", held, &opened); err != nil {
		return err
	}
	if opened < 20 {
		return fmt.Errorf("lab: %d of 20 held flows by the route apart could be opened: %s", opened, r.faults(d))
	}
	text := side.node.filled(y.file(f))
	if err := side.node.change(r.ctx, map[string]any{"source": text, "runtime_edits": "discard"}, &changeReport{}); err != nil {
		return err
	}
	time.Sleep(r.apart / 10)
	client, err := newReloadDriver(r.Seed, nil)
	if err != nil {
		return err
	}
	for _, x := range []struct {
		what  string
		phase ReloadPhase
	}{{"no applies", phaseQuiet}, {"the same configuration again", phaseNothing}, {"another route changes", phaseOther}} {
		before, err := r.counted(d, side, false)
		if err != nil {
			return err
		}
		if err := d.Call("Driver.Phase", x.phase, new(ReloadPhase)); err != nil {
			return err
		}
		res, unchanged := apartResult{what: x.what}, 0
		began := time.Now()
		for i := 1; time.Since(began) < r.apart; i++ {
			switch x.phase {
			case phaseNothing:
				var rep changeReport
				if err := side.node.change(r.ctx, map[string]any{"source": text}, &rep); err != nil {
					return err
				}
				if rep.Unchanged {
					unchanged++
				}
				res.applies++
			case phaseOther:
				f.apart++
				if err := side.node.change(r.ctx, map[string]any{"source": side.node.filled(y.file(f))}, &changeReport{}); err != nil {
					return err
				}
				p := proof{what: "another route", port: apartPort, path: "/b", generation: fmt.Sprint(f.apart), server: "other"}
				if err := p.prove(client); err != nil {
					r.v.Must(false, "the change of another route is in force", err.Error(), "yes")
				}
				res.applies++
			}
			time.Sleep(time.Until(began.Add(time.Duration(i) * lateAfter)))
		}
		if err := d.Call("Driver.Phase", phaseBefore, new(ReloadPhase)); err != nil {
			return err
		}
		after, err := r.counted(d, side, true)
		if err != nil {
			return err
		}
		res.dialed, res.served = after.spoke-before.spoke, after.served-before.served
		r.aparts = append(r.aparts, res)
		r.v.Must(res.served > 0, "requests by the route apart: "+x.what, fmt.Sprint(res.served), "more than 0")
		if x.phase == phaseQuiet {
			continue
		}
		if x.phase == phaseNothing {
			r.v.Must(unchanged == res.applies, "reports that say that nothing has changed: "+x.what, fmt.Sprint(unchanged), fmt.Sprint(res.applies))
		}
		r.v.Must(res.applies > 0, "applies: "+x.what, fmt.Sprint(res.applies), "more than 0")
		// The pool of idle legs is what a change could close in silence. It has no
		// more of them than there are clients.
		r.v.Must(res.dialed <= int64(len(q.Apart)), "new connections to the server apart: "+x.what, fmt.Sprint(res.dialed), fmt.Sprintf("at most %d, as many as there are clients", len(q.Apart)))
		r.v.Must(after.tries >= before.tries+uint64(max(0, res.served-int64(len(q.Apart)))), "the endpoint's counter goes on: "+x.what,
			fmt.Sprintf("from %d to %d", before.tries, after.tries), fmt.Sprintf("by %d, as the server counted", res.served))
		r.v.Must(after.since >= before.since+r.apart.Seconds()/2, "the endpoint's health is what it was: "+x.what,
			fmt.Sprintf("for %.1f s", after.since), fmt.Sprintf("for more than %.1f s", before.since+r.apart.Seconds()/2))
	}
	return nil
}

// counted asks both, the server first or last: of two moments the product's shall
// enclose the server's, so that it has counted no less between them.
func (r *reloadLab) counted(d *driver, side *reloadHoldfast, serverFirst bool) (c counted, err error) {
	ask := func() error {
		var rep ReloadReport
		err := d.Call("Driver.Look", true, &rep)
		x := rep.Servers["apart"]
		c.served, c.spoke = x.Served, x.Spoken
		return err
	}
	if serverFirst {
		if err := ask(); err != nil {
			return c, err
		}
	}
	all, err := side.node.endpoints(r.ctx)
	if err != nil {
		return c, err
	}
	e := all["apart/one"]
	c.tries, c.since = e.Tries, e.SinceSeconds
	if !serverFirst {
		err = ask()
	}
	return c, err
}

// judgeApart compares the three parts, when the driver has told all.
func (r *reloadLab) judgeApart(rep *ReloadReport) {
	r.judgeClients("single changes", rep)
	phases := []ReloadPhase{phaseQuiet, phaseNothing, phaseOther}
	quiet := rep.Delays[phaseQuiet][delayApart]
	for i := range r.aparts {
		x := &r.aparts[i]
		x.request = rep.Delays[phases[i]][delayApart]
		r.v.Say("route A, %-28s %4d applies, %7d requests: %s; %d new connections to its server", x.what+":", x.applies, x.request.N, x.request, x.dialed)
		for _, k := range []heldKind{heldWebSocket, heldStream} {
			d := rep.Delays[phases[i]][delayOf(k)]
			r.v.Say("    delay of %-27s %7d: %v", k, d.N, d)
		}
		if i > 0 {
			limit := max(2*quiet.P99, quiet.P99+stallNoise)
			r.v.Goal(x.request.P99 <= limit, "route A, p99: "+x.what, ms(x.request.P99), "at most "+ms(limit))
		}
	}
}

// stallNoise is by how much delays may differ without a cause on a machine whose
// processors are shared by clients, balancer and servers.
const stallNoise = 2 * time.Millisecond

func (d ReloadDelay) String() string {
	return fmt.Sprintf("p50 %s p99 %s p99.9 %s max %s", ms(d.P50), ms(d.P99), ms(d.P999), ms(d.Max))
}
