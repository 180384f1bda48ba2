package main

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/holdfast-lb/holdfast/internal/demo"
)

// hostsPicture is what a terminal shows of the demo. Update and View are its only
// writers.
type hostsPicture struct {
	d             *hostsDemo
	ctx           context.Context
	before, now   demo.Figures
	seconds       float64 // between them
	at            time.Time
	worst         time.Duration // the longest round trip of the last ten seconds
	recent        []time.Duration
	width, height int
	err           error
}

// hostsEvery is the time between two looks.
const hostsEvery = 250 * time.Millisecond

type (
	hostsTick  struct{}
	hostsMoved struct{}
)

// picture shows the demo until q, or until its time is over.
func (d *hostsDemo) picture() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	m := &hostsPicture{d: d, ctx: ctx, at: time.Now(), width: 100, height: 30}
	m.now = d.traffic.Look()
	if _, err := tea.NewProgram(m).Run(); err != nil {
		return err
	}
	stop() // a move that is under way is aborted, or ends
	for deadline := time.Now().Add(interruptedMax); time.Now().Before(deadline); time.Sleep(waitPoll) {
		d.mu.Lock()
		busy := d.moving != ""
		d.mu.Unlock()
		if !busy {
			break
		}
	}
	fmt.Println(strings.Join(m.page(), "\n"))
	return m.err
}

func (m *hostsPicture) tick() tea.Cmd {
	return tea.Tick(hostsEvery, func(time.Time) tea.Msg { return hostsTick{} })
}

// Init is of [tea.Model].
func (m *hostsPicture) Init() tea.Cmd { return m.tick() }

// Update is of [tea.Model].
func (m *hostsPicture) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case hostsTick:
		m.look()
		if d := m.d.duration; d > 0 && time.Since(m.d.began) > d {
			return m, tea.Quit
		}
		return m, m.tick()
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		case "m":
			return m, func() tea.Msg { _ = m.d.move(m.ctx); return hostsMoved{} } // what went wrong is shown
		case "e":
			return m, func() tea.Msg { _ = m.d.evacuate(m.ctx); return hostsMoved{} }
		}
	}
	return m, nil
}

// look takes the figures of a moment. Rates are of a second at least, so that they can
// be read.
func (m *hostsPicture) look() {
	m.err = m.d.look()
	f := m.d.traffic.Look()
	m.recent = append(m.recent, f.Max)
	if most := int(10 * time.Second / hostsEvery); len(m.recent) > most {
		m.recent = m.recent[len(m.recent)-most:]
	}
	m.worst = 0
	for _, x := range m.recent {
		m.worst = max(m.worst, x)
	}
	if passed := time.Since(m.at); passed >= time.Second {
		m.before, m.now, m.seconds, m.at = m.now, f, passed.Seconds(), time.Now()
	}
	m.now.Lost, m.now.Wrong, m.now.Open = f.Lost, f.Wrong, f.Open
}

// View is of [tea.Model].
func (m *hostsPicture) View() tea.View {
	lines := m.page()
	for i, line := range lines {
		if r := []rune(line); len(r) > m.width {
			line = string(r[:max(0, m.width)])
		}
		lines[i] = m.paint(line)
	}
	v := tea.NewView(strings.Join(lines[:min(len(lines), max(1, m.height))], "\n"))
	v.AltScreen = true
	return v
}

// paint colours a line by what it says: colour adds nothing that words do not.
func (m *hostsPicture) paint(line string) string {
	switch {
	case strings.HasPrefix(line, "holdfast demo"):
		return topBold.Render(line)
	case strings.HasPrefix(line, "  lost 0   wrong octets 0"):
		return topGood.Render(line)
	case strings.HasPrefix(line, "  lost "), strings.HasPrefix(line, "  no answer"):
		return topBad.Render(line)
	case strings.HasPrefix(line, "  m "):
		return topDim.Render(line)
	}
	return line
}

// hostCells is how wide a host is drawn.
const hostCells = 38

