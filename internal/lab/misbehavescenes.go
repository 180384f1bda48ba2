package lab

import (
	"fmt"
	"time"
)

// badScene is one way to misbehave, and what the balancer is told to do then.
type badScene struct {
	name   string
	what   string
	policy string // of the backend
	// run plays it, and gives what judges it when all is over.
	run func(b *badRun) (judge func())
}

var badScenes = []badScene{
	{"errors", "half of e1's answers are 503", "    eject: { consecutive: 5, rate: 30%, least: 10, window: 2s, time: 1s, timeMax: 8s }\n    retry: { max: 0 }\n", (*badRun).errors},
	{"refuse", "e2 refuses connections", "    eject: { consecutive: 5, time: 1s, timeMax: 8s }\n", (*badRun).refuses},
	{"silent", "e3 accepts, and says nothing; who waits for 500 ms is answered 504", "    answerTimeout: 500ms\n    eject: { consecutive: 5, time: 1s, timeMax: 8s }\n    retry: { max: 0 }\n", (*badRun).silence},
	{"slow", "e4 takes ten times as long", "    balance: p2c\n", (*badRun).slowness},
	{"slow-start", "e1 goes and comes back, and gets its share little by little",
		"    check: { http: { path: /check }, interval: 200ms, fastInterval: 100ms, fall: 2, rise: 1 }\n    slowStart: 4s\n", (*badRun).slowStart},
	{"panic", "checks say that one, then three of four are down, and they serve all the same",
		"    check: { http: { path: /check }, interval: 200ms, fastInterval: 100ms, fall: 2, rise: 1 }\n    panic: 50%\n", (*badRun).panics},
	{"breaker", "all of them fail everything", "    eject: off\n    retry: { max: 0 }\n    breaker: { rate: 50%, least: 20, window: 2s, open: 1s, probes: 3 }\n", (*badRun).breaks},
	{"budget", "all of them answer 503 to 30 % of their requests", "    eject: off\n    retry: { max: 2, on: [ connect, 503 ], budget: 10% }\n", (*badRun).spends},
}

// long is a time that a full run has more of.
func (b *badRun) long(short, full time.Duration) time.Duration {
	if b.m.Short {
		return short
	}
	return full
}

// judgeBans looks at the ejections of endpoint n: each twice as long as the one
// before, the last as long as the longest, and nothing comes meanwhile.
func (b *badRun) judgeBans(n, least int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bans := b.bans[n]
	want := time.Second
	grows := true
	for i, d := range bans {
		if i >= least {
			break
		}
		// A look comes a little after the beginning.
		grows = grows && d <= want && d > want-want/2
		want = min(2*want, 8*time.Second)
	}
	var said []string
	for _, d := range bans {
		said = append(said, fmt.Sprintf("%.1f s", d.Seconds()))
	}
	b.must(len(bans) >= least && grows, fmt.Sprintf("ejections of e%d", n+1), fmt.Sprint(said), fmt.Sprintf("at least %d, of 1 s, 2 s, 4 s, up to 8 s", least))
	b.must(b.quiet[n] == 0, fmt.Sprintf("requests to e%d while it is ejected", n+1), fmt.Sprint(b.quiet[n]), "0")
	for i := range badServers {
		if i != n {
			b.must(len(b.bans[i]) == 0, fmt.Sprintf("ejections of e%d", i+1), fmt.Sprint(len(b.bans[i])), "0")
		}
	}
}

// bansOf is how often endpoint n was ejected so far.
func (b *badRun) bansOf(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.bans[n])
}

// awaitServes waits until endpoints serve, or do not, by the product's own
// account, and until what was sent before has arrived.
func (b *badRun) awaitServes(serves bool, which ...int) {
	eventually(10*time.Second, func() bool {
		states, err := b.m.node.endpoints(b.m.ctx)
		for _, n := range which {
			if states[fmt.Sprintf("%s/e%d", b.of.name, n+1)].Serves != serves {
				return false
			}
		}
		return err == nil
	})
	time.Sleep(200 * time.Millisecond)
}

