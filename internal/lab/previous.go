package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// previous is the lab of two releases: the one before this one serves flows of
// all kinds, is upgraded to this one, back down and up again, and no octet is
// lost, no flow reset, no new connection refused. Each pair of directions is asked
// for once with the command of this release, once with that of the other: a
// person who has installed a package asks with the new one what the old one
// started, and may have to take it back with whatever is there.
func previous(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	if o.Flows == 0 {
		o.Flows = 1000
		if o.Short {
			o.Flows = 200
		}
	}
	rounds := o.Moves
	if rounds == 0 {
		rounds = 40
		if o.Short {
			rounds = previousRounds
		}
	}
	o.Moves = rounds
	made := []Label{Config, Loop, ProcessMove}
	o.Distances = []string{Config.String(), Loop.String(), ProcessMove.String()}
	mix, webMix := mixOf(o.Flows), httpMixOf(o.Flows*httpPerThousand/1000)
	s, err := setScene(ctx, o, out, v, "server", allKinds(mix, webMix))
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	l := &longRun{scene: s, mix: mix, http: &httpRun{scene: s, mix: webMix}}
	if err = l.openAll(); err == nil {
		l.control("before the moves", o.Short)
		err = l.betweenReleases(rounds, made)
	}
	b, across := s.balancer.(*acrossReleases)
	if err == nil && across && o.Sabotage == "" {
		l.phase("flows that the other release cannot hold")
		b.others, err = l.residues(plantedBinary(o.dir), 9443)
	}
	if across {
		b.judge(v)
	}
	l.conclude(made, err)
	return nil
}

// previousRounds of a short run: up and down with each release's command, and up
// once more, for that is where it stays.
const previousRounds = 5

