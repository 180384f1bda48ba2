package lab

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// misbehaving has servers turn bad in the ways of servers, one way in each
// scene, and shows as a curve what the balancer makes of it: who gets how much,
// and what clients see. It is judged by counts, which the servers and the
// clients make.
func misbehaving(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	w, here, err := newLoopback(o.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	m := &misbehaveLab{Options: o, ctx: ctx, out: out, v: v, here: here, clients: 24, rest: 20 * time.Millisecond, piece: time.Second}
	if o.Short {
		m.clients, m.rest, m.piece = 12, 25*time.Millisecond, 500*time.Millisecond
	}
	var s strings.Builder
	s.WriteString("node: { name: misbehave, loops: 2, admin: { socket: SOCKET } }\nlisteners:\n")
	for i, x := range badScenes {
		fmt.Fprintf(&s, "  %s: { vip: \"127.0.0.1:%d\", protocol: http, backend: %s }\n", x.name, 8200+i, x.name)
	}
	s.WriteString("backends:\n")
	for i, x := range badScenes {
		fmt.Fprintf(&s, "  %s:\n    connectTimeout: 1s\n    limits: { queueTime: 1s }\n%s    endpoints:\n", x.name, x.policy)
		for n := range badServers {
			fmt.Fprintf(&s, "      - { name: e%d, address: \"%s\" }\n", n+1, shopAddr(20+i, n+1, shopPort))
		}
	}
	// The servers come first: what is checked shall be up.
	var all []*badRun
	for i, x := range badScenes {
		b, err := m.prepare(i, x)
		if err != nil {
			return err
		}
		defer b.close()
		all = append(all, b)
	}
	if m.node, err = startNode(ctx, o.Binary, here, "misbehave", s.String()); err != nil {
		return err
	}
	if !eventually(5*time.Second, func() bool {
		states, err := m.node.endpoints(ctx)
		for _, e := range states {
			if !e.Serves {
				return false
			}
		}
		return err == nil && len(states) > 0
	}) {
		return fmt.Errorf("lab: not all endpoints serve at the beginning\n%s", m.node.process.Tail(20))
	}
	if o.Short {
		var together sync.WaitGroup
		for _, b := range all {
			together.Go(b.play)
		}
		together.Wait()
	} else {
		for _, b := range all {
			b.play()
		}
	}
	for _, b := range all {
		b.say()
	}
	m.node.judgePromises(ctx, v)
	if v.Wrong() {
		v.Say("-- log of the balancer\n%s", m.node.process.Tail(60))
	}
	return nil
}

type misbehaveLab struct {
	Options
	ctx     context.Context
	out     io.Writer
	v       *Verdict
	here    *Host
	node    *shopNode
	clients int
	rest    time.Duration
	piece   time.Duration // of the curve

}

// badServers are as many as each scene has.
const badServers = 4

// badRun is one scene as it is played.
type badRun struct {
	m      *misbehaveLab
	of     badScene
	stands []*stand
	c      *crowd
	began  time.Time

	mu     sync.Mutex // guards all below
	text   []string   // what was done, and when
	curve  [][badServers]int64
	failed []int
	quiet  [badServers]int64           // requests while ejected, of which there may be none
	bans   [badServers][]time.Duration // ejections by how long they were to last
	looks  [badServers]int             // at one that is ejected
	left   [badServers]float64         // seconds of an ejection at the last look
	had    [badServers]int64
}

func (m *misbehaveLab) prepare(i int, x badScene) (*badRun, error) {
	b := &badRun{m: m, of: x, c: newCrowd(m.ctx, fmt.Sprintf("127.0.0.1:%d", 8200+i), m.Seed)}
	for n := range badServers {
		s, err := newStand(fmt.Sprintf("e%d", n+1), shopAddr(20+i, n+1, shopPort), m.Seed)
		if err != nil {
			return nil, err
		}
		b.stands = append(b.stands, s)
	}
	return b, nil
}

func (b *badRun) close() {
	b.c.end()
	for _, s := range b.stands {
		s.close()
	}
}

// play runs the scene with its clients and with two who watch.
func (b *badRun) play() {
	b.began = time.Now()
	ctx, stop := context.WithCancel(b.m.ctx)
	var watching sync.WaitGroup
	watching.Go(func() { b.draw(ctx) })
	watching.Go(func() { b.watch(ctx) })
	b.c.keepAlive(b.m.clients, b.m.rest, 2*time.Millisecond)
	judge := b.of.run(b)
	b.c.end()
	stop()
	watching.Wait()
	judge()
}

// draw notes in each piece of time who got how many requests, and how many
// failures clients saw.
func (b *badRun) draw(ctx context.Context) {
	var had [badServers]int64
	failed := 0
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(b.began.Add(time.Duration(i) * b.m.piece))):
		}
		var row [badServers]int64
		for n, s := range b.stands {
			now := s.came.Load()
			row[n], had[n] = now-had[n], now
		}
		f := b.c.failed()
		b.mu.Lock()
		b.curve, b.failed = append(b.curve, row), append(b.failed, f-failed)
		b.mu.Unlock()
		failed = f
	}
}

