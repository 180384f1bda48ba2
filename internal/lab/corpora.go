package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab/corpus"
)

// corpusWorkers is how many streams are under way at a time. Each worker has a
// listener and a backend of its own, so that what reaches the backend is known
// to come from its stream.
const corpusWorkers = 24

// The patience of a client with a balancer. None of them decides about right
// and wrong unless the balancer does nothing at all for so long.
const (
	// corpusQuiet: a stream that is not over by the letter is taken to be over
	// for the balancer when nothing has moved for so long. It is sent FIN then,
	// and what it does after that counts as well.
	corpusQuiet = 100 * time.Millisecond
	// corpusPatience: for answers that are due.
	corpusPatience = 4 * time.Second
)

// corpusCase is one stream and how it goes to the balancer.
type corpusCase struct {
	file   string
	vector *corpus.Vector
	way    sendingWay
}

// sendingWay is how a client sends a stream.
type sendingWay uint8

const (
	inOnePiece   sendingWay = iota
	octetByOctet            // as far as the kernel does not join them
	withFIN                 // FIN follows at once: the client has no more to say, and waits
	sendingWays  = iota
)

func (w sendingWay) String() string {
	return [sendingWays]string{"", ", octet by octet", ", FIN at once"}[w]
}

// corpusOutcome is what became of a case.
type corpusOutcome struct {
	corpusCase
	forwarded  bool
	ambiguous  string // why; "" if it is not
	refused    string // by the backend, which reads by the letter
	smuggled   string // a request that the client has not sent as one
	wrong      string // an answer that is not in its place
	unexpected string // the balancer did other than Vector.Want
	dead       string // what the canary met afterwards
}

// corpora sends streams that readers understand differently through a
// balancer, and judges what comes out at both ends.
func corpora(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	files, err := corpus.Own()
	if err != nil {
		return err
	}
	if o.Corpus != "" {
		more, err := corpus.Load(os.DirFS(o.Corpus))
		if err != nil {
			return fmt.Errorf("lab: corpus %s: %w", o.Corpus, err)
		}
		files = append(files, more...)
	}
	world, err := NewWorld(o.dir, []HostSpec{{Name: "n1"}})
	if err != nil {
		return err
	}
	defer world.Close()
	l := &corpusLab{host: world.Host("n1"), short: o.Short}
	defer l.close()
	var doors []httpDoor
	for i := range corpusWorkers {
		w := &corpusWorker{
			lab: l, at: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(8000+i)),
		}
		if w.backend, err = newRawBackend(l.host, netip.AddrPortFrom(w.at.Addr(), uint16(9000+i))); err != nil {
			return err
		}
		l.workers = append(l.workers, w)
		doors = append(doors, httpDoor{Name: fmt.Sprintf("d%d", i), At: w.at, To: w.backend.Addr})
	}
	kind := o.Balancer
	if o.Sabotage == BlindRelay {
		kind = BlindRelay
	}
	if l.balancer, err = startHTTP(ctx, l.host, kind, "balancer", httpSetup{Binary: o.Binary, Loops: 2, Doors: doors}); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%6.1f s  streams through %s\n", time.Since(o.began).Seconds(), kind)
	if err := l.prepareSabotage(o.Sabotage); err != nil {
		return err
	}
	outcomes := l.run(ctx, corpusCases(files, o.Short))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	judgeCorpora(v, files, outcomes)
	if v.Wrong() {
		v.Say("-- the balancer wrote at last:\n%s", l.balancer.Tail(10))
	}
	return nil
}

// corpusCases: each stream in one piece and, if there is time, octet by octet;
// and those that have to be served with FIN right behind them.
func corpusCases(files []corpus.File, short bool) []corpusCase {
	var all []corpusCase
	for _, f := range files {
		for i := range f.Vectors {
			v := &f.Vectors[i]
			all = append(all, corpusCase{f.Name, v, inOnePiece})
			if v.Want == corpus.Serve {
				all = append(all, corpusCase{f.Name, v, withFIN})
			}
			if !short {
				all = append(all, corpusCase{f.Name, v, octetByOctet})
			}
		}
	}
	return all
}

// corpusLab is the balancer and those who work on it.
type corpusLab struct {
	host     *Host
	short    bool
	balancer *Process
	workers  []*corpusWorker
	saboteur *saboteur
	kill     bool // the balancer, in mid-run
}

// corpusWorker sends one stream after another.
type corpusWorker struct {
	lab     *corpusLab
	at      netip.AddrPort // where the balancer listens for it
	backend *rawBackend
	canary  int
}

func (l *corpusLab) close() {
	for _, w := range l.workers {
		w.backend.close()
	}
	if l.saboteur != nil {
		l.saboteur.Close()
	}
}

