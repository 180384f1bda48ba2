package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// marching leads upgrades of a real process, under traffic whose every octet is known,
// to each call by which the two sides speak: there the call fails, or the process is
// killed, or it stands still for a while, or for ever. It looks who serves afterwards,
// what was lost, and for how long nobody got an answer.
func marching(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	w, here, err := newLoopback(o.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	m := &marchLab{
		Options: o, ctx: ctx, out: out, v: v, here: here, spec: filepath.Join(o.dir, "march"),
		traffic: &marchTraffic{seed: o.Seed}, lots: map[string]*marchRow{},
	}
	origin, err := NewOrigin(nil, "march", marchOrigin, o.Seed)
	if err != nil {
		return err
	}
	defer origin.Close()
	if err := m.set("", ""); err != nil {
		return err
	}
	// Each process reads it, from the first one on.
	if err := os.Setenv("HOLDFAST_MARCH", m.spec); err != nil {
		return err
	}
	if err := m.start(); err != nil {
		return err
	}
	if err := m.traffic.begin(); err != nil {
		return err
	}
	err = m.march()
	m.traffic.finish()
	m.judge(origin)
	if err != nil || v.Wrong() {
		v.Say("-- log of the balancer\n%s", m.node.process.Tail(60))
	}
	return err
}

type marchLab struct {
	Options
	ctx     context.Context
	out     io.Writer
	v       *Verdict
	here    *Host
	spec    string // the file that says what happens
	node    *shopNode
	traffic *marchTraffic
	starts  int

	steps  int
	doubts []string
	rows   []*marchRow
	lots   map[string]*marchRow // by step and call
}

// marchDo is what happens at a call.
type marchDo uint8

const (
	marchNothing marchDo = iota
	marchFail            // the call returns an error
	marchKill
	marchPause // stopped, and continued while the other side still waits
	marchStop  // stopped until the other side has given up, or the operator has
	marchDos   = iota
)

var marchDoNames = [marchDos]string{"nothing", "fails", "killed", "stopped for a while", "stopped"}

func (d marchDo) String() string { return marchDoNames[d] }

// word is what package planted calls it.
func (d marchDo) word() string {
	return [marchDos]string{"", "fail", "kill", "stop", "stop"}[d]
}

// marchCall is one call of one side, as the product has told it.
type marchCall struct {
	side string
	n    int
	what string // such as "send commit"
	pid  int
}

// marchRow is what all steps at calls of one sort came to.
type marchRow struct {
	side, what string
	do         marchDo
	steps      int
	upgraded   int // the new process serves
	aborted    int // the old one does
	nobody     int // neither: it had to be started again
	standing   int // connections lost, of those that stood
	fresh      int // and of those that began
	most       int // lost in one step
	pause      time.Duration
}

const (
	sideGiver = "giver"
	sideTaker = "taker"
)

// config is a node with a door for each sort of traffic.
func (m *marchLab) config() string {
	var s strings.Builder
	fmt.Fprintf(&s, "node: { name: march, loops: 2, admin: { socket: SOCKET }, state: %q }\n", filepath.Join(m.dir, "state"))
	fmt.Fprintf(&s, "listeners:\n  tcp: { vip: \"%v\", backend: tcp, backlog: 4096 }\n", marchTCP)
	fmt.Fprintf(&s, "  few: { vip: \"%v\", backend: few, backlog: 4096 }\n", marchFew)
	fmt.Fprintf(&s, "  web: { vip: \"%v\", protocol: http, backend: web, backlog: 4096 }\n", marchHTTP)
	fmt.Fprintf(&s, "backends:\n  tcp: { connectTimeout: 30s, endpoints: [ { name: s, address: \"%v\" } ] }\n", marchServer)
	fmt.Fprintf(&s, "  few:\n    connectTimeout: 30s\n    limits: { connectionsPerEndpoint: %d, queue: 1000, queueTime: 5m }\n", marchSeatsMost)
	fmt.Fprintf(&s, "    endpoints: [ { name: s, address: \"%v\" } ]\n", marchSeated)
	fmt.Fprintf(&s, "  web: { connectTimeout: 30s, answerTimeout: 2m, endpoints: [ { name: s, address: \"%v\" } ] }\n", marchOrigin)
	return s.String()
}

// start runs the product; again, when a step has left nobody.
func (m *marchLab) start() (err error) {
	m.starts++
	m.node, err = startNode(m.ctx, m.Binary, m.here, fmt.Sprintf("march-%d", m.starts), m.config())
	return err
}

// set says what happens to the next upgrade, and forgets the calls of the last one.
func (m *marchLab) set(what, side string) error {
	line := ""
	if what != "" {
		line = what + "@" + side
	}
	if err := os.WriteFile(m.spec, []byte(line+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Remove(m.spec + ".calls"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// calls are those of the upgrade so far, in the order in which they were made.
func (m *marchLab) calls() ([]marchCall, error) {
	b, err := os.ReadFile(m.spec + ".calls")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []marchCall
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) < 4 {
			return nil, fmt.Errorf("lab: a call is told as %q", line)
		}
		c := marchCall{side: f[0], what: f[3]}
		c.pid, _ = strconv.Atoi(f[1])
		c.n, _ = strconv.Atoi(f[2])
		all = append(all, c)
	}
	return all, nil
}

func (m *marchLab) say(format string, args ...any) {
	_, _ = fmt.Fprintf(m.out, "%6.1f s  %s\n", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

func (m *marchLab) doubt(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	m.doubts = append(m.doubts, s)
	m.say("DOUBT: %s", s)
}

// A short run begins no further step so long after it began to march, or, building
// included, to run.
const (
	marchShortTime = 15 * time.Second
	marchShortEnds = 33 * time.Second
)

// march makes an upgrade that nothing happens to, which tells the calls that there
// are, and then one for each of them and for each thing that can happen there.
func (m *marchLab) march() error {
	if _, err := m.traffic.awaitRounds(marchPatience); err != nil {
		return fmt.Errorf("lab: before the first upgrade: %w", err)
	}
	began := time.Now()
	row, all, err := m.step(marchNothing, "", 0)
	if err != nil {
		return err
	}
	if row.upgraded != 1 || row.standing+row.fresh > 0 {
		m.doubt("an upgrade to which nothing happens: %+v", *row)
	}
	most := map[string]int{}
	for _, c := range all {
		if c.what == "receive after done" || c.what == "send settled" { // the end of it for either side
			most[c.side] = c.n
		}
	}
	m.say("%d calls of the giver, %d of the taker", most[sideGiver], most[sideTaker])
	m.v.Must(most[sideGiver] > 5 && most[sideTaker] > 5, "calls of an upgrade", fmt.Sprintf("%d and %d", most[sideGiver], most[sideTaker]), "more than 5 of either side")
	type step struct {
		side string
		n    int
		do   marchDo
	}
	var plan []step
	for _, side := range []string{sideGiver, sideTaker} {
		for n := 1; n <= most[side]; n++ {
			for do := marchFail; do < marchDos; do++ {
				plan = append(plan, step{side, n, do})
			}
		}
	}
	if m.Short {
		r := rand.New(rand.NewPCG(m.Seed, 18))
		r.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
		// Who stands still for ever is waited for, which a short run has no time for.
		plan = slices.DeleteFunc(plan, func(s step) bool { return s.do == marchStop })
	}
	for _, s := range plan {
		if m.Short && (time.Since(m.began) > marchShortEnds || time.Since(began) > marchShortTime) {
			break
		}
		if err := m.ctx.Err(); err != nil {
			return err
		}
		if _, _, err := m.step(s.do, s.side, s.n); err != nil {
			return fmt.Errorf("lab: %s, call %d, %v: %w", s.side, s.n, s.do, err)
		}
	}
	if !m.Short {
		m.v.Must(m.steps > len(plan), "steps", fmt.Sprint(m.steps), fmt.Sprintf("all %d, and one", len(plan)))
	} else {
		m.v.Must(m.steps >= 8, "steps", fmt.Sprint(m.steps), "at least 8")
	}
	return nil
}

const (
	// pauseTime is for how long a process stands still which the other is to wait for.
	pauseTime = 400 * time.Millisecond
	// giveUpTime is longer than the longest that the giver waits for a taker, which
	// holds flows, that stands still.
	giveUpTime = 30 * time.Second
	// operatorTime is after how long somebody ends a giver that stands still.
	operatorTime = 2 * time.Second
	// recoverTime bounds how long it may take until everybody is served again.
	recoverTime = 10 * time.Second
)

// step makes one upgrade, at one call of which something happens.
func (m *marchLab) step(do marchDo, side string, n int) (*marchRow, []marchCall, error) {
	what := ""
	if do != marchNothing {
		what = fmt.Sprintf("%s:%d", do.word(), n)
	}
	if err := m.set(what, side); err != nil {
		return nil, nil, err
	}
	giver := m.node.pid
	if _, err := m.traffic.awaitRounds(recoverTime); err != nil {
		return nil, nil, fmt.Errorf("before it: %w", err)
	}
	was := m.traffic.count()
	answer := make(chan error, 1)
	go func() { // ends with the answer, or with what would give it
		r, err := m.node.succeed(m.ctx)
		if err == nil && r.Lost > 0 {
			err = fmt.Errorf("%d flows lost, says the report", r.Lost)
		}
		answer <- err
	}()
	told, err := m.attend(do, giver, answer)
	if err != nil {
		return nil, nil, err
	}
	all, err := m.calls()
	if err != nil {
		return nil, nil, err
	}
	row := m.row(do, side, n, all)
	row.steps++
	m.steps++
	serving, err := m.whoServes()
	if err != nil {
		return nil, nil, err
	}
	switch {
	case serving == 0:
		row.nobody++
		if err := m.start(); err != nil {
			return nil, nil, err
		}
	case serving == giver:
		row.aborted++
	default:
		row.upgraded++
		m.node.pid = serving
	}
	worst, err := m.traffic.awaitRounds(recoverTime)
	if err != nil {
		m.doubt("%s, call %d (%s), %v: %v", side, n, row.what, do, err)
		return nil, nil, err
	}
	standing, fresh := m.traffic.count().since(was)
	row.standing, row.fresh = row.standing+standing, row.fresh+fresh
	row.most, row.pause = max(row.most, standing+fresh), max(row.pause, worst)
	ends := m.traffic.ends()
	m.say("%s, call %d (%s), %v: %s; lost %d, and %d that began (%s); the longest pause %s; the answer: %v", side, n, row.what, do,
		servedBy(serving, giver), standing, fresh, ends, ms(worst), told)
	m.allow(do, side, n, all, serving, giver, standing, fresh, ends)
	return row, all, nil
}

func servedBy(serving, giver int) string {
	switch serving {
	case 0:
		return "nobody serves"
	case giver:
		return "the giver serves"
	}
	return "the taker serves"
}

// attend does what is done to processes that stand still, until the upgrade is over.
func (m *marchLab) attend(do marchDo, giver int, answer <-chan error) (told, err error) {
	until := time.After(giveUpTime)
	if do == marchPause || do == marchStop {
		var stopped int
		for stopped == 0 {
			select {
			case told = <-answer:
				return told, nil // it never came to that call
			case <-until:
				return nil, errors.New("lab: nobody has stopped, and the upgrade does not end")
			case <-time.After(2 * time.Millisecond):
				stopped = m.stopped()
			}
		}
		wait := pauseTime
		if do == marchStop && stopped == giver {
			wait = operatorTime
		}
		answered := false
		if do == marchPause || stopped == giver {
			select {
			case told = <-answer:
				answered = true
			case <-time.After(wait):
			}
		}
		switch {
		case do == marchPause:
			_ = unix.Kill(stopped, unix.SIGCONT) // it may be gone
		case stopped == giver:
			_ = unix.Kill(stopped, unix.SIGKILL)
		}
		if answered {
			return told, nil
		}
	}
	select {
	case told = <-answer:
		return told, nil
	case <-until:
		return nil, fmt.Errorf("lab: the upgrade has not ended after %v", giveUpTime)
	}
}

// stopped finds a process of the product that stands still.
func (m *marchLab) stopped() int {
	for _, pid := range running(m.Binary) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		s := string(b)
		if f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:]); len(f) > 0 && f[0] == "T" {
			return pid
		}
	}
	return 0
}

// whoServes waits until one process is left, or none, and one that is says that it is
// the node.
func (m *marchLab) whoServes() (int, error) {
	var pids []int
	var said error
	for end := time.Now().Add(recoverTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if pids = running(m.Binary); len(pids) == 0 {
			return 0, nil
		}
		// An upgrade has not always as many calls: this one was over before.
		if pid := m.stopped(); pid != 0 {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
		if len(pids) > 1 {
			continue
		}
		var st *Status
		if st, said = m.node.status(m.ctx); said == nil && st.PID == pids[0] {
			return pids[0], nil
		}
	}
	return 0, fmt.Errorf("processes %v run, and the admin socket says %v", pids, said)
}

// row finds the line of the table for a call: lots are alike, but the first.
func (m *marchLab) row(do marchDo, side string, n int, all []marchCall) *marchRow {
	what, again := "", 0
	for _, c := range all {
		if c.side == sideGiver && c.what == "send accept" {
			again++
		}
		if c.side == side && c.n == n {
			what = c.what
			break
		}
	}
	if what != "" && do != marchNothing {
		switch {
		case strings.HasSuffix(what, "inherit") || strings.HasSuffix(what, "accept"):
		case again > 0:
			what += ", after the switch"
		default:
			what += ", before the switch"
		}
	}
	key := fmt.Sprint(side, what, do)
	r := m.lots[key]
	if r == nil {
		r = &marchRow{side: side, what: what, do: do}
		m.lots[key] = r
		m.rows = append(m.rows, r)
	}
	return r
}

// lotMost is how many flows are committed at once.
const lotMost = 8

// allow holds what was lost against what the design lets be lost.
func (m *marchLab) allow(do marchDo, side string, n int, all []marchCall, serving, giver, standing, fresh int, ends string) {
	commits, accepts := 0, 0
	for _, c := range all {
		switch {
		case c.side == sideGiver && c.what == "send commit":
			commits++
		case c.side == sideTaker && c.what == "receive commit": // releases differ in how they wait
		case c.side == sideGiver && c.what == "send accept":
			accepts++
		}
	}
	most := 0
	switch {
	case serving != 0 && serving != giver && !Alive(giver) && do != marchNothing && side == sideGiver && (do == marchKill || do == marchStop):
		// The giver's end takes what it had not committed.
		most = len(m.traffic.slots)
	case serving == 0:
		most = len(m.traffic.slots)
	case serving == giver && commits > 0:
		// The taker's end takes what was committed to it, and what it had accepted.
		most = commits * lotMost
		if accepts > 0 {
			most = len(m.traffic.slots)
		}
	}
	if standing > most || fresh > 0 && most == 0 {
		m.doubt("%s, call %d, %v: %d connections lost, and %d that began; %d may be (%d commits): %s", side, n, do, standing, fresh, most, commits, ends)
	}
	if serving == 0 && (side != sideGiver || do != marchKill && do != marchStop) {
		m.doubt("%s, call %d, %v: nobody serves any more", side, n, do)
	}
}

// judge writes what was found into the verdict.
func (m *marchLab) judge(origin *Origin) {
	c := m.traffic.count()
	m.traffic.mu.Lock()
	for _, s := range m.traffic.wrong[:min(10, len(m.traffic.wrong))] {
		m.v.Say("wrong: %s", s)
	}
	for _, s := range m.traffic.limit[:min(10, len(m.traffic.limit))] {
		m.v.Say("too many at the limited endpoint: %s", s)
	}
	m.traffic.mu.Unlock()
	for _, s := range origin.Faults() {
		m.v.Say("at the origin: %s", s)
	}
	for _, s := range m.doubts[:min(20, len(m.doubts))] {
		m.v.Say("doubt: %s", s)
	}
	m.v.Zero("wrong octets", c.wrong+len(origin.Faults()))
	m.v.Zero("moments at which a limited endpoint had too many connections", c.over)
	m.v.Zero("steps that end as they must not", len(m.doubts))
	m.v.Figure("steps", m.steps)
	m.v.Figure("starts", m.starts)
	sort.SliceStable(m.rows, func(i, j int) bool { return m.rows[i].do < m.rows[j].do })
	var table strings.Builder
	fmt.Fprintf(&table, "| who | at | what happens | steps | goes on: new, old, nobody | lost: standing, new, most at once | longest pause |\n|---|---|---|---|---|---|---|\n")
	for _, r := range m.rows {
		fmt.Fprintf(&table, "| %s | %s | %v | %d | %d, %d, %d | %d, %d, %d | %s |\n", r.side, r.what, r.do, r.steps, r.upgraded, r.aborted, r.nobody,
			r.standing, r.fresh, r.most, ms(r.pause))
	}
	m.v.Say("%s", table.String())
	if m.Out != "" {
		if err := os.WriteFile(filepath.Join(m.Out, "march.md"), []byte(table.String()), 0o644); err != nil {
			m.v.Broken(err)
		}
	}
}
