package sim

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// wire takes messages one way; descriptors travel as open files.
type wire struct {
	messages []onWire
	closed   bool
	cut      func() bool // nothing arrives; nil: never
}

func (x *wire) severed() bool { return x.cut != nil && x.cut() }

// wireMost is how many messages are on the way at most: who sends more waits.
const wireMost = 4

type onWire struct {
	kind  move.Kind
	lot   uint16
	body  []byte
	files []*file
	torn  bool // its last part is still to be sent
}

// drop closes what came with a message that nobody will get.
func (x *onWire) drop() {
	for _, f := range x.files {
		f.drop()
	}
	x.files = nil
}

// carrier is a [move.Carrier] in memory. It waits by way of its task, on the world's
// clock.
type carrier struct {
	p       *Proc
	out, in *wire
	t       *task
	side    string // of an upgrade
	remote  bool   // no descriptors
	timeout time.Duration
	sent    move.Kind
	// committed is told of the flows of a lot that is the other side's from now on.
	committed func(lot uint16)
}

var _ move.Carrier = (*carrier)(nil)

func carriers(a, b *Proc) (*carrier, *carrier) {
	x, y := &wire{}, &wire{}
	near, far := &carrier{p: a, out: x, in: y}, &carrier{p: b, out: y, in: x}
	if a.host != b.host {
		x.cut = func() bool { return !a.w.reach(a.host, b.host) }
		y.cut = func() bool { return !a.w.reach(b.host, a.host) }
	}
	a.carriers, b.carriers = append(a.carriers, near), append(b.carriers, far)
	return near, far
}

func (c *carrier) broken() error { return fmt.Errorf("sim: %w", sock.BrokenPipe) }

// wait waits for what is to come, or until the time is over.
func (c *carrier) wait(cond func() bool) error {
	n, end := c.p.w.net, flow.Instant(0)
	if c.timeout > 0 {
		end = c.p.w.net.now.Add(c.timeout)
	}
	c.t.wait(func() bool { return cond() || end > 0 && n.now >= end })
	if !cond() {
		return fmt.Errorf("sim: after %v: %w", c.timeout, os.ErrDeadlineExceeded)
	}
	return nil
}

// room tells whether one more message fits, or nobody is there to read it.
func (c *carrier) room() bool { return c.gone() || len(c.out.messages) < wireMost }

// gone tells whether the other side, or this one, has closed the channel, and that is
// known here.
func (c *carrier) gone() bool { return c.out.closed && !c.in.severed() }

// flush sends the rest of a message that was torn, which is the last on the wire.
func (c *carrier) flush() error {
	torn := func() bool { n := len(c.out.messages); return n > 0 && c.out.messages[n-1].torn }
	if !torn() {
		return nil
	}
	if err := c.wait(func() bool { return c.room() || len(c.out.messages) == 1 }); err != nil {
		return err
	}
	if torn() {
		c.out.messages[len(c.out.messages)-1].torn = false
	}
	return nil
}

// Send puts a message on the wire, with duplicates of the descriptors.
func (c *carrier) Send(m move.Message) error {
	if err := c.p.w.called(c, "send "+m.Kind.String()); err != nil {
		return err
	}
	c.sent = m.Kind
	if len(m.FDs) > sock.RightsMax || c.remote && len(m.FDs) > 0 {
		return fmt.Errorf("sim: so many descriptors do not fit")
	}
	if c.side != "" {
		if err := c.flush(); err != nil {
			return err
		}
	}
	// The kernel looks descriptors up before it waits for room.
	x := onWire{kind: m.Kind, lot: m.Lot, body: append([]byte(nil), m.Body...)}
	for _, fd := range m.FDs {
		f := c.p.fds.files[fd]
		if f == nil {
			x.drop()
			return fmt.Errorf("sim: fd %d: %w", fd, sock.NotOpen)
		}
		f.refs++
		x.files = append(x.files, f)
	}
	if c.side != "" {
		if err := c.wait(c.room); err != nil {
			x.drop()
			return err
		}
	}
	if c.gone() {
		x.drop()
		return c.broken()
	}
	// One that goes in parts may be stuck in the middle.
	x.torn = c.side != "" && !c.remote && len(x.body) > 600 && c.p.w.net.rng.IntN(4) == 0
	c.out.messages = append(c.out.messages, x)
	if x.torn {
		if err := c.flush(); err != nil {
			return fmt.Errorf("%w: %w", move.ErrBegun, err)
		}
	}
	if c.committed != nil && m.Kind == move.Commit {
		c.committed(m.Lot)
	}
	return nil
}

// Receive waits for a message.
func (c *carrier) Receive() (move.Message, error) {
	if err := c.p.w.called(c, "receive after "+c.sent.String()); err != nil {
		return move.Message{}, err
	}
	there := func() bool {
		return len(c.in.messages) > 0 && !c.in.messages[0].torn && !c.in.severed()
	}
	if err := c.wait(func() bool { return there() || c.in.closed && !c.in.severed() }); err != nil {
		return move.Message{}, err
	}
	if !there() {
		return move.Message{}, io.EOF
	}
	x := c.in.messages[0]
	c.in.messages = c.in.messages[1:]
	m := move.Message{Kind: x.kind, Lot: x.lot, Body: x.body}
	for i, f := range x.files {
		fd, ok := c.p.fds.put(f)
		if !ok { // the kernel truncates; the whole message counts as broken
			for _, fd := range m.FDs {
				c.p.fds.close(fd)
			}
			for _, f := range x.files[i:] {
				f.drop()
			}
			return move.Message{}, fmt.Errorf("sim: message cut short: %w", sock.ManyFiles)
		}
		f.refs-- // the wire's
		m.FDs = append(m.FDs, fd)
	}
	return m, nil
}

// SetTimeout bounds each later call; 0 is for ever.
func (c *carrier) SetTimeout(d time.Duration) error { c.timeout = d; return nil }

// Close ends both directions; what is on the way to us is dropped, what is on
// the way out still arrives, if it is whole.
func (c *carrier) Close() error {
	c.out.closed, c.in.closed = true, true
	for _, x := range c.in.messages {
		x.drop()
	}
	c.in.messages = nil
	return nil
}
