package page

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// The river's places, in units of its view box.
const (
	riverLeft, riverRight   = 46, 950
	riverTop, riverBottom   = 34, 286
	gutterTop, gutterBottom = 300, 326
	riverBands              = 12
	pinWidth                = 18 // marks that are nearer to each other are one
	riverSteps              = 4  // lines across
)

// river is the picture of the last minutes: how many connections each listener
// had, and what happened meanwhile.
type river struct {
	Bands  []band
	Levels []level
	Times  []level
	Pins   []pin
	Bars   []bar
	Blank  []bar  // where nobody counted what ended
	Words  string // the picture in words
	Empty  bool
	// Policy and Lost are what ended by us in all that is shown.
	Policy, Lost uint64
	Kinds        []kind // of the pins there are
}

type band struct {
	Class, Name, D string
	Now            int64
}

type level struct {
	At   float64
	Text string
}

type pin struct {
	X           float64
	Text, Title string
	Fail        bool
}

type kind struct {
	Text, What string
	Fail       bool
}

type bar struct {
	X, Y, W, H float64
	Class      string
	Title      string
}

// kinds are the marks by how far flows went.
var kinds = []kind{
	{"R", "reload", false}, {"B", "rebalance", false}, {"U", "upgrade", false}, {"U", "upgrade aborted", true},
	{"H", "moved away", false}, {"H", "moved here", false},
}

func f1(x float64) float64 { return math.Round(x*10) / 10 }

// River draws the history.
func (v view) River() *river {
	r := &river{}
	all := v.History
	if len(all) < 2 {
		r.Empty = true
		return r
	}
	last := all[len(all)-1].At
	span := int64(60)
	for _, s := range []int64{60, 120, 300, 450, int64(node.HistorySpan.Seconds())} {
		if span = s; last-all[0].At <= s {
			break
		}
	}
	x := func(at int64) float64 {
		return riverRight - float64(last-at)/float64(span)*(riverRight-riverLeft)
	}
	for len(all) > 2 && all[0].At < last-span {
		all = all[1:]
	}

	most, ended := int64(0), uint64(0)
	for _, m := range all {
		most = max(most, m.Open)
		ended = max(ended, m.Policy+m.Lost)
	}
	top := nice(most)
	y := func(open int64) float64 {
		return riverBottom - float64(open)/float64(top)*(riverBottom-riverTop)
	}
	for i := range riverSteps + 1 {
		n := top * int64(i) / riverSteps
		r.Levels = append(r.Levels, level{f1(y(n)), thousands(n)})
	}
	for i := range int64(6) {
		back := span * i / 5
		text := "now"
		if back > 0 {
			text = "-" + ago(float64(back))
		}
		r.Times = append(r.Times, level{f1(x(last - back)), text})
	}
	r.bands(all, x, y)
	r.marks(all, x)
	r.gutter(all, x, ended)
	r.Words = fmt.Sprintf("%s connections open now, at most %s in the last %s; lost: %s",
		thousands(all[len(all)-1].Open), thousands(most), ago(float64(last-all[0].At)), thousands(r.Lost))
	return r
}

// nice is a round number not below n that has riverSteps equal parts.
func nice(n int64) int64 {
	for unit := int64(1); ; unit *= 10 {
		for _, k := range []int64{4, 8, 12, 16, 20} {
			if top := k * unit; top >= n {
				return top
			}
		}
	}
}

// bands stacks the listeners, by name: the order does not change while they grow
// and shrink. Those that have fewest are one.
func (r *river) bands(all []node.Moment, x func(int64) float64, y func(int64) float64) {
	area := map[string]int64{}
	for _, m := range all {
		for _, s := range m.Shares {
			area[s.Listener] += s.Open
		}
	}
	var names []string
	for name := range area {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if area[a] != area[b] {
			return int(max(-1, min(1, area[b]-area[a])))
		}
		return strings.Compare(a, b)
	})
	names = names[:min(len(names), riverBands)]
	slices.Sort(names)
	index := map[string]int{}
	for i, name := range names {
		index[name] = i
	}
	// heights[i] are the tops of band i; the last band is the rest.
	heights := make([][]int64, len(names)+1)
	rest := false
	for k, m := range all {
		open := make([]int64, len(names))
		for _, s := range m.Shares {
			if i, ok := index[s.Listener]; ok {
				open[i] = s.Open
			}
		}
		sum := int64(0)
		for i := range names {
			sum += open[i]
			heights[i] = append(heights[i], sum)
		}
		// The gates are read one after another, so the sum may be more than all.
		heights[len(names)] = append(heights[len(names)], max(sum, m.Open))
		rest = rest || m.Open-sum > max(2, m.Open/50) && k > 0
	}
	lower := make([]int64, len(all))
	for i, upper := range heights {
		class, name := fmt.Sprintf("b%d", i), ""
		if i < len(names) {
			name = names[i]
		} else if class, name = "rest", "others"; !rest {
			break
		}
		n := len(all) - 1
		r.Bands = append(r.Bands, band{class, name, outline(all, lower, upper, x, y), upper[n] - lower[n]})
		lower = upper
	}
}

