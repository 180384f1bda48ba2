package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
	"github.com/holdfast-lb/holdfast/internal/journal"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// begin finds the state that the node begins with: its predecessor's, or what the
// journal and the file say together, or the file's.
func (s *stateSide) begin(o *Options) (*became, error) {
	s.dir = o.State
	by := Author{Name: "start"}
	if len(o.Heritage) > 0 {
		b, err := s.inherit(o.Heritage)
		if err == nil {
			if s.dir != "" {
				s.unwritten = "the predecessor has the journal still"
			}
			return b, nil
		}
		// Another release: what the file says with all edits in it is known, too.
		o.Log.Warn("the predecessor's edits at run time are part of the configuration now: they are not readable", "error", err)
	}
	if s.dir != "" && len(o.Heritage) == 0 && o.Source == nil {
		if err := s.open(o); err != nil {
			return nil, err
		}
	}
	text, err := o.Source, error(nil)
	if text == nil {
		text, err = os.ReadFile(o.File)
	}
	var kept *desired
	if s.journal != nil {
		if e, any := s.journal.Last(); any {
			if !s.journal.State().Ended {
				s.skipNumbers(e.Generation)
			}
			var warnings []string
			if kept, warnings, err = s.keptState(e); err != nil {
				return s.salvage(o, e, err)
			}
			switch back, err := s.unwatched(kept); {
			case err != nil:
				o.Log.Error("a canary that nobody watches any more could not be rolled back, and goes on", "generation", kept.trial.Generation, "error", err)
				kept.trial = nil
			case back != nil:
				o.Log.Warn("a canary is rolled back: the process ended while it was watched", "generation", kept.trial.Generation, "to", kept.trial.Back)
				kept = back
			}
			if text, err = os.ReadFile(o.File); errors.Is(err, os.ErrNotExist) {
				o.Log.Error("the file is gone; the node begins with what was in force last", "file", o.File, "generation", e.Generation)
				return &became{next: kept, same: true, warnings: warnings}, nil
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if kept == nil {
		return first(s.reader, text, by, time.Now())
	}
	if textSum(text) == kept.fileSum {
		return &became{next: kept, same: true}, nil
	}
	b, err := kept.then(s.reader, asked{text: text, file: true, sum: textSum(text), by: by, at: time.Now(), kind: "start"})
	if err != nil {
		if _, _, alone := s.reader.read(text, nil); alone != nil {
			return nil, err // the file is wrong by itself
		}
		o.Log.Error("the file has changed and does not go with what was edited at run time; the node begins with what was in force last", "generation", kept.Generation, "error", err)
		return &became{next: kept, same: true}, nil
	}
	s.tellEdits(o, b)
	if b.same && config.Diff(kept.doc.Config(), b.next.doc.Config()).Empty() {
		b.next.Generation, b.next.By, b.next.At, b.next.Kind = kept.Generation, kept.By, kept.At, kept.Kind
	} else {
		b.next.Generation = s.number(kept.Generation)
	}
	return b, nil
}

// open opens the journal. Without one the node serves all the same, but for a
// journal that another process has, or that is damaged: nobody should find out
// later that what was edited is gone.
func (s *stateSide) open(o *Options) error {
	j, infos, err := openJournal(s.dir)
	var damaged *journal.Damaged
	switch {
	case errors.Is(err, journal.ErrLocked), errors.As(err, &damaged):
		return err
	case err != nil:
		s.unwritten = err.Error()
		o.Log.Warn("changes at run time will not outlast this process", "error", err)
		return nil
	}
	s.journal, s.history.infos = j, infos
	at := j.State()
	if at.Cut != "" {
		o.Log.Warn("the journal ended in the middle of a change, which never was durable", "cut", at.Cut)
	}
	for _, what := range at.Lost {
		o.Log.Warn("a part of the history cannot be read", "lost", what)
	}
	return nil
}

// keptState reads an entry of the journal.
func (s *stateSide) keptState(e journal.Entry) (*desired, []string, error) {
	d, warnings, err := decode(s.reader, e.State, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("node: generation %d of the journal: %w", e.Generation, err)
	}
	d.Generation = e.Generation
	var i GenerationInfo
	if json.Unmarshal(e.Meta, &i) == nil {
		d.By, d.At, d.Kind = i.By, i.At, i.Kind
	}
	return d, warnings, nil
}

// salvage begins with the file and what was edited at run time over it, where an
// entry of the journal cannot be read whole for the reason why: a variable that
// it names is not set any more, or this release is stricter than the one before.
func (s *stateSide) salvage(o *Options, e journal.Entry, why error) (*became, error) {
	why = fmt.Errorf("%w; the file cannot stand in for it, either: mend one of them, or move %s away, which forgets what was edited at run time", why, s.dir)
	p, _, err := decodeHead(e.State)
	if err != nil {
		return nil, why
	}
	text, err := os.ReadFile(o.File)
	if err != nil {
		return nil, errors.Join(why, err)
	}
	b, err := first(s.reader, text, Author{Name: "start"}, time.Now())
	if err != nil {
		return nil, errors.Join(why, err)
	}
	d := b.next
	patches := make([]config.Patch, len(p.Edits))
	d.edited, d.orders = map[place]stamp{}, p.Orders
	for i, x := range p.Edits {
		patches[i], d.edited[placeOf(x.Patch)] = x.Patch, x.stamp
	}
	doc, met, err := d.doc.Rebase(patches)
	if err != nil {
		return nil, errors.Join(why, err)
	}
	d.doc = doc
	for _, m := range met {
		b.edits = append(b.edits, d.driftOf(m))
	}
	d.forget()
	b.edits = append(b.edits, d.keepOrders(doc.Config())...)
	d.Generation = s.number(e.Generation)
	o.Log.Error("the state of the last generation cannot be read any more; the node begins with the file, and what was edited at run time over it", "generation", e.Generation, "error", why)
	s.tellEdits(o, b)
	return b, nil
}

// tellEdits tells the log what became of edits.
func (s *stateSide) tellEdits(o *Options, b *became) {
	for _, x := range b.edits {
		o.Log.Warn("the file has changed; an edit at run time", "object", x.Object, "field", x.Field, "became", x.Became, "file", x.File, "runtime", x.Runtime, "by", x.By.Name)
	}
}

// start makes the state of begin the one in force. last is the generation before,
// of who has no journal.
func (s *stateSide) start(b *became, last uint64) {
	d := b.next
	anew := d.Generation == 0
	if anew {
		d.Generation = last + 1
	}
	s.mu.Lock()
	s.now = d
	written := uint64(0)
	if s.journal != nil {
		if e, any := s.journal.Last(); any {
			written = e.Generation
		}
	}
	has := len(s.history.infos) > 0 && s.history.infos[len(s.history.infos)-1].Generation == d.Generation
	s.mu.Unlock()
	if d.Generation > written && !has {
		info := d.info()
		s.write(d, info)
	}
}

// portableDesired is what a successor goes on with.
type portableDesired struct {
	State []byte `json:"state,omitempty"`
	// Since, if it is not 0, is the generation that the successor was told of before:
	// State is without the text of the file then, for that has not changed, or nil if
	// nothing of it has; History, Kept and Keys are what came after it.
	Since      uint64            `json:"since,omitempty"`
	Generation uint64            `json:"generation"`
	Least      uint64            `json:"least,omitempty"` // the number of the next one
	By         Author            `json:"by"`
	At         time.Time         `json:"at"`
	Kind       string            `json:"kind"`
	History    []GenerationInfo  `json:"history,omitempty"`
	Kept       []journal.Entry   `json:"kept,omitempty"`
	Settled    string            `json:"settled,omitempty"`
	Canary     *canary           `json:"canary,omitempty"`
	Shifts     []*shift          `json:"shifts,omitempty"`
	Keys       map[string]*keyed `json:"keys,omitempty"`
	KeyOrder   []string          `json:"key_order,omitempty"`
	LastEvent  uint64            `json:"last_event"`
}

// What a successor is told at most: entries of the history, for it reads the others
// in the journal, and states in octets, if there is none.
const (
	heritageHistory = 100
	heritageKept    = 1 << 20
)

// portableState is all of the desired state for a successor.
func (n *Node) portableState() json.RawMessage { return n.portableSince(nil) }

// portableSince is portableState for a successor that began with was: the configuration
// is the same.
func (n *Node) portableSince(was *desired) json.RawMessage {
	s := &n.state
	n.events.mu.Lock()
	last := n.events.last
	n.events.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.now
	p := portableDesired{
		Generation: d.Generation, Least: s.least, By: d.By, At: d.At, Kind: d.Kind, Settled: s.settled, Canary: s.canary, Shifts: slices.Collect(maps.Values(s.shifts)),
		Keys: map[string]*keyed{}, LastEvent: last,
	}
	for _, key := range s.keys.order {
		if k := s.keys.all[key]; k != nil && k.done == nil && (was == nil || !s.keys.told[key]) {
			p.Keys[key] = k
			p.KeyOrder = append(p.KeyOrder, key)
		}
	}
	if was == nil {
		s.keys.told = set(p.KeyOrder)
	}
	p.History = s.history.infos[max(0, len(s.history.infos)-heritageHistory):]
	if s.dir == "" { // else the journal has them
		size := 0
		for i := len(s.history.kept) - 1; i >= 0 && size+len(s.history.kept[i].State) <= heritageKept; i-- {
			size += len(s.history.kept[i].State)
			p.Kept = append(p.Kept, s.history.kept[i])
		}
		slices.Reverse(p.Kept)
	}
	if was == nil {
		p.State, s.told = d.encode(), d
	} else {
		p.Since = was.Generation
		if d != was {
			p.State = d.encodeHead()
		}
		p.History = slices.DeleteFunc(slices.Clone(p.History), func(i GenerationInfo) bool { return i.Generation <= was.Generation })
		p.Kept = slices.DeleteFunc(p.Kept, func(e journal.Entry) bool { return e.Generation <= was.Generation })
	}
	text, err := json.Marshal(p)
	if err != nil { // words, numbers and times
		panic(err)
	}
	return text
}

// inherit begins with what portableState has told.
func (s *stateSide) inherit(text json.RawMessage) (*became, error) {
	var p portableDesired
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("node: heritage of the state: %w", err)
	}
	d, warnings, err := p.desired(s.reader, nil)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited = d
	return &became{next: d, same: true, warnings: warnings}, s.adopt(&p)
}

// desired is the state that p says. was is the one that it said at first.
func (p *portableDesired) desired(r reader, was *desired) (*desired, []string, error) {
	var d *desired
	var warnings []string
	switch state, err := p.State, error(nil); {
	case p.Since != 0 && was == nil:
		return nil, nil, errors.New("node: what has changed of a state that was not told")
	case p.Since != 0 && len(state) == 0:
		same := *was
		d = &same
	default:
		if p.Since != 0 {
			state = append(slices.Clip(state), was.text...)
		}
		if d, warnings, err = decode(r, state, was); err != nil {
			return nil, nil, err
		}
	}
	d.Generation, d.By, d.At, d.Kind = p.Generation, p.By, p.At, p.Kind
	return d, warnings, nil
}

// adopt takes over what is under way beside the state. The caller holds mu.
func (s *stateSide) adopt(p *portableDesired) error {
	var err error
	s.settled, s.canary, s.least = p.Settled, p.Canary, p.Least
	if s.canary != nil {
		if s.canary.abort, err = parseAbort(s.canary.AbortOn); err != nil {
			return err
		}
	}
	s.shifts = map[string]*shift{}
	for _, x := range p.Shifts {
		if x.abort, err = parseAbort(x.AbortOn); err != nil {
			return err
		}
		x.more = make(chan struct{})
		x.say("shifting", fmt.Sprintf("weight %d, to %d", x.Weight, x.To), time.Now())
		s.shifts[x.Object] = x
	}
	if p.Since == 0 {
		s.keys, s.history = keys{}, generations{}
	}
	for _, key := range p.KeyOrder {
		if k := p.Keys[key]; k != nil && s.keys.all[key] == nil {
			s.keys.add(key, k)
		}
	}
	for _, i := range p.History {
		s.history.add(i)
	}
	for _, e := range p.Kept {
		s.history.keep(e)
	}
	return nil
}

// learnState takes what a predecessor has told of the state at its last moment:
// what was ordered, and what is under way, since it told the first time. What this
// process has changed of itself meanwhile, as another file, comes after it.
func (n *Node) learnState(text json.RawMessage) error {
	var p portableDesired
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	s := &n.state
	s.swap.Lock()
	defer s.swap.Unlock()
	if err := s.learn(&p); err != nil {
		return err
	}
	n.events.inherit(p.LastEvent)
	// The predecessor tells nothing of it: what it told now had a number of ours.
	n.tell("upgrade", "", Author{}, nil, "process %d serves in place of %d", pid, os.Getppid())
	n.watch.mu.Lock()
	for name := range s.current().orders {
		n.watch.noteOrdered(backendOf(name))
	}
	n.watch.mu.Unlock()
	return nil
}

// learn is learnState for the state alone. The caller holds swap.
func (s *stateSide) learn(p *portableDesired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, began := s.now, s.inherited
	d, _, err := p.desired(s.reader, began)
	if err != nil {
		return err
	}
	var own []GenerationInfo
	if now != began {
		own = slices.DeleteFunc(slices.Clone(s.history.infos), func(i GenerationInfo) bool { return began == nil || i.Generation <= began.Generation })
	}
	if began != nil {
		s.history.infos = slices.DeleteFunc(slices.Clone(s.history.infos), func(i GenerationInfo) bool { return i.Generation > began.Generation })
		s.history.kept = slices.DeleteFunc(s.history.kept, func(e journal.Entry) bool { return e.Generation > began.Generation })
	}
	if err := s.adopt(p); err != nil {
		return err
	}
	if now == began || len(own) == 0 {
		if now != nil {
			d.doc, d.text = now.doc, now.text // the configuration was not changed meanwhile
		}
		s.now = d
		return nil
	}
	// Generations are numbered in the order in which they rule, and it has ordered.
	next := *now
	next.orders = d.orders
	next.keepOrders(d.doc.Config())
	for i := range own {
		own[i].Generation = max(own[i].Generation, d.Generation+1+uint64(i), s.least)
		s.history.add(own[i])
	}
	next.Generation = own[len(own)-1].Generation
	s.now = &next
	if s.dir == "" {
		s.history.keep(next.entry(own[len(own)-1]))
	}
	return nil
}

// obeyAll brings endpoints to what is ordered of them: those of a configuration
// that has just come in force, or of a state that was brought back.
func (n *Node) obeyAll() {
	n.state.swap.Lock()
	defer n.state.swap.Unlock()
	d := n.state.current()
	w := n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for _, backend := range w.obeyed(d) {
		j := w.judges[backend]
		if j == nil {
			continue
		}
		for _, v := range j.Views(now) {
			o := d.orderOf(v.Name)
			admin := ledger.Ready
			switch o.Admin {
			case ledger.Quiescing.String():
				admin = ledger.Quiescing
			case ledger.Maintenance.String():
				admin = ledger.Maintenance
			}
			if v.Admin != admin && v.Admin != ledger.Held {
				j.Order(now, v.Name, health.Order{Admin: admin})
			}
			if n.state.shifting(v.Name) {
				continue
			}
			j.Order(now, v.Name, health.Order{Weight: o.Weight, Weigh: true})
		}
		if j.Changed() {
			w.flush(j, now)
		}
	}
}

// shifting tells whether the weight of an endpoint is moving: by itself, or as
// one of the addresses of a host that is shifted.
func (s *stateSide) shifting(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for whole := range s.shifts {
		if name == whole || strings.HasPrefix(name, whole+"/") {
			return true
		}
	}
	return false
}