// betweenReleases goes from one release to the other and back, with a change and
// a move between loops after each step: what came from the other release must
// also live on here.
func (l *longRun) betweenReleases(rounds int, made []Label) error {
	l.phase("%d times from one release to the other", rounds)
	for i := range rounds {
		if i == rounds-1 {
			l.drainQueue()
		}
		if i == 1 {
			l.strike()
		}
		for _, d := range []Label{ProcessMove, Config, Loop} {
			if err := l.mover.Move(l.ctx, d); err != nil {
				return err
			}
		}
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
	return nil
}

// acrossReleases is the product in two releases, which take turns to serve.
type acrossReleases struct {
	Holdfast
	binaries [2]string // the previous one, this one
	serving  int       // of these
	moves    int       // between them

	others int       // processes beside them: of flows that the other release cannot hold
	names  [2]string // as their processes say
	backto []string  // counts that went back
	wrong  []string  // what a step was not
}

func newAcrossReleases(s *scene, nodes ...*Host) *acrossReleases {
	return &acrossReleases{
		Holdfast: Holdfast{Binary: s.Previous, Services: s.services, Nodes: nodes},
		binaries: [2]string{s.Previous, s.Binary},
	}
}

// Start runs the previous release.
func (b *acrossReleases) Start(ctx context.Context) error {
	if err := b.Holdfast.Start(ctx); err != nil {
		return err
	}
	was, err := b.account(ctx)
	if err != nil {
		return err
	}
	b.names[0] = was.Release
	return nil
}

// releaseAccount is of a status what must not go back when the release does.
type releaseAccount struct {
	Release    string            `json:"release"`
	Generation uint64            `json:"generation"`
	Accepted   uint64            `json:"accepted"`
	Requests   uint64            `json:"requests"`
	Received   uint64            `json:"octets_from_clients"`
	Sent       uint64            `json:"octets_from_backends"`
	Ended      map[string]uint64 `json:"ended"`
	Moves      map[string]uint64 `json:"moves"`
	MovedFlows map[string]uint64 `json:"moved_flows"`
}

func (b *acrossReleases) account(ctx context.Context) (a releaseAccount, err error) {
	return a, b.verb(ctx, b.nodes[b.active], &a, "status")
}

// Move makes one; of processes, to the other release.
func (b *acrossReleases) Move(ctx context.Context, d Label) (*MoveReport, error) {
	if d != ProcessMove {
		return b.Holdfast.Move(ctx, d)
	}
	to := 1 - b.serving
	b.Binary = b.binaries[1-b.moves/2%2] // whose command asks, here and until the next move
	was, err := b.account(ctx)
	if err != nil {
		return nil, err
	}
	var said struct {
		MoveReport
		Move *MoveReport `json:"move"` // of a release that tells its steps
	}
	n := b.nodes[b.active]
	if err := b.verb(ctx, n, &said, "upgrade", "--binary", b.binaries[to]); err != nil {
		return nil, fmt.Errorf("%s to %s, asked by the command of %s: %w", filepath.Base(b.binaries[b.serving]), filepath.Base(b.binaries[to]), filepath.Base(b.Binary), err)
	}
	r := said.Move
	if r == nil {
		r = &said.MoveReport
	}
	n.pid, b.serving = r.PID, to
	b.moves++
	is, err := b.account(ctx)
	if err != nil {
		return r, err
	}
	b.compare(was, is)
	return r, nil
}

// compare notes what a step lost of the account, and whether it was one.
func (b *acrossReleases) compare(was, is releaseAccount) {
	if b.names[b.serving] == "" {
		b.names[b.serving] = is.Release
	}
	if is.Release == was.Release || is.Release != b.names[b.serving] {
		b.wrong = append(b.wrong, fmt.Sprintf("step %d: release was %s, is %s, want %s", b.moves, was.Release, is.Release, b.names[b.serving]))
	}
	if is.Generation != was.Generation {
		b.wrong = append(b.wrong, fmt.Sprintf("step %d: generation was %d, is %d", b.moves, was.Generation, is.Generation))
	}
	back := func(what string, was, is uint64) {
		if is < was {
			b.backto = append(b.backto, fmt.Sprintf("step %d: %s was %d, is %d", b.moves, what, was, is))
		}
	}
	back("accepted", was.Accepted, is.Accepted)
	back("requests", was.Requests, is.Requests)
	back("octets_from_clients", was.Received, is.Received)
	back("octets_from_backends", was.Sent, is.Sent)
	for _, m := range []struct {
		what    string
		was, is map[string]uint64
	}{{"ended", was.Ended, is.Ended}, {"moves", was.Moves, is.Moves}, {"moved_flows", was.MovedFlows, is.MovedFlows}} {
		for k, n := range m.was {
			back(m.what+" "+k, n, m.is[k])
		}
	}
}

// judge writes what was found of releases into the verdict.
func (b *acrossReleases) judge(v *Verdict) {
	v.Say("releases: %s and %s, %d steps from one to the other", b.names[0], b.names[1], b.moves)
	for _, s := range append(b.wrong, b.backto...) {
		v.Say("  %s", s)
	}
	v.Zero("steps that did not lead to the other release", len(b.wrong))
	v.Zero("counts that went back", len(b.backto))
	// A process may take a moment to end after its last word.
	var running []string
	eventually(leavePatience, func() bool {
		running = processesOf(b.binaries[:]...)
		return len(running) <= len(b.Nodes)+b.others
	})
	v.Must(len(running) == len(b.Nodes)+b.others, "processes at the end", fmt.Sprintf("%d %v", len(running), running),
		fmt.Sprintf("%d, one on each host, and %d successors of those that could not give all", len(b.Nodes), b.others))
	v.Figure("releases", b.names)
	v.Figure("steps", b.moves)
}

// processesOf lists the processes that run one of the binaries.
func processesOf(binaries ...string) (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range all {
		exe, err := os.Readlink(link)
		if err != nil {
			continue // it has ended, or is a thread of the kernel
		}
		for _, b := range binaries {
			if exe == b {
				pids = append(pids, filepath.Base(filepath.Dir(link)))
			}
		}
	}
	return pids
}