// watch looks at the states of the endpoints, and at what came to those that are
// ejected.
func (b *badRun) watch(ctx context.Context) {
	for ctx.Err() == nil {
		states, err := b.m.node.endpoints(ctx)
		if err == nil {
			b.look(states)
		}
		select {
		case <-ctx.Done():
		case <-time.After(40 * time.Millisecond):
		}
	}
}

// aboutToReturn is how close to its end an ejection may be over before it was
// looked at.
const aboutToReturn = 0.15

func (b *badRun) look(states map[string]endpointView) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, s := range b.stands {
		now, came := states[fmt.Sprintf("%s/e%d", b.of.name, n+1)], s.came.Load()
		switch {
		case !now.Ejected:
			b.looks[n] = 0
		case b.looks[n] == 0 || now.EjectedSeconds > b.left[n]:
			// What was sent before it may arrive until the next look.
			b.bans[n] = append(b.bans[n], time.Duration(now.EjectedSeconds*float64(time.Second)))
			b.looks[n] = 1
		default:
			if b.looks[n]++; b.looks[n] > 2 && now.EjectedSeconds > aboutToReturn {
				b.quiet[n] += came - b.had[n]
			}
		}
		b.left[n], b.had[n] = now.EjectedSeconds, came
	}
}

// until lets the scene go on until so long after its beginning.
func (b *badRun) until(at time.Duration) {
	select {
	case <-b.m.ctx.Done():
	case <-time.After(time.Until(b.began.Add(at))):
	}
}

// mark says what was done, and when.
func (b *badRun) mark(format string, args ...any) {
	line := fmt.Sprintf("%5.1f s  %s", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
	b.mu.Lock()
	b.text = append(b.text, line)
	b.mu.Unlock()
}

// came is how many requests have come to each.
func (b *badRun) came() (n [badServers]int64) {
	for i, s := range b.stands {
		n[i] = s.came.Load()
	}
	return n
}

// share is what part of all requests that came since one endpoint got, in percent.
func share(now, before [badServers]int64, n int) float64 {
	all := int64(0)
	for i := range now {
		all += now[i] - before[i]
	}
	return 100 * float64(now[n]-before[n]) / float64(max(1, all))
}

// must notes a figure of this scene.
func (b *badRun) must(ok bool, what, got, want string) {
	b.m.v.Must(ok, b.of.name+": "+what, got, want)
}

// say prints the curve: a column for each piece of time.
func (b *badRun) say() {
	v := b.m.v
	v.Say("-- %s: %s", b.of.name, b.of.what)
	for _, t := range b.text {
		v.Say("   %s", t)
	}
	var head strings.Builder
	for i := range b.curve {
		fmt.Fprintf(&head, "%5.1f", (time.Duration(i+1) * b.m.piece).Seconds())
	}
	v.Say("   %-18s%s", "second", head.String())
	for n := range badServers {
		var line strings.Builder
		for _, row := range b.curve {
			if row == [badServers]int64{} {
				line.WriteString("    -")
				continue
			}
			fmt.Fprintf(&line, "%5.0f", share(row, [badServers]int64{}, n))
		}
		v.Say("   %-18s%s", fmt.Sprintf("e%d gets, percent", n+1), line.String())
	}
	var all, failed strings.Builder
	for i, row := range b.curve {
		sum := int64(0)
		for _, k := range row {
			sum += k
		}
		fmt.Fprintf(&all, "%5d", sum)
		fmt.Fprintf(&failed, "%5d", b.failed[i])
	}
	v.Say("   %-18s%s", "requests there", all.String())
	v.Say("   %-18s%s", "clients' failures", failed.String())
	v.Say("   %d answers were right, %d failed %s; longest %s", b.c.answers(), b.c.failed(), b.c.failures(), ms(b.c.took.Max))
	v.Figure(strings.ReplaceAll(b.of.name, "-", "_"), map[string]any{"right": b.c.answers(), "failed": b.c.failed(), "curve": b.curve, "failures": b.failed})
}
