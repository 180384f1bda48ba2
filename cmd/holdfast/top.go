package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// endless is the height of a page that is no screen.
const endless = 1 << 20

// topFlows is how many of the oldest flows `top` asks for.
const topFlows = 200

func topCommand() *cobra.Command {
	var once bool
	var every time.Duration
	x := &cobra.Command{
		Use:   "top",
		Short: "Watch the running holdfast: listeners, backends, endpoints, flows",
		Long: "Shows rates, states and the oldest flows, once a second. Keys: tab or right and left for the next\n" +
			"and the last view, s and r for what a view is sorted by, up and down to scroll, ? for help, q to end.\n" +
			"With --once, or where there is no terminal, it prints one page of plain text and ends.",
		Args: wants(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return &exit{exitUsage, errors.New("top: --every is at least 100ms")}
			}
			client, err := newClient(c)
			if err != nil {
				return err
			}
			if client.json {
				return &exit{exitUsage, errors.New("top: is for eyes; --json is with status, endpoint list and flows")}
			}
			first, err := client.within(10 * time.Second).look()
			if err != nil {
				return err
			}
			m := &topModel{client: client, every: every, now: first, width: 160, height: endless}
			if once || !sock.IsTerminal(os.Stdout) {
				// Rates need two looks.
				time.Sleep(every)
				next, err := client.look()
				if err != nil {
					return err
				}
				m.take(next)
				fmt.Println(strings.Join(m.page(), "\n"))
				return nil
			}
			if _, err := tea.NewProgram(m).Run(); err != nil {
				return &exit{exitFailed, err}
			}
			return nil
		},
	}
	x.Flags().BoolVar(&once, "once", false, "print one page of plain text and end")
	x.Flags().DurationVar(&every, "every", time.Second, "the time between two looks")
	return x
}

// look is all that `top` shows at one instant.
type look struct {
	at                             time.Time
	status                         *node.Status
	endpoints                      []node.EndpointState
	flows                          []node.FlowStatus // the oldest
	listeners, backends, byAddress map[string]*counts
}

// look asks for everything once.
func (c *client) look() (*look, error) {
	l := &look{}
	s, err := c.status()
	if err != nil {
		return nil, err
	}
	l.status = s
	if l.endpoints, err = c.endpoints(); err != nil {
		return nil, err
	}
	if l.flows, err = c.flows((&flowsFlags{max: topFlows}).request()); err != nil {
		return nil, err
	}
	m, err := c.scrape()
	if err != nil {
		return nil, err
	}
	l.listeners, l.backends, l.byAddress = countsOf(m)
	l.at = time.Now()
	return l, nil
}

// The views of `top`.
type topView uint8

const (
	overview topView = iota
	listenerView
	backendView
	endpointView
	flowView
	topViews
)

var topViewWords = [topViews]string{"overview", "listeners", "backends", "endpoints", "flows"}

// topSorts are what the rows of a view can be sorted by: heads of columns; the
// first is what they are sorted by at first, "" as they come.
var topSorts = [topViews][]string{
	overview:     {""},
	listenerView: {"LISTENER", "CONNECTIONS", "REQ/S", "5XX/S", "OUT/S"},
	backendView:  {"BACKEND", "IN FLIGHT", "QUEUED", "REQ/S", "5XX/S"},
	endpointView: {"ENDPOINT", "STATE", "IN FLIGHT", "LATENCY", "REQ/S", "FAILED"},
	flowView:     {"", "IN", "OUT", "UNSENT", "REQUESTS", "MOVED", "CLIENT", "ENDPOINT", "STATE"},
}

// topModel is what `top` shows and how. Update and View are its only writers.
type topModel struct {
	client *client
	every  time.Duration

	before, now   *look
	err           error // of the last look
	view          topView
	sort          [topViews]int
	reverse       [topViews]bool
	from          int // rows that are scrolled away
	width, height int
	colour        bool
	help          bool // shown instead of a view
}

// topLook is a look that has come, or why none has.
type topLook struct {
	look *look
	err  error
}

type topTick struct{}

func (m *topModel) tick() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg { return topTick{} })
}

