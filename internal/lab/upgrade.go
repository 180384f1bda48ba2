package lab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"path/filepath"
	"time"
)

// upgrading is the test of an upgrade in place: a hundred in a row under every
// kind of traffic, then some with as many flows as descriptors allow, and what
// haproxy and nginx do with the same connections when they are reloaded.
func upgrading(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	u := &upgradeLab{Options: o, ctx: ctx, out: out, v: v, small: 200, upgrades: 100, control: 20 * time.Second,
		many: 9000, manyUpgrades: 20, manyControl: 20 * time.Second, old: 30 * time.Second, bound: 10 * time.Second}
	if o.Short {
		u.upgrades, u.control, u.many = 5, 3*time.Second, 0
	}
	u.nofile = int(limitOf())
	switch {
	case o.Flows >= crowdedFrom:
		u.many = o.Flows
		return u.crowded()
	case o.Flows > 0:
		u.small = o.Flows
	}
	if o.Moves > 0 {
		u.upgrades = o.Moves
	}
	if err := u.hundred(); err != nil {
		return err
	}
	if o.Sabotage != "" || o.Short || o.Moves > 0 {
		return nil
	}
	if err := u.crowded(); err != nil {
		return err
	}
	if err := u.beside(); err != nil {
		return err
	}
	return u.write()
}

// crowdedFrom is how many flows one has to ask for to get the second scene alone. A
// number of moves gives the first one alone.
const crowdedFrom = 1000

// upgradeLab is one run.
type upgradeLab struct {
	Options
	ctx context.Context
	out io.Writer
	v   *Verdict

	small, upgrades    int           // flows of the first scene, and upgrades
	control            time.Duration // without any
	many, manyUpgrades int           // of the second one
	manyControl        time.Duration
	old, bound         time.Duration // how long peers are looked at; when they cut, if they shall
	scenes             []*upgradeScene
	peers              []*peerReload
	appetites          [2]appetite // before and after the hundred
	collected          collections
	both               weight // of both processes in an upgrade of the second scene, at most
	alone              int    // octets of one of them, anonymous and resident
	nofile             int
}

func (u *upgradeLab) phase(format string, args ...any) {
	_, _ = fmt.Fprintf(u.out, "== %6.2f s  %s\n", time.Since(u.began).Seconds(), fmt.Sprintf(format, args...))
}

// upgradeScene is what was measured of upgrades with about the same flows.
type upgradeScene struct {
	name       string
	flows      int
	n          int       // upgrades
	pauses     pauses    // as the reports say
	whole      Histogram // of a report, from the beginning to the end
	over       Histogram // of these the part in which flows move
	leave      Histogram // from the answer until the old process is gone
	quiet      []time.Duration
	seen       []time.Duration // the longest word of each echo flow in each upgrade
	words      [2]ReloadDelay  // of all words: without upgrades, with
	kinds      map[string]kindReport
	phases     map[string]*Histogram
	octets     uint64
	moved      int
	refused    int
	lost       int
	copied     int
	idle       int
	dials      []int64            // of servers, in each upgrade
	dialsQuiet int64              // without upgrades
	cpu        [2][]time.Duration // of processors, spent on the old and the new process in each upgrade
	serving    float64            // of one processor, what serving alone takes
	onOld      int                // flows whose objects are no longer in force, the least
	extra      []ReloadDelay
	closed     int // idle and kept connections that were closed, or told so
	failed     int // new connections and requests
}

// note adds one report.
func (x *upgradeScene) note(r *upgradeReport) {
	x.n++
	x.moved += r.Flows
	x.octets += r.Octets
	x.refused += r.Refused
	x.lost += r.Lost
	x.copied += r.Copied
	x.idle += r.IdleLegs
	if r.Pause.Max > 0 { // nobody tells of one by a signal
		x.pauses.add(r.Flows, r.Pause)
	}
	x.whole.Add(floatMillis(r.Millis))
	if x.kinds == nil {
		x.kinds, x.phases = map[string]kindReport{}, map[string]*Histogram{}
	}
	for k, is := range r.Kinds {
		was := x.kinds[k]
		x.kinds[k] = kindReport{was.Flows + is.Flows, was.Octets + is.Octets, was.Frozen + is.Frozen}
	}
	for name, took := range r.Phases {
		if x.phases[name] == nil {
			x.phases[name] = &Histogram{}
		}
		x.phases[name].Add(floatMillis(took))
	}
	if part := r.Phases["canary"] + r.Phases["switching"] + r.Phases["flows"]; part > 0 {
		x.over.Add(floatMillis(part))
	}
}

// echoPair is both ends of the echo flows of a scene.
type echoPair struct {
	*rpc.Client
	server, client *Process
}

// echoFlows is how many there are.
const echoFlows = 4

// echo starts the ends; the server's first, so that what is between them can be
// started in between.
func (u *upgradeLab) echoServer(at *Host, addr netip.AddrPort) (*Process, error) {
	p, err := at.Start("echo-server", []string{stageEnv + "=" + stageEcho}, "/proc/self/exe", "serve", addr.String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(u.ctx, readyPatience)
	defer cancel()
	return p, p.WaitLine(ctx, "ready:")
}

func (u *upgradeLab) echoClient(at *Host, name string, server *Process, to netip.AddrPort) (*echoPair, error) {
	socket := filepath.Join(at.world.Dir, name+".echo")
	p, err := at.Start(name+"-echo", []string{stageEnv + "=" + stageEcho}, "/proc/self/exe", "call", socket, to.String(), fmt.Sprint(echoFlows), fmt.Sprint(u.Seed))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(u.ctx, readyPatience)
	defer cancel()
	if err := p.WaitLine(ctx, "ready:"); err != nil {
		return nil, err
	}
	c, err := rpc.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return &echoPair{c, server, p}, nil
}

func (e *echoPair) look() (r EchoReport, err error) {
	err = e.Call("Echo.Look", true, &r)
	return r, err
}

func (e *echoPair) end() {
	_ = e.Close()
	e.client.Kill()
	e.server.Kill()
}

// windows looks for d at the worst words of spans in which nothing happens, each
// as long as that of an upgrade.
func (e *echoPair) windows(ctx context.Context, d, span time.Duration) (worst []time.Duration, all ReloadDelay, err error) {
	if _, err = e.look(); err != nil {
		return
	}
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(span)
		r, err := e.look()
		if err != nil {
			return nil, all, err
		}
		worst = append(worst, r.Worst...)
		all = worse(all, r.Delay)
	}
	return worst, all, ctx.Err()
}

// worse joins two distributions of about as many: their quantiles are the larger.
func worse(a, b ReloadDelay) ReloadDelay {
	return ReloadDelay{a.N + b.N, max(a.P50, b.P50), max(a.P99, b.P99), max(a.P999, b.P999), max(a.Max, b.Max)}
}
