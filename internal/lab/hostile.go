package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// hostile is one balancer among clients that mean it harm, and a canary that
// means none.
type hostile struct {
	Options
	ctx   context.Context
	out   io.Writer
	v     *Verdict
	world *World

	service  webService
	balancer Balancer
	pid      int // of it
	origin   *Origin
	saboteur *saboteur
	atRest   appetite
	busiest  map[string]appetite // by wave

	canary  *fleet
	ids     atomic.Uint32
	ending  chan struct{}
	loads   sync.WaitGroup
	mu      sync.Mutex // guards latency
	latency Histogram  // of the canary
}

// The balancer's patience with these clients, and with its endpoints.
const (
	hostileHeader    = 3 * time.Second
	hostileBody      = 4 * time.Second
	hostileKeepalive = 5 * time.Second
	hostileAnswer    = 20 * time.Second
	// overdue is what may come on top: timers are coarse and this machine is busy.
	overdue = 3 * time.Second
)

// What a wave of attacks may cost besides the bounds of its connections.
const (
	waveRSS     = 12 << 20 // the collector of Go lets as much be garbage again
	waveFDs     = 96       // connections of the canary, pipes of the loops
	restFDs     = 48       // that may still be open some time after a wave
	waveRelease = 15 * time.Second
	// aftertaste is how much more memory the balancer may hold at the end
	// than the first time that all attacks came together.
	aftertaste = 16 << 20
)

// hostility is the lab.
func hostility(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	h := &hostile{Options: o, ctx: ctx, out: out, v: v, ending: make(chan struct{}), busiest: map[string]appetite{}}
	defer h.close()
	if err := h.set(); err != nil {
		return err
	}
	for k := range 4 {
		h.loads.Go(func() { h.sing(k) })
	}
	scale, rounds := 0.4, 3 // so that the descriptors of both sides are enough for all at once
	if o.Short {
		scale, rounds = 0.2, 2
	} else {
		for _, a := range attacks {
			if err := h.wave(a.name, 1, a); err != nil {
				return err
			}
		}
		h.slowHTTPTest()
	}
	for n := 1; n <= rounds; n++ {
		if n == 2 {
			h.strike()
		}
		if err := h.wave(fmt.Sprintf("all at once, %d", n), scale, attacks...); err != nil {
			return err
		}
	}
	close(h.ending)
	waitFor(&h.loads, 10*time.Second)
	h.judge(rounds)
	return nil
}

// set builds all up to a balancer that is ready.
func (h *hostile) set() (err error) {
	h.phase("world: hosts on a bridge")
	if h.world, err = NewWorld(h.dir, webHosts); err != nil {
		return err
	}
	at := netip.AddrPortFrom(h.world.Host("server").V4, 9001)
	if h.origin, err = NewOrigin(h.world.Host("server"), "good", at, h.Seed); err != nil {
		return err
	}
	n1 := h.world.Host("n1")
	h.service = webService{name: "web", vip: netip.AddrPortFrom(n1.V4, 8001), endpoints: []netip.AddrPort{at},
		header: hostileHeader, body: hostileBody, keepalive: hostileKeepalive, answer: hostileAnswer}
	if h.balancer, err = webCast(h.Options, n1, []webService{h.service}); err != nil {
		return err
	}
	if err := h.balancer.Start(h.ctx); err != nil {
		return err
	}
	h.pid = h.balancer.Serving().PID
	h.canary = &fleet{name: "canary", to: h.service.vip, began: h.began, say: h.phase}
	if h.Sabotage == DropOctet || h.Sabotage == RSTOne {
		client := h.world.Host("client")
		if h.saboteur, err = newSaboteur(client, h.Sabotage, netip.AddrPortFrom(client.V4, 7000), h.service.vip); err != nil {
			return err
		}
		h.canary.to = h.saboteur.Addr
	}
	c, err := dialWeb(h.world.Host("client"), h.service.vip, h.Seed, 0)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.do(&exchange{id: h.ids.Add(1), method: http.MethodPost, up: 100, down: 100, last: true}); err != nil {
		return fmt.Errorf("lab: the first exchange: %w", err)
	}
	time.Sleep(200 * time.Millisecond)
	h.atRest, err = appetiteOf(h.pid)
	h.phase("balancer: process %d, at rest %v", h.pid, h.atRest)
	return err
}

