package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// requestMax bounds the octets of a request and of a response.
const requestMax = 4 << 10

// long is the client's end of a long flow. begun is called once: when the
// first octets have come back, or with what kept them from it.
func (t *Traffic) long(ctx context.Context, f *flow, begun func(error)) {
	defer t.forget(f)
	done, err := t.connect(ctx, f)
	if err != nil {
		t.lose(f, err)
		begun(fmt.Errorf("demo: %w", err))
		return
	}
	defer done()
	t.open.Add(1)
	defer t.open.Add(-1)
	buf := make([]byte, chunk)
	if err = t.begin(f, buf); err != nil {
		t.lose(f, err)
		begun(fmt.Errorf("demo: %w", err))
		return
	}
	begun(nil)
	if f.kind == exchange {
		err = t.exchangeOn(f, buf)
	} else {
		err = t.readOn(f, buf)
	}
	t.finish(f, buf, err)
}

// begin brings the first octets over and back.
func (t *Traffic) begin(f *flow, buf []byte) error {
	switch f.kind {
	case exchange:
		return t.request(f, buf)
	case halfClosed:
		if err := f.client.send(buf, 1+rand.IntN(requestMax)); err != nil {
			return err
		}
		if err := closeWrite(f.client.conn); err != nil {
			return err
		}
	}
	_, err := t.receive(&f.client, buf, len(buf))
	return unexpected(err)
}

// exchangeOn makes requests until Stop.
func (t *Traffic) exchangeOn(f *flow, buf []byte) error {
	for {
		t.pause(f.period/2 + rand.N(f.period))
		if t.stopping() {
			return nil
		}
		if err := t.request(f, buf); err != nil {
			return err
		}
	}
}

// readOn reads what the server sends until Stop.
func (t *Traffic) readOn(f *flow, buf []byte) error {
	if c, ok := f.client.conn.(*net.TCPConn); ok && f.kind == slowReader {
		// Kernels that may hold tens of MiB for it would hold minutes of it.
		_ = c.SetReadBuffer(64 << 10)
	}
	for !t.stopping() {
		if _, err := t.receive(&f.client, buf, len(buf)); err != nil {
			if errors.Is(err, io.EOF) && t.stopping() { // it ends because all do
				return nil
			}
			return unexpected(err)
		}
		if f.kind == slowReader {
			t.pause(40 * time.Millisecond)
		}
	}
	return nil
}

// finish ends a flow as both ends agreed, and compares what the ends counted.
func (t *Traffic) finish(f *flow, buf []byte, err error) {
	c := &f.client
	if err == nil && f.kind != halfClosed {
		err = closeWrite(c.conn)
	}
	if err == nil {
		err = t.receiveRest(c, buf)
	}
	if err == nil {
		select {
		case <-f.served:
		case <-time.After(patience):
			err = errors.New("the server is not through")
		}
	}
	if err == nil {
		s := &f.server
		if c.out.offset != s.in.offset || s.out.offset != c.in.offset {
			err = fmt.Errorf("sent up %d, arrived %d; sent down %d, arrived %d", c.out.offset, s.in.offset, s.out.offset, c.in.offset)
		}
	}
	if errors.Is(err, net.ErrClosed) { // by breakOff
		err = fmt.Errorf("it did not run to its end in time; sent up %d, arrived down %d", c.out.offset, c.in.offset)
	}
	if err != nil {
		t.lose(f, err)
	}
}

// short is the client's end of a short flow.
func (t *Traffic) short(f *flow) {
	defer t.forget(f)
	done, err := t.connect(context.Background(), f)
	if err != nil {
		t.lose(f, err)
		return
	}
	defer done()
	buf := make([]byte, requestMax+requestHead)
	t.finish(f, buf, t.request(f, buf))
}

// connect dials and says who is there.
func (t *Traffic) connect(ctx context.Context, f *flow) (done func(), err error) {
	c, err := t.dial(ctx, t.target)
	if err != nil {
		return nil, err
	}
	done = t.hold(c)
	t.opened.Add(1)
	f.client.conn = c
	if f.kind == slowReader {
		_ = c.(*net.TCPConn).SetReadBuffer(64 << 10)
	}
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	if _, err = c.Write(f.hello()); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

// request makes one request, waits for the response and takes the time.
func (t *Traffic) request(f *flow, buf []byte) error {
	e := &f.client
	up, down := 1+rand.IntN(requestMax), 1+rand.IntN(requestMax)
	binary.BigEndian.PutUint32(buf, uint32(up))
	binary.BigEndian.PutUint32(buf[4:], uint32(down))
	e.out.next(buf[requestHead : requestHead+up])
	began := time.Now()
	if err := e.conn.SetWriteDeadline(began.Add(patience)); err != nil {
		return err
	}
	if _, err := e.conn.Write(buf[:requestHead+up]); err != nil {
		return err
	}
	if err := t.receiveAll(e, buf, down); err != nil {
		return err
	}
	t.window.add(time.Since(began))
	t.exchanges.Add(1)
	return nil
}

// forget takes a flow that has ended from the table.
func (t *Traffic) forget(f *flow) {
	t.mu.Lock()
	delete(t.flows, f.id)
	t.mu.Unlock()
}
