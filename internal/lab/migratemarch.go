package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marchHarm is what comes to one of the two nodes in the middle of a move.
type marchHarm struct {
	name string
	// begin does it, end undoes it.
	begin, end func(r *migrateMarch, node string) error
	// dead: an operator says that the node is dead before end.
	dead bool
	// none: flows are lost by it in no step.
	none bool
	// long: in the full form alone.
	long bool
	// lasts is until end; 0: longer than two leases.
	lasts time.Duration
}

var marchHarms = []marchHarm{
	{name: "stands still", begin: (*migrateMarch).stopNode, end: (*migrateMarch).goOn, none: true},
	{name: "is killed", begin: (*migrateMarch).killNode, end: (*migrateMarch).startAgain},
	{name: "is cut off", begin: (*migrateMarch).unplug, end: (*migrateMarch).plug, none: true},
	{name: "is not heard", begin: (*migrateMarch).mute, end: (*migrateMarch).uncut},
	{name: "hears nothing", begin: (*migrateMarch).deafen, end: (*migrateMarch).uncut, long: true},
	{name: "is killed for good", begin: (*migrateMarch).killNode, end: (*migrateMarch).startAgain, dead: true, long: true},
	{name: "has a full disk", begin: (*migrateMarch).fillDisk, end: (*migrateMarch).freeDisk, none: true, lasts: marchLease / 2},
	{name: "is not told", begin: func(*migrateMarch, string) error { return nil }, end: (*migrateMarch).abort, none: true},
}

// marchLease and marchSettle are short, so that much is seen in little time.
const (
	marchLease  = time.Second
	marchSettle = time.Second
)

// marchPhases are the steps of a move, as its command tells them, at which harm comes. The
// last flows are on their way, or have gone, when the first of them are told.
var marchPhases = []string{"plan", "hold", "flows", "address", "settling"}

// marchFlows are connections that stand during each step; they say something every few
// milliseconds, and know if their server has said something else.
const marchFlows = 40

// migrateMarching is the lab migrate-march: a move comes to harm at one moment after
// another, at either node. The network is the judge: no two hosts ever answer for
// one address, and in the end one does.
func migrateMarching(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	r := &migrateMarch{scene: &scene{Options: o, ctx: ctx, out: out, v: v, doors: map[string]*Door{}}}
	defer r.close()
	if err := r.stage(); err != nil {
		return err
	}
	if err := r.refused(); err != nil {
		return fmt.Errorf("flows that the taker refuses: %w", err)
	}
	each := max(o.Moves, 1)
	for i, h := range marchHarms {
		for j, node := range []string{"n1", "n3"} {
			if h.name == "is not told" && node == "n3" {
				continue
			}
			for k, phase := range marchPhases {
				// In the short form one phase of each at one node, another one by the seed.
				if o.Short && (h.long || k != int(o.Seed+uint64(3*i))%len(marchPhases) || (o.Seed+uint64(i+j))%2 != 0 && h.name != "is not told") {
					continue
				}
				for range each {
					if err := r.step(h, node, phase); err != nil {
						r.phase("%s", r.b.Logs())
						return fmt.Errorf("%s %s at %q: %w", node, h.name, phase, err)
					}
				}
			}
		}
	}
	v.Must(r.steps > 0, "steps of the march", fmt.Sprint(r.steps), "more than 0")
	v.Zero("steps in which a host answered again after another one had", r.twice)
	v.Zero("steps after which not exactly one node owned the VIP", r.nobody)
	v.Zero("steps in which flows were lost though both nodes lived, and in the end could talk", r.needless)
	v.Zero("wrong octets", r.wrong)
	v.Figure("steps", r.steps)
	if r.twice+r.nobody+r.needless > 0 {
		r.sayLogs()
	}
	return nil
}

// migrateMarch is a run of that lab.
type migrateMarch struct {
	*scene
	b     *cluster
	vip   clusterVIP
	wire  *Wire
	asker *Asker
	file  string
	flows []*marchFlow
	order *Process // the command that moves

	lastErr error // of a flow

	steps, twice, nobody, needless, wrong int
}

func (r *migrateMarch) close() {
	r.endFlows()
	if r.asker != nil {
		r.asker.Close()
	}
	if r.wire != nil {
		r.wire.Close()
	}
	r.scene.close()
}

func (r *migrateMarch) stage() error {
	var err error
	if r.world, err = NewWorld(r.dir, clusterHosts([]string{"n1", "n3"})); err != nil {
		return err
	}
	nodes := []*Host{r.world.Host("n1"), r.world.Host("n3")}
	r.vip = clusterVIP{"shop", vip4, "n1"}
	r.b = &cluster{binary: r.Binary, dir: r.dir, hosts: nodes, vips: []clusterVIP{r.vip}, doors: map[string]map[string]*Door{},
		services: []clusterService{{name: "echo", vip: "shop", port: 443, door: 9000, on: []string{apart}},
			{name: "tail", vip: "shop", port: 444, door: 9001, on: []string{apart}}},
		settings: map[string]string{"settle": marchSettle.String(), "lease": marchLease.String()}}
	for i, s := range r.b.services {
		at := netip.AddrPortFrom(r.world.Host(apart).V4, s.door)
		r.b.doors[s.name] = map[string]*Door{apart: {Addr: at}}
		if err := r.serve(at, []func(net.Conn){echoes, tails}[i]); err != nil {
			return err
		}
	}
	// Records are on a disk that can be full.
	for _, h := range nodes {
		dir := r.diskOf(h.Name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=700"); err != nil {
			return fmt.Errorf("lab: a disk for %s: %w", h.Name, err)
		}
	}
	if err := r.world.Host("client").AddAddress("eth0", netip.PrefixFrom(marchOther, 24)); err != nil {
		return err
	}
	if r.wire, err = NewWire(r.world, nodes...); err != nil {
		return err
	}
	r.wire.About(r.vip.addr)
	if r.asker, err = Ask(r.world.Host("judge"), askEvery, r.vip.addr); err != nil {
		return err
	}
	if err := r.b.Start(r.ctx); err != nil {
		return err
	}
	r.balancer = r.b
	r.file = filepath.Join(r.dir, "all.yaml")
	return r.b.awaitHome(r.ctx, readyPatience)
}

// serve runs a server.
func (r *migrateMarch) serve(at netip.AddrPort, each func(net.Conn)) error {
	return r.world.Host(apart).Do(func() error {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		go func() { // ends with the world's namespace, at the end of the program
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					each(c)
					_ = c.Close()
				}()
			}
		}()
		return nil
	})
}

// echoes says what it hears.
func echoes(c net.Conn) { _, _ = io.Copy(c, c) }

// marchFlow says lines, one after another, and reads them again.
type marchFlow struct {
	c    net.Conn
	done chan struct{}
	mu   sync.Mutex // guards err and said
	err  error
	said int
}

var errWrongOctets = errors.New("lab: other octets came back")