// sing makes one exchange after the other, as any client would.
func (h *hostile) sing(k int) {
	r := rand.New(rand.NewPCG(h.Seed, uint64(k)))
	for !h.over() {
		began := time.Now()
		c, err := dialWeb(h.world.Host("client"), h.canary.to, h.Seed, 0)
		if err != nil {
			h.canary.note(h.canary.to, began, err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		for n := 10 + r.IntN(50); n > 0 && !h.over(); n-- {
			x := anyExchange(r, h.ids.Add(1))
			x.wait, x.up, x.down = 0, x.up/8, x.down/8
			x.expect = x.expect && x.up > 0
			err := c.do(x)
			h.canary.note(x, x.began, err)
			h.mu.Lock()
			h.latency.Add(time.Since(x.began))
			h.mu.Unlock()
			if err != nil || !c.mayStay() {
				break
			}
			time.Sleep(time.Duration(10+r.IntN(30)) * time.Millisecond)
		}
		c.close()
	}
}

func (h *hostile) over() bool {
	select {
	case <-h.ending:
		return true
	default:
		return false
	}
}

// wave lets attacks come at the same time, and judges them.
func (h *hostile) wave(name string, scale float64, all ...attack) error {
	h.phase("%s", name)
	stop := make(chan struct{})
	var weighing, striking sync.WaitGroup
	var most appetite
	weighing.Go(func() {
		for {
			if a, err := appetiteOf(h.pid); err == nil {
				most.rssBytes, most.fds = max(most.rssBytes, a.rssBytes), max(most.fds, a.fds)
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	reports := make([]*damage, len(all))
	rssMax, fdsMax := h.atRest.rssBytes+waveRSS, h.atRest.fds+waveFDs
	for i, a := range all {
		n := a.conns
		if scale < 1 {
			n = max(5, int(float64(n)*scale))
		}
		n = h.affordable(n)
		if n < a.conns && scale == 1 {
			h.v.Say("%s: %d connections instead of %d: so many files may be open", a.name, n, a.conns)
		}
		rssMax += n * a.boundOctets
		fdsMax += n * a.fds()
		reports[i] = &damage{attack: a, conns: n, status: map[int]int{}}
		striking.Go(func() { h.attack(reports[i]) })
	}
	striking.Wait()
	close(stop)
	weighing.Wait()
	h.busiest[name] = most
	for _, d := range reports {
		d.judge(h.v, name)
	}
	h.v.Must(most.rssBytes <= rssMax, name+": resident memory at most", fmt.Sprintf("%.1f MB", megabytes(most.rssBytes)),
		fmt.Sprintf("at most %.1f MB", megabytes(rssMax)))
	h.v.Must(most.fds <= fdsMax, name+": descriptors at most", fmt.Sprint(most.fds), fmt.Sprintf("at most %d", fdsMax))
	var last appetite
	released := eventually(waveRelease, func() bool {
		a, err := appetiteOf(h.pid)
		last = a
		return err != nil || a.fds <= h.atRest.fds+restFDs
	})
	h.v.Must(released && last.fds > 0, name+": descriptors afterwards", fmt.Sprint(last.fds), fmt.Sprintf("1 to %d", h.atRest.fds+restFDs))
	h.phase("  at most %v (may be %.1f MB, %d fds); then %v", most, megabytes(rssMax), fdsMax, last)
	return h.ctx.Err()
}

// affordable bounds connections by the files that may be open: the balancer
// accepts no more than have room for two legs each.
func (h *hostile) affordable(n int) int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return n
	}
	const others = 2000
	return min(n, max(10, (int(lim.Cur)-others)/2))
}

// strike commits the sabotage.
func (h *hostile) strike() {
	h.v.Figure("struck", h.Sabotage != "")
	switch h.Sabotage {
	case KillOne:
		h.phase("sabotage: kill -9 %d", h.pid)
		killPID(h.pid)
	case DropOctet, RSTOne:
		h.phase("sabotage: %s", h.Sabotage)
		h.saboteur.Strike()
	}
}

// slowHTTPTest runs Debian's, if it is there: slow heads, slow bodies, slow
// readers, by somebody else's idea of them.
func (h *hostile) slowHTTPTest() {
	program, err := exec.LookPath("slowhttptest")
	if err != nil {
		h.v.Say("slowhttptest is not installed")
		return
	}
	for _, mode := range []string{"-H", "-B", "-X"} {
		h.phase("slowhttptest %s", mode)
		argv := []string{program, mode, "-c", "800", "-r", "400", "-i", "1", "-l", "12", "-p", "3",
			"-u", fmt.Sprintf("http://%v/drain", h.service.vip)}
		if mode == "-X" {
			argv[len(argv)-1] = fmt.Sprintf("http://%v/o?id=1&down=1000000", h.service.vip)
			argv = append(argv, "-w", "10", "-y", "20", "-n", "1", "-z", "5", "-k", "3")
		}
		ctx, cancel := context.WithTimeout(h.ctx, 40*time.Second)
		text, err := h.world.Host("client").Output(ctx, argv...)
		cancel()
		said := ""
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "service available") || strings.Contains(line, "Exit status") {
				said = strings.Join(strings.Fields(said+" "+plainLine(line)), " ")
			}
		}
		h.v.Say("slowhttptest %s: %s (%v)", mode, said[max(0, len(said)-120):], err)
		h.v.Must(!strings.HasSuffix(said, "available: NO"), "slowhttptest "+mode, said[max(0, len(said)-60):], "the service available")
		eventually(waveRelease, func() bool {
			a, err := appetiteOf(h.pid)
			return err != nil || a.fds <= h.atRest.fds+restFDs
		})
	}
}

// plainLine is a line without the codes that colour it.
func plainLine(s string) string {
	for {
		i := strings.IndexByte(s, 0x1b)
		if i < 0 {
			return s
		}
		end := strings.IndexByte(s[i:], 'm')
		if end < 0 {
			return s[:i]
		}
		s = s[:i] + s[i+end+1:]
	}
}

func (h *hostile) judge(rounds int) {
	h.canary.judge(h.v)
	h.mu.Lock()
	h.v.Say("canary: %d exchanges, p50 %s p99 %s max %s", h.latency.N, ms(h.latency.Quantile(0.5)), ms(h.latency.Quantile(0.99)), ms(h.latency.Max))
	h.v.Figure("canary_ms", map[string]float64{"p50": millis(h.latency.Quantile(0.5)), "p99": millis(h.latency.Quantile(0.99)), "max": millis(h.latency.Max)})
	h.mu.Unlock()
	for i, f := range h.origin.Faults() {
		if i < 20 {
			h.v.Say("  %s", f)
		}
	}
	h.v.Zero("requests with wrong octets at the origin", len(h.origin.Faults()))
	h.v.Zero("requests at the origin that were none", int(h.origin.Strays.Load()))
	// What was once needed may be kept for the next time, but no more is
	// needed the next time.
	first, last := h.busiest["all at once, 1"], h.busiest[fmt.Sprintf("all at once, %d", rounds)]
	most := first.rssBytes + aftertaste
	h.v.Must(last.rssBytes <= most, "resident memory the last time that all came", fmt.Sprintf("%.1f MB", megabytes(last.rssBytes)),
		fmt.Sprintf("at most %.1f MB, a little more than the first time", megabytes(most)))
	rss := map[string]float64{}
	for name, a := range h.busiest {
		rss[name] = megabytes(a.rssBytes)
	}
	h.v.Figure("rss_mb", rss)
	h.v.Figure("rss_mb_at_rest", megabytes(h.atRest.rssBytes))
	if b, ok := h.balancer.(*webHoldfast); ok {
		flows := -1
		eventually(waveRelease, func() bool {
			st, err := b.Status(h.ctx)
			if err == nil {
				flows = st.Flows
			}
			return err != nil || flows == 0
		})
		h.v.Zero("flows at the end", flows)
	}
	left := -1
	eventually(waveRelease, func() bool {
		left = h.origin.Connections()
		return left == 0
	})
	h.v.Zero("connections left at the origin", left)
	if h.v.Wrong() {
		h.v.Say("-- logs of the balancer\n%s", h.balancer.Logs())
	}
}

func (h *hostile) phase(format string, args ...any) {
	_, _ = fmt.Fprintf(h.out, "%6.1f s  %s\n", time.Since(h.began).Seconds(), fmt.Sprintf(format, args...))
}

func (h *hostile) close() {
	if h.saboteur != nil {
		h.saboteur.Close()
	}
	if h.origin != nil {
		h.origin.Close()
	}
	if h.world != nil {
		h.world.Close()
	}
}

// damage is what became of an attack's connections.
type damage struct {
	attack
	conns int

	mu      sync.Mutex // guards all below
	refused int        // connects that failed
	status  map[int]int
	ended   int           // by the balancer
	longest time.Duration // until it did
	late    int           // not ended in time
}

// backlogRoom is how many connections may wait to be accepted when more are
// opened; the backlog has 4096.
const backlogRoom = 1000

// attack opens the connections and lets each play its part.
func (h *hostile) attack(d *damage) {
	var wg sync.WaitGroup
	for part := range slices.Chunk(make([]struct{}, d.conns), 250) {
		failed := dialMany(h.world.Host("client"), h.service.vip, len(part), d.bufferBytes, func(c net.Conn, i int) {
			wg.Go(func() {
				d.play(c, i)
				_ = c.Close()
			})
		})
		d.mu.Lock()
		d.refused += failed
		d.mu.Unlock()
		// Where the backlog overflows a client believes itself connected for
		// seconds while nobody has heard of it: no patience begins then.
		eventually(5*time.Second, func() bool {
			_, waiting := h.world.Host("n1").Listens(h.service.vip)
			return waiting < backlogRoom
		})
	}
	wg.Wait()
}

// dialMany connects n times and hands each connection over at once: the
// balancer's patience with it has begun.
func dialMany(from *Host, to netip.AddrPort, n, bufferBytes int, each func(c net.Conn, i int)) (failed int) {
	_ = from.Do(func() error {
		d := net.Dialer{Timeout: connectPatience, Control: bounded(bufferBytes)}
		d.SetMultipathTCP(false)
		for i := range n {
			c, err := d.Dial("tcp", to.String())
			if err != nil {
				failed++
				continue
			}
			each(c, i)
		}
		return nil
	})
	return failed
}

// play plays the attack's part on one connection, then waits for its end.
func (d *damage) play(c net.Conn, i int) {
	began := time.Now()
	done := make(chan struct{})
	go func() { // what it says, it says while it listens
		defer close(done)
		d.say(c, i)
	}()
	if d.within == 0 { // the attacker ends it
		<-done
		return
	}
	if d.deaf > 0 {
		<-done
		time.Sleep(time.Until(began.Add(d.deaf)))
	}
	status, ended := listen(c, began.Add(d.within))
	took := time.Since(began)
	_ = c.SetDeadline(time.Now())
	<-done
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range status {
		d.status[s]++
	}
	if len(status) == 0 {
		d.status[0]++
	}
	if !ended {
		d.late++
		return
	}
	d.ended++
	d.longest = max(d.longest, took)
}

// listen reads until the other side ends the connection, or time is over. It
// gives the status of each answer: of the first of them, and of errors.
func listen(c net.Conn, until time.Time) (status []int, ended bool) {
	_ = c.SetReadDeadline(until)
	buf := make([]byte, 4<<10)
	var head []byte
	for {
		n, err := c.Read(buf)
		if len(head) < len("HTTP/1.1 400") {
			head = append(head, buf[:n]...)
			if len(head) >= len("HTTP/1.1 400") {
				s := 0
				if _, e := fmt.Sscanf(string(head), "HTTP/1.%1d %d", new(int), &s); e == nil {
					status = append(status, s)
				}
			}
		}
		if err != nil {
			var timeout net.Error
			return status, !(errors.As(err, &timeout) && timeout.Timeout())
		}
	}
}

// judge writes what became of them.
func (d *damage) judge(v *Verdict, wave string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := d.name
	if wave != name {
		name = wave + ": " + name
	}
	v.Say("%s: %d connections, bound %.0f KiB each; answers %v (0: none); ended by the balancer %d, after %.1f s at most",
		name, d.conns, float64(d.boundOctets)/1024, d.status, d.ended, d.longest.Seconds())
	if d.within == 0 {
		v.Zero(name+": connects refused", d.refused)
		return
	}
	var other []string
	for s, n := range d.status {
		if !slices.Contains(d.answers, s) {
			other = append(other, fmt.Sprintf("%d times %d", n, s))
		}
	}
	slices.Sort(other)
	v.Must(d.refused == 0 && d.late == 0 && len(other) == 0, name,
		fmt.Sprintf("%d connects refused, %d not ended in time, other answers than are due: %d %s", d.refused, d.late, len(other), strings.Join(other, ", ")),
		fmt.Sprintf("none; ended within %v, with an answer of %v", d.within, d.answers))
}
