package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// The places of the four columns, in units of the view box.
const (
	trafficWidth = 1160
	boxWidth     = 212
	boxHigh      = 38 // of a box with nothing to do
	boxGap       = 12
	columnsTop   = 26
	columnMax    = 40  // boxes; more are not drawn
	streamHigh   = 180 // of all ribbons of a column, one above another
	streamLeast  = 1.5 // of one with nothing in it
)

// Columns of the picture.
const (
	listenerColumn = iota
	routeColumn
	backendColumn
	endpointColumn
	columns
)

var columnTitles = [columns]string{"listeners", "routes", "backends", "endpoints"}

// traffic is the picture of who serves whom.
type traffic struct {
	Height  float64
	Heads   []level
	Boxes   []*box
	Ribbons []ribbon
	More    []string // what is not drawn
	Waiting bool     // rates are not known yet
}

type box struct {
	column             int
	key                string
	X, Y, H            float64
	Name, Note, Link   string
	Title, Class, Mood string
	pace               node.Pace
	in, out            float64 // what of its sides ribbons have taken
}

type ribbon struct{ D, Class, Title string }

// TextY and NoteY are the lines of text in a box, MidY its middle.
func (b *box) TextY() float64 { return f1(b.Y + b.H/2 - 3) }

// NoteY is the second line of text.
func (b *box) NoteY() float64 { return f1(b.Y + b.H/2 + 13) }

// TextX is where the text begins.
func (b *box) TextX() float64 { return b.X + 12 }

// stream is a ribbon that is to be drawn.
type stream struct {
	from, to *box
	pace     node.Pace
}

// Traffic draws the four columns.
func (v view) Traffic() *traffic {
	t := &traffic{Waiting: v.Look.Paces == nil}
	only, onlyBackend := v.Query.Get("listener"), v.Query.Get("backend")
	byKey := map[string]*box{}
	hidden := [columns]int{}
	counts := [columns]int{}
	add := func(column int, key, name, note, link string, pace node.Pace) *box {
		key = strconv.Itoa(column) + " " + key
		if b := byKey[key]; b != nil {
			return b
		}
		if counts[column]++; counts[column] > columnMax {
			hidden[column]++
			return nil
		}
		b := &box{column: column, key: key, Name: cut(name, 28), Note: cut(note, 31), Link: link, Title: name + ": " + paceWords(&pace), pace: pace}
		byKey[key] = b
		t.Boxes = append(t.Boxes, b)
		return b
	}
	var streams []stream
	join := func(from, to *box, pace node.Pace) {
		if from != nil && to != nil {
			streams = append(streams, stream{from, to, pace})
		}
	}
	used := map[string]bool{}
	toBackend := func(from *box, listener string, route int, name string) {
		used[name] = true
		p := v.Look.Paces[node.Path{Route: node.AnyRoute, Backend: name}]
		to := add(backendColumn, name, name, paceWords(&p), link(Traffic, "backend", name), p)
		join(from, to, v.Look.Paces[node.Path{Listener: listener, Route: route, Backend: name}])
	}
	for _, l := range v.Look.Config.SortedListeners() {
		name := l.Ref.Name
		if only != "" && only != name {
			continue
		}
		if onlyBackend != "" && l.BackendName != onlyBackend && (l.Rules == nil || !slices.Contains(l.Rules.BackendNames(), onlyBackend)) {
			continue
		}
		p := v.Look.Paces[node.Path{Listener: name, Route: node.AnyRoute}]
		from := add(listenerColumn, name, name, paceWords(&p), link(Traffic, "listener", name), p)
		if l.Rules == nil {
			p := v.Look.Paces[node.Path{Listener: name, Route: -1}]
			all := add(routeColumn, name, "all", "no routes", link(Traffic, "listener", name), p)
			join(from, all, p)
			toBackend(all, name, -1, l.BackendName)
			continue
		}
		for i, r := range l.Rules.Routes {
			if onlyBackend != "" && !slices.ContainsFunc(r.Backends, func(w config.Weighted) bool { return w.Name == onlyBackend }) {
				continue
			}
			p := v.Look.Paces[node.Path{Listener: name, Route: i}]
			note := paceWords(&p)
			switch {
			case r.Redirect != nil:
				note = "redirect, " + note
			case r.Respond != nil:
				note = "answers itself, " + note
			}
			route := add(routeColumn, name+" "+strconv.Itoa(i), strconv.Itoa(i)+"  "+describe(r), note, link(Traffic, "listener", name), p)
			join(from, route, p)
			for _, w := range r.Backends {
				if onlyBackend == "" || w.Name == onlyBackend {
					toBackend(route, name, i, w.Name)
				}
			}
		}
	}
	for i := range v.Look.Endpoints {
		e := &v.Look.Endpoints[i]
		if !used[e.Backend] {
			continue
		}
		p := v.Look.Paces[node.Path{Route: node.AnyRoute, Backend: e.Backend, Endpoint: strings.TrimPrefix(e.Name, e.Backend+"/")}]
		b := add(endpointColumn, e.Name, strings.TrimPrefix(e.Name, e.Backend+"/"), e.State+", "+paceWords(&p), link(Flows, "endpoint", e.Name), p)
		if b == nil {
			continue
		}
		b.Mood = mood(e)
		b.Title = e.Name + " " + e.Address + " " + b.Title
		join(byKey[strconv.Itoa(backendColumn)+" "+e.Backend], b, p)
	}
	t.place(streams)
	for c, n := range hidden {
		if n > 0 {
			t.More = append(t.More, fmt.Sprintf("%d more %s", n, columnTitles[c]))
		}
	}
	return t
}

