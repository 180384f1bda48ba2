package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/hosts"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// sceneEnv says to this program, run again, which scene it is to play.
const sceneEnv = "HOLDFAST_TEST_SCENE"

// The times of a scene: a lease that a process on a busy machine renews in time.
const (
	sceneLease  = 2 * time.Second
	sceneSettle = 2 * sceneLease
	sceneFlows  = 24
	// sceneGrace is for what is to come, and comes in milliseconds on a machine that does nothing else.
	sceneGrace = 20 * time.Second
	// aMove is when there was one: then nobody answers for a moment.
	aMove = time.Hour
)

// scenes are what two nodes with a VIP go through, with processes and a kernel, in a
// network of their own.
var scenes = map[string]func(s *vipScene) error{
	"upgrade":  upgradeScene,
	"netadmin": netadminScene,
	"stop":     stopScene,
}

// Leases go on over an upgrade, whenever it comes and whatever becomes of it.
func TestVIPsOverUpgrades(t *testing.T) { playsScene(t, "upgrade") }

// A privileged process that is killed is there again before a lease has ended, and knows
// what the one before it knew.
func TestNetadminIsKept(t *testing.T) { playsScene(t, "netadmin") }

// A node that is told to end gives its VIPs and flows to another one, unless the file says that they
// stay; when it is back it takes none of them by itself.
func TestStopMovesVIPs(t *testing.T) { playsScene(t, "stop") }

func playsScene(t *testing.T, name string) {
	t.Helper()
	t.Parallel() // most of it is waiting
	cmd := holdfast(t)
	cmd.Env = append(cmd.Env, sceneEnv+"="+name)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
}

// playScene plays a scene inside of a network of its own, and gives the exit status.
func playScene(name string) int {
	inside, err := hosts.Inside()
	if err == nil && !inside {
		var status int
		if status, err = hosts.Enter(); err == nil {
			return status
		}
	}
	if err == nil {
		_ = os.Unsetenv(sceneEnv) // our children are nodes
		err = (&vipScene{}).play(scenes[name])
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// vipScene is two nodes, n1 and n3, with a VIP that is at home on n1, and clients of it.
type vipScene struct {
	dir, file string
	net       *hosts.Net
	nodes     []*vipNode
	traffic   *demo.Traffic
	began     time.Time
	dead      int // flows that ended with a process that was killed

	// mu guards what follows.
	mu     sync.Mutex
	gap    time.Duration // the longest time in which no kernel let the VIP pass
	both   bool          // two did at one time
	silent time.Time     // since when none does
}

// vipNode is one of them.
type vipNode struct {
	s       *vipScene
	name    string
	host    *hosts.Host
	process *hosts.Process
	client  *client

	mu    sync.Mutex // guards what follows
	watch *netadmin.Client
}

func (s *vipScene) play(scene func(*vipScene) error) (err error) {
	if s.dir, err = os.MkdirTemp("", "hf-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, s.tails())
		}
		if s.traffic != nil {
			s.traffic.Stop(0)
		}
		if s.net != nil {
			s.net.Close()
		}
		_ = os.RemoveAll(s.dir)
	}()
	if err := s.begin(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx) })
	err = scene(s)
	stop()
	watching.Wait()
	if err != nil {
		return err
	}
	f := s.traffic.Stop(endTime)
	if f.Lost > s.dead || f.Wrong > 0 || f.RoundTrips == 0 {
		return fmt.Errorf("%d flows lost, %d wrong octets, %d round trips: %s", f.Lost, f.Wrong, f.RoundTrips, strings.Join(f.Faults, "; "))
	}
	if s.both {
		return errors.New("two kernels let the VIP pass at one time")
	}
	s.say("%d connections, %d round trips, longest %v", f.Opened, f.RoundTrips, f.Max)
	return nil
}

func (s *vipScene) say(format string, args ...any) {
	fmt.Printf("%6.2f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// begin starts the nodes and the traffic.
func (s *vipScene) begin() (err error) {
	s.began = time.Now()
	specs := []hosts.Spec{{Name: "client", Addr: netip.MustParsePrefix(fmt.Sprintf("10.9.0.9/%d", hostsBits))}}
	var names []string
	for _, x := range hostsNodes {
		names = append(names, x.name)
		specs = append(specs, hosts.Spec{Name: x.name, Addr: netip.MustParsePrefix(fmt.Sprintf("%s/%d", x.addr, hostsBits))})
	}
	if s.net, err = hosts.New(s.dir, specs...); err != nil {
		return err
	}
	if err := demo.Identities(s.dir, names...); err != nil {
		return err
	}
	s.file = filepath.Join(s.dir, "holdfast.yaml")
	if err := s.write(s.config()); err != nil {
		return err
	}
	var servers []net.Listener
	for _, x := range hostsNodes {
		n := &vipNode{s: s, name: x.name, host: s.net.Host(x.name), client: clientOf(filepath.Join(s.dir, x.name+".sock"), false)}
		s.nodes = append(s.nodes, n)
		err := n.host.Do(func() error {
			l, err := demo.Listen(net.JoinHostPort(x.addr, appPort))
			servers = append(servers, l)
			return err
		})
		if err == nil {
			err = n.start()
		}
		if err != nil {
			return err
		}
	}
	client := s.net.Host("client")
	s.traffic = demo.StartAt(func(ctx context.Context, target string) (c net.Conn, err error) {
		return c, client.Do(func() error {
			c, err = demo.Direct(ctx, target)
			return err
		})
	}, servers...)
	if err := s.owned("n1"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	return s.traffic.Open(ctx, net.JoinHostPort(hostsAddr, hostsPort), sceneFlows)
}

// config is the one file of both nodes.
func (s *vipScene) config() string {
	text := strings.Replace(hostsConfig(s.dir), "  settle: 2s\n  onStop: stay # both end at once\n", fmt.Sprintf("  settle: %v\n  lease: %v\n", sceneSettle, sceneLease), 1)
	if !strings.Contains(text, "lease:") {
		panic("the demo's file is another now")
	}
	return text
}

func (s *vipScene) write(text string) error { return os.WriteFile(s.file, []byte(text), 0o600) }

// start starts the node, which finds the privileged process or starts one.
func (n *vipNode) start() (err error) {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	n.process, err = n.host.Start(n.name, []string{"HOLDFAST_NODE=" + n.name}, exe, "run", "-c", n.s.file)
	return err
}

// verb asks the node by a command.
func (n *vipNode) verb(args ...string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd := exec.Command(exe, append(args, "--socket", filepath.Join(n.s.dir, n.name+".sock"))...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %v: %w\n%s", n.name, args, err, out.Bytes())
	}
	return out.String(), err
}

// vip is the VIP as the node sees it; without an answer the State is "".
func (n *vipNode) vip() (v node.VIPStatus) {
	if status, err := n.client.status(); err == nil {
		for _, v := range status.VIPs {
			if v.Name == hostsVIP {
				return v
			}
		}
	}
	return v
}

func (n *vipNode) pid() int {
	if status, err := n.client.status(); err == nil {
		return status.PID
	}
	return 0
}

// kernel is what is in force on the node.
func (n *vipNode) kernel() (x netadmin.State, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watch == nil {
		err = n.host.Do(func() (err error) {
			n.watch, err = netadmin.Dial(filepath.Join(n.s.dir, n.name+".netadmin"))
			return err
		})
	}
	if err == nil {
		if x, err = n.watch.State(); err != nil {
			_ = n.watch.Close()
			n.watch = nil
		}
	}
	return x, err
}

// netadmin is the privileged process of the node, by its number; 0: none answers.
func (n *vipNode) netadmin() int {
	if _, err := n.kernel(); err != nil {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watch == nil { // meanwhile
		return 0
	}
	return n.watch.PID()
}

// watch looks who lets the VIP pass.
func (s *vipScene) watch(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		owners, unknown := 0, false
		began := time.Now()
		for _, n := range s.nodes {
			x, err := n.kernel()
			unknown = unknown || err != nil
			owners += len(x.Owned)
		}
		s.mu.Lock()
		// Both answers are of one moment, nearly: a move between them is no conflict.
		s.both = s.both || owners > 1 && time.Since(began) < 10*time.Millisecond && s.bothStill()
		switch {
		case owners > 0 || unknown:
			s.silent = time.Time{}
		case s.silent.IsZero():
			s.silent = began
		default:
			s.gap = max(s.gap, time.Since(s.silent))
		}
		s.mu.Unlock()
	}
	for _, n := range s.nodes {
		n.mu.Lock()
		if n.watch != nil {
			_ = n.watch.Close()
		}
		n.mu.Unlock()
	}
}

// bothStill looks once more, the other way round.
func (s *vipScene) bothStill() bool {
	owners := 0
	for _, n := range slices.Backward(s.nodes) {
		x, err := n.kernel()
		if err != nil {
			return false
		}
		owners += len(x.Owned)
	}
	return owners > 1
}

// gapSince is the longest gap since it was asked for last.
func (s *vipScene) gapSince() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	gap := s.gap
	s.gap = 0
	return gap
}

// until waits until something is so.
func (s *vipScene) until(what string, is func() bool) error {
	for deadline := time.Now().Add(sceneGrace); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v not: %s", sceneGrace, what)
		}
	}
	return nil
}