// page is the picture, as plain lines.
func (m *hostsPicture) page() []string {
	d := m.d
	rate := func(now, before uint64) float64 {
		if m.seconds == 0 {
			return 0
		}
		return float64(now-before) / m.seconds
	}
	out := []string{
		fmt.Sprintf("holdfast demo --hosts   %s   a load balancer walks from host to host with its connections", short(time.Since(d.began).Round(time.Second))),
		"",
		fmt.Sprintf("  client 10.9.0.9    %s to %s:%s, and short ones   %.0f round trips/s   %s/s checked",
			count(m.now.Open, "long flow"), hostsAddr, hostsPort, rate(m.now.RoundTrips, m.before.RoundTrips), size(rate(m.now.Octets, m.before.Octets))),
		"        |",
		"  ------+" + strings.Repeat("-", hostCells/2) + "+" + strings.Repeat("-", hostCells+2) + "+---------- br0",
		"        " + strings.Repeat(" ", hostCells/2+1-1) + " |" + strings.Repeat(" ", hostCells+2) + "|",
	}
	var boxes [][]string
	for _, n := range d.nodes {
		boxes = append(boxes, n.box())
	}
	for i := range boxes[0] {
		line := "  "
		for _, box := range boxes {
			line += "  " + box[i]
		}
		out = append(out, line)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out = append(out, "",
		fmt.Sprintf("  lost %d   wrong octets %d   moves %d of %s   longest round trip of the last 10 s %s", m.now.Lost, m.now.Wrong, d.moves, count(d.moved, "flow"), short(m.worst)))
	switch p := &d.step; {
	case d.moving != "" && p.Phase == "flows" && p.FlowsTotal > 0:
		out = append(out, "  "+d.moving+"   "+strings.TrimSuffix(flowsLine(p), "  Ctrl-C aborts"))
	case d.moving != "":
		out = append(out, "  "+d.moving+"   "+p.Phase+": "+p.Text)
	default:
		out = append(out, "  "+d.last)
	}
	if m.err != nil {
		text, _, _ := strings.Cut(m.err.Error(), "\n")
		out = append(out, "  no answer: "+text)
	}
	return append(out, "", "  m moves shop to the other host and back   e evacuates its host, and lets it return   q ends")
}

// box draws a host.
func (n *hostsNode) box() []string {
	s, rates := n.seen()
	v := n.vip(&s)
	badge := ""
	switch v.State {
	case "owned":
		badge = "[" + hostsVIP + " " + hostsAddr + "]"
	case "moving":
		badge = "[" + hostsVIP + " " + hostsAddr + "] -> " + v.To
	case "guest":
		badge = "(" + hostsVIP + " has gone)"
		if v.To == n.name {
			badge = "(" + hostsVIP + " is coming)"
		}
	case "silent":
		badge = hostsVIP + " silent: " + v.Why
	}
	server := fmt.Sprintf("server %s", n.server)
	for _, e := range s.Endpoints {
		if strings.HasSuffix(e.Name, "/"+n.server) {
			server += fmt.Sprintf("   %s from here", count(int(e.InUse), "flow"))
		}
	}
	title := n.name + " " + n.host.Addr.String()
	if n.evacuated() {
		title += ", evacuated"
	}
	inner := []string{badge, fmt.Sprintf("flows %9s", thousands(s.Flows)), flowBar(s.Flows), fmt.Sprintf("in %10s/s   out %10s/s", size(rates[0]), size(rates[1])), server}
	out := []string{"+- " + title + " " + strings.Repeat("-", max(0, hostCells-5-utf8.RuneCountInString(title))) + "+"}
	for _, line := range inner {
		if r := []rune(line); len(r) > hostCells-4 {
			line = string(r[:hostCells-4])
		}
		out = append(out, "| "+line+strings.Repeat(" ", hostCells-4-utf8.RuneCountInString(line))+" |")
	}
	return append(out, "+"+strings.Repeat("-", hostCells-2)+"+")
}

// flowBar draws flows, eight to a cell.
func flowBar(flows int) string {
	return strings.Repeat("#", min(hostCells-4, (flows+7)/8))
}
