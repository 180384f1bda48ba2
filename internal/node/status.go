package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

var pid = os.Getpid()

// Status is what a person asks first.
type Status struct {
	Node       string         `json:"node"`
	Release    string         `json:"release"`
	PID        int            `json:"pid"`
	Successor  int            `json:"successor,omitempty"` // pid of the process that has taken over
	Generation uint64         `json:"generation"`
	UpSeconds  float64        `json:"up_seconds"`
	Loops      []int          `json:"flows_by_loop"`
	Flows      int            `json:"flows"`
	ByState    map[string]int `json:"flows_by_state"`
	OnOld      int            `json:"flows_on_old_objects"`
	// OldObjects are what these flows are under, those with most flows first, and
	// OldestSeconds is how long ago the oldest of them was replaced.
	OldObjects    []OldObject     `json:"old_objects,omitempty"`
	OldestSeconds float64         `json:"oldest_generation_age_seconds"`
	Following     []FollowStatus  `json:"following,omitempty"` // changes that flows still follow, paced
	Sheds         []ShedStatus    `json:"sheds,omitempty"`
	Removing      []RemovalStatus `json:"removing,omitempty"`
	// Durable is yes, pending, or no with the reason; Drift is of how many things
	// file and desired state say different things.
	Durable     string       `json:"durable"`
	Drift       int          `json:"drift"`
	FileDiffers bool         `json:"file_differs,omitempty"`
	Canary      string       `json:"canary,omitempty"`
	Shifts      []ShiftState `json:"shifts,omitempty"`
	Waiting     int          `json:"changes_waiting"` // for their turn
	// Kernel is by how much the kernel's counters of silent loss grew around
	// changes, ArrivedLate how many connections came to a listener while it closed.
	Kernel      map[string]uint64 `json:"kernel,omitempty"`
	ArrivedLate uint64            `json:"arrived_late"`
	Descriptors int64             `json:"descriptors"`
	FilesMax    int               `json:"descriptors_limit"`
	Room        int               `json:"room"` // flows that may be open at once
	Lent        int               `json:"octets_lent"`
	IdleLegs    int               `json:"idle_backend_legs"`
	Listeners   []ListenerStatus  `json:"listeners"`
	Backends    []BackendStatus   `json:"backends"`
	Endpoints   []EndpointStatus  `json:"endpoints"`
	Queued      map[string]int    `json:"queued"` // by backend
	Totals                        // flattened
	Turns       uint64            `json:"turns"`
	Host        map[string]uint64 `json:"host,omitempty"` // counters of holding and diverting
	Memory      uint64            `json:"memory"`         // resident, in octets
	MemoryMax   uint64            `json:"memory_max,omitempty"`
	Shedding    bool              `json:"shedding,omitempty"` // memory is short, and accepting pauses
	LogLines    uint64            `json:"log_lines,omitempty"`
	LogDropped  uint64            `json:"log_dropped"`
	// Upgrading is the last step of an upgrade that is under way, LastUpgrade what
	// came of the last one, and Residue what replaced processes still have.
	Upgrading   *Progress       `json:"upgrading,omitempty"`
	LastUpgrade *UpgradeStatus  `json:"last_upgrade,omitempty"`
	Residue     []ResidueStatus `json:"residue,omitempty"`
	// Nodes and VIPs are the cluster as this node sees it; Moving is the last step of a
	// move to another host that is under way, LastMove what came of the last one, and
	// HostResidue what is still here of VIPs that have gone.
	Nodes       []NodeStatus  `json:"nodes,omitempty"`
	VIPs        []VIPStatus   `json:"vips,omitempty"`
	Moving      *Progress     `json:"moving,omitempty"`
	LastMove    *MoveStatus   `json:"last_move,omitempty"`
	HostResidue []HostResidue `json:"host_residue,omitempty"`
	// Free: this node is evacuated, and nothing points at it any more.
	Free bool `json:"free,omitempty"`
}