// outline is the path around a band: along its top and back along its bottom.
// Points on a level line are left out.
func outline(all []node.Moment, lower, upper []int64, x func(int64) float64, y func(int64) float64) string {
	var d strings.Builder
	n := len(all)
	point := func(k int, h []int64) {
		if k > 0 && k < n-1 && h[k] == h[k-1] && h[k] == h[k+1] {
			return
		}
		command := byte('L')
		if d.Len() == 0 {
			command = 'M'
		}
		fmt.Fprintf(&d, "%c%.1f %.1f", command, x(all[k].At), y(h[k]))
	}
	for k := range n {
		point(k, upper)
	}
	for k := n - 1; k >= 0; k-- {
		point(k, lower)
	}
	return d.String() + "Z"
}

// marks sets a pin for each change and move; what lies close together is one.
func (r *river) marks(all []node.Moment, x func(int64) float64) {
	used := map[kind]bool{}
	type place struct {
		at     float64
		counts []uint64 // by kind
	}
	var places []place
	for _, m := range all[1:] { // what the first moment tells was before it
		if len(m.Marks) == 0 {
			continue
		}
		at := x(m.At)
		if k := len(places); k == 0 || at-places[k-1].at >= pinWidth {
			places = append(places, place{at, make([]uint64, len(kinds))})
		}
		for _, mark := range m.Marks {
			for i, k := range kinds {
				if k.What == mark.What {
					places[len(places)-1].counts[i] += mark.Count
				}
			}
		}
	}
	for _, p := range places {
		out := pin{X: f1(p.at)}
		var words []string
		for i, n := range p.counts {
			if n == 0 {
				continue
			}
			used[kinds[i]] = true
			words = append(words, fmt.Sprintf("%s × %d", kinds[i].What, n))
			// The rarest of several is the one to see: they are listed by distance.
			out.Text, out.Fail = kinds[i].Text, kinds[i].Fail
		}
		out.Title = strings.Join(words, ", ")
		r.Pins = append(r.Pins, out)
	}
	for _, k := range kinds {
		if used[k] {
			r.Kinds = append(r.Kinds, k)
		}
	}
}

// gutter shows what ended by us in each second: what we broke over what the
// configuration wanted to end.
func (r *river) gutter(all []node.Moment, x func(int64) float64, most uint64) {
	high := float64(gutterBottom - gutterTop - 2)
	for k := 1; k < len(all); k++ {
		m := &all[k]
		left, right := x(all[k-1].At), x(m.At)
		if !m.Counted {
			if n := len(r.Blank); n > 0 && !all[k-1].Counted && k > 1 {
				r.Blank[n-1].W = f1(right - r.Blank[n-1].X)
			} else {
				r.Blank = append(r.Blank, bar{X: f1(left), W: f1(right - left), Y: gutterTop, H: gutterBottom - gutterTop})
			}
			continue
		}
		r.Policy += m.Policy
		r.Lost += m.Lost
		base := float64(gutterBottom)
		for _, b := range []struct {
			n           uint64
			class, word string
		}{{m.Lost, "lostbar", "lost"}, {m.Policy, "policybar", "ended by policy"}} {
			if b.n == 0 {
				continue
			}
			h := max(3, high*float64(b.n)/float64(most))
			r.Bars = append(r.Bars, bar{f1(left), f1(base - h), f1(max(2, min(right-left, 8))), f1(h), b.class, fmt.Sprintf("%s %s", thousands(b.n), b.word)})
			base -= h
		}
	}
}
