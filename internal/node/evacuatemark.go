package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// marked says of a node that it is to be free, or that this is over. Only the node
// itself makes marks of itself, so that the later of two is the one that holds,
// whoever tells of it; they are on the disk of every node, since the node that
// they are about is the one that will be rebooted.
type marked struct {
	Evacuating bool      `json:"evacuating"`
	At         time.Time `json:"at"`
	By         Author    `json:"by"`
}

// marksFile is where marks are kept, in the directory of the journal.
const marksFile = "evacuating.json"

// heardEvery is the time between two questions to each peer how it is; one that has
// not answered for heardMax gets no VIP.
const (
	heardEvery = time.Second
	heardMax   = 4 * heardEvery
)

// marks is what a node knows of the nodes of its cluster. Its zero value knows nothing.
type marks struct {
	conflicts atomic.Uint64 // times that two nodes answered for one VIP, as it seemed

	// mu guards what follows.
	mu    sync.Mutex
	dir   string // "": they are on no disk here, but on those of the peers
	all   map[string]marked
	heard map[string]heardOf
}

// heardOf is what a peer said of itself last.
type heardOf struct {
	at    time.Time
	flows int
	mtu   int
	uses  map[string]int
}

// markNews is what nodes tell one another: all marks that they know, and how
// many flows they have.
type markNews struct {
	Marks map[string]marked `json:"marks"`
	Flows int               `json:"flows"`
	// Owns are the epochs of the VIPs for which the node answers at this moment.
	Owns map[string]uint64 `json:"owns,omitempty"`
	// Uses is how much is under way there at servers of each node.
	Uses map[string]int `json:"uses,omitempty"`
	// MTU is that of its device.
	MTU int `json:"mtu,omitempty"`
}

func (m *marks) evacuating(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[node].Evacuating
}

