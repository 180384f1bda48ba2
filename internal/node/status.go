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
	Node        string            `json:"node"`
	Release     string            `json:"release"`
	PID         int               `json:"pid"`
	Successor   int               `json:"successor,omitempty"` // pid of the process that has taken over
	Generation  uint64            `json:"generation"`
	UpSeconds   float64           `json:"up_seconds"`
	Loops       []int             `json:"flows_by_loop"`
	Flows       int               `json:"flows"`
	ByState     map[string]int    `json:"flows_by_state"`
	OnOld       int               `json:"flows_on_old_objects"`
	Descriptors int64             `json:"descriptors"`
	FilesMax    int               `json:"descriptors_limit"`
	Room        int               `json:"room"` // flows that may be open at once
	Lent        int               `json:"octets_lent"`
	IdleLegs    int               `json:"idle_backend_legs"`
	Listeners   []ListenerStatus  `json:"listeners"`
	Endpoints   []EndpointStatus  `json:"endpoints"`
	Queued      map[string]int    `json:"queued"` // by backend
	Totals                        // flattened
	Turns       uint64            `json:"turns"`
	Host        map[string]uint64 `json:"host,omitempty"` // counters of holding and diverting
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name        string `json:"name"`
	VIP         string `json:"vip"`
	Connections int64  `json:"connections"`
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
		Node: g.Config.Node.Name, Release: Release, PID: pid, Successor: successor, Generation: g.Number,
		UpSeconds: time.Since(n.started).Seconds(), ByState: map[string]int{}, Queued: map[string]int{},
		Descriptors: sock.Open(), FilesMax: n.fds, Room: n.room(g.Config), Totals: n.counts(), Host: n.hostCounters(),
	}
	configured := map[string]bool{}
	for _, b := range g.Config.Backends {
		for _, e := range b.Endpoints {
			configured[e.Ref.Name] = true
		}
	}
	leftovers := map[string]string{} // addresses of other endpoints
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) {
			slots := l.Slots(0, nil)
			s.Loops = append(s.Loops, len(slots))
			s.Flows += len(slots)
			s.Lent += l.Lent()
			s.IdleLegs += l.Idle()
			s.Turns += l.Count.Turns
			for _, i := range slots {
				s.ByState[l.Kind(i)]++
				f := l.Flow(i)
				if old(g.Config, f) {
					s.OnOld++
				}
				if e := f.Endpoint(); e != nil && !configured[e.Ref.Name] {
					leftovers[e.Ref.Name] = e.Address()
				}
			}
		})
	}
	for _, l := range g.Config.SortedListeners() {
		s.Listeners = append(s.Listeners, ListenerStatus{l.Ref.Name, l.VIP.String(), n.shared.Ledger.Listener(l.Ref.Name).InUse()})
	}
	for _, b := range g.Config.SortedBackends() {
		book := n.shared.Ledger.Backend(b.Ref.Name)
		if w := book.Waiting(); w > 0 {
			s.Queued[b.Ref.Name] = w
		}
		for _, e := range b.Endpoints {
			s.Endpoints = append(s.Endpoints, endpointStatus(book.Endpoint(e.Ref.Name), e.Address()))
		}
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
	AgeSeconds float64 `json:"age_seconds"`
	In         uint64  `json:"octets_from_client"`
	Out        uint64  `json:"octets_to_client"`
	Unsent     int     `json:"octets_unsent"`
	Requests   int     `json:"requests,omitempty"`
	Moves      int     `json:"moves"`
	Loop       int     `json:"loop"`
}

// Flows lists the max oldest flows (0: all), oldest first.
func (n *Node) Flows(max int) ([]FlowStatus, error) {
	if max < 0 {
		return nil, fmt.Errorf("node: at most %d flows: want a number from 0, which is all", max)
	}
	type found struct {
		tenant
		on *loop.Loop
	}
	var all []found
	for _, l := range n.shared.Loops {
		l.Ask(func(l *loop.Loop) {
			for _, t := range tenants(l) {
				all = append(all, found{t, l})
			}
		})
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.born, b.born), cmp.Compare(a.id, b.id))
	})
	if max == 0 {
		max = len(all)
	}
	// Flows that end or move meanwhile are made up for by the next ones.
	byID := map[uint64]FlowStatus{}
	looked := 0
	for looked < len(all) && len(byID) < max {
		next := all[looked:min(len(all), looked+max-len(byID))]
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

// statusOf looks at the flow f in a slot, on the loop's thread.
func statusOf(l *loop.Loop, slot uint32, f *flow.Flow) FlowStatus {
	s := FlowStatus{
		ID: fmt.Sprintf("f-%x", f.ID()), Listener: f.Listener().Ref.Name, Client: addr(f.Client()),
		Kind: l.Kind(slot), AgeSeconds: float64(l.Now()-f.Born()) / 1e9, Moves: f.Moves(), Requests: f.Requests(), Loop: l.Index(),
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
