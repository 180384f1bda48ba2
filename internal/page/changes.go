package page

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// Bounds of the page of changes.
const (
	editsMax  = 100 // edits at run time that are listed
	planLines = 12  // of a generation's plan
	planRunes = 160 // of a line
)

// DurableMood is how the word for durability is painted.
func (v view) DurableMood() string {
	switch d := v.Changes.Durable; {
	case d == "yes":
		return ""
	case strings.HasPrefix(d, "no"):
		return "bad"
	}
	return "odd"
}

// Edits are those that are listed, the latest first.
func (v view) Edits() []node.Drift {
	all := slices.Clone(v.Changes.Edits)
	slices.SortStableFunc(all, func(a, b node.Drift) int { return b.At.Compare(a.At) })
	return all[:min(len(all), editsMax)]
}

// MoreEdits is how many are not.
func (v view) MoreEdits() int { return max(0, len(v.Changes.Edits)-editsMax) }

// drops are the counters that grow only when a connection was lost before anybody
// could accept it. The others grow for reasons that are none of ours, too.
var drops = map[string]bool{"ListenOverflows": true, "ListenDrops": true, "TCPReqQFullDrop": true, "EmbryonicRsts": true, "TCPAbortOnMemory": true}

// Kernel are the counters that grew, and those of lost connections in any case.
func (v view) Kernel() (out []term) {
	grown := map[string]uint64{"arrived late": v.Changes.Late}
	for name := range drops {
		grown[name] = 0
	}
	maps.Copy(grown, v.Changes.Kernel)
	for _, name := range slices.Sorted(maps.Keys(grown)) {
		x := term{Word: name, Count: int64(grown[name])}
		if x.Count > 0 && drops[name] {
			x.Sign = "bad"
		}
		out = append(out, x)
	}
	return out
}

// impact says in a few words what a change did.
func impact(i node.Impact) string {
	var out []string
	add := func(n int, what, done string) {
		if n != 1 && what != "" {
			what += "s"
		}
		if text := strings.TrimSpace(what + " " + done); n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, text))
		}
	}
	weights := min(i.WeightsChanged, i.EndpointsChanged)
	add(i.ListenersAdded, "listener", "added")
	add(i.ListenersRemoved, "listener", "removed")
	add(i.ListenersChanged, "listener", "changed")
	add(i.BackendsAdded, "backend", "added")
	add(i.BackendsRemoved, "backend", "removed")
	add(i.BackendsChanged, "backend", "changed")
	add(i.EndpointsAdded, "endpoint", "added")
	add(i.EndpointsRemoved, "endpoint", "removed")
	add(i.EndpointsChanged-weights, "endpoint", "changed")
	add(weights, "weight", "")
	add(i.FlowsAdopt, "", "adopt")
	add(i.FlowsDrain, "", "drain")
	if i.FlowsClosed > 0 || len(out) > 0 {
		out = append(out, fmt.Sprintf("%d closed", i.FlowsClosed))
	}
	if len(out) == 0 {
		return "–"
	}
	return strings.Join(out, ", ")
}

// lines are those of a plan that are shown.
func lines(plan string) []string {
	all := strings.Split(strings.TrimRight(plan, "\n"), "\n")
	if len(all) == 1 && all[0] == "" {
		return nil
	}
	if more := len(all) - planLines; more > 0 {
		all = append(slices.Clone(all[:planLines]), fmt.Sprintf("… and %d more", more))
	}
	for i, line := range all {
		all[i] = cut(line, planRunes)
	}
	return all
}

// when is a moment as people read it, with its day: in UTC, as logs have it.
func when(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }
