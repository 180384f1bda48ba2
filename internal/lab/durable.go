package lab

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// durable kills the product in the middle of changes, tears and fills its disk,
// gives it another writer and files that are wrong, and looks at each start
// whether the state is one that was asked for, whole, and none that is older
// than what was said to be durable.
//
// Which state is in force is seen twice: in what the product says of itself and
// in a field of the answers that clients get from each listener.
func durable(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	w, here, err := newLoopback(o.dir)
	if err != nil {
		return err
	}
	defer w.Close()
	l := &durableLab{
		Options: o, ctx: ctx, out: out, v: v, here: here, rng: rand.New(rand.NewPCG(o.Seed, 14)),
		dir: filepath.Join(o.dir, "state"), kills: 1000, tears: 40,
	}
	if o.Short {
		l.kills, l.tears = 40, 4
	}
	server, err := newStand("one", durableServer, o.Seed)
	if err != nil {
		return err
	}
	defer server.close()
	for _, scene := range []struct {
		what string
		play func() error
	}{
		{"kill -9 in the middle of changes", l.killing},
		{"a torn tail", l.tearing},
		{"damage", l.damaging},
		{"files that are wrong", l.wrongFiles},
		{"two writers", l.twoWriters},
		{"a canary that does harm", l.canary},
		{"a full disk", l.fullDisk},
	} {
		began := time.Now()
		_, _ = fmt.Fprintf(out, "%s\n", scene.what)
		if err := scene.play(); err != nil {
			l.sayLog()
			return fmt.Errorf("%s: %w", scene.what, err)
		}
		v.Say("%-34s %6.1f s", scene.what, time.Since(began).Seconds())
	}
	if v.Wrong() {
		l.sayLog()
	}
	return nil
}

func (l *durableLab) sayLog() {
	if l.node != nil && l.node.process != nil {
		l.v.Say("-- log of the balancer\n%s", l.node.process.Tail(40))
	}
}

const (
	durableServer = "127.0.30.1:7000"
	durablePort   = 8300 // of the first listener
	// durableListeners show the state each for itself: a mixture would show two.
	durableListeners = 3
	durableBackends  = 40
	// durableField is the field of answers that names the state.
	durableField = "X-State"
)

type durableLab struct {
	Options
	ctx   context.Context
	out   io.Writer
	v     *Verdict
	here  *Host
	rng   *rand.Rand
	dir   string // of the journal
	kills int
	tears int

	node  *shopNode
	n, t  int           // the last that were used
	steps []durableStep // all that were ever asked for and not undone
	sure  int           // the last of them that was said to be durable
	tally durableTally
}

// durableStep is one state that was asked for. Each has a number that none had
// before it, so a pair is of one step alone.
type durableStep struct {
	n, t       int    // in answers; in an edit at run time
	generation uint64 // as it was reported; 0: the answer never came
}

type durableTally struct {
	steps, sure, undone, between, seenUndone, answers int
	starts                                            time.Duration
	waits                                             []float64 // milliseconds until durable
}

// text is a configuration that shows n everywhere.
func (l *durableLab) text(n, ports int, dir string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "node: { name: durable, loops: 2, admin: { socket: SOCKET }, state: %q }\nlisteners:\n", dir)
	for i := range durableListeners {
		fmt.Fprintf(&s, "  l%d:\n    vip: \"127.0.0.1:%d\"\n    protocol: http\n    routes:\n", i, ports+i)
		fmt.Fprintf(&s, "      - { backend: edited, headers: { response: { set: { %s: \"%d\" } } } }\n", durableField, n)
	}
	fmt.Fprintf(&s, "backends:\n  edited: { endpoints: [ { name: e, address: \"%s\" } ] }\n", durableServer)
	for i := range durableBackends {
		// What differs is spread over the file, and some come and go.
		if (n+i)%7 != 0 {
			fmt.Fprintf(&s, "  b%d:\n    balance: least\n    endpoints:\n      - { name: e1, address: \"127.0.31.%d:80\", weight: %d }\n      - { name: e2, address: \"127.0.32.%d:80\" }\n",
				i, 1+i, 1+(n+i)%100, 1+i)
		}
	}
	return s.String()
}