// Init is of [tea.Model].
func (m *topModel) Init() tea.Cmd { m.colour = true; return m.tick() }

// Update is of [tea.Model].
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case topTick:
		return m, func() tea.Msg {
			l, err := m.client.look()
			return topLook{l, err}
		}
	case topLook:
		if m.err = msg.err; msg.err == nil {
			m.take(msg.look)
		}
		return m, m.tick()
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

func (m *topModel) take(l *look) { m.before, m.now = m.now, l }

// key does what a key means.
func (m *topModel) key(name string) tea.Cmd {
	if m.help && name != "q" && name != "ctrl+c" { // any other key ends the help
		m.help = false
		return nil
	}
	switch name {
	case "q", "esc", "ctrl+c":
		return tea.Quit
	case "tab", "right", "l":
		m.view, m.from = (m.view+1)%topViews, 0
	case "shift+tab", "left", "h":
		m.view, m.from = (m.view+topViews-1)%topViews, 0
	case "1", "2", "3", "4", "5":
		m.view, m.from = topView(name[0]-'1'), 0
	case "?":
		m.help = !m.help
	case "s":
		m.sort[m.view] = (m.sort[m.view] + 1) % len(topSorts[m.view])
	case "r":
		m.reverse[m.view] = !m.reverse[m.view]
	case "down", "j":
		m.from++
	case "up", "k":
		m.from = max(0, m.from-1)
	case "pgdown", "space":
		m.from += max(1, m.height/2)
	case "pgup":
		m.from = max(0, m.from-max(1, m.height/2))
	case "home", "g":
		m.from = 0
	}
	return nil
}

var (
	topBold = lipgloss.NewStyle().Bold(true)
	topDim  = lipgloss.NewStyle().Faint(true)
	topGood = lipgloss.NewStyle().Foreground(lipgloss.Green)
	topBad  = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red)
	topOdd  = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
)

// View is of [tea.Model].
func (m *topModel) View() tea.View {
	lines := m.page()
	for i, line := range lines {
		if r := []rune(line); len(r) > m.width {
			line = string(r[:max(0, m.width)])
		}
		lines[i] = m.paint(i, line)
	}
	v := tea.NewView(strings.Join(lines[:min(len(lines), max(1, m.height))], "\n"))
	v.AltScreen = true
	return v
}

// paint colours a line by what it says: colour adds nothing that words do not.
func (m *topModel) paint(i int, line string) string {
	switch {
	case i == 0:
		return topBold.Render(line)
	case strings.HasPrefix(line, "promises") && m.kept():
		return topGood.Render(line)
	case strings.HasPrefix(line, "promises"), strings.HasPrefix(line, "no answer"):
		return topBad.Render(line)
	case i == 3 || head(line):
		return topDim.Render(line)
	}
	for _, word := range []string{" down", " ejected"} {
		if strings.Contains(line, word) {
			return topBad.Render(line)
		}
	}
	for _, word := range []string{" quiescing", " held", " maintenance", " checking", " draining"} {
		if strings.Contains(line, word) {
			return topOdd.Render(line)
		}
	}
	return line
}

// head tells whether a line is that of a table.
func head(line string) bool {
	word, _, _ := strings.Cut(line, " ")
	switch word {
	case "LISTENER", "BACKEND", "ENDPOINT", "FLOW":
		return true
	}
	return false
}

// kept tells whether the promises are kept.
func (m *topModel) kept() bool { return m.now.status.Lost == 0 && m.now.status.ResetByMove == 0 }