// prepareSabotage puts a relay between the first worker and the balancer, which
// strikes at the answer to a stream that is fine.
func (l *corpusLab) prepareSabotage(how string) error {
	l.kill = how == KillOne
	if how != DropOctet && how != RSTOne {
		return nil
	}
	w := l.workers[0]
	s, err := newSaboteur(l.host, how, netip.AddrPortFrom(w.at.Addr(), 7000), w.at)
	if err != nil {
		return err
	}
	l.saboteur, w.at = s, s.Addr
	return nil
}

// run takes every case once.
func (l *corpusLab) run(ctx context.Context, cases []corpusCase) []corpusOutcome {
	outcomes := make([]corpusOutcome, len(cases))
	var next atomic.Int64
	var once sync.Once
	var wg sync.WaitGroup
	for _, w := range l.workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(cases) {
					return
				}
				if i >= len(cases)/2 {
					if l.kill {
						once.Do(func() { killPID(l.balancer.Pid) })
					}
					if l.saboteur != nil && w == l.workers[0] && cases[i].vector.Want == corpus.Serve {
						l.saboteur.Strike()
					}
				}
				outcomes[i] = w.try(cases[i])
			}
		})
	}
	wg.Wait()
	return outcomes
}

// try sends one stream, and a canary behind it.
func (w *corpusWorker) try(c corpusCase) corpusOutcome {
	o := corpusOutcome{corpusCase: c}
	sent := c.vector.Octets
	w.backend.begin()
	x, err := w.exchange(sent, c.way)
	if err != nil {
		o.dead = err.Error()
		return o
	}
	octets, _, _ := w.backend.state()
	o.forwarded = octets > 0
	key, dead := w.sing()
	o.dead = dead
	// What the balancer has begun to forward, and will never have the rest
	// of, it has to let go.
	eventually(corpusPatience, func() bool { _, _, within := w.backend.state(); return !within })
	streams, seen := w.backend.end()
	for _, s := range streams {
		if o.ambiguous == "" {
			o.ambiguous = corpus.Ambiguous(s)
		}
		if o.smuggled == "" {
			o.smuggled = corpus.Smuggled(s, sent)
		}
	}
	x.Seen = slices.DeleteFunc(seen, func(s corpus.Seen) bool { return s.Key == key })
	for i, s := range x.Seen {
		if s.Key == "" {
			o.refused = fmt.Sprintf("request %d", i+1)
		}
	}
	o.wrong = corpus.Wrong(x)
	o.unexpected = unexpected(c.vector.Want, x)
	return o
}

// unexpected compares with what is wanted of the balancer.
func unexpected(want corpus.Want, x *corpus.Exchange) string {
	asked := corpus.Strict(x.Sent)
	n := len(asked.Complete())
	switch want {
	case corpus.Serve:
		if len(x.Seen) != n {
			return fmt.Sprintf("%d of %d requests were served", len(x.Seen), n)
		}
	case corpus.Refuse:
		if len(x.Seen) > n {
			return "served"
		}
		all, _, _ := corpus.Answers(x.Received, &asked, x.Closed)
		if len(all) == 0 || all[len(all)-1].Serial != "" || all[len(all)-1].Status < 400 {
			return "not refused by an answer"
		}
	case corpus.Either:
	}
	return ""
}