// start runs the product on the journal, and waits until it serves.
func (l *durableLab) start(name, text string) (*shopNode, error) {
	// Its log would tell of the process before.
	_ = os.Remove(filepath.Join(l.here.world.Dir, name+".log"))
	return startNode(l.ctx, l.Binary, l.here, name, text)
}

// configState is the part of the desired state that the lab looks at.
type configState struct {
	Generation uint64 `json:"generation"`
	Source     string `json:"source"`
	Durable    string `json:"durable"`
}

func (l *durableLab) config() (configState, error) {
	var c configState
	return c, l.node.call(l.ctx, "GetConfig", struct{}{}, &c)
}

// generations are those of the history, the newest first.
func (l *durableLab) generations() ([]uint64, error) {
	var h struct {
		Generations []struct {
			Generation uint64 `json:"generation"`
		} `json:"generations"`
	}
	if err := l.node.call(l.ctx, "History", struct{}{}, &h); err != nil {
		return nil, err
	}
	var all []uint64
	for _, g := range h.Generations {
		all = append(all, g.Generation)
	}
	return all, nil
}

// step asks for another state: a whole file, or an edit of one field.
func (l *durableLab) step(wait bool) (changeReport, error) {
	s := l.steps[len(l.steps)-1]
	s.generation = 0
	q := map[string]any{"wait_durable": wait}
	// Numbers of what was undone are not used again: flows may have seen them.
	if l.rng.IntN(3) > 0 {
		l.n++
		s.n = l.n
		q["source"] = l.node.filled(l.text(s.n, durablePort, l.dir))
	} else {
		l.t++
		s.t = l.t
		q["edits"] = []map[string]any{{"object": "backend/edited", "field": "connectTimeout", "value": fmt.Sprintf("%dms", 1000+s.t)}}
	}
	l.steps = append(l.steps, s)
	l.tally.steps++
	var r changeReport
	if err := l.node.call(l.ctx, "Apply", q, &r); err != nil {
		return r, err
	}
	l.steps[len(l.steps)-1].generation = r.Generation
	if r.Durable == "yes" {
		l.sure = len(l.steps) - 1
		l.tally.sure++
		l.tally.waits = append(l.tally.waits, r.DurableMillis)
	}
	return r, nil
}

var (
	shownState  = regexp.MustCompile(durableField + `: *"?(\d+)`)
	shownTiming = regexp.MustCompile(`connectTimeout: *"?([0-9a-z.]+)`)
)

// read tells which state a configuration is, and what is not whole in it.
func (l *durableLab) read(source string) (durableStep, string) {
	var s durableStep
	all := shownState.FindAllStringSubmatch(source, -1)
	if len(all) != durableListeners {
		return s, fmt.Sprintf("%d listeners show a state, not %d", len(all), durableListeners)
	}
	for _, x := range all {
		if x[1] != all[0][1] {
			return s, fmt.Sprintf("one listener is of state %s, another of %s", all[0][1], x[1])
		}
	}
	s.n, _ = strconv.Atoi(all[0][1])
	if x := shownTiming.FindStringSubmatch(source); x != nil {
		d, err := time.ParseDuration(x[1])
		if err != nil {
			return s, err.Error()
		}
		s.t = int(d.Milliseconds()) - 1000
	}
	// All else of the file is that of n as well, however it is set out.
	text := strings.ReplaceAll(source, " ", "")
	there := 0
	for i := range durableBackends {
		if (s.n+i)%7 != 0 {
			there++
		}
		if there := strings.Contains(text, fmt.Sprintf("\nb%d:\n", i)); there != ((s.n+i)%7 != 0) {
			return s, fmt.Sprintf("state %d, and backend b%d is there: %v", s.n, i, there)
		}
		if (s.n+i)%7 != 0 && !strings.Contains(text, fmt.Sprintf("\"127.0.31.%d:80\",weight:%d}", 1+i, 1+(s.n+i)%100)) {
			return s, fmt.Sprintf("state %d, and backend b%d has another weight", s.n, i)
		}
	}
	if e1, e2 := strings.Count(text, "name:e1,"), strings.Count(text, "name:e2,"); e1 != there || e2 != there {
		return s, fmt.Sprintf("state %d has %d backends, and %d and %d endpoints", s.n, there, e1, e2)
	}
	return s, ""
}

