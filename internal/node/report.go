package node

import (
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// Pause is how long flows were not served during a move, in microseconds.
type Pause struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Report tells what a move, at any of the four distances, has done.
type Report struct {
	Distance   string         `json:"distance"`
	Flows      int            `json:"flows"`
	Octets     uint64         `json:"octets"` // that the flows carried
	WithOctets int            `json:"with_octets"`
	Refused    int            `json:"refused"`
	Reasons    map[string]int `json:"reasons"`
	Lost       int            `json:"lost"`
	Closed     int            `json:"closed,omitempty"` // as the configuration asked
	Pause      Pause          `json:"pause_us"`
	States     map[string]int `json:"states"`
	PID        int            `json:"pid"`
	Generation uint64         `json:"generation,omitempty"`
	Plan       string         `json:"plan,omitempty"`
	Unchanged  bool           `json:"unchanged,omitempty"` // the configuration is the one in force
	Millis     float64        `json:"millis"`

	// Of an upgrade; some of a move to another host, too.
	Kinds       map[string]KindReport `json:"kinds,omitempty"`   // what moved, by what it was doing
	Residue     int                   `json:"residue,omitempty"` // refused flows that drain in the old process, or at the old host
	CanaryFlows int                   `json:"canary_flows,omitempty"`
	LostFlows   []string              `json:"lost_flows,omitempty"` // who was lost, as far as they are named
	Listeners   int                   `json:"listeners,omitempty"`
	IdleLegs    int                   `json:"idle_legs,omitempty"` // pooled backend legs that went along
	Copied      int                   `json:"copied,omitempty"`    // descriptors that went over before anything stopped
	From        string                `json:"from_release,omitempty"`
	To          string                `json:"to_release,omitempty"`
	Phases      map[string]float64    `json:"phases_ms,omitempty"`

	// Of a move to another host alone.
	VIPs       []string `json:"vips,omitempty"` // that moved
	FromNode   string   `json:"from_node,omitempty"`
	ToNode     string   `json:"to_node,omitempty"`
	Handshakes int      `json:"handshakes,omitempty"` // that were finished where they began, and moved last
	// AddressMillis is how long no host answered for the address.
	AddressMillis float64 `json:"address_ms,omitempty"`
	StateBytes    uint64  `json:"state_bytes,omitempty"` // of the frozen forms, without octets in queues
	// Examples are, by reason, flows that were refused for it: the first of them.
	Examples map[string]string `json:"examples,omitempty"`
	// Of an evacuation: Holding is what kept the node from being free to the end, and what ends
	// it; Cut are flows that were ended, as was asked.
	Holding []string `json:"holding,omitempty"`
	Cut     int      `json:"cut,omitempty"`

	// mu guards all above while a move runs: loops report from their threads.
	mu     sync.Mutex
	pauses []int64
	given  int // flows that the other owner serves, or did until it died
	// refused are the flows that stay, of a move to another host; told are examples of moves of
	// which other nodes have told.
	refused map[uint64]stayed
	told    map[string]string
}

// KindReport is what moved of one kind of flow.
type KindReport struct {
	Flows  int    `json:"flows"`
	Octets uint64 `json:"octets"` // under way in them
	Frozen uint64 `json:"frozen"` // octets of their frozen forms
}

func newReport(distance string) *Report {
	return &Report{Distance: distance, Reasons: map[string]int{}, States: map[string]int{}, PID: pid}
}

func (r *Report) parked(all []loop.Parked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range all {
		r.Flows++
		r.Octets += uint64(p.Octets)
		r.States[p.Kind]++
		if p.Octets > 0 || carries[p.Kind] {
			r.WithOctets++
		}
	}
}

// carries are the kinds of flows that have octets under way in Holdfast.
var carries = map[string]bool{
	loop.KindBulk: true, loop.KindHalfClosedBulk: true,
	loop.KindToClient: true, loop.KindToBackend: true, loop.KindBothWays: true,
	loop.KindHTTPSplice: true, loop.KindTunnelSplice: true,
}

func (r *Report) refuse(n int, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Refused += n
	r.Reasons[why] += n
}

func (r *Report) paused(pauses []int64, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pauses = append(r.pauses, pauses...)
	r.Lost += lost
}

func (r *Report) done(began time.Time) *Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Millis = millis(time.Since(began))
	r.Pause = pauseOf(r.pauses)
	r.exemplify()
	return r
}

func pauseOf(nanos []int64) Pause {
	if len(nanos) == 0 {
		return Pause{}
	}
	slices.Sort(nanos)
	at := func(q float64) float64 {
		return float64(nanos[min(len(nanos)-1, int(q*float64(len(nanos))))]) / 1000
	}
	return Pause{at(0.5), at(0.99), float64(nanos[len(nanos)-1]) / 1000}
}

