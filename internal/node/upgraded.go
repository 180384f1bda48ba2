package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/loop"
)

// UpgradeStatus is what came of an upgrade.
type UpgradeStatus struct {
	At time.Time `json:"at"` // when it ended
	By Author    `json:"by"`
	// Result is done; aborted, when the old process went on and nothing was lost; or
	// failed, when flows were lost.
	Result string  `json:"result"`
	Why    string  `json:"why,omitempty"`
	Was    int     `json:"was_pid"` // the process that handed over, or wanted to
	Move   *Report `json:"move,omitempty"`
}

// ResidueStatus is what a process that was replaced still has: flows that its
// successor could not hold.
type ResidueStatus struct {
	PID     int            `json:"pid"`
	Release string         `json:"release"`
	Flows   int            `json:"flows"`
	Reasons map[string]int `json:"reasons"`
	Until   time.Time      `json:"until"` // it ends them then
}

// upgrades is what a node knows of upgrades.
type upgrades struct {
	// turn is held by who makes one.
	turn sync.Mutex

	// mu guards what follows.
	mu      sync.Mutex
	now     *upgrading // nil: none is under way
	last    *UpgradeStatus
	residue map[int]ResidueStatus  // by process
	vips    map[int]map[string]int // flows in it by the VIP that they are on
	results map[string]uint64
	kinds   map[string]KindReport // of all that moved to this process
	idle    uint64                // pooled legs that came along
}

// upgrading is one that is under way.
type upgrading struct {
	q     UpgradeRequest
	began time.Time
	r     *Report
	step  Progress
	told  bool // a step
}

// upgradeResults are there with 0 from the beginning.
var upgradeResults = []string{"done", "aborted", "failed"}

// Upgrade hands everything over to a new process and tells how it goes. If the
// new one does not come up, refuses or dies, this process goes on; an error says
// so. On success nothing is left here but flows that the successor refused, and
// the last step, as it is told, has the report. With a key it is made once, over
// processes: the successor knows the answer. ctx ends it as long as no flow is
// another's; later it goes on.
func (n *Node) Upgrade(ctx context.Context, q UpgradeRequest, tell func(Progress)) error {
	told := false
	last, err := once(ctx, n, q.Guard, q, func() (*Progress, error) {
		told = true
		return n.upgradeOnce(ctx, q, tell)
	})
	if err == nil && !told && tell != nil { // it was done before
		tell(*last)
	}
	return err
}

func (n *Node) upgradeOnce(ctx context.Context, q UpgradeRequest, tell func(Progress)) (*Progress, error) {
	if err := n.state.current().expected(q.Expect); err != nil {
		return nil, err
	}
	u := &n.upgrades
	x := &upgrading{q: q, began: time.Now(), r: newReport("process")}
	x.r.From = Release
	say := func(p Progress) {
		p.Seconds = time.Since(x.began).Seconds()
		if !x.told {
			n.tell("upgrade", "", q.Author, nil, "an upgrade begins: %s", p.Text)
		}
		u.mu.Lock()
		x.step, x.told = p, true
		u.mu.Unlock()
		if tell != nil {
			tell(p)
		}
	}
	u.turn.Lock()
	defer u.turn.Unlock()
	u.mu.Lock()
	u.now = x
	u.mu.Unlock()
	err := n.upgrade(ctx, q, x.r, say)
	s := x.status(err)
	u.mu.Lock()
	u.now = nil
	u.mu.Unlock()
	if err == nil {
		u.ended(s) // the successor tells of it to those who watch
		say(doneStep(s.Move, 0))
		return &x.step, nil
	}
	if !x.told && s.Move.Lost == 0 {
		return nil, err // it was refused before anything was begun
	}
	u.ended(s)
	n.tell("upgrade", "", q.Author, map[string]string{"result": s.Result}, "upgrade %s", s.Why)
	say(Progress{Phase: "aborted", Text: s.Why, Failed: s.Why, Done: true, PID: pid, Release: Release, Move: s.Move})
	return nil, err
}

// status is what came of x.
func (x *upgrading) status(err error) *UpgradeStatus {
	s := &UpgradeStatus{At: time.Now(), By: x.q.Author, Result: "done", Was: pid, Move: x.r.sofar(x.began)}
	if err != nil {
		s.Result, s.Why = "aborted", strings.TrimPrefix(err.Error(), "node: ")
	}
	if s.Move.Lost > 0 {
		s.Result = "failed"
	}
	return s
}

// sofar is a copy of what r says now.
func (r *Report) sofar(began time.Time) *Report {
	r.mu.Lock()
	r.Pause = pauseOf(r.pauses)
	if r.Millis == 0 {
		r.Millis = millis(time.Since(began))
	}
	text, err := json.Marshal(r)
	r.mu.Unlock()
	if err != nil { // words and numbers
		panic(err)
	}
	out := &Report{}
	_ = json.Unmarshal(text, out) // what was just written
	return out
}

// longest says how long flows were held up that did not move after all.
func (r *Report) longest() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := pauseOf(r.pauses); p.Max > 0 {
		return fmt.Sprintf(", longest pause %.1f ms", p.Max/1000)
	}
	return ""
}

// movedText says in one line what an upgrade has done.
func movedText(r *Report) string {
	text := count(r.Flows, "flow") + " moved"
	if r.Residue > 0 {
		text += fmt.Sprintf(", %d drain in the old process", r.Residue)
	}
	return fmt.Sprintf("%s, %d lost", text, r.Lost)
}