// place gives boxes and ribbons their places.
func (t *traffic) place(streams []stream) {
	var total [columns]float64
	for _, b := range t.Boxes {
		total[b.column] += b.pace.PerSecond
	}
	most := 1.0
	for _, x := range total {
		most = max(most, x)
	}
	thick := func(p node.Pace) float64 { return max(streamLeast, p.PerSecond/most*streamHigh) }
	// A box is as high as what goes in or out, whichever is more.
	in, out := map[*box]float64{}, map[*box]float64{}
	for _, s := range streams {
		out[s.from] += thick(s.pace)
		in[s.to] += thick(s.pace)
	}
	var high [columns]float64
	for _, b := range t.Boxes {
		b.H = f1(max(boxHigh, in[b]+8, out[b]+8, b.pace.PerSecond/most*streamHigh+8))
		high[b.column] += b.H + boxGap
	}
	for _, h := range high {
		t.Height = max(t.Height, h)
	}
	t.Height += columnsTop
	for c := range columns {
		x := f1(float64(c)*(trafficWidth-boxWidth-2)/(columns-1) + 1)
		t.Heads = append(t.Heads, level{x, columnTitles[c]})
		var mine []*box
		for _, b := range t.Boxes {
			if b.column == c {
				mine = append(mine, b)
			}
		}
		// Routes keep their order, which has a meaning. The others lie where most of
		// what they get comes from.
		if c > routeColumn {
			from := map[*box]float64{}
			for _, s := range streams {
				from[s.to] += (s.from.Y + s.from.H/2) * thick(s.pace) / in[s.to]
			}
			slices.SortStableFunc(mine, func(a, b *box) int { return cmp.Compare(math.Round(from[a]), math.Round(from[b])) })
		}
		y := columnsTop + (t.Height-columnsTop-high[c])/2
		for _, b := range mine {
			b.X, b.Y = x, f1(y)
			y += b.H + boxGap
			b.in, b.out = (b.H-in[b])/2, (b.H-out[b])/2
		}
	}
	// Ribbons leave a box in the order of where they go, so that few cross.
	slices.SortStableFunc(streams, func(a, b stream) int {
		return cmp.Or(cmp.Compare(a.from.column, b.from.column), cmp.Compare(a.to.Y, b.to.Y), cmp.Compare(a.from.Y, b.from.Y))
	})
	for _, s := range streams {
		h := thick(s.pace)
		x1, x2 := s.from.X+boxWidth, s.to.X
		y1, y2 := s.from.Y+s.from.out, s.to.Y+s.to.in
		s.from.out += h
		s.to.in += h
		bend := min(110, (x2-x1)/2)
		t.Ribbons = append(t.Ribbons, ribbon{
			D: fmt.Sprintf("M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1fV%.1fC%.1f %.1f %.1f %.1f %.1f %.1fZ",
				x1, y1, x1+bend, y1, x2-bend, y2, x2, y2, y2+h, x2-bend, y2+h, x1+bend, y1+h, x1, y1+h),
			Class: errorClass(&s.pace), Title: fmt.Sprintf("%s → %s: %s", s.from.Name, s.to.Name, paceWords(&s.pace)),
		})
	}
}

func errorClass(p *node.Pace) string {
	switch {
	case p.PerSecond == 0:
		return "still"
	case p.ErrorsPerSecond >= 0.05*p.PerSecond:
		return "e2"
	case p.ErrorsPerSecond >= 0.001*p.PerSecond:
		return "e1"
	}
	return "e0"
}

// paceWords are a box's second line.
func paceWords(p *node.Pace) string {
	text := rate(p.PerSecond) + "/s"
	if p.PerSecond > 0 {
		text += ", p99 " + millis(p.P99)
		if p.ErrorsPerSecond > 0 {
			text += ", " + share(p) + " bad"
		}
	}
	return text
}
