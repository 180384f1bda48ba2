package lab

import (
	"fmt"
	"time"
)

// flatFrom is how many changes there have to be, so that all that is kept of a
// bounded number of them, or for a time, is there in the first quarter: generations
// in the history, counters of names, objects that were replaced a minute ago.
const flatFrom = 10_000

// longEvery is the time from one change to the next.
const longEvery = 25 * time.Millisecond

// longRun changes the configuration as often as was asked for, under the same
// load, and looks at what is left behind of each change.
func (r *reloadLab) longRun() error {
	f, y, side := newServiceFleet(r.services), holdfastSyntax(), r.holdfast("long")
	r.phase("%d changes of %d services", r.Applies, r.services)
	d, err := r.begin("long", side, f, y)
	if d != nil {
		defer d.end()
	}
	defer side.stop()
	if err != nil {
		return err
	}
	x := &reloadResult{who: "holdfast", due: r.Applies}
	s := &reloadRun{reloadLab: r, x: x, f: f, y: y, d: d, side: side, applies: true, until: time.Now().Add(time.Hour)}
	if s.client, err = newReloadDriver(r.Seed, nil); err != nil {
		return err
	}
	if s.same, err = dialKept(loopbackPort(apartPort)); err != nil {
		return err
	}
	defer func() { _ = s.same.c.Close() }()
	if err := d.Call("Driver.Phase", phaseApplies, new(ReloadPhase)); err != nil {
		return err
	}
	// What a first tenth leaves is what is there once; the rest must add nothing.
	type sample struct {
		applies, rss, files int
	}
	var all []sample
	began := time.Now()
	for i := 1; i <= r.Applies; i++ {
		proofs := f.next(i)
		time.Sleep(time.Until(began.Add(time.Duration(i-1) * longEvery)))
		if err := s.one(i, y.file(f), proofs); err != nil {
			return err
		}
		if i%max(1, r.Applies/20) == 0 {
			w := weigh(side.program())
			all = append(all, sample{i, w.rss, openFiles(side.program())})
			r.phase("%5d applies: %.1f MB, %d descriptors, until the answer %s", i, megabytes(w.rss), all[len(all)-1].files, quantiles(&x.asked))
		}
	}
	if err := d.Call("Driver.Finish", true, &x.report); err != nil {
		return err
	}
	r.results = append(r.results, x)
	r.say(x)
	r.judgeClients(x.who, &x.report)
	r.v.Must(x.effective == x.due, "configurations that showed in answers sent after that of apply", fmt.Sprint(x.effective), fmt.Sprint(x.due))
	r.v.Must(len(x.wrong) == 0, "what is wrong", fmt.Sprint(x.wrong[:min(3, len(x.wrong))]), "nothing")
	if r.Applies < flatFrom {
		r.v.Say("memory and descriptors are judged from %d applies on", flatFrom)
		return nil
	}
	early, late := all[1], all[len(all)-1]
	for _, a := range all[:len(all)/4] {
		early.rss, early.files = max(early.rss, a.rss), max(early.files, a.files)
	}
	for _, a := range all[3*len(all)/4:] {
		late.rss, late.files = min(late.rss, a.rss), min(late.files, a.files)
	}
	// The least of the end against the most of the beginning: what grows, exceeds it.
	r.v.Must(late.files <= early.files+20, "descriptors, after all against the first quarter", fmt.Sprint(late.files), fmt.Sprintf("at most %d", early.files+20))
	limit := early.rss + early.rss/10
	r.v.Must(late.rss <= limit, "memory, after all against the first quarter", fmt.Sprintf("%.1f MB", megabytes(late.rss)), fmt.Sprintf("at most %.1f MB", megabytes(limit)))
	return nil
}
