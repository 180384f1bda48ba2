package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// heldKind is what a held flow is made of.
type heldKind int

// The kinds of held flows.
const (
	heldTCP heldKind = iota
	heldWebSocket
	heldStream
	heldKinds int = iota
)

var heldNames = [heldKinds]string{"TCP", "WebSocket", "streamed response"}

func (k heldKind) String() string { return heldNames[k] }

// heldFlow is a connection that stays open over many configurations. Both ends
// are in this process, and each knows every octet of the other.
type heldFlow struct {
	id     uint32
	kind   heldKind
	gen    int // under which it was opened; 0: any
	to     string
	path   string
	period time.Duration // from one piece to the next, each way
	way    [2]heldWay
	finish chan struct{}
	done   chan struct{} // the client's end is over
	server atomic.Pointer[net.Conn]
	spoil  atomic.Bool // the server leaves out an octet of its next piece

	mu    sync.Mutex // guards fault
	fault error      // the first
}

// heldWay is one direction. Sent belongs to who speaks, got to who hears.
type heldWay struct {
	stream    Stream
	sent, got uint64
}

func (f *heldFlow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault == nil {
		f.fault = err
	}
}

func (f *heldFlow) broken() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault
}

// heldLine carries pieces, each with the time at which it was sent. At the end
// comes the count of all octets.
type heldLine interface {
	piece(sent int64, b []byte) error
	end(count uint64) error
	next() (sent int64, b []byte, end bool, count uint64, err error)
}

// stamp is the head of a piece: when it was sent, twice, so that each of its
// octets can be checked, too.
func stamp(b []byte, sent int64) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(sent))
	return binary.BigEndian.AppendUint64(b, ^uint64(sent))
}

// stampBytes is the length of a stamp.
const stampBytes = 16

var errStamp = errors.New("a piece whose time is wrong in itself")

func unstamp(b []byte) (int64, error) {
	t := binary.BigEndian.Uint64(b)
	if ^t != binary.BigEndian.Uint64(b[8:]) {
		return 0, errStamp
	}
	return int64(t), nil
}

// heldOctets puts a length before each piece; 0 is the end. One goroutine reads,
// one writes.
type heldOctets struct {
	in       io.Reader
	out      io.Writer
	buf, got []byte
}

func (l *heldOctets) piece(sent int64, b []byte) error {
	l.buf = binary.BigEndian.AppendUint16(l.buf[:0], uint16(len(b)))
	l.buf = append(stamp(l.buf, sent), b...)
	_, err := l.out.Write(l.buf)
	return err
}

func (l *heldOctets) end(count uint64) error {
	_, err := l.out.Write(stamp([]byte{0, 0}, int64(count)))
	return err
}

func (l *heldOctets) next() (sent int64, b []byte, end bool, count uint64, err error) {
	var head [2 + stampBytes]byte
	if _, err = io.ReadFull(l.in, head[:]); err != nil {
		return
	}
	if sent, err = unstamp(head[2:]); err != nil {
		return
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n == 0 {
		return 0, nil, true, uint64(sent), nil
	}
	if cap(l.got) < n {
		l.got = make([]byte, 2*n)
	}
	b = l.got[:n]
	_, err = io.ReadFull(l.in, b)
	return sent, b, false, 0, err
}

// heldMessages are pieces as binary messages and the end as one of text.
type heldMessages struct{ ws *WebSocket }

func (l heldMessages) piece(sent int64, b []byte) error {
	return l.ws.Send(BinaryMessage, append(stamp(make([]byte, 0, stampBytes+len(b)), sent), b...))
}

func (l heldMessages) end(count uint64) error {
	return l.ws.Send(TextMessage, stamp(nil, int64(count)))
}

func (l heldMessages) next() (sent int64, b []byte, end bool, count uint64, err error) {
	op, m, err := l.ws.Receive()
	if err != nil {
		return
	}
	if len(m) < stampBytes {
		return 0, nil, false, 0, errStamp
	}
	if sent, err = unstamp(m); err != nil {
		return
	}
	if op == TextMessage {
		return 0, nil, true, uint64(sent), nil
	}
	return sent, m[stampBytes:], false, 0, nil
}

// speak sends pieces until the channel is closed, then the end.
func (d *reloadDriver) speak(f *heldFlow, way Direction, line heldLine, until <-chan struct{}) error {
	w := &f.way[way]
	h := mix(d.seed + uint64(f.id)*golden + uint64(way))
	var b [heldPieceMax]byte
	// No two flows fall into step. The server's first piece comes at once: by it
	// the client knows that the server is there.
	due := time.Now().Add(time.Duration(h % uint64(f.period)))
	first := time.Until(due)
	if way == Down {
		first = 0
	}
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-until:
			return line.end(w.sent)
		case <-timer.C:
		}
		h = mix(h + golden)
		n := 1 + int(h%heldPieceMax)
		w.stream.Fill(b[:n], w.sent)
		at := w.sent
		w.sent += uint64(n)
		if way == Down && n > 1 && f.spoil.Swap(false) {
			w.stream.Fill(b[n/2:n], at+uint64(n/2)+1) // one is left out
		}
		if err := line.piece(d.now(), b[:n]); err != nil {
			return fmt.Errorf("piece at octet %d: %w", at, err)
		}
		// By the clock, not from piece to piece: who was late does not stay so.
		due = due.Add(f.period)
		timer.Reset(time.Until(due))
	}
}

