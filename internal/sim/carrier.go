package sim

import (
	"errors"
	"io"
	"time"

	"github.com/holdfast-lb/holdfast/internal/move"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// wire takes messages one way; descriptors travel as open files.
type wire struct {
	messages []onWire
	closed   bool
}

type onWire struct {
	kind  move.Kind
	body  []byte
	files []*file
}

// carrier is a [move.Carrier] in memory. Receive waits by way of its task.
type carrier struct {
	fds     *FDs
	out, in *wire
	t       *task
	remote  bool // no descriptors
}

var _ move.Carrier = (*carrier)(nil)

func carriers(a, b *FDs) (*carrier, *carrier) {
	x, y := &wire{}, &wire{}
	return &carrier{fds: a, out: x, in: y}, &carrier{fds: b, out: y, in: x}
}

// Send puts a message on the wire, with duplicates of the descriptors.
func (c *carrier) Send(m move.Message) error {
	if c.out.closed || c.fds.net.fail("send "+m.Kind.String()) {
		return errors.New("sim: the other side is gone")
	}
	if len(m.FDs) > sock.RightsMax || c.remote && len(m.FDs) > 0 {
		return errors.New("sim: so many descriptors do not fit")
	}
	x := onWire{kind: m.Kind, body: append([]byte(nil), m.Body...)}
	for _, fd := range m.FDs {
		if f := c.fds.get(fd, "send"); f != nil {
			f.refs++
			x.files = append(x.files, f)
		}
	}
	c.out.messages = append(c.out.messages, x)
	return nil
}

// Receive waits for a message.
func (c *carrier) Receive() (move.Message, error) {
	c.t.wait(func() bool { return len(c.in.messages) > 0 || c.in.closed })
	if len(c.in.messages) == 0 {
		return move.Message{}, io.EOF
	}
	x := c.in.messages[0]
	c.in.messages = c.in.messages[1:]
	m := move.Message{Kind: x.kind, Body: x.body}
	for i, f := range x.files {
		fd, ok := c.fds.put(f)
		if !ok { // the kernel truncates; the whole message counts as broken
			for _, fd := range m.FDs {
				c.fds.close(fd)
			}
			for _, f := range x.files[i:] {
				f.drop()
			}
			return move.Message{}, errors.New("sim: message cut short")
		}
		f.refs-- // the wire's
		m.FDs = append(m.FDs, fd)
	}
	return m, nil
}

// SetTimeout is not needed: nothing in this world is lost without a word.
func (c *carrier) SetTimeout(time.Duration) error { return nil }

// Close ends both directions; what is on the way to us is dropped, what is on
// the way out still arrives.
func (c *carrier) Close() error {
	c.out.closed, c.in.closed = true, true
	for _, x := range c.in.messages {
		for _, f := range x.files {
			f.drop()
		}
	}
	c.in.messages = nil
	return nil
}
