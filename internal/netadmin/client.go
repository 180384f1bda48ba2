package netadmin

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// Client is an Admin in another process, the privileged one, and what of package
// tcprepair takes privilege. Its methods may be called from any goroutine; each
// is one round trip.
type Client struct {
	path    string
	session string
	pid     int

	mu     sync.Mutex
	free   []*channel
	open   map[*channel]bool
	closed bool
}

// callTime bounds a request: the longest looks for a peer that does not answer.
const callTime = 10 * time.Second

// ErrTurnedAway: a privileged process serves at that path, and not this one: it is of another
// release, or has too many clients. No other one can begin there.
var ErrTurnedAway = errors.New("netadmin: turned away")

// ErrOtherNetwork: the privileged process at that path is of another network namespace.
var ErrOtherNetwork = errors.New("netadmin: it is of another network namespace")

// Dial begins to speak to the privileged process at the socket path.
func Dial(path string) (*Client, error) {
	c := &Client{path: path, session: rand.Text(), open: map[*channel]bool{}}
	ch, err := c.dial()
	if err != nil {
		return nil, err
	}
	c.free = append(c.free, ch)
	return c, nil
}

// PID is the process id of the privileged process.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

func (c *Client) dial() (*channel, error) {
	conn, err := net.DialTimeout("unix", c.path, callTime)
	if err != nil {
		return nil, fmt.Errorf("netadmin: the privileged process: %w", err)
	}
	ch := newChannel(conn.(*net.UnixConn))
	fail := func(err error) (*channel, error) {
		_ = conn.Close()
		return nil, fmt.Errorf("netadmin: %s: %w", c.path, err)
	}
	here, err := netNamespace()
	if err != nil {
		return fail(err)
	}
	hello, err := json.Marshal(clientHello{Version: wireVersion, Session: c.session, PID: os.Getpid(), Net: here})
	if err != nil {
		return fail(err)
	}
	if err := conn.SetDeadline(time.Now().Add(callTime)); err != nil {
		return fail(err)
	}
	// Who is turned away may hear why before anything was read.
	sent := ch.send(actHello, hello)
	what, body, fds, err := ch.receive()
	closeAll(fds)
	var there clientHello
	switch {
	case err != nil && sent != nil:
		err = sent
	case err == nil && what == answerFailed:
		err = fmt.Errorf("%w: %s", ErrTurnedAway, body)
	case err == nil && what != answerDone:
		err = fmt.Errorf("%w: answer %d", ErrTurnedAway, what)
	case err == nil:
		err = decodeJSON(body, &there)
	}
	if err == nil && there.Version != wireVersion {
		err = fmt.Errorf("%w: process %d there speaks version %d, this one %d: begin the older one of them anew", ErrTurnedAway, there.PID, there.Version, wireVersion)
	}
	if err == nil && there.Net != here {
		err = ErrOtherNetwork
	}
	if err != nil {
		return fail(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fail(ErrClosed)
	}
	c.pid, ch.pid = there.PID, there.PID
	c.open[ch] = true
	return ch, nil
}

// take gives a connection that nobody uses.
func (c *Client) take() (ch *channel, used bool, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, false, ErrClosed
	}
	if n := len(c.free); n > 0 {
		ch, c.free = c.free[n-1], c.free[:n-1]
		c.mu.Unlock()
		return ch, true, nil
	}
	c.mu.Unlock()
	ch, err = c.dial()
	return ch, false, err
}

func (c *Client) give(ch *channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, ch)
}

func (c *Client) lose(ch *channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, ch)
	_ = ch.conn.Close()
}