// page is what is shown, as plain lines.
func (m *topModel) page() []string {
	s, l := m.now.status, m.now
	seconds, before := 0.0, m.before
	if before != nil {
		seconds = l.at.Sub(before.at).Seconds()
	}
	// Counts of another process's predecessor that is gone are no rate.
	if before == nil || seconds <= 0 || s.Accepted < before.status.Accepted {
		before, seconds = l, 1
	}
	listeners := ratesOf(before.listeners, l.listeners, seconds)
	backends := ratesOf(before.backends, l.backends, seconds)
	endpoints := ratesOf(before.byAddress, l.byAddress, seconds)
	var all rate
	for _, r := range listeners {
		all.requests += r.requests
		all.errors += r.errors
	}
	out := []string{
		fmt.Sprintf("holdfast top   %s   generation %d   release %s   pid %d   up %s",
			nodeWords(s.Node), s.Generation, s.Release, s.PID, short(secondsOf(s.UpSeconds))),
		fmt.Sprintf("flows %s   accepted %s/s   requests %s/s   errors %s/s   in %s/s   out %s/s   loops %v",
			thousands(s.Flows), perSecond(float64(s.Accepted-before.status.Accepted)/seconds), perSecond(all.requests), perSecond(all.errors),
			size(float64(s.FromClients-before.status.FromClients)/seconds), size(float64(s.FromBackends-before.status.FromBackends)/seconds), s.Loops),
		fmt.Sprintf("promises   lost %d   reset by a move %d   moves %s", s.Lost, s.ResetByMove, movesText(s)),
	}
	if s.Upgrading != nil {
		out = append(out, "upgrade    "+underWay(s.Upgrading))
	}
	for i := range s.Residue {
		out = append(out, "residue    "+residueLine(&s.Residue[i]))
	}
	for _, line := range hostLines(s) {
		out = append(out, fmt.Sprintf("%-10s %s", line[0], line[1]))
	}
	if m.colour {
		var tabs []string
		for v, word := range topViewWords {
			if topView(v) == m.view {
				word = "[" + word + "]"
			}
			tabs = append(tabs, word)
		}
		hint := "? help   tab views   s sort   r reverse   q end"
		if sort := topSorts[m.view][m.sort[m.view]]; sort != "" {
			hint = "sorted by " + strings.ToLower(sort) + "   " + hint
		}
		out = append(out, strings.Join(tabs, "  ")+"      "+hint)
	}
	if m.err != nil {
		text, _, _ := strings.Cut(m.err.Error(), "\n")
		out = append(out, "no answer: "+text+"; figures are "+short(time.Since(l.at))+" old")
	}
	out = append(out, "")
	if m.help {
		return append(out, topHelp...)
	}

	show := []topView{m.view}
	if m.view == overview {
		show = []topView{listenerView, backendView, endpointView, flowView}
	}
	for i, view := range show {
		var t *table
		switch view {
		case listenerView:
			t = listenerTable(l, listeners)
		case backendView:
			t = backendTable(s, l.endpoints, backends)
		case endpointView:
			t = endpointTable(l.endpoints, endpoints)
		case flowView:
			t = flowTable(l.flows)
		default:
			panic(fmt.Sprintf("top: view %d", view))
		}
		if len(t.rows) == 0 {
			continue
		}
		if m.view == overview {
			// Each gets a part of what is left, the flows all of it.
			left := m.height - len(out) - 2
			if m.height == endless {
				left = rowsMax
			} else if i < len(show)-1 {
				left = max(4, left/2)
			}
			if view == endpointView && left < len(l.endpoints) {
				t = endpointTable(slices.SortedStableFunc(slices.Values(l.endpoints), worse), endpoints)
			}
			m.fit(t)
			out = append(out, cut(t, 0, max(1, left))...)
			out = append(out, "")
			continue
		}
		t.sortBy(topSorts[view][m.sort[view]], m.reverse[view])
		m.fit(t)
		m.from = min(m.from, max(0, len(t.rows)-1))
		out = append(out, cut(t, m.from, max(1, m.height-len(out)-2))...)
	}
	for len(out) > 0 && out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	return out
}

// topHelp is what ? shows.
var topHelp = []string{
	"tab, right, l     the next view           1 ... 5   overview, listeners, backends, endpoints, flows",
	"shift+tab, left   the last view           s         the next column to sort by",
	"down, j, up, k    scroll                  r         the other way round",
	"space, pgdown     a page down; pgup up    home, g   to the first row",
	"?                 this help               q, esc    end",
	"",
	"REQ/S, 4XX/S, 5XX/S, IN/S, OUT/S   what ended in the last second",
	"P99                                99 of 100 requests of the last second took no longer than this",
	"TRIES, FAILED                      attempts that have shown whether it works, and that it does not",
	"LATENCY                            what answers take: the slowest, fading within seconds",
	"WEIGHT                             the share that counts now, of the file or endpoint weight",
	"SINCE, WHY                         for how long it is in this state, and what its check or agent said",
	"",
	"On a narrow screen less important columns are left out; endpoint list and flows show all.",
	"any key goes back",
}