// ended keeps what came of an upgrade.
func (u *upgrades) ended(s *UpgradeStatus) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last = s
	if u.results == nil {
		u.results = map[string]uint64{}
	}
	u.results[s.Result]++
}

// portableUpgrade is an upgrade as the successor learns of it, with the last
// message of its predecessor.
type portableUpgrade struct {
	UpgradeStatus
	// Key is that of the request, and Sum tells it from others.
	Key string `json:"key,omitempty"`
	Sum string `json:"sum,omitempty"`
}

// passing is the upgrade under way as if it were done.
func (u *upgrades) passing() *portableUpgrade {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now == nil {
		return nil
	}
	p := &portableUpgrade{UpgradeStatus: *u.now.status(nil), Key: u.now.q.Key}
	if p.Key != "" {
		p.Sum, _ = requestSum(u.now.q) // it was made of the same before
	}
	return p
}

// requestSum tells requests apart.
func requestSum(q any) (string, error) {
	text, err := json.Marshal(q)
	if err != nil {
		return "", fmt.Errorf("node: %w", err)
	}
	return textSum(fmt.Appendf(text, "%T", q)), nil
}

// kindsMax bounds the kinds of flows that are told apart: a predecessor of
// another release may have others.
const kindsMax = 64

// succeeded takes over what the predecessor has told of the upgrade to us.
func (n *Node) succeeded(p *portableUpgrade) {
	if p == nil || p.Move == nil { // of a release that does not tell
		return
	}
	u, s := &n.upgrades, &p.UpgradeStatus
	s.Move.PID = pid // the predecessor says so when all is over
	u.ended(s)
	u.mu.Lock()
	if u.kinds == nil {
		u.kinds = map[string]KindReport{}
	}
	for name, k := range s.Move.Kinds {
		if _, known := u.kinds[name]; !known && len(u.kinds) >= kindsMax {
			name = "other"
		}
		x := u.kinds[name]
		x.Flows += k.Flows
		x.Octets += k.Octets
		x.Frozen += k.Frozen
		u.kinds[name] = x
	}
	u.idle += uint64(s.Move.IdleLegs)
	u.mu.Unlock()
	if p.Key != "" {
		answer, _ := json.Marshal(doneStep(s.Move, s.Move.Millis/1000)) // words and numbers
		n.state.mu.Lock()
		n.state.keys.add(p.Key, &keyed{Sum: p.Sum, At: s.At, Answer: answer})
		n.state.mu.Unlock()
	}
	n.tell("upgrade", "", s.By, map[string]string{"result": s.Result}, "process %d has handed over to %d: %s", s.Was, pid, movedText(s.Move))
}

// doneStep is the last step of an upgrade that is done.
func doneStep(r *Report, seconds float64) Progress {
	return Progress{Phase: "done", Text: movedText(r), Seconds: seconds, Done: true, Flows: r.Flows, FlowsTotal: r.Flows, PID: r.PID, Release: r.To, Move: r}
}

// drains notes what a process that was replaced still has; no flows end it.
func (n *Node) drains(r ResidueStatus) {
	u := &n.upgrades
	u.mu.Lock()
	before, known := u.residue[r.PID]
	if r.Flows == 0 {
		delete(u.residue, r.PID)
	} else {
		if u.residue == nil {
			u.residue = map[int]ResidueStatus{}
		}
		u.residue[r.PID] = r
	}
	u.mu.Unlock()
	switch {
	case r.Flows > 0 && !known:
		n.tell("upgrade", "", Author{}, map[string]string{"flows": strconv.Itoa(r.Flows)}, "%s drain in process %d until %s, when it ends what is left", count(r.Flows, "flow"), r.PID, r.Until.Format(time.RFC3339))
	case r.Flows == 0 && known:
		n.tell("upgrade", "", Author{}, map[string]string{"flows": strconv.Itoa(before.Flows)}, "nothing drains in process %d any more; it had %s last", r.PID, count(before.Flows, "flow"))
	}
}

// look is the step of an upgrade that is under way, what came of the last one,
// and what replaced processes still have.
func (u *upgrades) look() (now *Progress, last *UpgradeStatus, residue []ResidueStatus) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now != nil {
		step := u.now.step
		step.Seconds = time.Since(u.now.began).Seconds()
		now = &step
	}
	for _, r := range u.residue {
		residue = append(residue, r)
	}
	slices.SortFunc(residue, func(a, b ResidueStatus) int { return a.PID - b.PID })
	return now, u.last, residue
}

// gather adds what is counted of upgrades.
func (u *upgrades) gather(g *gathering) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, result := range upgradeResults {
		g.add(upgradesTotal, float64(u.results[result]), result)
	}
	g.add(frozenFlows, 0, loop.KindIdle) // so that the metrics are there
	g.add(frozenBytes, 0, loop.KindIdle)
	for name, k := range u.kinds {
		g.add(frozenFlows, float64(k.Flows), name)
		g.add(frozenBytes, float64(k.Frozen), name)
	}
	g.add(movedIdleLegs, float64(u.idle), "process")
}

// gatherResidue adds what replaced processes still have.
func (u *upgrades) gatherResidue(g *gathering) {
	_, _, residue := u.look()
	g.add(residueFlows, 0, "other") // so that the metric is there
	for _, r := range residue {
		for why, k := range r.Reasons {
			g.add(residueFlows, float64(k), reasonOf(why))
		}
	}
}