// awaitBack waits until endpoint n gets requests again.
func (b *badRun) awaitBack(n int) [badServers]int64 {
	time.Sleep(600 * time.Millisecond) // who still waits for what was bad has failed
	before := b.came()
	eventually(10*time.Second, func() bool { return b.came()[n] > before[n]+2 })
	before = b.came()
	b.mark("e%d gets requests again", n+1)
	time.Sleep(b.long(time.Second, 2*time.Second))
	return before
}

// bad keeps endpoint n bad for some time, which has room for least ejections.
func (b *badRun) bad(n int, what string, turn func(bad bool)) (failedBefore int, before [badServers]int64) {
	b.until(time.Second)
	failedBefore = b.c.failed()
	b.mark("e%d %s", n+1, what)
	turn(true)
	b.until(b.long(5500*time.Millisecond, 20*time.Second))
	b.mark("e%d is well again", n+1)
	turn(false)
	return failedBefore, b.awaitBack(n)
}

func (b *badRun) leastBans() int {
	if b.m.Short {
		return 2
	}
	return 4
}

func (b *badRun) errors() func() {
	b.until(time.Second)
	second := int(b.came()[0]) // what comes to it in one
	before, back := b.bad(0, "answers 503 to half of its requests", func(bad bool) {
		b.stands[0].failing.Store(map[bool]int64{true: 500}[bad])
	})
	after := b.came()
	return func() {
		b.judgeBans(0, b.leastBans())
		// A share of failures is looked at once in a second: until then half of what
		// comes fails. So it does before the first ejection, and before each further.
		most := (b.bansOf(0) + 1) * (second/2 + b.m.clients)
		failed := b.c.failed() - before
		b.must(before == 0, "failures before", fmt.Sprint(before), "0")
		b.must(failed > 0 && failed <= most, "failures that clients saw", fmt.Sprint(failed), fmt.Sprintf("1 to %d, for %d ejections", most, b.bansOf(0)))
		b.must(share(after, back, 0) >= 15, "share of e1 when all is well again", fmt.Sprintf("%.1f %%", share(after, back, 0)), "at least 15 %")
	}
}

func (b *badRun) refuses() func() {
	under := int64(0)
	var broken error
	before, back := b.bad(1, "refuses connections", func(bad bool) {
		if bad {
			under = b.stands[1].open.Load()
			b.stands[1].refuse()
		} else {
			broken = b.stands[1].begin()
		}
	})
	after := b.came()
	return func() {
		if broken != nil {
			b.m.v.Broken(broken)
		}
		b.judgeBans(1, b.leastBans())
		failed := b.c.failed() - before
		// What was under way there was cut; all others are tried elsewhere.
		b.must(before == 0 && failed <= int(under)+1, "failures that clients saw", fmt.Sprint(failed), fmt.Sprintf("at most the %d under way and 1", under))
		b.must(share(after, back, 1) >= 15, "share of e2 when all is well again", fmt.Sprintf("%.1f %%", share(after, back, 1)), "at least 15 %")
	}
}

func (b *badRun) silence() func() {
	before, back := b.bad(2, "says nothing", func(bad bool) { b.stands[2].silent.Store(bad) })
	after := b.came()
	return func() {
		b.judgeBans(2, b.leastBans())
		// Each client may wait for it before the fifth is answered 504, and once
		// more until that is known everywhere.
		most := (b.bansOf(2) + 1) * (5 + 2*b.m.clients)
		failed := b.c.failed() - before
		b.must(failed > 0 && failed <= most, "failures that clients saw", fmt.Sprint(failed), fmt.Sprintf("1 to %d, for %d ejections", most, b.bansOf(2)))
		b.must(share(after, back, 2) >= 15, "share of e3 when all is well again", fmt.Sprintf("%.1f %%", share(after, back, 2)), "at least 15 %")
	}
}