// owned waits until a node owns the VIP.
func (s *vipScene) owned(name string) error {
	return s.until("the VIP on "+name, func() bool { return s.at(name).vip().State == "owned" })
}

func (s *vipScene) at(name string) *vipNode {
	for _, n := range s.nodes {
		if n.name == name {
			return n
		}
	}
	panic(name)
}

// served waits until clients have had answers that they had not now.
func (s *vipScene) served() error {
	was := s.traffic.Look().RoundTrips
	return s.until("answers for clients", func() bool { return s.traffic.Look().RoundTrips > was+3*sceneFlows })
}

// fine fails when flows are lost, or when the VIP was silent longer than that since the last call.
func (s *vipScene) fine(what string, most time.Duration) error {
	longest := s.traffic.Look().Max
	if err := s.served(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	f, gap := s.traffic.Look(), s.gapSince()
	s.say("%s: silent for %v, longest round trip %v", what, gap, max(longest, f.Max))
	if f.Lost > s.dead {
		return fmt.Errorf("%s: %d flows lost: %s", what, f.Lost, strings.Join(f.Faults, "; "))
	}
	if gap > most {
		return fmt.Errorf("%s: nobody answered for the VIP for %v", what, gap)
	}
	return nil
}

func (s *vipScene) tails() string {
	var all strings.Builder
	logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
	for _, f := range logs {
		text, _ := os.ReadFile(f)
		fmt.Fprintf(&all, "-- %s\n%s\n", filepath.Base(f), text[max(0, len(text)-6<<10):])
	}
	return all.String()
}

// upgradeScene upgrades in all the moments in which VIPs make a difference.
func upgradeScene(s *vipScene) error {
	n1, n3 := s.at("n1"), s.at("n3")
	was, epoch := n1.pid(), n1.vip().Epoch

	// The owner.
	if _, err := n1.verb("upgrade"); err != nil {
		return err
	}
	time.Sleep(sceneLease) // a lease that nobody renews would end
	if err := s.fine("upgrade of the owner", 0); err != nil {
		return err
	}
	if v, now := n1.vip(), n1.pid(); v.State != "owned" || v.Epoch != epoch || now == was {
		return fmt.Errorf("after an upgrade of process %d, %d: %+v, the epoch was %d", was, now, v, epoch)
	}

	if err := s.successorDies(n1, n3); err != nil {
		return err
	}
	if v := n1.vip(); v.State != "owned" || v.Epoch != epoch {
		return fmt.Errorf("after a successor died: %+v, the epoch was %d", v, epoch)
	}

	// Both nodes, while the VIP moves: each order comes when it may, and all are done.
	for _, to := range []string{"n3", "n1"} {
		var all sync.WaitGroup
		failed := make([]error, 3)
		all.Go(func() { _, failed[0] = n1.verb("migrate", "--vip", hostsVIP, "--to", to) })
		for i, n := range s.nodes {
			all.Go(func() {
				time.Sleep(time.Duration(10+15*i) * time.Millisecond)
				_, failed[1+i] = n.verb("upgrade")
			})
		}
		all.Wait()
		if errors.Join(failed[1:]...) != nil {
			return errors.Join(failed...)
		}
		// An upgrade that came first refuses the move, by name.
		if err := failed[0]; err != nil {
			if !strings.Contains(err.Error(), "upgrade") && !strings.Contains(err.Error(), "handed over") {
				return err
			}
			if _, err := n1.verb("migrate", "--vip", hostsVIP, "--to", to); err != nil {
				return err
			}
		}
		if err := s.owned(to); err != nil {
			return err
		}
		if err := s.fine("move to "+to+" among upgrades of both", aMove); err != nil {
			return err
		}
	}

	// The former owner, while the VIP settles: what it sends on it sends on after that, and ends it
	// in time.
	ordered := time.Now()
	if _, err := n1.verb("migrate", "--vip", hostsVIP, "--to", "n3"); err != nil {
		return err
	}
	if _, err := n1.verb("upgrade"); err != nil {
		return err
	}
	if x, err := n1.kernel(); err != nil || len(x.Forwarded) != 1 || len(x.Guests) != 1 {
		return fmt.Errorf("a VIP that settles after an upgrade: %+v: %w", x, err)
	}
	if v := n1.vip(); v.State != "guest" {
		return fmt.Errorf("a VIP that settles after an upgrade: %+v", v)
	}
	// Longer than a guest that nobody renews, and not so long that it may have settled, however
	// long the upgrade took.
	time.Sleep(time.Until(ordered.Add(sceneSettle - sceneLease/2)))
	if x, err := n1.kernel(); err != nil || len(x.Forwarded) != 1 || len(x.Guests) != 1 {
		return fmt.Errorf("before the VIP has settled: %+v: %w", x, err)
	}
	if err := s.until("nothing of the VIP at its former owner", func() bool {
		x, err := n1.kernel()
		return err == nil && len(x.Forwarded) == 0 && len(x.Guests) == 0
	}); err != nil {
		return err
	}
	if v := n1.vip(); v.State != "elsewhere" {
		return fmt.Errorf("a VIP that has settled: %+v", v)
	}
	return s.fine("upgrade while the VIP settles", aMove)
}

// successorDies kills a successor of the owner that has taken its first flows. Until then no
// VIP moves, by whose order ever.
func (s *vipScene) successorDies(n1, n3 *vipNode) error {
	was := n1.pid()
	ended := make(chan error, 1)
	go func() { // ends when the successor does
		_, err := n1.verb("upgrade", "--canary", "20s")
		ended <- err
	}()
	successor := 0
	if err := s.until("a successor that takes flows", func() bool {
		status, err := n1.client.status()
		if err != nil || status.Upgrading == nil || status.Upgrading.Phase != "canary" {
			return false
		}
		successor = status.Upgrading.PID
		return true
	}); err != nil {
		return err
	}
	for _, by := range []*vipNode{n1, n3} {
		if _, err := by.verb("migrate", "--vip", hostsVIP, "--to", "n3"); err == nil || !strings.Contains(err.Error(), "upgrade") {
			return fmt.Errorf("a move by order of %s while the owner is being upgraded: %w", by.name, err)
		}
	}
	if _, err := n3.verb("vips", "take", hostsVIP); err == nil {
		return errors.New("the VIP of a node that is being upgraded could be taken")
	}
	time.Sleep(sceneLease)
	if err := syscall.Kill(successor, syscall.SIGKILL); err != nil {
		return err
	}
	if err := <-ended; err == nil {
		return errors.New("an upgrade whose successor was killed says that all is well")
	}
	if now := n1.pid(); now != was {
		return fmt.Errorf("process %d answers, not %d", now, was)
	}
	status, err := n1.client.status()
	if err != nil || status.LastUpgrade == nil || status.LastUpgrade.Move == nil {
		return fmt.Errorf("what came of the upgrade is not known: %w", err)
	}
	s.dead += status.LastUpgrade.Move.Lost // it had them, and nobody else
	time.Sleep(sceneLease)
	return s.fine("upgrade whose successor dies", 0)
}

// netadminScene kills privileged processes.
func netadminScene(s *vipScene) error {
	n1, n3 := s.at("n1"), s.at("n3")
	for _, n := range s.nodes {
		before, err := n.kernel()
		if err != nil || before.Steered == nil {
			return fmt.Errorf("%s steers nothing: %w", n.name, err)
		}
		pid := n.netadmin()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		if err := s.until("another privileged process on "+n.name+" that steers as the one before", func() bool {
			after, err := n.kernel()
			return err == nil && n.netadmin() != pid && after.Steered != nil && slices.Equal(after.Steered.Ranges, before.Steered.Ranges)
		}); err != nil {
			return err
		}
		if time.Sleep(sceneLease); n1.vip().State != "owned" {
			return fmt.Errorf("after the privileged process of %s was killed: %+v", n.name, n1.vip())
		}
		if err := s.fine("kill of the privileged process of "+n.name, 0); err != nil {
			return err
		}
	}
	for _, to := range []string{"n3", "n1"} {
		if _, err := n1.verb("migrate", "--vip", hostsVIP, "--to", to); err != nil {
			return err
		}
		if err := s.fine("move to "+to+" by privileged processes that came later", aMove); err != nil {
			return err
		}
	}

	// The owner alone: nobody can confirm that it is, and its lease is all that it has.
	n3.process.Kill()
	if err := s.until("n3 gone", func() bool { return n3.pid() == 0 }); err != nil {
		return err
	}
	time.Sleep(sceneLease)
	pid := n1.netadmin()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	time.Sleep(2 * sceneLease)
	if v := n1.vip(); v.State != "owned" || n1.netadmin() == pid {
		return fmt.Errorf("an owner that is alone, after its privileged process was killed: %+v", v)
	}
	return s.fine("kill of the privileged process of an owner that is alone", 0)
}

// stopScene ends nodes in order.
func stopScene(s *vipScene) error {
	n1 := s.at("n1")
	if err := n1.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.until("the end of n1", n1.process.Ended); err != nil {
		return err
	}
	if v := s.at("n3").vip(); v.State != "owned" {
		return fmt.Errorf("after the end of n1: %+v", v)
	}
	if err := s.fine("end of the owner", aMove); err != nil {
		return err
	}
	said, err := os.ReadFile(n1.process.Log)
	if err != nil || !strings.Contains(string(said), "stopping: VIP shop goes to n3") || !strings.Contains(string(said), "0 flows reset") {
		return fmt.Errorf("what n1 has said: %w", err)
	}

	if err := n1.start(); err != nil {
		return err
	}
	if err := s.until("n1 that is back", func() bool { return n1.vip().Owner == "n3" }); err != nil {
		return err
	}
	if _, err := n1.verb("return"); err != nil {
		return err
	}
	if err := s.owned("n1"); err != nil {
		return err
	}
	if err := s.fine("return of the former owner", aMove); err != nil {
		return err
	}

	if err := s.changes(n1); err != nil {
		return err
	}

	if err := s.write(strings.Replace(s.config(), "  lease:", "  onStop: stay\n  lease:", 1)); err != nil {
		return err
	}
	if _, err := n1.verb("reload"); err != nil {
		return err
	}
	s.traffic.Stop(0)
	s.dead = 1 << 30 // as whoever wrote that wants it
	for !n1.process.Ended() {
		_ = n1.process.Signal(syscall.SIGTERM) // the second ends it at once
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(2 * sceneLease)
	if v := s.at("n3").vip(); v.State != "elsewhere" || v.Owner != "n1" {
		return fmt.Errorf("after the end of n1, where its VIP stays: %+v", v)
	}
	return nil
}

// changes has the owner read files in which the VIP is another.
func (s *vipScene) changes(n1 *vipNode) error {
	epoch := n1.vip().Epoch
	for _, c := range []struct{ what, from, to string }{
		{"another name", "shop", "mart"},
		{"another address", hostsAddr, "10.9.0.101"},
	} {
		if err := s.write(strings.ReplaceAll(s.config(), c.from, c.to)); err != nil {
			return err
		}
		for _, verb := range [][]string{{"reload"}, {"apply", "--dry-run", s.file}} {
			if _, err := n1.verb(verb...); err == nil || !strings.Contains(err.Error(), "flows here are on it") {
				return fmt.Errorf("%s of a VIP with flows: %v: %w", c.what, verb, err)
			}
		}
		if _, err := n1.verb("upgrade", "--config", s.file); err == nil || !strings.Contains(err.Error(), "owns it") {
			return fmt.Errorf("%s of a VIP with an upgrade: %w", c.what, err)
		}
	}
	if err := s.write(strings.Replace(s.config(), "home: n1", "home: n3", 1)); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if _, err := n.verb("reload"); err != nil {
			return err
		}
	}
	time.Sleep(sceneLease)
	if v := n1.vip(); v.State != "owned" || v.Home != "n3" || v.Epoch != epoch {
		return fmt.Errorf("with another home, the epoch was %d: %+v", epoch, v)
	}
	return s.fine("files in which the VIP is another", 0)
}
