package health

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// The words of agents are those that HAProxy's agent-check knows (its
// configuration manual, "agent-check"), so that agents that exist go on as they
// are: on one line, between spaces, tabs or commas, in any case.
//
//	ready, drain, maint       the state it wants: the last one said stays
//	up, down, failed, stopped its health; "#" begins a reason, to the line's end
//	75%                       this much of its weight; more than 100 % is 100 %

// Said is one line of an agent, understood.
type Said struct {
	Admin    AgentAdmin
	Health   AgentHealth
	Permille int    // of the weight; -1: nothing was said of it
	Line     string // as it was said, cut
}

// AgentAdmin is the state that an agent wants.
type AgentAdmin uint8

// What an agent may want.
const (
	AgentSilentOnAdmin AgentAdmin = iota
	AgentReady
	AgentDrain
	AgentMaint
)

// AgentHealth is what an agent says of its endpoint's health.
type AgentHealth uint8

// What an agent may say of health.
const (
	AgentSilentOnHealth AgentHealth = iota
	AgentUp
	AgentDown
)

// lineMax bounds what is kept of an agent's line, in octets.
const lineMax = 80

// ParseAgent understands a line of an agent. Words that it does not know are
// passed over, as others do; a line without any that it knows is an error.
func ParseAgent(line string) (*Said, error) {
	line, _, _ = strings.Cut(line, "\n")
	line = strings.TrimSpace(line)
	s := &Said{Permille: -1, Line: printable(line)}
	words, _, _ := strings.Cut(line, "#")
	known := false
	for _, w := range strings.FieldsFunc(words, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' || r == '\r' }) {
		switch strings.ToLower(w) {
		case "ready":
			s.Admin = AgentReady
		case "drain":
			s.Admin = AgentDrain
		case "maint":
			s.Admin = AgentMaint
		case "up":
			s.Health = AgentUp
		case "down", "failed", "fail", "stopped":
			s.Health = AgentDown
		default:
			digits, percent := strings.CutSuffix(w, "%")
			n, err := strconv.ParseUint(digits, 10, 16)
			if !percent || err != nil {
				continue
			}
			s.Permille = int(min(n, 100)) * 10
		}
		known = true
	}
	if !known {
		return nil, fmt.Errorf("no word of an agent in %q", s.Line)
	}
	return s, nil
}

// printable is a line of a peer as it may stand in a log.
func printable(line string) string {
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, line[:min(len(line), lineMax)])
	return line
}

// agent is the axis of an endpoint's agent. What it does not mention stays.
type agent struct {
	drain, maint, down bool
	permille           int // of the weight
	why                string
}

// said brings the agent's axis on.
func (b *Backend) said(e *endpoint, now Instant, s *Said) {
	was, health := e.agent, e.health()
	switch s.Admin {
	case AgentSilentOnAdmin:
	case AgentReady:
		e.agent.drain, e.agent.maint = false, false
	case AgentDrain:
		e.agent.drain, e.agent.maint = true, false
	case AgentMaint:
		e.agent.drain, e.agent.maint = false, true
	}
	switch s.Health {
	case AgentSilentOnHealth:
	case AgentUp:
		e.agent.down = false
	case AgentDown:
		e.agent.down = true
	}
	if s.Permille >= 0 {
		e.agent.permille = s.Permille
	}
	e.agent.why = s.Line
	is := e.agent
	is.why = was.why
	if is == was {
		return
	}
	state := fmt.Sprintf("%d%%", e.agent.permille/10)
	switch {
	case e.agent.down:
		state = ledger.Down.String()
	case e.agent.maint:
		state = ledger.Maintenance.String()
	case e.agent.drain:
		state = ledger.Draining.String()
	}
	if e.health() != health {
		e.since = now
	}
	b.tell(e, AgentOrder, state, fmt.Sprintf("its agent says %q", s.Line), 0)
}