func (b *badRun) slowness() func() {
	b.until(time.Second)
	start := b.came()
	b.stands[0].drops.Store(b.m.Sabotage == DropOctet)
	b.mark("e4 takes ten times as long")
	b.stands[3].slower.Store(10)
	b.until(1500 * time.Millisecond)
	known := b.came()
	b.until(b.long(3500*time.Millisecond, 12*time.Second))
	slow := b.came()
	b.mark("e4 is as the others again")
	b.stands[3].slower.Store(1)
	// What it took then is forgotten little by little, so this takes a while.
	// A short run sees it begin.
	enough := 15.0
	if b.m.Short {
		enough = 2
	}
	began, again := time.Now(), 0.0
	for again < enough && time.Since(began) < 20*time.Second && b.m.ctx.Err() == nil {
		before := b.came()
		time.Sleep(b.m.piece)
		again = share(b.came(), before, 3)
	}
	b.mark("e4 gets %.0f %% again", again)
	return func() {
		well, bad := share(start, [badServers]int64{}, 3), share(slow, known, 3)
		b.must(bad < well && bad <= 15, "share of e4 while it is slow", fmt.Sprintf("%.1f %% after %.1f %%", bad, well), "less, at most 15 %")
		b.must(again >= enough, "share of e4 when it is as the others again", fmt.Sprintf("%.1f %%", again), fmt.Sprintf("at least %.0f %%", enough))
		b.must(b.c.failed() == 0, "failures that clients saw", fmt.Sprint(b.c.failed()), "0")
	}
}

// slowStart looks at the shares in each second after the return.
func (b *badRun) slowStart() func() {
	b.until(time.Second)
	b.mark("e1 says that it is not well")
	b.stands[0].unwell.Store(true)
	b.awaitServes(false, 0)
	down := b.came()
	time.Sleep(time.Second)
	still := b.came()
	b.mark("e1 is well again, its slow start takes 4 s")
	b.stands[0].unwell.Store(false)
	eventually(5*time.Second, func() bool { return b.came()[0] > still[0] })
	var shares []float64
	last := b.came()
	for range 6 {
		time.Sleep(800 * time.Millisecond)
		now := b.came()
		shares = append(shares, share(now, last, 0))
		last = now
	}
	return func() {
		var said string
		falls := 0.0
		for i, x := range shares {
			said += fmt.Sprintf(" %.1f", x)
			if i > 0 {
				falls = max(falls, shares[i-1]-x)
			}
		}
		b.must(still[0] == down[0], "requests to e1 while it is down", fmt.Sprint(still[0]-down[0]), "0")
		b.must(falls <= 3, "share of e1 in pieces of 0.8 s after its return", said+" %", "never 3 points less than before")
		b.must(shares[0] < 12, "the first of them", fmt.Sprintf("%.1f %%", shares[0]), "less than 12 %, half of its part")
		b.must(shares[5] > 22, "the last of them", fmt.Sprintf("%.1f %%", shares[5]), "more than 22 % of 25 %")
		b.must(b.c.failed() == 0, "failures that clients saw", fmt.Sprint(b.c.failed()), "0")
	}
}

