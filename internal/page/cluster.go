package page

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// heardMax is how long ago a node may have answered that is shown as one that does.
const heardMax = 4.0

// column is a node of the cluster as it is shown.
type column struct {
	Name, Address, State, Mood string
	Self                       bool
	Labels                     []string
	Badges                     []badge
	Flows                      int
}

// badge is a VIP in the column of the node that answers for it.
type badge struct{ Name, Address, Note, Mood string }

// Columns are the nodes by name. Each VIP is in one of them and in no other; one that
// nobody owns, as far as is known here, is in that of its home.
func (v view) Columns() []column {
	x := &v.Look.Cluster
	var out []column
	for _, n := range x.Nodes {
		c := column{Name: n.Name, Address: n.Address, State: "serves", Self: n.Self, Flows: n.Flows}
		switch {
		case !n.Self && n.HeardSeconds < 0:
			c.State, c.Mood = "not heard of yet", "odd"
		case !n.Self && n.HeardSeconds > heardMax:
			c.State, c.Mood = "silent for "+ago(n.HeardSeconds), "bad"
		case n.Evacuating && n.Self && x.Free:
			c.State, c.Mood = "evacuated, and free", "odd"
		case n.Evacuating:
			c.State, c.Mood = "being evacuated", "odd"
		}
		for _, name := range slices.Sorted(maps.Keys(n.Labels)) {
			c.Labels = append(c.Labels, name+" "+n.Labels[name])
		}
		out = append(out, c)
	}
	for i := range x.VIPs {
		p := &x.VIPs[i]
		at := slices.IndexFunc(out, func(c column) bool { return c.Name == p.Owner })
		if at < 0 {
			at = slices.IndexFunc(out, func(c column) bool { return c.Name == p.Home })
		}
		c := &out[max(0, at)]
		c.Badges = append(c.Badges, badgeOf(p))
	}
	return out
}

func badgeOf(p *node.VIPStatus) badge {
	b := badge{Name: p.Name, Address: p.Address.Addr().String()}
	switch {
	case p.State == "silent":
		b.Mood, b.Note = "bad", "silent: "+p.Why
	case p.State == "elsewhere" && p.Why != "":
		b.Mood, b.Note = "bad", p.Why
	case p.To != "":
		b.Mood, b.Note = "odd", "→ "+p.To
	case p.Owner != p.Home:
		b.Note = "at home on " + p.Home
	}
	return b
}

// moving is what moves now.
type moving struct {
	What, Text  string
	Done, Total int
}

// Moving is what moves now; nil: nothing.
func (v view) Moving() *moving {
	p := v.Look.Cluster.Moving
	if p == nil {
		return nil
	}
	what := p.VIP
	if p.To != "" {
		what = strings.TrimSpace(fmt.Sprintf("%s %s → %s", what, p.From, p.To))
	}
	return &moving{What: what, Text: p.Text, Done: p.Flows, Total: p.FlowsTotal}
}

// MoveMood is how the last move is painted.
func (v view) MoveMood() string {
	switch v.Look.Cluster.LastMove.Result {
	case "done":
		return ""
	case "aborted":
		return "odd"
	}
	return "bad"
}

// MoveWords say what the last move did.
func (v view) MoveWords() string {
	u := v.Look.Cluster.LastMove
	if u.Result != "done" || u.Move == nil {
		return u.Why
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s → %s, %s connections, %d lost, not served for %s at most",
		u.VIP, u.From, u.To, thousands(u.Move.Flows), u.Move.Lost, millis(time.Duration(u.Move.Pause.Max*float64(time.Microsecond)))))
}
