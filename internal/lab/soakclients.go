package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// maker makes the n-th exchange of a connection.
type maker func(r *rand.Rand, id uint32) *exchange

var frames = []string{"length", "chunked", "", "close"}

// size draws from 0 to most, small ones more often.
func size(r *rand.Rand, most int) int {
	return r.IntN(1 + r.IntN(1+r.IntN(most)))
}

// anyExchange is what clients do all day.
func anyExchange(r *rand.Rand, id uint32) *exchange {
	x := &exchange{id: id, method: http.MethodGet, down: size(r, 256<<10), frame: frames[r.IntN(3)]}
	switch r.IntN(8) {
	case 0, 1, 2:
		x.method, x.up, x.chunked = http.MethodPost, size(r, 256<<10), r.IntN(2) == 0
		x.expect = r.IntN(4) == 0 && x.up > 0
	case 3:
		x.method = http.MethodHead
	case 4:
		x.method, x.up = http.MethodPut, size(r, 1<<20)
	case 5:
		x.wait = r.IntN(300)
	}
	switch r.IntN(16) {
	case 0:
		x.last = true
	case 1:
		x.frame = "close"
	case 2:
		// HTTP/1.0 knows neither chunks nor 100; what the origin sends in
		// chunks has to arrive without them.
		x.old, x.chunked, x.expect = true, false, false
	}
	return x
}

// repeatable is an exchange that a balancer may make again when a connection
// turns out to be dead.
func repeatable(r *rand.Rand, id uint32) *exchange {
	x := &exchange{id: id, method: http.MethodGet, down: size(r, 64<<10), frame: frames[r.IntN(3)]}
	if r.IntN(8) == 0 {
		x.method = http.MethodHead
	}
	return x
}

// slowUpload takes up to five seconds for a few thousand octets.
func slowUpload(r *rand.Rand, id uint32) *exchange {
	up := 500 + r.IntN(3000)
	return &exchange{id: id, method: http.MethodPost, up: up, chunked: r.IntN(2) == 0, down: 100,
		upBurst: 1 + up/(20+r.IntN(80)), upRest: time.Duration(20+r.IntN(30)) * time.Millisecond}
}

// slowReader takes its time over an answer that fits no buffer.
func slowReader(r *rand.Rand, id uint32) *exchange {
	return &exchange{id: id, method: http.MethodGet, down: 300<<10 + r.IntN(700<<10), frame: frames[r.IntN(len(frames))],
		downBurst: 8 << 10, downRest: time.Duration(10+r.IntN(40)) * time.Millisecond}
}

// bulky fills all buffers in either direction.
func bulky(r *rand.Rand, id uint32) *exchange {
	x := &exchange{id: id, method: http.MethodGet, down: 2<<20 + r.IntN(6<<20), frame: frames[r.IntN(2)]}
	if r.IntN(2) == 0 {
		x.method, x.up, x.down, x.chunked = http.MethodPost, x.down, 1000, r.IntN(2) == 0
	}
	return x
}

// earlyAnswer is answered while most of its body is still to come.
func earlyAnswer(r *rand.Rand, id uint32) *exchange {
	return &exchange{id: id, method: http.MethodPost, up: 1<<20 + r.IntN(2<<20), chunked: r.IntN(2) == 0,
		down: size(r, 64<<10), frame: frames[r.IntN(2)], early: true, upBurst: 16 << 10, upRest: time.Millisecond}
}

// mixed makes one exchange after the other, a few on each connection.
func (s *soak) mixed(f *fleet, k int, next maker) {
	r := rand.New(rand.NewPCG(s.Seed, uint64(s.ids.Add(1))))
	buffer := 0
	if k%2 == 1 { // half of them with a window that is soon closed
		buffer = 16 << 10
	}
	for !s.over() {
		c := s.dial(f, buffer)
		if c == nil {
			continue
		}
		for n := 5 + r.IntN(30); n > 0 && !s.over(); n-- {
			x := next(r, s.ids.Add(1))
			s.underway.Store(x, time.Now())
			err := c.do(x)
			s.underway.Delete(x)
			f.note(x, x.began, err)
			if err != nil || !c.mayStay() {
				break
			}
			s.rest(time.Duration(r.IntN(20)) * time.Millisecond)
		}
		c.close()
	}
}

// pipelined sends several requests before it reads the first answer.
func (s *soak) pipelined(f *fleet, k int) {
	r := rand.New(rand.NewPCG(s.Seed, uint64(s.ids.Add(1))))
	for !s.over() {
		c := s.dial(f, 0)
		if c == nil {
			continue
		}
		for good := true; good && !s.over(); {
			var sent []*exchange
			for range 2 + r.IntN(8) {
				x := &exchange{id: s.ids.Add(1), method: http.MethodGet, down: size(r, 16<<10), frame: frames[r.IntN(2)], began: time.Now()}
				if r.IntN(4) == 0 {
					x.method, x.up, x.chunked = http.MethodPost, size(r, 4<<10), r.IntN(2) == 0
				}
				if err := c.send(x); err != nil {
					f.note(x, x.began, err)
					good = false
					break
				}
				sent = append(sent, x)
			}
			for _, x := range sent {
				err := c.receive(x)
				f.note(x, x.began, err)
				if err != nil || !c.mayStay() {
					good = false
					break
				}
			}
			s.rest(time.Duration(10+r.IntN(30+k)) * time.Millisecond)
		}
		c.close()
	}
}

// dial connects; what goes wrong is noted. It gives nil then, after a rest.
func (s *soak) dial(f *fleet, buffer int) *webConn {
	began := time.Now()
	c, err := dialWeb(s.world.Host("client"), f.to, s.Seed, buffer)
	if err != nil {
		f.note(f.to, began, err)
		s.rest(100 * time.Millisecond)
		return nil
	}
	return c
}