// Totals are counts since the first process of this node began: they go along
// with an upgrade and never fall.
type Totals struct {
	Accepted     uint64            `json:"accepted"`
	Refused      uint64            `json:"connections_refused"` // of these, reset at once
	Stayed       uint64            `json:"flows_stayed"`        // that a predecessor kept to itself
	Ended        map[string]uint64 `json:"ended"`               // by cause
	FromClients  uint64            `json:"octets_from_clients"`
	FromBackends uint64            `json:"octets_from_backends"`
	Relayed      uint64            `json:"octets_relayed_in_kernel"`
	Moves        map[string]uint64 `json:"moves"`       // by distance
	MovedFlows   map[string]uint64 `json:"moved_flows"` // by distance
	Arrived      uint64            `json:"flows_arrived_from_other_hosts"`
	Left         uint64            `json:"flows_left_to_other_hosts"`
	Retries      uint64            `json:"retries"`
	Paused       uint64            `json:"accept_pauses"`
	Requests     uint64            `json:"requests"`
	Responses    map[string]uint64 `json:"responses"` // by class, as in 2xx
	OwnAnswers   uint64            `json:"own_answers"`
	Repeated     uint64            `json:"requests_repeated"` // sent again: a pooled leg was dead
	Reused       uint64            `json:"requests_on_pooled_legs"`
	Tunnels      uint64            `json:"tunnels"`
	Lost         uint64            `json:"flows_lost_total"`
	LostMoving   uint64            `json:"flows_lost_moving,omitempty"` // of these: while they were put down or picked up
	ResetByMove  uint64            `json:"flows_reset_by_move_total"`
}

type totals struct {
	// mu guards what follows.
	mu sync.Mutex
	t  Totals
	// What this process's moves were like, by distance.
	pauses  map[string]*loop.Histogram
	refused map[[2]string]uint64 // and by reason
	aborts  map[string]uint64
}

// reasonsMax bounds the reasons that are told apart; they are words of ours, but
// a peer of another release may have others.
const reasonsMax = 64

// note keeps what a move was like.
func (t *totals) note(r *Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pauses == nil {
		t.pauses, t.refused = map[string]*loop.Histogram{}, map[[2]string]uint64{}
	}
	h := t.pauses[r.Distance]
	if h == nil {
		h = &loop.Histogram{}
		t.pauses[r.Distance] = h
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pauses {
		h.Note(time.Duration(p))
	}
	for why, k := range r.Reasons {
		key := [2]string{r.Distance, reasonOf(why)}
		if _, known := t.refused[key]; !known && len(t.refused) >= reasonsMax {
			key[1] = "other"
		}
		t.refused[key] += uint64(k)
	}
}

// gather adds what note and aborted keep.
func (t *totals) gather(g *gathering) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range distances {
		h := t.pauses[d]
		if h == nil {
			h = &loop.Histogram{}
		}
		g.merge(movePause, h, d)
		g.add(movesAborted, float64(t.aborts[d]), d)
	}
	g.add(moveRefused, 0, "host", "other") // so that the metric is there
	for key, k := range t.refused {
		g.add(moveRefused, float64(k), key[0], key[1])
	}
}

func (t *totals) inherit(from *Totals) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range []*map[string]uint64{&t.t.Ended, &t.t.Moves, &t.t.MovedFlows, &t.t.Responses} {
		if *m == nil {
			*m = map[string]uint64{}
		}
	}
	if from == nil {
		return
	}
	// Added, not put in place: flows may have arrived from another host before
	// the predecessor was done.
	for _, m := range []struct{ to, from map[string]uint64 }{{t.t.Ended, from.Ended}, {t.t.Moves, from.Moves}, {t.t.MovedFlows, from.MovedFlows}, {t.t.Responses, from.Responses}} {
		for name, k := range m.from {
			m.to[name] += k
		}
	}
	t.t.Accepted += from.Accepted
	t.t.Refused += from.Refused
	t.t.Stayed += from.Stayed
	t.t.Requests += from.Requests
	t.t.OwnAnswers += from.OwnAnswers
	t.t.Repeated += from.Repeated
	t.t.Reused += from.Reused
	t.t.Tunnels += from.Tunnels
	t.t.FromClients += from.FromClients
	t.t.FromBackends += from.FromBackends
	t.t.Relayed += from.Relayed
	t.t.Arrived += from.Arrived
	t.t.Left += from.Left
	t.t.Retries += from.Retries
	t.t.Paused += from.Paused
	t.t.Lost += from.Lost
	t.t.LostMoving += from.LostMoving
	t.t.ResetByMove += from.ResetByMove
}

// aborted notes an upgrade that came to nothing, and what died with the new
// process: those flows had left the loops, and it is known of none how it ended.
func (t *totals) aborted(lost int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.aborts == nil {
		t.aborts = map[string]uint64{}
	}
	t.aborts["process"]++
	t.t.ResetByMove += uint64(lost)
	if lost > 0 {
		t.t.Ended[flow.Broken.String()] += uint64(lost)
	}
}

// move counts a move that was made.
func (t *totals) move(r *Report) {
	t.note(r)
	t.tally(r)
}

func (t *totals) tally(r *Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t.Moves[r.Distance]++
	t.t.MovedFlows[r.Distance] += uint64(r.Flows)
	t.t.ResetByMove += uint64(r.Lost)
	if r.Distance == "host" {
		t.t.Left += uint64(r.Flows)
	}
}

func (t *totals) arrive(n int) {
	t.mu.Lock()
	t.t.Arrived += uint64(n)
	t.mu.Unlock()
}

// snapshot is a copy without the loops' own counts.
func (t *totals) snapshot() Totals {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out Totals
	b, _ := json.Marshal(t.t) // plain numbers and maps cannot fail
	_ = json.Unmarshal(b, &out)
	return out
}