// OldObject is a version of a listener or a backend that the configuration no
// longer has, and under which flows go on.
type OldObject struct {
	Object     string  `json:"object"`  // "listener/web"
	Version    string  `json:"version"` // in hexadecimal digits
	Flows      int     `json:"flows"`
	AgeSeconds float64 `json:"age_seconds"`    // since it was replaced, or taken away
	Gone       bool    `json:"gone,omitempty"` // there is none of this name any more
}

// FollowStatus is a change that flows still follow, paced.
type FollowStatus struct {
	Generation uint64  `json:"generation"`
	On         string  `json:"on,omitempty"` // adopt or close; "": as each listener says
	PerSecond  float64 `json:"per_second"`
	Followed   int     `json:"followed"`
	Left       int     `json:"left"`
}

// ShedStatus is what is turned away at a backend now.
type ShedStatus struct {
	Backend string    `json:"backend"`
	Percent float64   `json:"percent"`
	As      string    `json:"as"`
	Until   time.Time `json:"until,omitzero"`
	Turned  uint64    `json:"turned_away"` // since it began
	By      Author    `json:"by"`
}

// RemovalStatus is a removal that is under way.
type RemovalStatus struct {
	Object   string    `json:"object"`
	Phase    string    `json:"phase"`
	InFlight int64     `json:"in_flight"`
	Deadline time.Time `json:"deadline,omitzero"`
	Then     string    `json:"then,omitempty"`
	By       Author    `json:"by"`
}

// Served is what was served, since the first process of this node began.
type Served struct {
	Requests uint64            `json:"requests"` // that ended; without HTTP: flows
	Codes    map[string]uint64 `json:"codes"`    // by class of the status; none: it came to none, or is no HTTP
	Causes   map[string]uint64 `json:"causes"`   // why each ended
	In       uint64            `json:"octets_from_clients"`
	Out      uint64            `json:"octets_to_clients"`
	// P50Millis and P99Millis are of all that was served, from the first octet to
	// the last.
	P50Millis float64 `json:"p50_ms"`
	P99Millis float64 `json:"p99_ms"`

	took loop.Histogram
}

func (s *Served) add(x *loop.Series) {
	if s.Codes == nil {
		s.Codes, s.Causes = map[string]uint64{}, map[string]uint64{}
	}
	for class, k := range x.Requests {
		if k > 0 {
			s.Requests += k
			s.Codes[classWord(class)] += k
		}
	}
	for cause, k := range x.Causes {
		if k > 0 {
			s.Causes[flow.Cause(cause).String()] += k
		}
	}
	s.In += x.In
	s.Out += x.Out
	s.took.Add(&x.Took)
}

func (s *Served) end() {
	s.P50Millis = s.took.Quantile(0.5).Seconds() * 1000
	s.P99Millis = s.took.Quantile(0.99).Seconds() * 1000
}

// BackendStatus is one backend.
type BackendStatus struct {
	Name      string `json:"name"`
	Endpoints int    `json:"endpoints"`
	Serving   int    `json:"serving"` // of these, that serve what is new
	InUse     int64  `json:"in_use"`
	Queued    int    `json:"queued"`
	Breaker   string `json:"breaker"`
	Served           // flattened
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name        string `json:"name"`
	VIP         string `json:"vip"`
	Connections int64  `json:"connections"`
	Served             // flattened
}

// EndpointStatus is one endpoint.
type EndpointStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	InUse   int64  `json:"in_use"`
	Foreign int64  `json:"held_by_other_process,omitempty"`
	Errors  uint64 `json:"errors"`
	// Removed: it is in no configuration any more, but in use.
	Removed bool `json:"removed,omitempty"`
}

