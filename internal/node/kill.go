package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/loop"
)

// killPasses bounds how often flows are looked for again that were on their way
// from loop to loop when their loop was looked at.
const killPasses = 5

// ways are how flows are ended, by the word.
var ways = map[string]func(l *loop.Loop, slot uint32){
	"rst": (*loop.Loop).Kill,
	"fin": (*loop.Loop).Finish,
}

// wayOf understands a word for how flows are ended; "" is rst.
func wayOf(word string) (string, error) {
	if word == "" {
		word = "rst"
	}
	if ways[word] == nil {
		return "", fmt.Errorf("node: %q is no way to end flows: want rst or fin", word)
	}
	return word, nil
}

// Kill ends the flows that q wants, of those that there are when it begins. It
// returns when they have ended, or with ctx, which leaves the rest alone.
func (n *Node) Kill(ctx context.Context, q KillRequest) (*KillReport, error) {
	return once(ctx, n, q.Guard, q, func() (*KillReport, error) { return n.kill(ctx, q) })
}

func (n *Node) kill(ctx context.Context, q KillRequest) (*KillReport, error) {
	began := time.Now()
	if err := n.state.current().expected(q.Expect); err != nil {
		return nil, err
	}
	way, err := wayOf(q.Then)
	if err != nil {
		return nil, err
	}
	if err := checkPace(q.PerSecond, 0); err != nil {
		return nil, err
	}
	id, err := flowID(q.ID)
	if err != nil {
		return nil, err
	}
	if q.ID == "" && !q.All && q.Filter.all() {
		return nil, errors.New("node: no filter, and without one every flow would be ended: say so with all")
	}
	if q.Filter.Max < 0 {
		return nil, fmt.Errorf("node: at most %d flows: want a number from 0, which is all", q.Filter.Max)
	}
	wanted := func(l *loop.Loop, slot uint32, f *flow.Flow) bool {
		return (q.ID == "" || f.ID() == id) && q.Filter.wants(l, slot, f)
	}
	r := &KillReport{}
	told, err := n.killFlows(ctx, way, q.Filter.Max, newPacer(began, q.PerSecond, 0, rand.Float64), wanted)
	r.Killed = len(told)
	if err != nil {
		n.log.Info("ending flows ended early", "flows", r.Killed, "error", err)
	}
	n.eachFlow(func(l *loop.Loop, slot uint32, f *flow.Flow) {
		if !told[f.ID()] && wanted(l, slot, f) {
			r.Left++
		}
	})
	r.Millis = millis(time.Since(began))
	n.log.Info("flows ended by order", "flows", r.Killed, "left", r.Left, "then", way, "by", q.Name, "took", time.Since(began))
	n.tell("kill", "", q.Author, map[string]string{"killed": strconv.Itoa(r.Killed), "left": strconv.Itoa(r.Left), "then": way},
		"%s ended by %s, %d left that match", count(r.Killed, "flow"), way, r.Left)
	return r, nil
}

// all tells whether q wants every flow.
func (q *FlowFilter) all() bool {
	return q.Listener == "" && q.Backend == "" && q.Endpoint == "" && q.Kind == "" && !q.Client.IsValid() && q.Older == 0 && !q.Moved && q.Max == 0
}

// flowID reads the identity of a flow as people see it; "" is 0.
func flowID(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	id, err := strconv.ParseUint(strings.TrimPrefix(s, "f-"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("node: %q names no flow: want one as f-1a2b", s)
	}
	return id, nil
}

// killFlows ends flows that are wanted, of those that there are now, at most so
// many (0: all), as fast as p allows. It gives their identities: those that end by
// fin are there for a while.
func (n *Node) killFlows(ctx context.Context, way string, most int, p *pacer, wanted func(l *loop.Loop, slot uint32, f *flow.Flow) bool) (told map[uint64]bool, err error) {
	end := ways[way]
	until := n.shared.Loops[0].Now()
	told = map[uint64]bool{}
	for range killPasses {
		found := 0
		for _, l := range n.shared.Loops {
			var list []tenant
			for from, more := uint32(0), true; more; {
				l.Ask(func(l *loop.Loop) {
					from, more = l.Look(from, lookPlaces, func(i uint32, f *flow.Flow) {
						if f.Born() <= until && !told[f.ID()] && wanted(l, i, f) {
							list = append(list, tenant{i, f.ID(), f.Born()})
						}
					})
				})
			}
			found += len(list)
			for len(list) > 0 {
				if most > 0 && len(told) == most {
					return told, nil
				}
				k, err := p.next(ctx, min(changeChunk, len(list)))
				if err != nil {
					return told, err
				}
				if most > 0 {
					k = min(k, most-len(told))
				}
				l.Ask(func(l *loop.Loop) {
					for _, t := range list[:k] {
						if f := t.in(l); f != nil && wanted(l, t.slot, f) {
							listener := f.Listener().Ref.Name
							told[t.id] = true
							end(l, t.slot)
							n.side.noteKill(listener, way)
						}
					}
				})
				list = list[k:]
			}
		}
		if found == 0 {
			break
		}
	}
	return told, nil
}

func (s *flowSide) noteKill(listener, way string) {
	s.mu.Lock()
	s.killed[[2]string{listener, way}]++
	s.mu.Unlock()
}
