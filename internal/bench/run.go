package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options are what the command line says.
type Options struct {
	Row    string
	Short  bool
	Binary string   // of Holdfast; empty: build it
	Peers  []string // the proxies to measure, Holdfast among them
	Rounds int      // 0: as the length of the run has it
	Out    string   // directory for results; empty: none
	// Namespace asks for a network namespace of the run's own where the
	// kernel grants one: no other traffic, no foreign TIME-WAIT, no filters.
	Namespace bool
	Command   string // how the run was started, for the record
}

// DefaultPeers are the proxies that a row compares.
func DefaultPeers() []string { return []string{holdfast, haproxy, nginx} }

// run is one run of one row.
type run struct {
	row     row
	opt     Options
	out     io.Writer
	dir     string
	sides   []*side
	backend *process
	roundsN int
	measure time.Duration
	files   int
	stop    <-chan os.Signal
	result  Result
}

// side is one proxy in a run.
type side struct {
	proxy
	settings settings
	process  *process
	samples  []loadResult
	resident []float64 // octets per pair, of rows that measure it
}

// errInterrupted says that a signal ended the run.
var errInterrupted = errors.New("bench: interrupted")

// Measure does what opt says, writes a table and, as the last line, one JSON
// object to out. It ends every process that it started before it returns.
func Measure(opt Options, out io.Writer, stop <-chan os.Signal) error {
	r, ok := rowNamed(opt.Row)
	if !ok {
		return fmt.Errorf("bench: row %q unknown: want one of %s", opt.Row, strings.Join(RowNames(), ", "))
	}
	if len(r.only) > 0 {
		opt.Peers = slices.DeleteFunc(slices.Clone(opt.Peers), func(n string) bool { return !slices.Contains(r.only, n) })
	}
	if len(opt.Peers) == 0 {
		return fmt.Errorf("bench: row %s is about %s only", r.name, strings.Join(r.only, ", "))
	}
	if need := max(r.loops, 2); runtime.NumCPU() < need {
		return fmt.Errorf("bench: row %s needs %d CPUs; this machine has %d", r.name, need, runtime.NumCPU())
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // litter at worst

	if slices.Contains(opt.Peers, holdfast) && opt.Binary == "" {
		opt.Binary = filepath.Join(dir, "holdfast")
		if err := build(opt.Binary); err != nil {
			return err
		}
	}
	m := &run{row: r, opt: opt, out: out, dir: dir, roundsN: roundsLong, measure: measureLong, stop: stop}
	if opt.Short {
		m.roundsN, m.measure = roundsShort, measureShort
	}
	if opt.Rounds > 0 {
		m.roundsN = opt.Rounds
	}
	if err := m.prepare(); err != nil {
		return err
	}
	defer m.end()
	if err := r.run(m); err != nil {
		return err
	}
	return m.report()
}

// build compiles Holdfast.
func build(to string) error {
	cmd := exec.Command("go", "build", "-o", to, "github.com/holdfast-lb/holdfast/cmd/holdfast")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("bench: build Holdfast: %w\n%s", err, out)
	}
	return nil
}

// loadCPUs are the CPUs of the generator and the backend: the first that no
// proxy uses. Where they use all, the two go where there is room.
func (m *run) loadCPUs() []int {
	if m.row.loops < runtime.NumCPU() {
		return []int{m.row.loops}
	}
	return m.proxyCPUs()
}

// proxyCPUs are the CPUs of the proxies: one for each loop.
func (m *run) proxyCPUs() []int {
	cpus := make([]int, m.row.loops)
	for i := range cpus {
		cpus[i] = i
	}
	return cpus
}

