// Package page draws a running node as HTML and SVG: what [node.Node.Look] and
// [node.Node.History] tell, and nothing else. It asks nobody, keeps nothing, and
// gives the same page for the same snapshot.
package page

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// SecurityPolicy is the Content-Security-Policy of all pages: nothing is loaded from
// elsewhere, and what a name might smuggle into a page does not run.
const SecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

// FlowsMax is how many flows the page of flows lists, endpointsMax how many
// endpoints the overview does: those first that do not serve.
const (
	FlowsMax     = 100
	endpointsMax = 200
)

// View is one of the pages.
type View string

// The views; each is its own path, but for the first, which is "/".
const (
	Overview View = "overview"
	Traffic  View = "traffic"
	Flows    View = "flows"
	Changes  View = "changes"
	Cluster  View = "cluster"
)

// Views are all of them, in their order.
var Views = []View{Overview, Traffic, Flows, Changes, Cluster}

// Path is where v is served.
func (v View) Path() string {
	if v == Overview {
		return "/"
	}
	return "/" + string(v)
}

// Title is what v is called.
func (v View) Title() string { return strings.ToUpper(string(v[:1])) + string(v[1:]) }

// Snapshot is all that a page is made of.
type Snapshot struct {
	View    View
	Look    *node.Look
	History []node.Moment
	Flows   []node.FlowStatus // of the view Flows
	Changes *node.Changes     // of the view Changes
	// Query is what the view was asked for; Trouble says what is wrong with it.
	Query   url.Values
	Trouble string
	// Clients: addresses of clients are shown, to whoever sees the page.
	Clients bool
}

//go:embed page.html page.css page.js
var files embed.FS