// ask makes one request. read sees the answer's body, which is not kept; the
// descriptors are the caller's. A connection that the privileged process closed
// while nothing was asked, since it began anew, is replaced once.
func (c *Client) ask(what act, body []byte, read func([]byte) error, fds ...int) ([]int, error) {
	if size := 1 + len(body); size > requestMax {
		return nil, fmt.Errorf("netadmin: a request of %d octets: at most %d", size, requestMax)
	}
	for {
		ch, used, err := c.take()
		if err != nil {
			return nil, err
		}
		if err := ch.conn.SetDeadline(time.Now().Add(callTime)); err != nil {
			c.lose(ch)
			return nil, err
		}
		if err := ch.send(what, body, fds...); err != nil {
			c.lose(ch)
			if used && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)) {
				continue // nothing was heard of it
			}
			return nil, fmt.Errorf("netadmin: the privileged process: %w", err)
		}
		answer, out, back, err := ch.receive()
		if err != nil {
			c.lose(ch)
			return nil, fmt.Errorf("netadmin: the privileged process: %w", err)
		}
		switch answer {
		case answerDone:
			if read != nil {
				err = read(out)
			}
		case answerClosed:
			err = ErrClosed
		case answerFailed:
			err = errors.New(string(out))
		default:
			err = fmt.Errorf("netadmin: answer %d", answer)
		}
		c.give(ch)
		if err != nil {
			closeAll(back)
			return nil, err
		}
		return back, nil
	}
}

func (c *Client) tuples(what act, ts []Tuple) error {
	if err := checkAll(ts); err != nil || len(ts) == 0 {
		return err
	}
	_, err := c.ask(what, appendTuples(nil, ts), nil)
	return err
}

// Hold is [Admin.Hold].
func (c *Client) Hold(ts []Tuple) error { return c.tuples(actHold, ts) }

// Drop is [Admin.Drop].
func (c *Client) Drop(ts []Tuple) error { return c.tuples(actDrop, ts) }

// Undivert is [Admin.Undivert].
func (c *Client) Undivert(ts []Tuple) error { return c.tuples(actUndivert, ts) }

// Here is [Admin.Here].
func (c *Client) Here(ts []Tuple) error { return c.tuples(actHere, ts) }

// Release is [Admin.Release].
func (c *Client) Release(ts []Tuple) (frames int, err error) {
	if err := checkAll(ts); err != nil || len(ts) == 0 {
		return 0, err
	}
	_, err = c.ask(actRelease, appendTuples(nil, ts), func(b []byte) error {
		if len(b) != 4 {
			return errShort
		}
		frames = int(binary.BigEndian.Uint32(b))
		return nil
	})
	return frames, err
}

// Divert is [Admin.Divert].
func (c *Client) Divert(ts []Tuple, to netip.Addr) error {
	_, err := c.Freeze(ts, to, nil)
	return err
}

// Freeze is Divert, and then Repair to put these sockets into repair mode, in one round
// trip. errs is of the latter, as a [tcprepair.Toggle] has it; after err they are as they
// were, unless the privileged process ended meanwhile.
func (c *Client) Freeze(ts []Tuple, to netip.Addr, fds []int) (errs []error, err error) {
	if err := checkAll(ts); err != nil || len(ts) == 0 {
		return nil, err
	}
	if len(fds) > fdsMax {
		return nil, fmt.Errorf("netadmin: %d sockets at once: at most %d", len(fds), fdsMax)
	}
	_, err = c.ask(actDivert, appendTuples(appendAddr(nil, to.Unmap()), ts), func(b []byte) (err error) {
		errs, err = readFailures(b, len(fds))
		return err
	}, fds...)
	return errs, err
}

// Inject is [Admin.Inject].
func (c *Client) Inject(packet []byte) error {
	_, err := c.ask(actInject, packet, nil)
	return err
}