// prepare finds the programs, the ports and the limits and starts the backend.
func (m *run) prepare() error {
	found, err := programs(m.opt.Peers, m.opt.Binary)
	if err != nil {
		return err
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("bench: getrlimit: %w", err)
	}
	limit.Cur = limit.Max
	// Set by hand, for os/exec gives children the limit from before Go's own raise.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit.Cur, Max: limit.Max}); err != nil {
		return fmt.Errorf("bench: setrlimit: %w", err)
	}
	m.files = int(min(limit.Cur, 20000))
	// Two descriptors a connection, and a thousand for all else.
	connectionsMax := (m.files - 1000) / 2
	if m.row.load.Conns > connectionsMax {
		if connectionsMax < 100 {
			return fmt.Errorf("bench: row %s: the limit of open files (ulimit -Hn) is %d: raise it", m.row.name, limit.Max)
		}
		m.row.load.Conns = connectionsMax
		m.row.title += fmt.Sprintf("; only %d of them: the limit of open files is %d", connectionsMax, limit.Max)
	}
	m.result.Machine = observeMachine(os.Getenv(roleEnv) != "")
	ports, err := freePorts(2 * len(m.opt.Peers))
	if err != nil {
		return err
	}
	var backendPorts []int
	for i, name := range m.opt.Peers {
		s := &side{proxy: found[name], settings: settings{
			Port: ports[2*i], BackendPort: ports[2*i+1], Loops: m.row.loops,
			Dir: filepath.Join(m.dir, name+".d"), FilesMax: m.files, ConnectionsMax: connectionsMax,
			NginxStream: nginxStreamModule(),
		}}
		s.settings.forRow(&m.row)
		if err := os.Mkdir(s.settings.Dir, 0o755); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		m.sides = append(m.sides, s)
		backendPorts = append(backendPorts, ports[2*i+1])
		m.result.Machine.Versions[name] = m.version(name, s.command("")[0])
	}
	if m.row.merged {
		return nil
	}
	m.backend, err = startChild("backend", m.backendSpec(backendPorts...), filepath.Join(m.dir, "backend.err"), m.loadCPUs()...)
	if err != nil {
		return err
	}
	_, err = m.backend.line("ready", readyMax)
	if err != nil {
		m.end()
	}
	return err
}

// backendSpec is what the backend serves on the ports.
func (m *run) backendSpec(ports ...int) *backendSpec {
	return &backendSpec{Kind: m.row.backend, Ports: ports, Bytes: m.row.load.Bytes, Proxied: true}
}

// version asks a proxy, or the repository for Holdfast, for its version.
func (m *run) version(name, program string) string {
	if name != holdfast {
		return versionOf(program, "-v")
	}
	out, _ := exec.Command("git", "describe", "--always", "--dirty").Output() // not a checkout: empty
	return strings.TrimSpace(string(out))
}

// readyMax is how long a process may take until it listens.
const readyMax = 10 * time.Second

