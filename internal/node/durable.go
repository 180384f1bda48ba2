package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/journal"
)

// Bounds of what a node remembers of generations beside its journal.
const (
	generationsMax = journal.KeepDefault
	// planMax bounds the plan of one generation in the history, in octets.
	planMax = 4 << 10
	// keptMax bounds the states that can be rolled back to without a journal, in
	// octets.
	keptMax = 8 << 20
)

// Why a change is not durable.
const (
	durableYes     = "yes"
	durablePending = "pending"
)

// past generations of this node, the newest last. Its owner's lock guards it.
type generations struct {
	infos []GenerationInfo
	kept  []journal.Entry // states, without a journal
	bytes int
}

// cutPlan bounds a plan for the history.
func cutPlan(plan string) string {
	if len(plan) <= planMax {
		return plan
	}
	cut := strings.LastIndexByte(plan[:planMax], '\n') + 1
	return plan[:cut] + fmt.Sprintf("... and %d lines more\n", strings.Count(plan[cut:], "\n"))
}

// add notes one more.
func (g *generations) add(i GenerationInfo) {
	g.infos = append(g.infos, i)
	if over := len(g.infos) - generationsMax; over > 0 {
		g.infos = slices.Delete(g.infos, 0, over)
	}
}

// keep keeps a state in memory, for a node without a journal.
func (g *generations) keep(e journal.Entry) {
	g.kept = append(g.kept, e)
	g.bytes += len(e.State)
	drop := 0
	for g.bytes > keptMax && drop < len(g.kept)-1 || len(g.kept)-drop > generationsMax {
		g.bytes -= len(g.kept[drop].State)
		drop++
	}
	g.kept = slices.Delete(g.kept, 0, drop)
}

// at is a state that is kept in memory.
func (g *generations) at(number uint64) (journal.Entry, bool) {
	for _, e := range g.kept {
		if e.Generation == number {
			return e, true
		}
	}
	return journal.Entry{}, false
}

// openJournal opens the journal of the state directory and learns its history.
func openJournal(dir string) (*journal.Journal, []GenerationInfo, error) {
	j, err := journal.Open(journal.Options{Dir: dir})
	if err != nil {
		return nil, nil, fmt.Errorf("node: %w", err)
	}
	var infos []GenerationInfo
	for _, h := range j.List(0) {
		var i GenerationInfo
		if json.Unmarshal(h.Meta, &i) == nil {
			i.Generation = h.Generation
			infos = append(infos, i)
		}
	}
	slices.Reverse(infos)
	return j, infos, nil
}

// entry is d as the journal keeps it.
func (d *desired) entry(info GenerationInfo) journal.Entry {
	meta, err := json.Marshal(info)
	if err != nil { // words, numbers and times
		panic(err)
	}
	return journal.Entry{Generation: d.Generation, Meta: meta, State: d.encode()}
}

// write hands d over to the journal. The caller holds swap.
func (s *stateSide) write(d *desired, info GenerationInfo) *journal.Pending {
	e := d.entry(info)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.add(info)
	if s.journal == nil {
		s.history.keep(e)
		return nil
	}
	return s.journal.Append(e)
}

// durable tells whether a generation is.
func (s *stateSide) durable(generation uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durableNow(generation)
}

// durableNow is durable for who holds mu.
func (s *stateSide) durableNow(generation uint64) string {
	if s.journal == nil {
		return "no: " + s.unwritten
	}
	at := s.journal.State()
	switch {
	case at.Durable >= generation:
		return durableYes
	case at.Err != nil:
		return "no: " + at.Err.Error()
	}
	return durablePending
}

// stateAt finds the state of a generation.
func (s *stateSide) stateAt(number uint64) ([]byte, error) {
	s.mu.Lock()
	j := s.journal
	e, ok := s.history.at(number)
	oldest := uint64(0)
	if len(s.history.kept) > 0 {
		oldest = s.history.kept[0].Generation
	}
	s.mu.Unlock()
	if ok {
		return e.State, nil
	}
	if j == nil {
		j = s.awaitJournal()
	}
	if j == nil {
		return nil, fmt.Errorf("node: generation %d is not kept; without a journal (%s) there are those from %d on", number, s.why(), oldest)
	}
	e, err := j.At(number)
	if err != nil {
		return nil, fmt.Errorf("node: generation %d: %w", number, err)
	}
	return e.State, nil
}

