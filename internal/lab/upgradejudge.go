package lab

import (
	"fmt"
	"slices"
	"time"
)

// Goals of an upgrade, for each flow and for the whole.
const (
	pauseP50Goal = time.Millisecond
	pauseP99Goal = 3 * time.Millisecond
	pauseMaxGoal = 10 * time.Millisecond
	overGoal     = time.Second
)

// threefold tells how durations are distributed.
type threefold struct{ p50, p99, max time.Duration }

func threefoldOf(all []time.Duration) (s threefold) {
	if len(all) == 0 {
		return s
	}
	all = slices.Clone(all)
	slices.Sort(all)
	at := func(q float64) time.Duration { return all[min(len(all)-1, int(q*float64(len(all))))] }
	return threefold{at(0.5), at(0.99), all[len(all)-1]}
}

func (s threefold) String() string {
	return fmt.Sprintf("%s / %s / %s", short(s.p50), short(s.p99), short(s.max))
}

// short writes a duration in milliseconds for a table.
func short(d time.Duration) string { return fmt.Sprintf("%.2f", millis(d)) }

func threefoldMicros(p PauseMicros) threefold {
	us := func(x float64) time.Duration { return time.Duration(x * float64(time.Microsecond)) }
	return threefold{us(p.P50), us(p.P99), us(p.Max)}
}

// took is the part of an upgrade in which flows move, or the whole if the
// reports do not tell it apart.
func (x *upgradeScene) took() (h *Histogram, what string) {
	if x.over.N > 0 {
		return &x.over, "from the first flow to the last"
	}
	return &x.whole, "from the start of the new process to the end"
}

// judge writes a scene into the verdict.
func (x *upgradeScene) judge(v *Verdict) {
	p := threefoldMicros(x.pauses.pooled())
	who := fmt.Sprintf("%d flows", x.flows)
	took, what := x.took()
	v.Say("%s: %d upgrades, %d moves of flows, %.1f MB under way in them, %d descriptors copied before, %d idle legs", who, x.n, x.moved, float64(x.octets)/1e6, x.copied, x.idle)
	v.Say("  pause as the reports say, p50 / p99 / max ms: %v", p)
	v.Say("  longest word of each echo flow in each upgrade: %v (without upgrades %v)", threefoldOf(x.seen), threefoldOf(x.quiet))
	v.Say("  all words: %v (without upgrades %v)", x.words[1], x.words[0])
	v.Say("  an upgrade took, %s: %s; as a whole: %s", what, quantiles(took), quantiles(&x.whole))
	v.Say("  the old process was gone after %s", quantiles(&x.leave))
	if len(x.cpu[0]) > 0 {
		v.Say("  processors spent p50 / p99 / max ms on the old process %v, on the new one %v; serving alone takes %.2f of one", threefoldOf(x.cpu[0]), threefoldOf(x.cpu[1]), x.serving)
	}
	for _, name := range sortedNames(x.phases) {
		v.Say("  phase %-10s %s", name, quantiles(x.phases[name]))
	}
	for _, name := range sortedNames(x.kinds) {
		k := x.kinds[name]
		v.Say("  kind %-28s %7d flows, frozen %5.0f octets each, of these %5.0f under way", name, k.Flows, per(k.Frozen, k.Flows), per(k.Octets, k.Flows))
	}
	if len(x.dials) > 0 {
		v.Say("  new connections to the server of those who keep theirs, in each upgrade: %v (%d in all the time without)", x.dials, x.dialsQuiet)
	}
	for i := 0; i+1 < len(x.extra); i += 2 {
		v.Say("  delay of %-22s without %v; with %v", delayNames[i/2], x.extra[i], x.extra[i+1])
	}
	v.Zero(who+": flows refused", x.refused)
	v.Zero(who+": flows lost, by the reports", x.lost)
	v.Must(2*x.onOld >= x.flows, who+": flows whose objects are no longer in force", fmt.Sprint(x.onOld), fmt.Sprintf("at least half of %d", x.flows))
	v.Goal(p.p50 <= pauseP50Goal, who+": pause p50", ms(p.p50), "at most "+ms(pauseP50Goal))
	v.Goal(p.p99 <= pauseP99Goal, who+": pause p99", ms(p.p99), "at most "+ms(pauseP99Goal))
	v.Goal(p.max <= pauseMaxGoal, who+": longest pause", ms(p.max), "at most "+ms(pauseMaxGoal))
	v.Goal(took.Max <= overGoal, who+": longest upgrade, "+what, ms(took.Max), "at most "+ms(overGoal))
	noise, seen := threefoldOf(x.quiet), threefoldOf(x.seen)
	for _, g := range []struct {
		what             string
		got, noise, goal time.Duration
	}{{"p50", seen.p50, noise.p50, pauseP50Goal}, {"p99", seen.p99, noise.p99, pauseP99Goal}, {"max", seen.max, noise.max, pauseMaxGoal}} {
		// What clients notice has the noise of the machine in it.
		v.Goal(g.got <= g.noise+g.goal, fmt.Sprintf("%s: longest word of an echo flow in an upgrade, %s", who, g.what), ms(g.got), fmt.Sprintf("at most %s more than the %s without", ms(g.goal), ms(g.noise)))
	}
	if len(x.dials) > 0 {
		all := int64(0)
		for _, n := range x.dials {
			all += n
		}
		v.Goal(all <= x.dialsQuiet, fmt.Sprintf("%s: new connections to the server of %d who keep theirs, in %d upgrades", who, keepers, x.n), fmt.Sprint(all), fmt.Sprintf("at most the %d without", x.dialsQuiet))
	}
	v.Figure(x.name, x.figures())
}

// figures are what is kept of a scene.
func (x *upgradeScene) figures() map[string]any {
	three := func(s threefold) map[string]float64 {
		return map[string]float64{"p50": millis(s.p50), "p99": millis(s.p99), "max": millis(s.max)}
	}
	took, _ := x.took()
	frozen := map[string]float64{}
	for name, k := range x.kinds {
		frozen[name] = per(k.Frozen, k.Flows)
	}
	return map[string]any{"flows": x.flows, "upgrades": x.n, "moved": x.moved, "refused": x.refused, "lost": x.lost, "on_old": x.onOld,
		"pause_ms": three(threefoldMicros(x.pauses.pooled())), "echo_ms": three(threefoldOf(x.seen)), "echo_without_ms": three(threefoldOf(x.quiet)),
		"took_ms": map[string]float64{"p50": millis(took.Quantile(0.5)), "max": millis(took.Max)}, "frozen_octets": frozen, "dials": x.dials}
}

// delayNames are what a delay of the driver is of.
var delayNames = [delayKinds]string{"new connections", "kept connections", "TCP", "WebSocket", "streamed responses", "one route, kept"}

func per(n uint64, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

func sortedNames[V any](m map[string]V) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
