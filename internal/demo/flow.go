package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// kind is what a flow does.
type kind uint8

const (
	exchange   kind = iota // small requests with responses, now and then
	download               // the server sends, at a pace of its own
	slowReader             // the server sends as fast as it can, the client reads slowly
	halfClosed             // the client has closed its direction, the server sends on
	short                  // a request, its response, and the end
	kinds
)

var kindWords = [kinds]string{"exchange", "download", "slow reader", "half-closed", "short"}

func (k kind) String() string { return kindWords[k] }

// bulkMax bounds the downloads of either kind, however many flows there are:
// they show that octets under way are moved, and should not be all the load.
const bulkMax = 20

// kindOf gives the kind of the i-th of all long flows: a twentieth each
// downloads and slow readers, a tenth half-closed, the others exchange.
func kindOf(i, all int) kind {
	bulk := min(max(1, all/20), bulkMax)
	switch {
	case i < bulk:
		return download
	case i < 2*bulk:
		return slowReader
	case i < 2*bulk+max(1, all/10):
		return halfClosed
	}
	return exchange
}

// period is the mean time between two requests of one flow, so that all flows
// together make at most 2000 in a second.
func period(flows int) time.Duration {
	return max(100*time.Millisecond, time.Duration(flows)*time.Second/2000)
}

// patience is how long an end waits for octets that should come.
const patience = 20 * time.Second

// flow is one connection as both ends know it. Each end owns its own streams
// and counts; the other end's counts are read when that end is through.
type flow struct {
	id     uint64
	kind   kind
	period time.Duration // between requests, on average
	lost   atomic.Bool

	client, server end
	served         chan struct{} // closed when the server is through
}

// end is one end of a flow.
type end struct {
	conn    net.Conn
	in, out stream
}

func (t *Traffic) newFlow(k kind, period time.Duration) *flow {
	f := &flow{id: t.nextID.Add(1), kind: k, period: period, served: make(chan struct{})}
	up, down := f.id<<1, f.id<<1|1 // seeds
	f.client.in.seed, f.client.out.seed = down, up
	f.server.in.seed, f.server.out.seed = up, down
	t.mu.Lock()
	t.flows[f.id] = f
	t.mu.Unlock()
	return f
}

// helloOctets is the length of what a client sends first: the flow's identity.
const helloOctets = 8

// errWrong is found at octets that are not what they should be.
var errWrong = errors.New("wrong octets")

// send sends the next n octets of e.
func (e *end) send(buf []byte, n int) error {
	for n > 0 {
		b := buf[:min(n, len(buf))]
		e.out.next(b)
		if err := e.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := e.conn.Write(b); err != nil {
			return err
		}
		n -= len(b)
	}
	return nil
}

// receive reads what is there, up to n octets, and looks at each. It gives
// io.EOF at the end of the direction.
func (t *Traffic) receive(e *end, buf []byte, n int) (int, error) {
	if err := e.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	n, err := e.conn.Read(buf[:min(n, len(buf))])
	if n > 0 {
		at := e.in.offset
		if wrong := e.in.check(buf[:n]); wrong > 0 {
			t.wrong.Add(int64(wrong))
			return n, fmt.Errorf("%w: %d of the %d after offset %d", errWrong, wrong, n, at)
		}
		t.octets.Add(uint64(n))
	}
	return n, err
}

// receiveAll receives exactly n octets.
func (t *Traffic) receiveAll(e *end, buf []byte, n int) error {
	for n > 0 {
		k, err := t.receive(e, buf, n)
		n -= k
		if err != nil && (n > 0 || !errors.Is(err, io.EOF)) {
			return unexpected(err)
		}
	}
	return nil
}

// receiveRest receives to the end of the direction.
func (t *Traffic) receiveRest(e *end, buf []byte) error {
	for {
		_, err := t.receive(e, buf, len(buf))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// unexpected names an end that came too early.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// hold notes c, so that breakOff finds it, until the returned function closes it.
func (t *Traffic) hold(c net.Conn) func() {
	t.mu.Lock()
	t.conns[c] = struct{}{}
	t.mu.Unlock()
	return func() {
		_ = c.Close()
		t.mu.Lock()
		delete(t.conns, c)
		t.mu.Unlock()
	}
}

func closeWrite(c net.Conn) error { return c.(*net.TCPConn).CloseWrite() }

// hello makes the first octets of a flow.
func (f *flow) hello() []byte { return binary.BigEndian.AppendUint64(nil, f.id) }