// Repair is a [tcprepair.Toggle].
func (c *Client) Repair(fds, modes []int) []error {
	errs, _, err := c.Live(fds, modes, nil)
	if err != nil {
		errs = make([]error, len(fds))
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

// Live is Repair, and then Release of these tuples, in one round trip. errs is of the
// former; after err nobody knows what was done of it.
func (c *Client) Live(fds, modes []int, ts []Tuple) (errs []error, frames int, err error) {
	if err := checkAll(ts); err != nil {
		return nil, 0, err
	}
	var all []error
	for at := 0; at < len(fds); at += fdsMax {
		end := min(at+fdsMax, len(fds))
		var body []byte
		for _, m := range modes[at:end] {
			body = append(body, byte(int8(m)))
		}
		if end == len(fds) {
			body = appendTuples(body, ts)
		}
		_, err := c.ask(actRepair, body, func(b []byte) (err error) {
			if len(b) < 4 {
				return errShort
			}
			frames += int(binary.BigEndian.Uint32(b))
			errs, err = readFailures(b[4:], end-at)
			return err
		}, fds[at:end]...)
		if err != nil {
			return nil, 0, err
		}
		if errs != nil && all == nil {
			all = make([]error, len(fds))
		}
		copy(all[min(at, len(all)):], errs)
	}
	return all, frames, nil
}

// Sockets makes sockets in repair mode, bound, with these buffers. They are the
// caller's; after an error there is none.
func (c *Client) Sockets(specs []tcprepair.SocketSpec) (fds []int, err error) {
	for len(specs) > 0 {
		some := specs[:min(socketsMax, len(specs))]
		specs = specs[len(some):]
		got, err := c.ask(actSockets, appendSpecs(nil, some), nil)
		if err == nil && len(got) != len(some) {
			closeAll(got)
			err = fmt.Errorf("netadmin: %d sockets of %d", len(got), len(some))
		}
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func (c *Client) call(q call) (r result, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return r, err
	}
	_, err = c.ask(actCall, body, func(b []byte) error { return decodeJSON(b, &r) })
	return r, err
}

// Fence is [Admin.Fence].
func (c *Client) Fence(addrs []netip.Prefix) error {
	_, err := c.call(call{Name: "Fence", Prefixes: addrs})
	return err
}

// Routed is [Admin.Routed].
func (c *Client) Routed(addrs []netip.Addr) error {
	_, err := c.call(call{Name: "Routed", Addrs: addrs})
	return err
}

// Own is [Admin.Own].
func (c *Client) Own(p netip.Prefix, lease time.Duration) error {
	_, err := c.call(call{Name: "Own", Prefix: p, Time: lease})
	return err
}

// Disown is [Admin.Disown].
func (c *Client) Disown(addr netip.Addr) error {
	_, err := c.call(call{Name: "Disown", Addr: addr})
	return err
}

// Guest is [Admin.Guest].
func (c *Client) Guest(addr netip.Addr, d time.Duration) error {
	_, err := c.call(call{Name: "Guest", Addr: addr, Time: d})
	return err
}

// Announce is [Admin.Announce].
func (c *Client) Announce(addr netip.Addr) error {
	_, err := c.call(call{Name: "Announce", Addr: addr})
	return err
}

// Learn is [Admin.Learn].
func (c *Client) Learn(on []netip.AddrPort) error {
	_, err := c.call(call{Name: "Learn", On: on})
	return err
}

// Handshakes is [Admin.Handshakes].
func (c *Client) Handshakes(addr netip.Addr) ([]Tuple, error) {
	r, err := c.call(call{Name: "Handshakes", Addr: addr})
	return r.Tuples, err
}

// Lead is [Admin.Lead].
func (c *Client) Lead(addr, to netip.Addr) error {
	_, err := c.call(call{Name: "Lead", Addr: addr, To: to})
	return err
}

// Forward is [Admin.Forward].
func (c *Client) Forward(addr, to netip.Addr) error {
	_, err := c.call(call{Name: "Forward", Addr: addr, To: to})
	return err
}

// Forget is [Admin.Forget].
func (c *Client) Forget(addr netip.Addr) error {
	_, err := c.call(call{Name: "Forget", Addr: addr})
	return err
}

// Steer is [Admin.Steer].
func (c *Client) Steer(addrs []netip.Addr, ranges []PortRange) error {
	_, err := c.call(call{Name: "Steer", Addrs: addrs, Ranges: ranges})
	return err
}

// Counters is [Admin.Counters].
func (c *Client) Counters() (Counters, error) {
	r, err := c.call(call{Name: "Counters"})
	if err != nil || r.Counters == nil {
		return Counters{}, err
	}
	return *r.Counters, nil
}

// State is [Admin.State].
func (c *Client) State() (State, error) {
	r, err := c.call(call{Name: "State"})
	if err != nil || r.State == nil {
		return State{}, err
	}
	return *r.State, nil
}

// Close ends the speaking. What is in force stays: another process uses it, or
// leases end it.
func (c *Client) Close() error {
	_, err := c.ask(actLeave, nil, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.closed = true
	for ch := range c.open {
		_ = ch.conn.Close()
	}
	return err
}