// openFlow opens one from an address of the client.
func (r *migrateMarch) openFlow(from netip.Addr) (*marchFlow, error) {
	f := &marchFlow{done: make(chan struct{})}
	err := r.world.Host("client").Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		f.c, err = d.Dial("tcp", netip.AddrPortFrom(r.vip.addr, 443).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(f.done)
		in := bufio.NewReader(f.c)
		for i := 0; ; i++ {
			line := fmt.Sprintf("%p %d\n", f, i)
			_, err := io.WriteString(f.c, line)
			got := ""
			if err == nil {
				got, err = in.ReadString('\n')
			}
			if err == nil && got != line {
				err = errWrongOctets
			}
			f.mu.Lock()
			f.err, f.said = err, i
			f.mu.Unlock()
			if err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return f, nil
}

func (f *marchFlow) end() { _ = f.c.Close(); <-f.done }

func (f *marchFlow) state() (said int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.said, f.err
}

// step is one move that comes to harm when its command tells a phase.
func (r *migrateMarch) step(h marchHarm, node, at string) error {
	if err := r.settle("n1"); err != nil {
		return err
	}
	r.endFlows()
	if err := r.openFlows(marchFlows, r.world.Host("client").V4); err != nil {
		return err
	}
	r.steps++
	began := time.Now()
	n1 := r.b.nodes["n1"]
	move, err := n1.host.Start(fmt.Sprintf("migrate.%d", r.steps), nil, r.Binary, "migrate", "--vip", r.vip.name, "--to", "n3", "--socket", n1.socket, "--json")
	if err != nil {
		return err
	}
	defer move.Kill()
	r.order = move
	if err := awaitPhase(move, at); err != nil {
		return err
	}
	if err := h.begin(r, node); err != nil {
		return err
	}
	if h.name != "is not told" {
		time.Sleep(cmp.Or(h.lasts, 5*marchLease/2))
	}
	other := "n3"
	if node == "n3" {
		other = "n1"
	}
	if h.dead {
		if err := r.take(other); err != nil {
			return err
		}
	}
	if err := h.end(r, node); err != nil {
		return err
	}
	owner, err := r.oneOwner()
	if err != nil {
		r.nobody++
		r.phase("   WRONG: %s %s at %s: %v", node, h.name, at, err)
		move.Kill()
		return r.startOver()
	}
	alive := r.alive()
	moved := eventually(takePatience, move.Ended) && move.cmd.ProcessState.Success()
	how := "moved"
	if !moved {
		how = "not moved, or nobody knows"
		if i := strings.LastIndex(move.Tail(100), "committed"); i >= 0 && strings.Contains(move.Tail(100)[i:], "true") {
			how = "moved, which was not heard"
		}
	}
	if alive < marchFlows {
		how += fmt.Sprintf("; a flow: %v", r.lastErr)
	}
	r.phase("   %s %-18s at %-8s: owner %s, %2d of %d flows live (%s)", node, h.name, at, owner, alive, marchFlows, how)
	if h.none && alive < marchFlows {
		r.needless++
	}
	if !moved { // the next move would wait until this one has settled
		time.Sleep(marchSettle + marchLease/2)
	}
	if h.dead {
		return r.judge(began, other)
	}
	return r.judge(began, "")
}

// awaitPhase waits until a command has told a phase.
func awaitPhase(p *Process, phase string) error {
	want := []byte(`"phase":"` + phase + `"`)
	for end := time.Now().Add(readyPatience); ; time.Sleep(200 * time.Microsecond) {
		ended := p.Ended()
		b, err := os.ReadFile(p.Log)
		if err != nil || bytes.Contains(b, want) {
			return err
		}
		if ended || time.Now().After(end) {
			return fmt.Errorf("lab: %s tells of no phase %q: %s", p.Name, phase, p.Tail(20))
		}
	}
}

// judge looks who has answered since then. A node that has taken the VIP from a dead one, to which
// it had given it, may answer again, to the end.
func (r *migrateMarch) judge(began time.Time, taker string) error {
	var claims []Claim
	for _, c := range r.wire.Claims(r.vip.addr) {
		if c.At.After(began) {
			claims = append(claims, c)
		}
	}
	var macs [][6]byte
	all := tenures(claims)
	for i, t := range all {
		takes := taker != "" && i == len(all)-1 && t.mac == [6]byte(r.b.hostOf(taker).MAC)
		if slices.Contains(macs, t.mac) && !takes {
			r.twice++
			r.phase("   WRONG: %x answers again at %s", t.mac, t.from.Format("15:04:05.000000"))
			break
		}
		macs = append(macs, t.mac)
	}
	return nil
}

// alive counts the flows that still get answers.
func (r *migrateMarch) alive() int {
	before := make([]int, len(r.flows))
	for i, f := range r.flows {
		before[i], _ = f.state()
	}
	live, dead := 0, 0
	eventually(8*time.Second, func() bool {
		live, dead = 0, 0
		for i, f := range r.flows {
			said, err := f.state()
			switch {
			case err != nil:
				r.lastErr = err
				dead++
			case said > before[i]+1:
				live++
			}
		}
		return live+dead == len(r.flows)
	})
	for _, f := range r.flows {
		if _, err := f.state(); errors.Is(err, errWrongOctets) {
			r.wrong++
		}
	}
	return live
}

// oneOwner waits until one node says that it owns the VIP, and the other that it is elsewhere.
func (r *migrateMarch) oneOwner() (string, error) {
	var said string
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		owners, quiet := []string{}, 0
		said = ""
		for _, name := range []string{"n1", "n3"} {
			s, err := r.b.statusOf(r.ctx, name)
			if err != nil {
				said += fmt.Sprintf("%s: %v; ", name, err)
				continue
			}
			for _, v := range s.VIPs {
				said += fmt.Sprintf("%s: %s epoch %d %s %s; ", name, v.State, v.Epoch, v.Owner, v.Why)
				switch v.State {
				case "owned":
					owners = append(owners, name)
				case "elsewhere", "guest":
					quiet++
				}
			}
		}
		if len(owners) == 1 && quiet == 1 {
			return owners[0], nil
		}
		if time.Now().After(deadline) {
			return "", errors.New(said)
		}
	}
}

// settle brings the VIP home.
func (r *migrateMarch) settle(home string) error {
	owner, err := r.oneOwner()
	if err != nil || owner == home {
		return err
	}
	_, err = r.b.migrate(r.ctx, r.vip, owner, home)
	return err
}

// startOver kills both nodes and begins again from their records.
func (r *migrateMarch) startOver() error {
	for _, name := range []string{"n1", "n3"} {
		if err := errors.Join(r.killNode(name), r.startAgain(name)); err != nil {
			return err
		}
	}
	return nil
}

// take is an operator who says that the other node is dead, until he is heard.
func (r *migrateMarch) take(node string) (err error) {
	eventually(takePatience, func() bool {
		var s *clusterStatus
		if s, err = r.b.statusOf(r.ctx, node); err == nil && s.VIPs[0].State == "owned" {
			return true
		}
		err = r.b.verb(r.ctx, node, &MoveReport{}, "vips", "take", r.vip.name, "--yes")
		return err == nil
	})
	return err
}

// takePatience is longer than a move waits for the word of a node that is dead.
const takePatience = 15 * time.Second

func (r *migrateMarch) endFlows() {
	for _, f := range r.flows {
		f.end()
	}
	r.flows = nil
}

func (r *migrateMarch) openFlows(n int, from netip.Addr) error {
	for range n {
		f, err := r.openFlow(from)
		if err != nil {
			return err
		}
		r.flows = append(r.flows, f)
	}
	return nil
}

func (r *migrateMarch) stopNode(node string) error {
	return syscall.Kill(r.b.nodes[node].data.Pid, syscall.SIGSTOP)
}

func (r *migrateMarch) goOn(node string) error {
	return syscall.Kill(r.b.nodes[node].data.Pid, syscall.SIGCONT)
}

func (r *migrateMarch) killNode(node string) error {
	r.b.nodes[node].data.Kill()
	return nil
}

func (r *migrateMarch) startAgain(node string) error {
	n := r.b.nodes[node]
	if err := r.b.startNode(r.ctx, n, r.file); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.ctx, readyPatience)
	defer cancel()
	return n.data.WaitLine(ctx, "ready:")
}

func (r *migrateMarch) unplug(node string) error { return r.world.Host(node).Unplug() }

func (r *migrateMarch) plug(node string) error { return r.world.Host(node).Plug() }

func (r *migrateMarch) abort(string) error {
	r.order.Kill()
	return nil
}