// names are the nodes that are being evacuated, or are free.
func (m *marks) names() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, x := range m.all {
		if x.Evacuating {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// used tells whether a node has said lately that it uses servers of that one.
func (m *marks) used(node string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range m.heard {
		if h.uses[node] > 0 {
			return true
		}
	}
	return false
}

// load is how many flows a node has said that it has; false if it has not been heard of lately.
func (m *marks) load(node string, now time.Time) (flows int, heard bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.heard[node]
	return h.flows, ok && now.Sub(h.at) < heardMax
}

// open reads what is on the disk.
func (m *marks) open(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dir, m.all, m.heard = dir, map[string]marked{}, map[string]heardOf{}
	if dir == "" {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(dir, marksFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(text, &m.all)
	}
	if err != nil {
		return fmt.Errorf("node: which nodes are being evacuated: %w", err)
	}
	return nil
}

// merge takes in what is newer than what is known, and tells whether that changed
// anything. It is on the disk when it returns.
func (m *marks) merge(all map[string]marked) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := maps.Clone(m.all)
	if next == nil {
		next = map[string]marked{}
	}
	for name, x := range all {
		if x.At.After(next[name].At) {
			changed = changed || x.Evacuating != next[name].Evacuating
			next[name] = x
		}
	}
	if maps.EqualFunc(next, m.all, func(a, b marked) bool { return a.At.Equal(b.At) }) {
		return false, nil
	}
	if err := writeMarks(m.dir, next); err != nil {
		return false, err
	}
	m.all = next
	return changed, nil
}

func writeMarks(dir string, all map[string]marked) error {
	if dir == "" {
		return nil
	}
	text, err := json.Marshal(all)
	if err != nil { // names and times
		panic(err)
	}
	path := filepath.Join(dir, marksFile)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		var d *os.File // the new name is durable when the directory is
		if d, err = os.Open(dir); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// news is what this node tells others.
func (n *Node) news() markNews {
	x := markNews{Flows: n.flows(), Owns: n.answersFor(), Uses: map[string]int{}, MTU: n.deviceMTU()}
	for _, name := range append(n.peers(), n.Config().Node.Name) {
		if k := n.usersHere(name); k > 0 {
			x.Uses[name] = k
		}
	}
	n.marks.mu.Lock()
	defer n.marks.mu.Unlock()
	x.Marks = maps.Clone(n.marks.all)
	return x
}

// deviceMTU is that of the device of VIPs; 0: there is none.
func (n *Node) deviceMTU() int {
	c := n.Config().Cluster
	if c == nil {
		return 0
	}
	device, err := net.InterfaceByName(c.Device)
	if err != nil {
		return 0
	}
	return device.MTU
}

// hear takes in what a peer tells.
func (n *Node) hear(peer string, x markNews) error {
	changed, err := n.marks.merge(x.Marks)
	n.marks.mu.Lock()
	if n.marks.heard != nil {
		n.marks.heard[peer] = heardOf{time.Now(), x.Flows, x.MTU, x.Uses}
	}
	n.marks.mu.Unlock()
	if changed {
		n.standEvacuating()
	}
	return err
}

// setEvacuating marks this node, here and on all peers that are heard of; the others,
// which it names, hear of it when they are back.
func (n *Node) setEvacuating(ctx context.Context, on bool, by Author) (unheard []string, err error) {
	self := n.Config().Node.Name
	n.marks.mu.Lock()
	at := time.Now()
	if last := n.marks.all[self].At; !at.After(last) { // the clock was put back
		at = last.Add(time.Millisecond)
	}
	was := n.marks.all[self].Evacuating
	n.marks.mu.Unlock()
	if _, err := n.marks.merge(map[string]marked{self: {on, at.UTC(), by}}); err != nil {
		return nil, err
	}
	n.standEvacuating()
	if was != on {
		word := map[bool]string{true: "is being evacuated: its servers get nothing new, and no VIP comes here", false: "serves again"}[on]
		n.tell("move", "node/"+self, by, nil, "%s %s", self, word)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, peer := range n.peers() {
		all.Go(func() {
			if err := n.exchange(ctx, peer); err != nil {
				mu.Lock()
				unheard = append(unheard, peer)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	slices.Sort(unheard)
	return unheard, ctx.Err()
}

// exchange tells a peer what is known here, and hears what it knows.
func (n *Node) exchange(ctx context.Context, peer string) error {
	t, err := n.talk(ctx, peer)
	if err != nil {
		return err
	}
	defer t.Close()
	return n.exchangeOn(ctx, t)
}

func (n *Node) exchangeOn(ctx context.Context, t *hostTalk) error {
	var theirs markNews
	mine := n.news()
	if err := t.Ask(ctx, "node.news", mine, &theirs); err != nil {
		return err
	}
	// What the peer said was true at a moment between our two looks, at which this node
	// answered if it did so before and after in one epoch.
	for name, epoch := range n.answersFor() {
		if _, too := theirs.Owns[name]; too && mine.Owns[name] == epoch {
			n.marks.conflicts.Add(1)
			n.log.Error("two nodes answer for one VIP", "vip", name, "epoch", epoch, "peer", t.peer, "its_epoch", theirs.Owns[name])
		}
	}
	return n.hear(t.peer, theirs)
}

// answersFor are the epochs of the VIPs that pass here by a lease.
func (n *Node) answersFor() map[string]uint64 {
	out := map[string]uint64{}
	for _, v := range n.VIPs() {
		if v.LeaseSeconds > 0 && (v.State == "owned" || v.State == "moving") {
			out[v.Name] = v.Epoch
		}
	}
	return out
}

// peers are the other nodes of the cluster, by name.
func (n *Node) peers() (out []string) {
	c := n.Config()
	if c.Cluster == nil {
		return nil
	}
	for _, name := range c.Cluster.SortedPeers() {
		if name != c.Node.Name {
			out = append(out, name)
		}
	}
	return out
}

// beginEvacuation begins to tell peers of marks and to do what they order. It gives
// what ends it.
func (n *Node) beginEvacuation() (end func()) {
	if err := n.marks.open(n.state.dir); err != nil {
		n.log.Error("it is not known which nodes are being evacuated, until their peers say so", "error", err)
	}
	n.answerOrders()
	n.answer("node.news", func(peer string, body json.RawMessage) (any, error) {
		var x markNews
		if err := json.Unmarshal(body, &x); err != nil {
			return nil, err
		}
		if err := n.hear(peer, x); err != nil {
			return nil, err // it is not on the disk here
		}
		return n.news(), nil
	})
	n.answerHolding()
	n.standEvacuating()
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { n.gossip(ctx) }) // ended by end
	return func() { stop(); all.Wait() }
}

// gossip asks each peer how it is, for ever.
func (n *Node) gossip(ctx context.Context) {
	var mu sync.Mutex
	talks, busy := map[string]*hostTalk{}, map[string]bool{}
	var all sync.WaitGroup
	defer func() {
		all.Wait()
		for _, t := range talks {
			t.Close()
		}
	}()
	for sleep(ctx, heardEvery) == nil {
		if n.handedOver() {
			continue // the successor asks
		}
		for _, peer := range n.peers() {
			mu.Lock()
			late := busy[peer]
			busy[peer] = true
			mu.Unlock()
			if late {
				continue
			}
			all.Go(func() {
				mu.Lock()
				t := talks[peer]
				mu.Unlock()
				var err error
				if t == nil {
					t, err = n.talk(ctx, peer)
				}
				if err == nil {
					if err = n.exchangeOn(ctx, t); err != nil {
						t.Close()
						t = nil
					}
				}
				mu.Lock()
				talks[peer] = t
				if err != nil {
					delete(talks, peer)
				}
				busy[peer] = false
				mu.Unlock()
			})
		}
	}
}

// standEvacuating has endpoints stand as their nodes do: those of one that is being
// evacuated quiesce.
func (n *Node) standEvacuating() {
	nodes := map[string]bool{}
	for _, name := range n.marks.names() {
		nodes[name] = true
	}
	w := n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = nodes
	now := w.now()
	for _, j := range w.judges {
		if j.Evacuate(now, nodes); j.Changed() {
			w.flush(j, now)
		}
	}
}

// NodesSeen are the nodes of the cluster as this one sees them, by name.
func (n *Node) NodesSeen() (out []NodeStatus) {
	c := n.Config()
	if c.Cluster == nil {
		return nil
	}
	now, flows, mtu := time.Now(), n.flows(), n.deviceMTU()
	n.marks.mu.Lock()
	defer n.marks.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.Cluster.Nodes)) {
		x := c.Cluster.Nodes[name]
		s := NodeStatus{Name: name, Address: x.Address.String(), Self: name == c.Node.Name, Labels: x.Labels, Evacuating: n.marks.all[name].Evacuating, HeardSeconds: -1}
		if h, ok := n.marks.heard[name]; ok {
			s.HeardSeconds, s.Flows, s.MTU = now.Sub(h.at).Seconds(), h.flows, h.mtu
		}
		if s.Self {
			s.HeardSeconds, s.Flows, s.MTU = 0, flows, mtu
		}
		out = append(out, s)
	}
	return out
}