// heldPieceMax bounds a piece, in octets.
const heldPieceMax = 200

// hear verifies pieces to the end.
func (d *reloadDriver) hear(f *heldFlow, way Direction, line heldLine) error {
	w := &f.way[way]
	v := Verifier{Stream: w.stream}
	for {
		sent, b, end, count, err := line.next()
		if err != nil {
			return fmt.Errorf("%v: after %d octets: %w", way, v.Off, err)
		}
		if end {
			if count != v.Off {
				return fmt.Errorf("%v: %d octets of %d", way, v.Off, count)
			}
			w.got = count
			return nil
		}
		d.note(delayOf(f.kind), time.Duration(d.now()-sent))
		if wrong := v.Feed(b); wrong != nil {
			return fmt.Errorf("%v: %w", way, wrong)
		}
	}
}

// open connects a held flow and returns when its server has answered, or, over
// TCP, when it is connected. Then it goes on by itself until it is finished.
func (d *reloadDriver) open(f *heldFlow) error {
	c, err := net.DialTimeout("tcp", f.to, reloadPatience)
	if err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(reloadPatience))
	field := ""
	var line heldLine
	switch f.kind {
	case heldTCP:
		_, err = c.Write(binary.BigEndian.AppendUint32([]byte(heldHello), f.id))
		in := bufio.NewReaderSize(c, 1024)
		line = &heldOctets{in: in, out: c}
		if err == nil {
			_, err = in.Peek(1) // the server is there
		}
	case heldWebSocket:
		ws, head, e := DialWebSocket(c, "lab", fmt.Sprintf("%s/ws?id=%d", f.path, f.id))
		if err = e; err == nil {
			field, line = head.Get(generationField), heldMessages{ws}
		}
	case heldStream:
		if _, err = fmt.Fprintf(c, "GET %s/stream?id=%d HTTP/1.1\r\nHost: lab\r\n\r\n", f.path, f.id); err != nil {
			break
		}
		in := bufio.NewReaderSize(c, 1024)
		res, e := http.ReadResponse(in, nil)
		if err = e; err != nil {
			break
		}
		if res.StatusCode != http.StatusOK {
			err = statusError{res.StatusCode}
			break
		}
		field, line = res.Header.Get(generationField), &heldOctets{in: res.Body}
	}
	if err == nil && f.gen > 0 && f.kind != heldTCP && field != strconv.Itoa(f.gen) {
		err = fmt.Errorf("opened under generation %q, want %d", field, f.gen)
	}
	if err != nil {
		_ = c.Close()
		return err
	}
	_ = c.SetDeadline(time.Time{})
	go d.hold(f, c, line) // ends when the flow is finished, or with the process
	return nil
}

// hold is the client's end of a flow that is open.
func (d *reloadDriver) hold(f *heldFlow, c net.Conn, line heldLine) {
	defer close(f.done)
	defer func() { _ = c.Close() }()
	var said sync.WaitGroup
	if f.kind != heldStream {
		said.Go(func() {
			if err := d.speak(f, Up, line, f.finish); err != nil {
				f.fail(fmt.Errorf("client: %w", err))
			}
		})
	}
	err := d.hear(f, Down, line)
	if err == nil {
		err = heldEOF(line, c)
	}
	if err != nil {
		f.fail(fmt.Errorf("client: %w", err))
		_ = c.Close() // whoever speaks meets it
	}
	said.Wait()
}

// heldEOF wants nothing more to come, but for the end of the message or of the
// connection.
func heldEOF(line heldLine, c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(reloadPatience))
	_, _, _, _, err := line.next()
	switch {
	case err == nil:
		return errors.New("pieces after the end")
	case errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("instead of the end of file: %w", err)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