// journalWait is how long is waited for a journal that a predecessor may still have.
const journalWait = 3 * time.Second

// awaitJournal waits for a journal that there should be, for a while. The caller
// does not hold swap, so orders do not wait.
func (s *stateSide) awaitJournal() *journal.Journal {
	for end := time.Now().Add(journalWait); ; time.Sleep(changeLook) {
		s.mu.Lock()
		j, dir := s.journal, s.dir
		s.mu.Unlock()
		if j != nil || dir == "" || time.Now().After(end) {
			return j
		}
	}
}

// why tells why there is no journal.
func (s *stateSide) why() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unwritten
}

// Generations gives the history, the newest first; at most limit, 0 is all.
func (n *Node) Generations(limit int) []GenerationInfo {
	s := &n.state
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.history.infos
	if limit > 0 && len(all) > limit {
		all = all[len(all)-limit:]
	}
	out := slices.Clone(all)
	slices.Reverse(out)
	durable := uint64(0)
	if s.journal != nil {
		durable = s.journal.State().Durable
	}
	for i := range out {
		out[i].Durable = out[i].Generation <= durable
		out[i].InForce = out[i].Generation == s.now.Generation
	}
	return out
}

// JournalState tells how the journal fares; false: there is none.
func (n *Node) JournalState() (journal.Status, bool) {
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	if n.state.journal == nil {
		return journal.Status{}, false
	}
	return n.state.journal.State(), true
}

// journalRetry is the time between two tries to open a journal that another
// process has still, or that the disk has refused.
const journalRetry = 250 * time.Millisecond

// closeJournal lets go of the journal, for the process that goes on.
func (s *stateSide) closeJournal(why string) error {
	s.mu.Lock()
	j := s.journal
	s.journal, s.unwritten = nil, why
	s.mu.Unlock()
	if j == nil {
		return nil
	}
	return j.Close()
}

// reopenJournal opens the journal of a process that serves already and writes the
// state in force to it. It does nothing without a directory, or with a journal.
func (n *Node) reopenJournal() error {
	s := &n.state
	if !s.opening.TryLock() {
		return nil
	}
	defer s.opening.Unlock()
	s.mu.Lock()
	open, dir := s.journal != nil, s.dir
	s.mu.Unlock()
	if open || dir == "" {
		return nil
	}
	// The disk may be slow, and what takes effect meanwhile does not wait for it.
	j, infos, err := openJournal(dir)
	if err != nil {
		s.mu.Lock()
		s.unwritten = err.Error()
		s.mu.Unlock()
		return err
	}
	s.swap.Lock()
	defer s.swap.Unlock()
	// In one step: what is in force is not durable for being older than what the
	// journal has.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal, s.unwritten = j, ""
	d := s.now
	// What was changed while it was closed comes after what it has.
	own := s.history.infos
	s.history.infos = infos // states that it does not have are kept
	e, any := j.Last()
	for _, i := range own {
		if !any || i.Generation > e.Generation {
			s.history.add(i)
		}
	}
	switch {
	case !any || d.Generation > e.Generation:
	case bytes.Equal(e.State, d.encode()):
		return nil
	default:
		// It has what another process wrote that was not our predecessor in all: a
		// release that knew no journal was between. Numbers are never used twice.
		next := *d
		next.Generation, next.Kind = max(e.Generation+1, s.least), "start"
		d = &next
		s.now = d
		s.history.add(d.info())
	}
	j.Append(d.entry(d.info()))
	return nil
}

// keepJournal opens the journal that this process should have and has not: a
// predecessor had it, or has come to nothing, or the disk was not there.
func (n *Node) keepJournal() {
	s := &n.state
	s.mu.Lock()
	idle := s.journal != nil || s.dir == ""
	s.mu.Unlock()
	// An heir has not heard all yet: what it would write may be older than what
	// is there.
	if idle || n.handingOver() {
		return
	}
	_ = n.reopenJournal() // why not is told as the reason that nothing is durable
}

// leaveJournal lets go of the journal for a successor, which opens it as soon as
// it can. Nobody waits for the disk.
func (n *Node) leaveJournal() {
	go func() { // ends with the last write
		if err := n.state.closeJournal("the successor has the journal"); err != nil {
			n.log.Error("the last changes are not on the disk; the successor writes them", "error", err)
		}
	}()
}