// counts sums the totals with what the loops have counted.
func (n *Node) counts() Totals {
	t := n.totals.snapshot()
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) {
			c := l.Counters()
			t.Accepted += c.Accepted
			for _, k := range c.Refused {
				t.Refused += k
			}
			for cause, k := range c.Ended {
				if k > 0 {
					t.Ended[flow.Cause(cause).String()] += k
				}
			}
			t.FromClients += c.Octets[flow.Client]
			t.FromBackends += c.Octets[flow.Backend]
			t.Relayed += c.Relayed
			t.Retries += c.Retries
			t.Paused += c.AcceptPause
			t.Lost += c.Lost
			t.LostMoving += c.LostMoving
			t.Requests += c.HTTP.Requests
			for class, k := range c.HTTP.Responses {
				if k > 0 {
					t.Responses[fmt.Sprintf("%dxx", class)] += k
				}
			}
			t.OwnAnswers += c.HTTP.Own
			t.Repeated += c.HTTP.Repeated
			t.Reused += c.HTTP.Reused
			t.Tunnels += c.HTTP.Tunnels
			t.MovedFlows["loop"] += c.Evened
		})
	}
	return t
}

// Status looks at everything once.
func (n *Node) Status() *Status {
	n.mu.Lock()
	g, successor := n.gen, n.successor
	n.mu.Unlock()
	s := &Status{
		Node: g.Config.Node.Name, Release: Release, PID: pid, Successor: successor, Generation: n.Generation(),
		UpSeconds: time.Since(n.started).Seconds(), ByState: map[string]int{}, Queued: map[string]int{},
		Descriptors: sock.Open(), FilesMax: n.fds, Room: n.room(g.Config), Totals: n.counts(), Host: n.hostCounters(),
		Memory: n.memory.resident(), MemoryMax: g.Config.Node.MemoryMax, Shedding: n.shared.Shedding.Load(),
		LogLines: n.access.Lines(), LogDropped: n.access.Dropped(),
	}
	configured := map[string]bool{}
	for _, b := range g.Config.Backends {
		for _, e := range b.Endpoints {
			configured[e.Ref.Name] = true
		}
	}
	leftovers := map[string]string{} // addresses of other endpoints
	olds := newOldCount(g.Config)
	for _, l := range n.shared.Loops {
		s.Loops = append(s.Loops, 0)
		l.Ask(func(l *loop.Loop) {
			s.Lent += l.Lent()
			s.IdleLegs += l.Idle()
			s.Turns += l.Count.Turns
		})
	}
	n.eachFlow(func(l *loop.Loop, i uint32, f *flow.Flow) {
		s.Loops[l.Index()]++
		s.Flows++
		s.ByState[l.Kind(i)]++
		olds.add(f)
		if e := f.Endpoint(); e != nil && !configured[e.Ref.Name] {
			leftovers[e.Ref.Name] = e.Address()
		}
	})
	s.OnOld = olds.flows
	var age time.Duration
	s.OldObjects, age = n.side.oldest(olds, time.Now())
	s.OldestSeconds = age.Seconds()
	s.Following, s.Sheds, s.Removing = n.side.followingNow(), n.shedding(), n.side.removingNow()
	s.Kernel, s.ArrivedLate = n.side.kernel.seen()
	state := n.ConfigState()
	s.Durable, s.Drift, s.FileDiffers, s.Canary, s.Shifts, s.Waiting = state.Durable, len(state.Edits), state.FileDiffers, state.Canary, state.Shifts, state.Waiting
	s.Upgrading, s.LastUpgrade, s.Residue = n.upgrades.look()
	x := n.clusterLook()
	s.Nodes, s.VIPs, s.Moving, s.LastMove, s.HostResidue, s.Free = x.Nodes, x.VIPs, x.Moving, x.LastMove, x.HostResidue, x.Free
	listeners, backends := n.served()
	for _, l := range g.Config.SortedListeners() {
		x := ListenerStatus{Name: l.Ref.Name, VIP: l.VIP.String(), Connections: n.shared.Ledger.Listener(l.Ref.Name).InUse()}
		if v := listeners[l.Ref.Name]; v != nil {
			x.Served = *v
		}
		s.Listeners = append(s.Listeners, x)
	}
	for _, b := range g.Config.SortedBackends() {
		book := n.shared.Ledger.Backend(b.Ref.Name)
		stats := book.Stats()
		x := BackendStatus{Name: b.Ref.Name, Endpoints: len(b.Endpoints), Serving: stats.Serving, Queued: book.Waiting(), Breaker: stats.Breaker.String()}
		if v := backends[b.Ref.Name]; v != nil {
			x.Served = *v
		}
		if x.Queued > 0 {
			s.Queued[b.Ref.Name] = x.Queued
		}
		for _, e := range b.Endpoints {
			account := book.Endpoint(e.Ref.Name)
			x.InUse += account.InUse()
			s.Endpoints = append(s.Endpoints, endpointStatus(account, e.Address()))
		}
		s.Backends = append(s.Backends, x)
	}
	for _, x := range n.shared.Ledger.Endpoints() {
		if x.InUse() > 0 && !configured[x.Name] {
			e := endpointStatus(x, leftovers[x.Name])
			e.Removed = true
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	return s
}

// served sums what was served by listener and by backend.
func (n *Node) served() (listeners, backends map[string]*Served) {
	listeners, backends = map[string]*Served{}, map[string]*Served{}
	at := func(m map[string]*Served, name string) *Served {
		if m[name] == nil {
			m[name] = &Served{}
		}
		return m[name]
	}
	for key, x := range n.series() {
		at(listeners, key.Listener).add(x)
		if key.Backend != "" {
			at(backends, key.Backend).add(x)
		}
	}
	for _, m := range []map[string]*Served{listeners, backends} {
		for _, x := range m {
			x.end()
		}
	}
	return listeners, backends
}

func endpointStatus(x *ledger.Endpoint, address string) EndpointStatus {
	return EndpointStatus{Name: x.Name, Address: address, InUse: x.InUse(), Foreign: x.Foreign(), Errors: x.Errors()}
}

// FlowStatus is one flow as people see it: no octets, no secrets.
type FlowStatus struct {
	ID         string  `json:"id"`
	Listener   string  `json:"listener"`
	Client     string  `json:"client"`
	Endpoint   string  `json:"endpoint,omitempty"`
	Kind       string  `json:"kind"`
	Why        string  `json:"why,omitempty"` // what it waits for
	AgeSeconds float64 `json:"age_seconds"`
	In         uint64  `json:"octets_from_client"`
	Out        uint64  `json:"octets_to_client"`
	Unsent     int     `json:"octets_unsent"`
	Requests   int     `json:"requests,omitempty"`
	Moves      int     `json:"moves"`
	Loop       int     `json:"loop"`
}

// FlowFilter says which flows are wanted: those of which all hold that is set.
type FlowFilter struct {
	Listener, Backend string
	Endpoint          string // in full, or its name in any backend
	Kind              string // what it is doing, as in FlowStatus
	Client            netip.Prefix
	Older             time.Duration
	Moved             bool
	Max               int // 0: all
}

// wants tells whether a flow is one of them, on its loop's thread.
func (q *FlowFilter) wants(l *loop.Loop, slot uint32, f *flow.Flow) bool {
	if q.Listener != "" && f.Listener().Ref.Name != q.Listener {
		return false
	}
	if b := f.Backend(); q.Backend != "" && (b == nil || b.Ref.Name != q.Backend) {
		return false
	}
	if e := f.Endpoint(); q.Endpoint != "" && (e == nil || e.Ref.Name != q.Endpoint && e.Name != q.Endpoint) {
		return false
	}
	return (q.Kind == "" || l.Kind(slot) == q.Kind) &&
		(!q.Client.IsValid() || q.Client.Contains(f.Client().Addr())) &&
		(q.Older == 0 || time.Duration(l.Now()-f.Born()) >= q.Older) &&
		(!q.Moved || f.Moves() > 0)
}

// Flows lists the q.Max oldest flows that q wants, oldest first.
func (n *Node) Flows(q FlowFilter) ([]FlowStatus, error) {
	if q.Max < 0 {
		return nil, fmt.Errorf("node: at most %d flows: want a number from 0, which is all", q.Max)
	}
	type found struct {
		tenant
		on *loop.Loop
	}
	var all []found
	n.eachFlow(func(l *loop.Loop, i uint32, f *flow.Flow) {
		if q.wants(l, i, f) {
			all = append(all, found{tenant{i, f.ID(), f.Born()}, l})
		}
	})
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.born, b.born), cmp.Compare(a.id, b.id))
	})
	most := q.Max
	if most == 0 {
		most = len(all)
	}
	// Flows that end or move meanwhile are made up for by the next ones.
	byID := map[uint64]FlowStatus{}
	looked := 0
	for looked < len(all) && len(byID) < most {
		next := all[looked:min(len(all), looked+most-len(byID))]
		looked += len(next)
		for _, l := range n.shared.Loops {
			var list []tenant
			for _, x := range next {
				if x.on == l {
					list = append(list, x.tenant)
				}
			}
			inChunks(l, list, func(l *loop.Loop, t tenant, f *flow.Flow) { byID[t.id] = statusOf(l, t.slot, f) })
		}
	}
	out := make([]FlowStatus, 0, len(byID))
	for _, x := range all[:looked] {
		if s, ok := byID[x.id]; ok {
			out = append(out, s)
			delete(byID, x.id)
		}
	}
	return out, nil
}