// judge looks at a node that has just started: which step it is at, and whether
// that may be. What was after it is undone, and is never asked for again.
func (l *durableLab) judge(what string, seen int) (wrong string, err error) {
	// A start may make a generation of its own, which is durable a moment later.
	var c configState
	eventually(5*time.Second, func() bool {
		c, err = l.config()
		return err != nil || c.Durable == "yes"
	})
	if err != nil {
		return "", err
	}
	is, wrong := l.read(c.Source)
	if wrong != "" {
		return what + ": " + wrong, nil
	}
	at := slices.IndexFunc(l.steps, func(s durableStep) bool { return s.n == is.n && s.t == is.t })
	switch {
	case at < 0:
		return fmt.Sprintf("%s: nobody ever asked for state %d, %d", what, is.n, is.t), nil
	case at < l.sure:
		return fmt.Sprintf("%s: it is at step %d (generation %d), and step %d was durable", what, at, c.Generation, l.sure), nil
	case l.steps[at].generation != 0 && l.steps[at].generation != c.Generation:
		return fmt.Sprintf("%s: step %d was generation %d and is %d now", what, at, l.steps[at].generation, c.Generation), nil
	case c.Durable != "yes":
		return fmt.Sprintf("%s: generation %d is in force and durable: %s", what, c.Generation, c.Durable), nil
	}
	all, err := l.generations()
	if err != nil {
		return "", err
	}
	// The history has every generation that was, and none of those undone.
	if len(all) == 0 || all[0] != c.Generation {
		return fmt.Sprintf("%s: generation %d is in force, the history begins with %v", what, c.Generation, all[:min(len(all), 3)]), nil
	}
	for _, s := range l.steps[max(0, at-50) : at+1] {
		if s.generation != 0 && !slices.Contains(all, s.generation) {
			return fmt.Sprintf("%s: generation %d is missing in the history", what, s.generation), nil
		}
	}
	undone := len(l.steps) - 1 - at
	if undone > 0 && l.steps[len(l.steps)-1].generation == 0 {
		undone-- // it was never said to be in force
	}
	l.tally.undone += undone
	if seen > is.n {
		l.tally.seenUndone++
	}
	l.steps, l.sure = l.steps[:at+1], at
	l.steps[at].generation = c.Generation
	return "", nil
}

// watchers ask each listener over one connection, for as long as it lasts.
type watchers struct {
	most    atomic.Int64 // the greatest state seen
	answers atomic.Int64
	wrong   atomic.Pointer[string]
	all     sync.WaitGroup
	stop    context.CancelFunc
}

func (l *durableLab) watch(ports int) *watchers {
	ctx, stop := context.WithCancel(l.ctx)
	w := &watchers{stop: stop}
	for i := range durableListeners {
		w.all.Go(func() { w.ask(ctx, ports+i) })
	}
	return w
}