// launch starts the proxy of s.
func (m *run) launch(s *side) error {
	config, err := s.configure(s.settings)
	if err != nil {
		return err
	}
	s.process, err = start(s.name, s.command(config), nil, filepath.Join(s.settings.Dir, "stderr"), m.proxyCPUs(), s.dying)
	if err != nil {
		return err
	}
	if s.saysReady {
		if _, err := s.process.line("ready:", readyMax); err != nil {
			return err
		}
	}
	if err := s.process.awaitPort(s.settings.Port, readyMax); err != nil {
		return err
	}
	// nginx listens before it has its workers, and their time counts, too.
	for end := time.Now().Add(readyMax); s.forks && len(family(s.process.pid())) < 1+m.row.loops; {
		if time.Now().After(end) {
			return s.process.failure(fmt.Errorf("fewer than %d workers within %v", m.row.loops, readyMax))
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// end ends all processes of the run.
func (m *run) end() {
	for _, s := range m.sides {
		if s.process != nil {
			s.process.stop()
			s.process = nil
		}
	}
	if m.backend != nil {
		m.backend.stop()
	}
}

// interrupted reports a signal that asks us to end.
func (m *run) interrupted() error {
	select {
	case <-m.stop:
		return errInterrupted
	default:
		return nil
	}
}

// spec completes the orders of the generator for s.
func (m *run) spec(s *side) loadSpec {
	l := m.row.load
	l.Port, l.PIDs = s.settings.Port, family(s.process.pid())
	l.Warmup, l.Measure = warmup, m.measure
	if m.row.merged {
		l.Backend = m.backendSpec(s.settings.BackendPort)
	}
	return l
}

// load runs the generator once against s.
func (m *run) load(s *side, spec loadSpec) (loadResult, error) {
	p, err := startChild("load", spec, filepath.Join(m.dir, "load.err"), m.loadCPUs()...)
	if err != nil {
		return loadResult{}, err
	}
	defer p.stop()
	if m.row.scrape && s.name == holdfast {
		end := scrape(filepath.Join(s.settings.Dir, "admin.sock"))
		defer end()
	}
	return m.loadResult(s, p, spec.Warmup+spec.Measure+2*drainMax)
}

// scrape reads the metrics behind a socket each second until it is ended.
func scrape(socket string) (end func()) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended by end
		defer close(done)
		for ctx.Err() == nil {
			q, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://holdfast/metrics", nil) // it is well formed
			if a, err := client.Do(q); err == nil {
				_, _ = io.Copy(io.Discard, a.Body) // what matters is that it was asked for
				_ = a.Body.Close()
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return func() { cancel(); <-done; client.CloseIdleConnections() }
}

// cause finds why a round failed: whoever has ended first.
func (m *run) cause(s *side, err error) error {
	if m.backend != nil {
		err = cmp.Or(m.backend.alive(), err)
	}
	return fmt.Errorf("bench: through %s: %w", s.name, cmp.Or(s.process.alive(), err))
}

// loadResult waits for the result of the generator.
func (m *run) loadResult(s *side, p *process, limit time.Duration) (loadResult, error) {
	line, err := p.line("{", limit)
	if err != nil {
		return loadResult{}, m.cause(s, err)
	}
	var r loadResult
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return loadResult{}, fmt.Errorf("bench: result of the generator: %w", err)
	}
	if r.Ops == 0 {
		return loadResult{}, fmt.Errorf("bench: through %s: not one operation in %.1f s", s.name, r.Seconds)
	}
	if r.CPU == 0 {
		return loadResult{}, fmt.Errorf("bench: through %s: %.0f operations in no time of its own: not all of its processes were seen", s.name, r.Ops)
	}
	return r, nil
}

// rounds has all proxies running and lets them take turns. Each round begins
// with another one.
func (m *run) rounds() error {
	for _, s := range m.sides {
		if err := m.launch(s); err != nil {
			return err
		}
	}
	for i := range m.roundsN {
		for j := range m.sides {
			if err := m.interrupted(); err != nil {
				return err
			}
			s := m.sides[(i+j)%len(m.sides)]
			r, err := m.load(s, m.spec(s))
			if err != nil {
				return err
			}
			s.samples = append(s.samples, r)
		}
	}
	return nil
}

// idle measures how much memory of a proxy grows with idle connections. Each
// round starts the proxy afresh: what it once had it may keep.
func (m *run) idle() error {
	for i := range m.roundsN {
		for j := range m.sides {
			if err := m.interrupted(); err != nil {
				return err
			}
			s := m.sides[(i+j)%len(m.sides)]
			if err := m.idleOnce(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *run) idleOnce(s *side) error {
	if err := m.launch(s); err != nil {
		return err
	}
	defer func() {
		s.process.stop()
		s.process = nil
	}()
	// One connection that is gone again before: its code is paged in. By HTTP
	// as many as have a request under way at a time: the buffers that these
	// share are no part of what an idle connection costs.
	first := m.spec(s)
	first.Conns = 1
	if s.settings.HTTP {
		first.Conns = min(idleStep, first.Conns)
	}
	p, err := m.openIdle(s, first)
	if err != nil {
		return err
	}
	if _, err := m.closeIdle(s, p); err != nil {
		return err
	}
	time.Sleep(settle)
	before, err := residentBytes(family(s.process.pid()))
	if err != nil {
		return err
	}
	if p, err = m.openIdle(s, m.spec(s)); err != nil {
		return err
	}
	time.Sleep(settle)
	after, err := residentBytes(family(s.process.pid()))
	if err != nil {
		p.stop()
		return err
	}
	r, err := m.closeIdle(s, p)
	if err != nil {
		return err
	}
	s.samples = append(s.samples, r)
	s.resident = append(s.resident, float64(after-before)/float64(m.row.load.Conns))
	return nil
}

// idleMax is how long it may take to open all connections.
const idleMax = 30 * time.Second

// openIdle starts a generator and returns when its connections stand.
func (m *run) openIdle(s *side, spec loadSpec) (*process, error) {
	p, err := startChild("load", spec, filepath.Join(m.dir, "load.err"), m.loadCPUs()...)
	if err != nil {
		return nil, err
	}
	if _, err = p.line("open", idleMax); err != nil {
		p.stop()
		return nil, m.cause(s, err)
	}
	return p, nil
}

// closeIdle has the generator use each connection once more and close it.
func (m *run) closeIdle(s *side, p *process) (loadResult, error) {
	defer p.stop()
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		return loadResult{}, p.failure(err)
	}
	return m.loadResult(s, p, idleMax)
}
