package lab

import (
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// arrivals are the checks that came to a server that has every address there is
// on lo, so that each endpoint is another one.
type arrivals struct {
	lis net.Listener
	all sync.WaitGroup

	mu   sync.Mutex // guards all below
	came []arrival
}

type arrival struct {
	when time.Time
	at   string // the address that was connected to
}

// checkedPort is where all checks go.
const checkedPort = 7900

func newArrivals() (*arrivals, error) {
	lis, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", checkedPort))
	if err != nil {
		return nil, err
	}
	a := &arrivals{lis: lis}
	for range 4 {
		a.all.Go(func() { // ends with the listener
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				x := arrival{time.Now(), c.LocalAddr().String()}
				a.mu.Lock()
				a.came = append(a.came, x)
				a.mu.Unlock()
				_ = c.Close()
			}
		})
	}
	return a, nil
}

// between gives those that came in a time.
func (a *arrivals) between(from, to time.Time) []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []arrival
	for _, x := range a.came {
		if !x.when.Before(from) && x.when.Before(to) {
			out = append(out, x)
		}
	}
	return out
}

func (a *arrivals) close() {
	_ = a.lis.Close()
	a.all.Wait()
}

// spread tells how many came in each piece of a time.
func spread(came []arrival, from, to time.Time, piece time.Duration) (most int, mean float64) {
	n := int(to.Sub(from) / piece)
	counts := make([]int, n)
	for _, x := range came {
		if i := int(x.when.Sub(from) / piece); i >= 0 && i < n {
			counts[i]++
		}
	}
	all := 0
	for _, k := range counts {
		all += k
	}
	return slices.Max(counts), float64(all) / float64(n)
}

// usage is what a process has used: processor time, and what is resident.
func usage(pid int) (cpu time.Duration, resident int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	// utime, stime and rss are fields 14, 15 and 24 of proc(5); f begins with the 3rd.
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	const ticks = 100 // in a second: USER_HZ of Linux
	return time.Duration(user+system) * time.Second / ticks, pages * int64(os.Getpagesize()), nil
}