// stamp changes with the files, so that a browser keeps none of another release.
var stamp = func() string {
	h := sha256.New()
	for _, name := range []string{"page.css", "page.js"} {
		text, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		h.Write(text)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}()

// Asset gives a file that pages name, and its type.
func Asset(name string) (text []byte, kind string, ok bool) {
	kind, ok = map[string]string{"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}[name]
	if !ok {
		return nil, "", false
	}
	text, err := files.ReadFile(name)
	return text, kind, err == nil
}

var pages = template.Must(template.New("page.html").Funcs(template.FuncMap{
	"count": func(n any) string { return thousands(n) }, "ago": ago, "millis": millis, "rate": rate, "share": share, "octets": octets, "plus1": func(i int) int { return i + 1 },
	"when": when, "clock": clock, "impact": impact, "lines": lines,
}).ParseFS(files, "page.html"))

// Page writes the whole document.
func Page(w io.Writer, s *Snapshot) error { return pages.ExecuteTemplate(w, "page", view{s}) }

// Live writes the part of the document that changes.
func Live(w io.Writer, s *Snapshot) error { return pages.ExecuteTemplate(w, "live", view{s}) }

// view is what the templates see.
type view struct{ *Snapshot }

// Stamp is of the files.
func (v view) Stamp() string { return stamp }

// Views are the pages there are. That of the cluster is there where there is one.
func (v view) Views() []View {
	if len(v.Look.Cluster.Nodes) == 0 && v.View != Cluster {
		return Views[:len(Views)-1]
	}
	return Views
}

// Events is where the live part comes from.
func (v view) Events() string {
	q := url.Values{}
	for name, values := range v.Query {
		q[name] = values
	}
	q.Set("view", string(v.View))
	return "/events?" + q.Encode()
}

// term is a number of the sum that must balance.
type term struct {
	Sign  string // before it
	Word  string
	Count int64
}

// Sum is the proof strip: what came, and what became of it.
func (v view) Sum() []term {
	b := &v.Look.Balance
	client, server, policy, broken := b.Parties()
	out := []term{{"", "accepted", int64(b.Accepted)}}
	add := func(sign, word string, k int64, always bool) {
		if always || k != 0 {
			out = append(out, term{sign, word, k})
		}
	}
	add("+", "from other hosts", int64(b.Arrived), false)
	add("=", "ended by client", int64(client), true)
	add("+", "by server", int64(server), true)
	add("+", "by policy", int64(policy), true)
	add("+", "refused at once", int64(b.Refused), false)
	add("+", "to other hosts", int64(b.Left), false)
	add("+", "left with the old process", int64(b.Stayed), false)
	add("+", "open", b.Open, true)
	if b.Holds {
		add("+", "in passing", b.Passing, false)
	}
	add("+", "lost", int64(broken+b.LostMoving), true)
	return out
}

// Verdict says whether the sum balances, Mood how that is painted.
func (v view) Verdict() string {
	b := &v.Look.Balance
	switch {
	case b.LostInAll() > 0:
		return thousands(b.LostInAll()) + " lost"
	case b.Holds:
		return "balances"
	case b.Moving:
		return thousands(b.Passing) + " on the way"
	}
	return "off by " + thousands(b.Passing)
}

// Mood is a class: "", odd or bad.
func (v view) Mood() string {
	b := &v.Look.Balance
	switch {
	case b.LostInAll() > 0, !b.Holds && !b.Moving:
		return "bad"
	case !b.Holds:
		return "odd"
	}
	return ""
}

// Lost is the number that is to be 0.
func (v view) Lost() uint64 { return v.Look.Balance.LostInAll() }

// Moves says how flows have moved, by distance.
func (v view) Moves() []term {
	var out []term
	b := &v.Look.Balance
	for _, x := range []struct{ distance, word string }{{"config", "reload"}, {"loop", "rebalance"}, {"process", "upgrade"}, {"host", "move"}} {
		if k := b.Moves[x.distance]; k > 0 {
			word := x.word
			if k > 1 {
				word += "s"
			}
			if x.distance == "host" {
				word += " to another host"
			}
			out = append(out, term{thousands(b.MovedFlows[x.distance]), word, int64(k)})
		}
	}
	return out
}

// UpgradeMood is how the last upgrade is painted.
func (v view) UpgradeMood() string {
	switch v.Look.LastUpgrade.Result {
	case "done":
		return ""
	case "aborted":
		return "odd"
	}
	return "bad"
}

// UpgradeWords says what the last upgrade has done.
func (v view) UpgradeWords() string {
	u := v.Look.LastUpgrade
	if u.Move == nil {
		return ""
	}
	text := fmt.Sprintf("%s connections moved, %s lost, longest pause %s", thousands(u.Move.Flows), thousands(u.Move.Lost), millis(time.Duration(u.Move.Pause.Max*1e3)))
	if u.Move.To != "" && u.Move.To != u.Move.From {
		text += fmt.Sprintf("; release %s to %s", u.Move.From, u.Move.To)
	}
	return text
}

// Balance is where to read of the sum.
func (v view) Balance() *node.Balance { return &v.Look.Balance }

// row is one line of a table.
type row struct {
	Name, Link, Where string
	Pace              *node.Pace
	Connections       int64
	Serving, All      int
	Queued            int
	Endpoint          *node.EndpointState
	Mood              string
	Why               string
}

func (v view) pace(p node.Path) *node.Pace {
	if v.Look.Paces == nil {
		return nil
	}
	x := v.Look.Paces[p]
	return &x
}

// Listeners are the rows of listeners.
func (v view) Listeners() []row {
	var out []row
	for _, l := range v.Look.Config.SortedListeners() {
		out = append(out, row{
			Name: l.Ref.Name, Link: link(Flows, "listener", l.Ref.Name), Where: l.Protocol.String() + " " + l.VIP.String(),
			Connections: v.Look.Connected[l.Ref.Name], Pace: v.pace(node.Path{Listener: l.Ref.Name, Route: node.AnyRoute}),
		})
	}
	return out
}

// Backends are the rows of backends.
func (v view) Backends() []row {
	var out []row
	for _, b := range v.Look.Config.SortedBackends() {
		r := row{Name: b.Ref.Name, Link: link(Traffic, "backend", b.Ref.Name), Queued: v.Look.Queued[b.Ref.Name], Pace: v.pace(node.Path{Route: node.AnyRoute, Backend: b.Ref.Name})}
		for i := range v.Look.Endpoints {
			if e := &v.Look.Endpoints[i]; e.Backend == b.Ref.Name {
				r.All++
				r.Connections += e.InFlight
				if e.Serves {
					r.Serving++
				}
			}
		}
		if r.Mood = "odd"; r.Serving == r.All {
			r.Mood = ""
		} else if r.Serving == 0 {
			r.Mood = "bad"
		}
		out = append(out, r)
	}
	return out
}

// Endpoints are the rows of endpoints; of many, those first that do not serve.
func (v view) Endpoints() []row {
	var out []row
	for i := range v.Look.Endpoints {
		e := &v.Look.Endpoints[i]
		out = append(out, row{
			Name: e.Name, Link: link(Flows, "endpoint", e.Name), Where: e.Address, Endpoint: e, Connections: e.InFlight, Mood: mood(e), Why: why(e),
			Pace: v.pace(node.Path{Route: node.AnyRoute, Backend: e.Backend, Endpoint: strings.TrimPrefix(e.Name, e.Backend+"/")}),
		})
	}
	if len(out) > endpointsMax {
		slices.SortStableFunc(out, func(a, b row) int { return cmp.Compare(rank(a.Endpoint), rank(b.Endpoint)) })
		out = out[:endpointsMax]
	}
	return out
}

// MoreEndpoints is how many are not listed.
func (v view) MoreEndpoints() int { return max(0, len(v.Look.Endpoints)-endpointsMax) }

func rank(e *node.EndpointState) int {
	if e.Serves {
		return 1
	}
	return 0
}

// mood is how an endpoint is painted: what was meant is odd, what was not is bad.
func mood(e *node.EndpointState) string {
	switch {
	case e.Health == "down" || e.Ejected:
		return "bad"
	case !e.Serves || e.EffectiveWeight == 0:
		return "odd"
	}
	return ""
}

func why(e *node.EndpointState) string {
	out := []string{ago(e.SinceSeconds)}
	if e.Backup {
		out = append(out, "backup")
	}
	if e.State != e.Health && (e.Health == "down" || e.Health == "checking") {
		out = append(out, e.Health)
	}
	if e.EjectedSeconds > 0 {
		out = append(out, "ejected for "+ago(e.EjectedSeconds))
	}
	if e.ReadySeconds > 0 {
		out = append(out, "ready in "+ago(e.ReadySeconds))
	}
	if e.Agent != "" {
		out = append(out, "agent: "+e.Agent)
	}
	if e.Why != "" && e.Health != "up" && e.Health != "unknown" {
		out = append(out, e.Why)
	}
	return strings.Join(out, ", ")
}

// Weight is what counts, and what it was made from if that is another.
func (r row) Weight() string {
	if r.Endpoint.EffectiveWeight != float64(r.Endpoint.Weight) {
		return fmt.Sprintf("%.3g of %d", r.Endpoint.EffectiveWeight, r.Endpoint.Weight)
	}
	return strconv.Itoa(r.Endpoint.Weight)
}

func link(to View, name, value string) string {
	return to.Path() + "?" + url.Values{name: {value}}.Encode()
}

// Of is what a filter is set to.
func (v view) Of(name string) string { return v.Query.Get(name) }

// ListenerNames and BackendNames are what one can choose from.
func (v view) ListenerNames() (names []string) {
	for _, l := range v.Look.Config.SortedListeners() {
		names = append(names, l.Ref.Name)
	}
	return names
}

// BackendNames is as ListenerNames.
func (v view) BackendNames() (names []string) {
	for _, b := range v.Look.Config.SortedBackends() {
		names = append(names, b.Ref.Name)
	}
	return names
}

// describe says in a few words what a route matches.
func describe(r *config.Route) string {
	m := &r.Match
	text := ""
	if len(m.Hosts) > 0 {
		text = m.Hosts[0]
		if len(m.Hosts) > 1 {
			text += fmt.Sprintf(" +%d", len(m.Hosts)-1)
		}
	}
	switch {
	case m.Exact != "":
		text += m.Exact
	case m.Prefix != "":
		text += m.Prefix + "*"
	case m.Regex != nil:
		text += "~" + m.Regex.String()
	case text == "" && len(m.Methods) > 0:
		text = strings.Join(m.Methods, " ")
	case text == "" && len(m.Headers)+len(m.Query)+len(m.Sources) > 0:
		text = "some"
	case text == "":
		text = "all"
	}
	return text
}

// cut shortens text to at most n runes.
func cut(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return text
}

// thousands writes a whole number in groups of three.
func thousands(n any) string {
	text := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// ago writes seconds as people say them: the two largest units.
func ago(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	units := []struct {
		of   time.Duration
		word string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.of {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.of, u.word)
		if i+1 < len(units) {
			if rest := d % u.of / units[i+1].of; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].word)
			}
		}
		return text
	}
	return fmt.Sprintf("%d ms", max(0, d.Milliseconds()))
}

func millis(d time.Duration) string {
	ms := d.Seconds() * 1000
	switch {
	case d == 0:
		return "–"
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 10000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f s", ms/1000)
}

func rate(perSecond float64) string {
	switch {
	case perSecond == 0:
		return "0"
	case perSecond < 10:
		return fmt.Sprintf("%.1f", perSecond)
	}
	return thousands(int64(perSecond + 0.5))
}

// share is errors of all, in percent.
func share(p *node.Pace) string {
	if p.PerSecond == 0 {
		return "–"
	}
	if p.ErrorsPerSecond == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.2g %%", 100*p.ErrorsPerSecond/p.PerSecond)
}

func octets(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < 3 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGT"[unit])
}