func (w *watchers) ask(ctx context.Context, port int) {
	c := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer c.CloseIdleConnections()
	last := 0
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/r/1", port), nil)
		if err != nil {
			panic(err) // a URL of our own
		}
		res, err := c.Do(req)
		if err != nil {
			return // it was killed, or we are to stop
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		n, _ := strconv.Atoi(res.Header.Get(durableField))
		if n < last || res.StatusCode != http.StatusOK {
			s := fmt.Sprintf("port %d: status %d of state %d after %d", port, res.StatusCode, n, last)
			w.wrong.CompareAndSwap(nil, &s)
		}
		last = n
		w.answers.Add(1)
		for most := w.most.Load(); int64(n) > most && !w.most.CompareAndSwap(most, int64(n)); most = w.most.Load() {
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

// end waits for them and tells the greatest state that was seen.
func (w *watchers) end() int {
	w.stop()
	w.all.Wait()
	return int(w.most.Load())
}

// kill ends the node as the kernel does when it has no memory left.
func (l *durableLab) kill() {
	l.node.process.Kill()
	l.node.api.CloseIdleConnections()
}

// killing is the scene of its name.
func (l *durableLab) killing() error {
	began := time.Now()
	var wrong []string
	note := func(s string) {
		if s != "" {
			wrong = append(wrong, s)
		}
	}
	l.steps = []durableStep{{}}
	file := l.text(0, durablePort, l.dir)
	seen := 0 // by clients of the process before
	for k := range l.kills + 1 {
		start := time.Now()
		var err error
		if l.node, err = l.start("durable", file); err != nil {
			return err
		}
		l.tally.starts += time.Since(start)
		what := fmt.Sprintf("start %d", k)
		s, err := l.judge(what, seen)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		note(s)
		if s != "" {
			// What follows would be judged by what is wrong already.
			break
		}
		if k == l.kills {
			break
		}
		w := l.watch(durablePort)
		die := make(chan struct{})
		pause := time.Duration(l.rng.Int64N(int64(60 * time.Millisecond)))
		go func() {
			defer close(die)
			time.Sleep(pause) // where in a change it falls is what is left to chance
			l.node.process.Kill()
		}()
		for {
			if _, err := l.step(l.rng.IntN(4) == 0); err != nil {
				break
			}
		}
		<-die
		l.kill()
		if l.steps[len(l.steps)-1].generation == 0 {
			l.tally.between++
		}
		seen = w.end()
		l.tally.answers += int(w.answers.Load())
		if p := w.wrong.Load(); p != nil {
			note(fmt.Sprintf("%s: %s", what, *p))
		}
		if l.Sabotage == Forget && k == l.kills/2 {
			if err := l.forget(); err != nil {
				return err
			}
		}
		if k%100 == 99 {
			_, _ = fmt.Fprintf(l.out, "%d kills, %d changes\n", k+1, l.tally.steps)
		}
	}
	t := &l.tally
	slices.Sort(t.waits)
	l.v.Say("%d kills in %.0f s: %d changes, %d of them said to be durable; %d kills fell into a change that was not answered;",
		l.kills, time.Since(began).Seconds(), t.steps, t.sure, t.between)
	l.v.Say("  %d changes had been effective and not durable, and were undone; %d times clients had seen one; %d answers",
		t.undone, t.seenUndone, t.answers)
	if len(t.waits) > 0 {
		l.v.Say("  durable after p50 %.2f ms, p99 %.2f ms; a start takes %v", t.waits[len(t.waits)/2], t.waits[len(t.waits)*99/100],
			(t.starts / time.Duration(l.kills+1)).Round(time.Millisecond))
		l.v.Figure("durable_ms", map[string]float64{"p50": t.waits[len(t.waits)/2], "p99": t.waits[len(t.waits)*99/100]})
	}
	for _, s := range wrong[:min(len(wrong), 5)] {
		l.v.Say("  WRONG: %s", s)
	}
	l.v.Zero("starts at a state that was not to be, of "+strconv.Itoa(l.kills), len(wrong))
	l.v.Must(t.sure > 0 && t.answers > 0, "changes that were durable, and answers", fmt.Sprintf("%d, %d", t.sure, t.answers), "more than 0")
	l.v.Must(t.between > l.kills/20, "kills in the middle of a change", fmt.Sprint(t.between), fmt.Sprintf("more than %d of %d", l.kills/20, l.kills))
	l.v.Figure("kills", l.kills)
	l.v.Figure("changes", t.steps)
	l.v.Figure("durable", t.sure)
	l.v.Figure("undone", t.undone)
	l.v.Figure("seen_undone", t.seenUndone)
	return nil
}

// newest is the file of the journal that is written to.
func (l *durableLab) newest() (string, error) {
	all, err := filepath.Glob(l.dir + "/*.journal")
	if err != nil || len(all) == 0 {
		return "", fmt.Errorf("lab: no journal in %s: %w", l.dir, err)
	}
	slices.Sort(all)
	return all[len(all)-1], nil
}

// forget is the sabotage of its name.
func (l *durableLab) forget() error {
	all, err := filepath.Glob(l.dir + "/*.journal")
	for _, f := range all {
		if err == nil {
			err = os.Remove(f)
		}
	}
	return err
}
