package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// silences knows since when peers owe an answer. Every question notes itself here, and each peer is
// asked at least once in heardEvery, so that one that hangs is noticed within that. Its zero value is ready.
type silences struct {
	mu    sync.Mutex           // guards since
	since map[string]time.Time // of the first question that has had no answer, by peer
}

// asked notes that a question is put to a peer.
func (s *silences) asked(peer string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since == nil {
		s.since = map[string]time.Time{}
	}
	if _, waits := s.since[peer]; !waits {
		s.since[peer] = now
	}
}

// answered notes that the peer lives: what is still asked of it counts from its next question.
func (s *silences) answered(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.since, peer)
}

// of is how long a peer has owed an answer; 0: it owes none.
func (s *silences) of(peer string, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, waits := s.since[peer]; waits {
		return now.Sub(at)
	}
	return 0
}

const (
	// silentAfter is how long a peer owes an answer before that is worth a word.
	silentAfter = time.Second
	silentLook  = 250 * time.Millisecond
)

// unreached is the error of a talk that a peer did not begin.
type unreached struct {
	peer string
	err  error
}

// Error says so without the words of Go for a deadline.
func (u *unreached) Error() string {
	if errors.Is(u.err, context.DeadlineExceeded) {
		return fmt.Sprintf("node: %s did not answer within %v: it is off, hangs, or is cut off from here", u.peer, answerTime)
	}
	return fmt.Sprintf("node: peer %s: %v", u.peer, u.err)
}

// Unwrap is the error.
func (u *unreached) Unwrap() error { return u.err }

// whileSilent tells, each second anew, of a peer that owes an answer, until the end of what it
// gives.
func (x *moveOf) whileSilent(peers ...string) (end func()) {
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		said := map[string]int{}
		for sleep(ctx, silentLook) == nil {
			for _, peer := range peers {
				seconds := int(x.n.silences.of(peer, time.Now()) / silentAfter)
				if seconds > 0 && seconds != said[peer] {
					x.aside(Progress{Phase: "waiting", Text: fmt.Sprintf("%s has not answered for %d s", peer, seconds)})
				}
				said[peer] = seconds
			}
		}
	})
	return func() { stop(); done.Wait() }
}

// deadOwner is the error of a move of a VIP, "" of an evacuation or a return, that a node was to make
// which was not reached, with what to do then.
func deadOwner(err error, name, owner string) error {
	var u *unreached
	if !errors.As(err, &u) || u.peer != owner {
		return err
	}
	if name == "" {
		return fmt.Errorf("%w; nothing was done, for only %s itself can. If it is off, its flows are lost, and another node takes its VIPs: holdfast vips", err, owner)
	}
	return fmt.Errorf("%w; nothing moved, for only its owner can move %s. If %s is off, its flows are lost; on the node that is to own %s: holdfast vips take %s",
		err, name, owner, name, name)
}

// explained adds to each VIP that seems to belong to a node which does not answer what is known of it and
// what to do.
func (n *Node) explained(all []VIPStatus) []VIPStatus {
	c, now := n.Config(), time.Now()
	for i := range all {
		v := &all[i]
		silent := n.silences.of(v.Owner, now)
		if v.State != "elsewhere" && v.State != "guest" || c.Cluster == nil || silent < 2*heardEvery {
			continue
		}
		lease := "its lease is over, unless it is only cut off from here"
		if left := c.Cluster.Lease - silent; left > 0 {
			lease = fmt.Sprintf("its lease ends in %v at the latest, unless it is only cut off from here", left.Round(time.Second))
		}
		v.Why = fmt.Sprintf("%s owned it last and has not answered for %v; %s. If %s is off, nobody answers for it until: holdfast vips take %s",
			v.Owner, silent.Round(time.Second), lease, v.Owner, v.Name)
	}
	return all
}
