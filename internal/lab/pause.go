package lab

import "sort"

// pauses gathers the pauses of many moves of one distance. A report tells
// p50, p99 and max of its move only; pooled is what can be known of all flows
// of all moves together.
type pauses struct{ of []weightedPause }

type weightedPause struct {
	flows int
	p     PauseMicros
}

func (p *pauses) add(flows int, of PauseMicros) {
	if flows > 0 {
		p.of = append(p.of, weightedPause{flows, of})
	}
}

// exceeding estimates the share of flows that paused longer than x
// microseconds, taking the pauses of a move as evenly spread between the
// quantiles that it reports.
func (p *pauses) exceeding(x float64) float64 {
	var over, all float64
	for _, m := range p.of {
		n := float64(m.flows)
		all += n
		switch {
		case x < m.p.P50:
			over += n * (1 - 0.5*x/m.p.P50)
		case x < m.p.P99:
			over += n * (0.01 + 0.49*(m.p.P99-x)/(m.p.P99-m.p.P50))
		case x < m.p.Max:
			over += n * 0.01 * (m.p.Max - x) / (m.p.Max - m.p.P99)
		}
	}
	if all == 0 {
		return 0
	}
	return over / all
}

// pooled returns the quantiles over all flows of all moves.
func (p *pauses) pooled() PauseMicros {
	return PauseMicros{P50: p.quantile(0.5), P99: p.quantile(0.99), Max: p.max()}
}

func (p *pauses) max() float64 {
	var worst float64
	for _, m := range p.of {
		worst = max(worst, m.p.Max)
	}
	return worst
}

func (p *pauses) quantile(q float64) float64 {
	low, high := 0.0, p.max()
	for range 60 { // halvings: beyond any precision that matters
		mid := (low + high) / 2
		if p.exceeding(mid) > 1-q {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// sortedKeys returns the keys of m, largest value first.
func sortedKeys(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		if m[keys[i]] != m[keys[j]] {
			return m[keys[i]] > m[keys[j]]
		}
		return keys[i] < keys[j]
	})
	return keys
}