// topDrops are columns by how soon they are left out where there is no room:
// why an endpoint does not serve is read, what it ever tried is not.
var topDrops = []string{
	"TRIES", "ADDRESS", "LOOP", "UNSENT", "WEIGHT", "FAILED", "4XX/S", "REQUESTS", "LATENCY", "LISTENER", "IN/S", "MOVED", "QUEUED", "5XX/S", "OUT/S", "IN", "REQ/S",
}

// whyRoom is what is left at least for text that stands last in a line.
const whyRoom = 32

// fit leaves out columns until the lines of t fit on the screen.
func (m *topModel) fit(t *table) {
	if m.height == endless {
		return
	}
	for _, head := range topDrops {
		if t.width(whyRoom) <= m.width {
			return
		}
		t.drop(head)
	}
}

// width is that of the lines, where the last column counts for most at the most.
func (t *table) width(most int) int {
	total := 0
	for i := range t.head {
		column := utf8.RuneCountInString(strings.TrimPrefix(t.head[i], ">"))
		for _, row := range t.rows {
			column = max(column, utf8.RuneCountInString(row[i]))
		}
		if i == len(t.head)-1 {
			column = min(column, most)
		}
		total += column + 2
	}
	return total - 2
}

// drop leaves out the column of that head, but never the first.
func (t *table) drop(head string) {
	i := slices.IndexFunc(t.head, func(h string) bool { return strings.TrimPrefix(h, ">") == head })
	if i <= 0 {
		return
	}
	t.head = slices.Delete(slices.Clone(t.head), i, i+1)
	for k, row := range t.rows {
		t.rows[k] = slices.Delete(slices.Clone(row), i, i+1)
	}
}

// cut gives at most so many rows of t, and says what is left out.
func cut(t *table, from, most int) []string {
	lines := t.lines()
	rows := lines[1+from:]
	left := len(rows) - most
	if left > 0 {
		rows = append(slices.Clone(rows[:most]), fmt.Sprintf("... and %s more", thousands(left)))
	}
	return append(lines[:1:1], rows...)
}

func listenerTable(l *look, rates map[string]rate) *table {
	t := &table{head: []string{"LISTENER", "VIP", ">CONNECTIONS", ">REQ/S", ">4XX/S", ">5XX/S", ">P99", ">IN/S", ">OUT/S"}}
	for _, x := range l.status.Listeners {
		r := rates[x.Name]
		t.add(x.Name, x.VIP, thousands(x.Connections), perSecond(r.requests), perSecond(r.refused), perSecond(r.errors),
			quantileText(r.p99), size(r.in), size(r.out))
	}
	return t
}

// sortBy sorts the rows by the column of that head; numbers with the largest
// first. "" leaves them as they are.
func (t *table) sortBy(head string, reverse bool) {
	column := slices.IndexFunc(t.head, func(h string) bool { return strings.TrimPrefix(h, ">") == head })
	if column >= 0 {
		right := strings.HasPrefix(t.head[column], ">")
		slices.SortStableFunc(t.rows, func(a, b []string) int {
			if right {
				return cmp.Compare(number(b[column]), number(a[column]))
			}
			return cmp.Compare(a[column], b[column])
		})
	}
	if reverse {
		slices.Reverse(t.rows)
	}
}

// units are those of cells that are numbers.
var units = map[string]float64{
	"us": 1e-6, "ms": 1e-3, "s": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// number is what a cell such as 1,204 or 3.1 MiB or 6x says.
func number(cell string) float64 {
	text, unit, _ := strings.Cut(strings.ReplaceAll(cell, ",", ""), " ")
	var n float64
	if _, err := fmt.Sscanf(text, "%g", &n); err != nil {
		return -1
	}
	if k, ok := units[unit]; ok {
		n *= k
	}
	return n
}