// dial connects to the balancer.
func (w *corpusWorker) dial() (*net.TCPConn, error) {
	var conn net.Conn
	err := w.lab.host.Do(func() error {
		d := net.Dialer{Timeout: corpusPatience}
		d.SetMultipathTCP(false)
		var err error
		conn, err = d.Dial("tcp", w.at.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// exchange sends a stream and reads what comes back until there is no more to
// come.
func (w *corpusWorker) exchange(sent []byte, way sendingWay) (*corpus.Exchange, error) {
	conn, err := w.dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	x := &corpus.Exchange{Sent: sent}
	// A balancer that has refused may close while the rest is written.
	if way == octetByOctet {
		for i := range sent {
			if _, err := conn.Write(sent[i : i+1]); err != nil {
				break
			}
		}
	} else {
		_, _ = conn.Write(sent)
	}
	asked := corpus.Strict(sent)
	buf := make([]byte, 64<<10)
	last, finished := time.Now(), way == withFIN
	if finished {
		_ = conn.CloseWrite()
	}
	for {
		if !finished && w.over(x, &asked, time.Since(last)) {
			// Now it is told that nothing more comes. A balancer that
			// waits for the rest of something has to give up.
			_ = conn.CloseWrite()
			finished, last = true, time.Now()
		}
		_ = conn.SetReadDeadline(time.Now().Add(corpusQuiet / 10))
		n, err := conn.Read(buf)
		x.Received = append(x.Received, buf[:n]...)
		if n > 0 {
			last = time.Now()
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if finished && time.Since(last) > corpusPatience {
				_ = conn.SetLinger(0)
				return x, nil
			}
		default:
			x.Closed, x.Reset = true, errors.Is(err, syscall.ECONNRESET)
			return x, nil
		}
	}
}

// over says whether nothing more is to come in answer to a stream: all answers
// are there and nothing is left of it; or nothing has moved for a while.
func (w *corpusWorker) over(x *corpus.Exchange, asked *corpus.Reading, since time.Duration) bool {
	all, whole, err := corpus.Answers(x.Received, asked, false)
	if err != nil {
		return true
	}
	due := len(asked.Complete())
	if _, seen, _ := w.backend.state(); seen > due {
		due = seen
	}
	if whole && len(all) >= due && asked.End == corpus.Boundary && due > 0 {
		return true
	}
	if since < corpusQuiet || w.backend.quietFor() < corpusQuiet {
		return false
	}
	return whole && len(all) >= due || since > corpusPatience
}

// sing is the canary: an ordinary request on a connection of its own. It gives
// the request's key, and what is wrong with the answer.
func (w *corpusWorker) sing() (key, dead string) {
	w.canary++
	sent := fmt.Appendf(nil, "GET /canary/%d HTTP/1.1\r\nHost: canary.example\r\nConnection: close\r\n\r\n", w.canary)
	asked := corpus.Strict(sent)
	key = asked.Messages[0].Key()
	conn, err := w.dial()
	if err != nil {
		return key, err.Error()
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(corpusPatience))
	if _, err := conn.Write(sent); err != nil {
		return key, err.Error()
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return key, err.Error()
	}
	all, whole, err := corpus.Answers(got, &asked, true)
	if err != nil || !whole || len(all) != 1 || all[0].Key != key {
		return key, fmt.Sprintf("the canary got %.80q", bytes.SplitN(got, []byte("\r\n"), 2)[0])
	}
	return key, ""
}

// judgeCorpora counts by file.
func judgeCorpora(v *Verdict, files []corpus.File, outcomes []corpusOutcome) {
	type count struct {
		Sent       int `json:"sent"`
		Refused    int `json:"refused"` // nothing reached the backend
		Forwarded  int `json:"forwarded"`
		Ambiguous  int `json:"ambiguous"`
		Unclean    int `json:"unclean"` // forwarded, and a backend that reads by the letter refused it
		Smuggled   int `json:"smuggled"`
		Wrong      int `json:"wrong_answers"`
		Unexpected int `json:"unexpected"`
		Dead       int `json:"dead"`
	}
	counts := map[string]*count{}
	var total count
	examples := map[string][]string{}
	for _, o := range outcomes {
		if counts[o.file] == nil {
			counts[o.file] = &count{}
		}
		for _, c := range []*count{counts[o.file], &total} {
			c.Sent++
			if o.forwarded {
				c.Forwarded++
			} else {
				c.Refused++
			}
			for _, x := range []struct {
				to        *int
				what, why string
			}{
				{&c.Ambiguous, "ambiguous", o.ambiguous},
				{&c.Unclean, "unclean", o.refused},
				{&c.Smuggled, "smuggled", o.smuggled},
				{&c.Wrong, "wrong answer", o.wrong},
				{&c.Unexpected, "unexpected", o.unexpected},
				{&c.Dead, "dead", o.dead},
			} {
				if x.why == "" {
					continue
				}
				*x.to++
				if c == &total {
					examples[x.what] = append(examples[x.what], fmt.Sprintf("%s: %s/%s%v: %s", x.what, o.file, o.vector.ID, o.way, x.why))
				}
			}
		}
	}
	v.Say("%-16s %6s %8s %9s %9s %8s %8s %13s %10s %5s",
		"streams", "sent", "refused", "forwarded", "ambiguous", "unclean", "smuggled", "wrong answers", "unexpected", "dead")
	line := func(name string, c *count) {
		v.Say("%-16s %6d %8d %9d %9d %8d %8d %13d %10d %5d",
			name, c.Sent, c.Refused, c.Forwarded, c.Ambiguous, c.Unclean, c.Smuggled, c.Wrong, c.Unexpected, c.Dead)
	}
	for _, f := range files {
		line(f.Name, counts[f.Name])
	}
	line("all", &total)
	const shown = 15
	for _, what := range slices.Sorted(maps.Keys(examples)) {
		all := examples[what]
		v.Say("")
		for _, e := range all[:min(shown, len(all))] {
			v.Say("%s", e)
		}
		if n := len(all) - shown; n > 0 {
			v.Say("%s: %d more", what, n)
		}
	}
	v.Figure("files", counts)
	v.Must(total.Forwarded > 0, "streams of which something was forwarded", fmt.Sprint(total.Forwarded), "some")
	v.Zero("streams that reached a backend and can be read in two ways", total.Ambiguous)
	v.Zero("streams of which a backend refused what it got", total.Unclean)
	v.Zero("streams of which a part became a request that it is not", total.Smuggled)
	v.Zero("streams with an answer that belongs to another request, or none", total.Wrong)
	v.Zero("streams that were served though they must not be, or the other way round", total.Unexpected)
	v.Zero("streams after which the balancer did not serve", total.Dead)
}