func (s *soak) over() bool {
	select {
	case <-s.ending:
		return true
	default:
		return false
	}
}

func (s *soak) rest(d time.Duration) {
	select {
	case <-s.ending:
	case <-time.After(d):
	}
}

// webSocket holds one open for as long as the run lasts, if its fleet lets it,
// and knows who is at its other end.
func (s *soak) webSocket(f *fleet, k int) {
	for n := 0; !s.over(); n++ {
		began := time.Now()
		err := s.echo(f, k, n, &began)
		if err != nil {
			f.note(textOf(fmt.Sprintf("WebSocket %d", k)), began, err)
			s.rest(200 * time.Millisecond)
		}
	}
}

type textOf string

func (t textOf) String() string { return string(t) }

// echo is the life of one WebSocket. It ends without an error only when the run
// is over. began is when what failed began.
func (s *soak) echo(f *fleet, k, n int, began *time.Time) error {
	to := f.to
	if s.saboteur != nil && f.name == goodFleet && k == 0 {
		to = s.saboteur.Addr
	}
	c, err := dialWeb(s.world.Host("client"), to, s.Seed, 0)
	if err != nil {
		return err
	}
	defer c.close()
	_ = c.conn.SetDeadline(time.Now().Add(webPatience))
	ws, head, err := DialWebSocket(c.conn, f.to.String(), "/ws")
	if err != nil {
		return err
	}
	s.sockets.Add(1)
	defer s.sockets.Add(-1)
	identity := head.Get(originField) + " " + head.Get(connField)
	r := rand.New(rand.NewPCG(s.Seed, uint64(k)<<32+uint64(n)))
	stream := Stream{key: r.Uint64()}
	sent, off := 0, uint64(0)
	for !s.over() {
		*began = time.Now()
		ws.Deadline(began.Add(webPatience))
		burst := 1 + r.IntN(3) // messages under way at a time
		var sizes []int
		for range burst {
			b := make([]byte, size(r, 40<<10))
			stream.Fill(b, off)
			off += uint64(len(b))
			sizes = append(sizes, len(b))
			if err := ws.Send(BinaryMessage, b); err != nil {
				return err
			}
		}
		at := off
		for _, n := range sizes {
			at -= uint64(n)
		}
		for _, n := range sizes {
			_, b, err := ws.Receive()
			if err != nil {
				return err
			}
			if len(b) != n || stream.Match(b, at) != n {
				return wrongf("message %d: %d octets of %d are right", sent, stream.Match(b, at), n)
			}
			at += uint64(n)
			sent++
		}
		if r.IntN(10) == 0 {
			if err := ask(ws, fmt.Sprintf("%s %d", identity, sent)); err != nil {
				return err
			}
			sent++
		}
		f.mu.Lock()
		f.messages += len(sizes)
		f.mu.Unlock()
		s.rest(time.Duration(20+r.IntN(60)) * time.Millisecond)
	}
	ws.Close()
	return nil
}

// ask asks the other end who it is, and how many messages it has had.
func ask(ws *WebSocket, want string) error {
	if err := ws.Send(TextMessage, []byte("who")); err != nil {
		return err
	}
	_, b, err := ws.Receive()
	if err == nil && string(b) != want {
		return wrongf("the other end is %q and was to be %q", b, want)
	}
	return err
}

// wrkRun is wrk, which only counts.
type wrkRun struct {
	process *Process
}

// wrkScript lets each connection of wrk rest a little: two processors have
// others to serve.
const wrkScript = "function delay() return math.random(0, 20) end\n"

func (s *soak) startWrk(load time.Duration) (*wrkRun, error) {
	script := filepath.Join(s.dir, "wrk.lua")
	if err := os.WriteFile(script, []byte(wrkScript), 0o600); err != nil {
		return nil, err
	}
	seconds := strconv.Itoa(max(1, int(load.Seconds())-1))
	p, err := s.world.Host("client").Start("wrk", nil, "wrk", "-t1", "-c16", "-d"+seconds, "--timeout", "20s", "--latency",
		"-s", script, fmt.Sprintf("http://%v/plain", s.fleets[goodFleet].to))
	return &wrkRun{process: p}, err
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkErrors   = regexp.MustCompile(`(?m)^\s*(Socket errors|Non-2xx).*$`)
	wrkLatency  = regexp.MustCompile(`(?m)^\s*(50|99)%\s+(\S+)$`)
)

// judge reads what wrk says at its end.
func (w *wrkRun) judge(ctx context.Context, v *Verdict) {
	var err error
	select {
	case <-w.process.done:
	case <-time.After(10 * time.Second):
		err = errors.New("it has not ended")
		w.process.Kill()
	case <-ctx.Done():
		err = ctx.Err()
	}
	text := w.process.Tail(100)
	n := 0
	if m := wrkRequests.FindStringSubmatch(text); m != nil {
		n, _ = strconv.Atoi(m[1])
	}
	v.Must(err == nil && n > 0, "requests of wrk", fmt.Sprintf("%d (%v)", n, err), "some, and its end")
	wrong := strings.TrimSpace(strings.Join(wrkErrors.FindAllString(text, -1), "; "))
	v.Must(wrong == "", "errors of wrk", fmt.Sprintf("%q", wrong), "none")
	latency := map[string]string{}
	for _, m := range wrkLatency.FindAllStringSubmatch(text, -1) {
		latency["p"+m[1]] = m[2]
	}
	v.Say("wrk: %d requests, latency %v", n, latency)
	v.Figure("wrk", map[string]any{"requests": n, "errors": wrong, "latency": latency})
}