// checks lets the product check very many endpoints, and looks when they come.
func (l *ledgerRun) checks() error {
	backends, each, long := 100, 100, 20*time.Second
	if l.Short {
		backends, each, long = 20, 50, 4*time.Second
	}
	const interval = 2 * time.Second
	all := backends * each
	a, err := newArrivals()
	if err != nil {
		return err
	}
	defer a.close()
	text := func(changed int) string {
		var s strings.Builder
		s.WriteString("node: { name: checks, loops: 2, admin: { socket: SOCKET } }\nlisteners:\n  main: { vip: \"127.0.0.1:8180\", backend: b0 }\nbackends:\n")
		for b := range backends {
			fmt.Fprintf(&s, "  b%d:\n    check: { tcp: {}, interval: %v }\n    endpoints:\n", b, interval)
			for e := range each {
				net := 10
				if b == 1 && changed == 2 {
					net = 11 // other servers
				}
				weight := 100
				if b == 0 && changed > 0 {
					weight = 99
				}
				fmt.Fprintf(&s, "      - { name: e%d, address: \"127.%d.%d.%d:%d\", weight: %d }\n", e, net, b, e+1, checkedPort, weight)
			}
		}
		return s.String()
	}
	l.phase("checks: %d endpoints of %d backends, each %v", all, backends, interval)
	began := time.Now()
	node, err := startNode(l.ctx, l.Binary, l.here, "checks", text(0))
	if err != nil {
		return err
	}
	defer func() { node.end() }()
	ready := time.Since(began)
	first := time.Now()
	// At the start each is asked at once, and hardly any a second time before nearly
	// all have been asked: of a thousand a SYN may be lost on a busy machine, whose
	// kernel sends it again after a second.
	var start []arrival
	met := map[string]int{}
	eventually(10*time.Second, func() bool {
		start = a.between(began, time.Now())
		clear(met)
		for _, x := range start {
			met[x.at]++
		}
		return len(met) == all
	})
	l.v.Must(len(met) == all, "endpoints asked at the start", fmt.Sprint(len(met)), fmt.Sprint(all))
	clear(met)
	nearly := 0
	for ; nearly < len(start) && len(met) < all*99/100; nearly++ {
		met[start[nearly].at]++
	}
	l.v.Must(nearly <= all*5/4, "checks until 99 % were asked", fmt.Sprint(nearly), fmt.Sprintf("at most %d", all*5/4))
	if len(start) > 0 {
		f, t := start[0].when, start[len(start)-1].when.Add(time.Millisecond)
		most, _ := spread(start, f, t.Add(10*time.Millisecond), 10*time.Millisecond)
		l.v.Say("checks at the start: %d within %v, at most %d in 10 ms (ready after %v, first asked %v before that)", len(start),
			t.Sub(f).Round(time.Millisecond), most, ready.Round(time.Millisecond), first.Sub(f).Round(time.Millisecond))
		l.v.Figure("checks_start", map[string]any{"millis": millis(t.Sub(f)), "most_in_10_ms": most})
	}
	up := 0
	eventually(10*time.Second, func() bool {
		states, err := node.endpoints(l.ctx)
		if err != nil {
			return false
		}
		up = 0
		for _, e := range states {
			if e.State == "up" {
				up++
			}
		}
		return up == all
	})
	l.v.Must(up == all, "endpoints that are up", fmt.Sprint(up), fmt.Sprint(all))
	time.Sleep(interval / 2)

	from := time.Now()
	cpu, _, err := usage(node.pid)
	if err != nil {
		return err
	}
	time.Sleep(long)
	to := time.Now()
	after, resident, err := usage(node.pid)
	if err != nil {
		return err
	}
	came := a.between(from, to)
	most, mean := spread(came, from, to, 10*time.Millisecond)
	second, perSecond := spread(came, from, to, time.Second)
	cores := (after - cpu).Seconds() / to.Sub(from).Seconds()
	want := float64(all) / interval.Seconds()
	l.v.Say("checks: %.0f/s of %d endpoints, %.1f %% of a processor, %.1f MB resident; in 10 ms %.1f, at most %d: %.2f times; in a second %.0f, at most %d",
		perSecond, all, 100*cores, float64(resident)/1e6, mean, most, float64(most)/mean, perSecond, second)
	l.v.Figure("checks", map[string]any{"endpoints": all, "per_second": perSecond, "cores": cores, "resident_mb": float64(resident) / 1e6,
		"mean_in_10_ms": mean, "most_in_10_ms": most})
	l.v.Must(perSecond > 0.9*want && perSecond < 1.1*want, "checks in a second", fmt.Sprintf("%.0f", perSecond), fmt.Sprintf("%.0f, within 10 %%", want))
	l.v.Goal(float64(second) < 1.25*want, "most checks in a second", fmt.Sprint(second), fmt.Sprintf("less than %.0f", 1.25*want))
	// One interval laid upon the other, what a busy machine delays once does not
	// count, and what the schedule itself brings together does.
	folded := make([]arrival, len(came))
	for i, x := range came {
		folded[i] = arrival{from.Add(x.when.Sub(from) % interval), x.at}
	}
	crest, level := spread(folded, from, from.Add(interval), interval/20)
	found := fmt.Sprintf("%d, %.2f times the mean", crest, float64(crest)/level)
	judge := l.v.Must
	if l.Short { // of two intervals one that was disturbed is half
		judge = l.v.Goal
	}
	judge(float64(crest) <= 1.25*level+3*math.Sqrt(level), "most checks in a twentieth of the interval, all intervals together",
		found, fmt.Sprintf("at most 1.25 times %.0f and what chance gives", level))
	l.v.Goal(float64(most) <= 4*mean+10, "most checks in 10 ms", fmt.Sprint(most), fmt.Sprintf("at most 4 times the mean of %.1f, and 10", mean))

	// A reload that changes one backend asks nobody anew, one that brings other
	// servers asks those alone.
	for i, what := range []string{"a reload that changes one backend", fmt.Sprintf("a reload that brings %d other servers", each)} {
		time.Sleep(interval / 2)
		from = time.Now()
		if _, err := node.apply(l.ctx, text(i+1)); err != nil {
			return err
		}
		took := time.Since(from)
		time.Sleep(max(0, interval/2-took))
		to = time.Now()
		came = a.between(from, to)
		fresh, twice := 0, 0
		clear(met)
		for _, x := range came {
			if strings.HasPrefix(x.at, "127.11.") {
				fresh++
			} else if met[x.at]++; met[x.at] == 2 {
				twice++
			}
		}
		due := want * to.Sub(from).Seconds()
		most, _ = spread(came, from, to, 10*time.Millisecond)
		l.v.Say("%s: took %v, %d checks in %v where %.0f are due, %d of them of other servers; at most %d in 10 ms", what,
			took.Round(time.Millisecond), len(came), to.Sub(from).Round(time.Millisecond), due, fresh, most)
		extra := i * each * 2 // until they are up, they are asked twice
		// The schedule leaves half an interval between two probes of one, at least.
		l.v.Must(twice <= all/20, "endpoints asked twice in the second of "+what, fmt.Sprint(twice), fmt.Sprintf("at most %d of %d, by chance", all/20, all))
		l.v.Goal(float64(len(came)) <= 1.25*due+float64(extra), "checks in the second of "+what, fmt.Sprint(len(came)), fmt.Sprintf("at most %.0f", 1.25*due+float64(extra)))
		l.v.Must(i == 0 || fresh >= each, "checks of other servers after "+what, fmt.Sprint(fresh), fmt.Sprintf("at least %d", i*each))
	}
	node.judgePromises(l.ctx, l.v)
	if l.v.Wrong() {
		l.v.Say("-- log of the balancer\n%s", node.process.Tail(20))
	}
	return nil
}