func (b *badRun) panics() func() {
	step := b.long(1200*time.Millisecond, 4*time.Second)
	b.until(time.Second)
	b.mark("the check of e1 says that it is down")
	b.stands[0].unwell.Store(true)
	b.awaitServes(false, 0)
	one := b.came()
	time.Sleep(step)
	oneAfter := b.came()
	b.mark("those of e2 and e3 as well: one of four is up, panic below 50 %%")
	b.stands[1].unwell.Store(true)
	b.stands[2].unwell.Store(true)
	b.awaitServes(false, 0, 1, 2)
	three := b.came()
	time.Sleep(step)
	threeAfter := b.came()
	b.mark("all but e1 are up again")
	b.stands[1].unwell.Store(false)
	b.stands[2].unwell.Store(false)
	b.awaitServes(true, 1, 2)
	calm := b.came()
	time.Sleep(step)
	calmAfter := b.came()
	return func() {
		b.must(oneAfter[0] == one[0], "requests to e1, the only one that is down", fmt.Sprint(oneAfter[0]-one[0]), "0")
		for n := range badServers {
			got := share(threeAfter, three, n)
			b.must(got > 20 && got < 30, fmt.Sprintf("share of e%d in a panic", n+1), fmt.Sprintf("%.1f %%", got), "20 to 30 %")
		}
		b.must(calmAfter[0] == calm[0], "requests to e1 after the panic", fmt.Sprint(calmAfter[0]-calm[0]), "0")
		b.must(b.c.failed() == 0, "failures that clients saw", fmt.Sprint(b.c.failed()), "0")
	}
}

func (b *badRun) breaks() func() {
	b.until(time.Second)
	before, failed := b.came(), b.c.failed()
	b.mark("all answer 503 to everything")
	for _, s := range b.stands {
		s.failing.Store(1000)
	}
	b.until(b.long(5500*time.Millisecond, 15*time.Second))
	bad, seen := b.came(), b.c.failed()
	b.mark("all are well again")
	for _, s := range b.stands {
		s.failing.Store(0)
	}
	time.Sleep(2 * time.Second) // half open after one at most
	late := b.c.failed()
	time.Sleep(time.Second)
	end := b.c.failed()
	return func() {
		sum := int64(0)
		for n := range badServers {
			sum += bad[n] - before[n]
		}
		b.must(failed == 0, "failures before", fmt.Sprint(failed), "0")
		// Half of the window has to have failed before it opens, then go three
		// probes in each second.
		window := int64(0)
		for n := range badServers {
			window += before[n]
		}
		opens := int64((b.long(4500*time.Millisecond, 14*time.Second) + time.Second) / time.Second)
		most := max(window*2, 20) + int64(b.m.clients) + 3*opens
		b.must(sum <= most, "requests that came while all fail", fmt.Sprint(sum), fmt.Sprintf("at most %d: a window's, those under way, and 3 for each of %d openings", most, opens))
		b.must(int64(seen-failed) > sum, "requests that were answered 503 without asking anybody", fmt.Sprint(int64(seen-failed)-sum), "more than 0")
		b.must(end == late, "failures two seconds after they were well again", fmt.Sprint(end-late), "0")
	}
}

func (b *badRun) spends() func() {
	b.until(time.Second)
	asked, before := b.c.answers()+b.c.failed(), b.came()
	failed := b.c.failed()
	began := time.Now()
	b.mark("all answer 503 to 30 %% of their requests")
	for _, s := range b.stands {
		s.failing.Store(300)
	}
	b.until(b.long(8*time.Second, 25*time.Second))
	after := b.came()
	seconds := time.Since(began).Seconds()
	for _, s := range b.stands {
		s.failing.Store(0)
	}
	requests := b.c.answers() + b.c.failed() - asked
	b.mark("all are well again")
	return func() {
		came := int64(0)
		for n := range badServers {
			came += after[n] - before[n]
		}
		retries := int(came) - requests
		// A request that is under way has come and is not counted yet. The share
		// is of the last ten seconds, so those before have left a budget, too.
		most := (requests+asked)/10 + int(10*(seconds+1)) + b.m.clients
		seen := b.c.failed() - failed
		b.must(retries > 0 && retries <= most, "retries", fmt.Sprint(retries), fmt.Sprintf("1 to %d: a tenth of %d requests, ten a second in %.0f s, and %d under way", most, requests+asked, seconds, b.m.clients))
		b.must(seen > 0 && seen < requests*3/10, "failures that clients saw", fmt.Sprint(seen), fmt.Sprintf("fewer than 30 %% of %d", requests))
		b.must(failed == 0, "failures before", fmt.Sprint(failed), "0")
	}
}
