package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// callerPatience is how long a client waits for one answer, at most: longer
// than anything that a lab lets a balancer wait for.
const callerPatience = 20 * time.Second

// caller is a client of HTTP on one connection, which knows each octet of the
// answers that are its own.
type caller struct {
	to     string
	seed   uint64
	conn   net.Conn
	in     *bufio.Reader
	cookie string // of the last answer that set one; kept if keeps
	keeps  bool
	round  int64 // of its life as somebody else
}

// answered is what came of one request.
type answered struct {
	Status int
	Server string // who answered; "" if it was the balancer
	Took   time.Duration
}

// wrongAnswer is an answer that is not the one to the request.
type wrongAnswer struct{ what string }

func (e wrongAnswer) Error() string { return "wrong answer: " + e.what }

// callSerial numbers all requests of this process: none is the same as another.
var callSerial atomic.Uint32

// ask sends one request for n octets that the server is to think about, and
// verifies that the answer is its own. more is put into the query.
func (c *caller) ask(path string, n int, think time.Duration, more, fields string) (answered, error) {
	id := callSerial.Add(1)
	began := time.Now()
	a := answered{}
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.to, callerPatience)
		if err != nil {
			return a, err
		}
		c.conn, c.in = conn, bufio.NewReaderSize(conn, 4096)
	}
	_ = c.conn.SetDeadline(began.Add(callerPatience))
	if c.keeps && c.cookie != "" {
		fields += "Cookie: " + c.cookie + "\r\n"
	}
	_, err := fmt.Fprintf(c.conn, "GET %s?id=%d&down=%d&wait=%d%s HTTP/1.1\r\nHost: lab\r\n%s\r\n", path, id, n, think.Microseconds(), more, fields)
	if err != nil {
		c.close()
		return a, err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.close()
		return a, err
	}
	a.Status, a.Server = res.StatusCode, res.Header.Get(originField)
	v := Verifier{Stream: NewStream(c.seed, id, Down)}
	if a.Status == http.StatusOK {
		err = c.verify(res, &v, id, n)
	} else {
		_, err = io.Copy(io.Discard, res.Body)
	}
	_ = res.Body.Close()
	a.Took = time.Since(began)
	if err != nil || res.Close {
		c.close()
	}
	for _, k := range res.Cookies() {
		if c.keeps {
			c.cookie = k.Name + "=" + k.Value
		}
	}
	return a, err
}

// verify reads a body and compares it.
func (c *caller) verify(res *http.Response, v *Verifier, id uint32, n int) error {
	if got := res.Header.Get(idField); got != strconv.FormatUint(uint64(id), 10) {
		return wrongAnswer{fmt.Sprintf("it is of request %q, not of %d", got, id)}
	}
	var buf [4096]byte
	for {
		k, err := res.Body.Read(buf[:])
		if wrong := v.Feed(buf[:k]); wrong != nil {
			return wrongAnswer{fmt.Sprint(wrong)}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if v.Off != uint64(n) {
		return wrongAnswer{fmt.Sprintf("%d octets of %d", v.Off, n)}
	}
	return nil
}

func (c *caller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// tally counts what clients saw. Several goroutines write it.
type tally struct {
	mu      sync.Mutex // guards all below
	good    int
	bad     map[string]int
	first   []string       // failures, with the time of each
	servers map[string]int // good answers by who gave them
	took    Histogram
	bulk    int // of the good ones: long downloads
	sockets int // WebSockets that ended as they should
	onGood  func(a answered)
}

func newTally() *tally { return &tally{bad: map[string]int{}, servers: map[string]int{}} }

// note counts one request.
func (t *tally) note(a answered, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		t.fail(errorText(err))
	case a.Status != http.StatusOK:
		t.fail(fmt.Sprintf("status %d", a.Status))
	default:
		t.good++
		t.servers[a.Server]++
		t.took.Add(a.Took)
		if t.onGood != nil {
			t.onGood(a)
		}
	}
}

// fail counts a failure; the caller holds mu.
func (t *tally) fail(what string) {
	t.bad[what]++
	if len(t.first) < 5 {
		t.first = append(t.first, time.Now().Format("15:04:05.000")+" "+what)
	}
}

// failed is how many failures there are.
func (t *tally) failed() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, k := range t.bad {
		n += k
	}
	return n
}

// answers is how many answers were right.
func (t *tally) answers() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.good
}

// failures lists them by kind.
func (t *tally) failures() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s []string
	for what, n := range t.bad {
		s = append(s, fmt.Sprintf("%d x %s", n, what))
	}
	sort.Strings(s)
	return strings.Join(s, "; ")
}

// crowd is many clients at work.
type crowd struct {
	*tally
	to   string
	seed uint64
	stop context.CancelFunc
	ctx  context.Context
	all  sync.WaitGroup

	turns []*atomic.Int64 // of each client; tally's mu guards the list
}

func newCrowd(ctx context.Context, to string, seed uint64) *crowd {
	c := &crowd{tally: newTally(), to: to, seed: seed}
	c.ctx, c.stop = context.WithCancel(ctx)
	return c
}

// each runs n clients, every one of which does the same again and again.
func (c *crowd) each(n int, rest time.Duration, keeps bool, do func(*caller, *rand.Rand)) {
	for i := range n {
		turn := new(atomic.Int64)
		c.mu.Lock()
		c.turns = append(c.turns, turn)
		c.mu.Unlock()
		c.all.Go(func() { // ends with the crowd
			r := rand.New(rand.NewPCG(c.seed, mix(uint64(i)+uint64(rest))))
			x := &caller{to: c.to, seed: c.seed, keeps: keeps}
			defer x.close()
			for c.ctx.Err() == nil {
				do(x, r)
				turn.Add(1)
				if rest > 0 {
					select {
					case <-c.ctx.Done():
					case <-time.After(rest/2 + time.Duration(r.Int64N(int64(rest)))):
					}
				}
			}
		})
	}
}

// turned waits until what every client is at now has ended.
func (c *crowd) turned(patience time.Duration) bool {
	c.mu.Lock()
	turns := slices.Clone(c.turns)
	c.mu.Unlock()
	was := make([]int64, len(turns))
	for i, t := range turns {
		was[i] = t.Load()
	}
	return eventually(patience, func() bool {
		for i, t := range turns {
			if t.Load() == was[i] {
				return false
			}
		}
		return true
	})
}

// keepAlive are clients with one connection each.
func (c *crowd) keepAlive(n int, rest, think time.Duration) {
	c.each(n, rest, false, func(x *caller, r *rand.Rand) {
		c.note(x.ask("/o", 200+r.IntN(3000), jitterOf(r, think), "", ""))
	})
}

// jitterOf is d, 50 % to 150 % of it.
func jitterOf(r *rand.Rand, d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d/2 + time.Duration(r.Int64N(int64(d)))
}

// end lets every client finish what it is at, and waits for them.
func (c *crowd) end() {
	c.stop()
	c.all.Wait()
}