// whyOf says in words what a flow waits for; "" if octets pass.
func whyOf(l *loop.Loop, f *flow.Flow) string {
	switch f.State() {
	case flow.Queued:
		if n := f.Attempt(); n > 0 {
			return fmt.Sprintf("waits for an endpoint of %s with room, after %d attempts", f.Backend().Ref.Name, n)
		}
		return "waits for an endpoint of " + f.Backend().Ref.Name + " with room"
	case flow.Dialing:
		return fmt.Sprintf("waits for %s to accept its connection (attempt %d)", f.Endpoint().Ref.Name, f.Attempt()+1)
	case flow.Lingering:
		return "all is sent; waits for the client to close"
	case flow.Answering:
		return "waits for the client to take our answer"
	case flow.Reading, flow.Relaying:
		switch f.Phase() {
		case flow.Greeting:
			return "waits for the PROXY header of the client"
		case flow.Idle:
			return "waits for the client's next request"
		case flow.Head:
			return "waits for the rest of the request's head"
		}
	case flow.Sunk:
		return "its endpoint is a sink: what comes is thrown away"
	case flow.Done:
		return ""
	}
	switch {
	case f.Unsent(flow.Client) > 0 && f.Unsent(flow.Backend) > 0:
		return "waits for both sides to take octets"
	case f.Unsent(flow.Client) > 0:
		return "waits for the client to take octets"
	case f.Unsent(flow.Backend) > 0:
		return "waits for the endpoint to take octets"
	case f.Phase() == flow.Request || f.Phase() == flow.Pipelined:
		return "waits for the endpoint's response, or the rest of the request"
	}
	if f.State() == flow.Relaying {
		return "nothing has moved for " + f.Still(l.Now()).Round(time.Millisecond).String()
	}
	return f.State().String()
}

// statusOf looks at the flow f in a slot, on the loop's thread.
func statusOf(l *loop.Loop, slot uint32, f *flow.Flow) FlowStatus {
	s := FlowStatus{
		ID: fmt.Sprintf("f-%x", f.ID()), Listener: f.Listener().Ref.Name, Client: addr(f.Client()),
		Kind: l.Kind(slot), Why: whyOf(l, f), AgeSeconds: float64(l.Now()-f.Born()) / 1e9, Moves: f.Moves(), Requests: f.Requests(), Loop: l.Index(),
		In: f.Received(flow.Client), Out: f.Sent(flow.Client), Unsent: f.Unsent(flow.Client) + f.Unsent(flow.Backend),
	}
	if s.Client == "" { // a flow of an older release
		s.Client = addr(sock.PeerAddr(l.Leg(slot, flow.Client)))
	}
	if e := f.Endpoint(); e != nil {
		s.Endpoint = e.Ref.Name
	}
	return s
}

func addr(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
