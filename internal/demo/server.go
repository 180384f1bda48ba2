package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// serve accepts connections until l is closed.
func (t *Traffic) serve(l net.Listener) {
	defer t.running.Done()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, it may pass
			continue
		}
		t.running.Add(1)
		go func() {
			defer t.running.Done()
			defer t.hold(c)()
			t.answer(c)
		}()
	}
}

// answer is the server's end of one connection.
func (t *Traffic) answer(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	hello := make([]byte, helloOctets)
	if _, err := io.ReadFull(c, hello); err != nil {
		return // its client misses the answer
	}
	t.mu.Lock()
	f := t.flows[binary.BigEndian.Uint64(hello)]
	t.mu.Unlock()
	if f == nil {
		t.wrong.Add(helloOctets)
		return
	}
	f.server.conn = c
	defer close(f.served)
	var err error
	switch f.kind {
	case exchange, short:
		err = t.respond(f)
	case download:
		err = t.stream(f, chunk, 40*time.Millisecond)
	case slowReader:
		err = t.stream(f, chunk, 0)
	case halfClosed:
		if err = t.receiveRest(&f.server, make([]byte, chunk)); err == nil {
			err = t.stream(f, 1<<10, 250*time.Millisecond)
		}
	default:
		panic("demo: kind " + f.kind.String())
	}
	if err == nil {
		err = closeWrite(c)
	}
	if err == nil {
		err = t.receiveRest(&f.server, make([]byte, chunk))
	}
	if err != nil && !errors.Is(err, net.ErrClosed) { // by breakOff: the client tells
		t.lose(f, fmt.Errorf("server: %w", err))
	}
}

// A request is its length and the length of the response, 4 octets each, and
// then octets of the stream. The response is octets only.
const requestHead = 8

// respond answers requests until the client has no more.
func (t *Traffic) respond(f *flow) error {
	e, buf := &f.server, make([]byte, chunk)
	head := make([]byte, requestHead)
	for {
		if err := e.conn.SetReadDeadline(time.Now().Add(f.period*4 + patience)); err != nil {
			return err
		}
		if _, err := io.ReadFull(e.conn, head); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		request, response := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
		if request > requestMax || response > requestMax {
			t.wrong.Add(requestHead)
			return fmt.Errorf("%w: lengths %d and %d", errWrong, request, response)
		}
		if err := t.receiveAll(e, buf, int(request)); err != nil {
			return err
		}
		if err := e.send(buf, int(response)); err != nil {
			return err
		}
	}
}

// stream sends n octets each period, or without a pause, until Stop.
func (t *Traffic) stream(f *flow, n int, period time.Duration) error {
	buf := make([]byte, n)
	if period == 0 {
		// A small buffer here: what a slow reader has not read should wait in
		// what is between the ends.
		_ = f.server.conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	for !t.stopping() {
		if err := f.server.send(buf, n); err != nil {
			return err
		}
		if period > 0 {
			t.pause(period)
		}
	}
	return nil
}

// pause waits for d, or for Stop.
func (t *Traffic) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.stop:
	}
}
