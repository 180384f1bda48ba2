package lab

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// connectClient opens a tunnel by CONNECT and lives in it until the end.
func (f *HTTPFlow) connectClient(c *httpConn, n int, x httpPlan) error {
	if _, err := c.Write(f.requestHead(n, x)); err != nil {
		return fmt.Errorf("CONNECT: %w", err)
	}
	c.wait(httpPatience, "the answer to CONNECT")
	if _, err := f.readHead(c, n, x); err != nil {
		return fmt.Errorf("CONNECT: %w", err)
	}
	f.web.counted(f, 1, 0)
	return f.tunnel(c, client)
}

func (f *HTTPFlow) connectServer(c *httpConn) error { return f.tunnel(c, server) }

// tunnelProgram is what one side of a tunnel sends.
type tunnelProgram struct {
	piece int
	every time.Duration
	early bool // FIN behind the first piece
}

// tunnelPrograms of the client and the server.
func (f *HTTPFlow) tunnelPrograms() (up, down tunnelProgram) {
	p := f.web.patience
	bulk := tunnelProgram{piece: 192 << 10, every: jittered(f.sizes+60, p*100*time.Millisecond)}
	some := tunnelProgram{piece: 3000, every: jittered(f.sizes+61, p*150*time.Millisecond)}
	calm := tunnelProgram{piece: 13, every: jittered(f.sizes+62, 4*time.Second)}
	once := tunnelProgram{piece: 1000, early: true}
	switch {
	case f.Kind == HTTPConnectHalf && f.ID%2 == 0:
		return once, some
	case f.Kind == HTTPConnectHalf:
		return some, once
	}
	switch f.ID % 3 {
	case 0:
		return calm, bulk
	case 1:
		return bulk, calm
	}
	return calm, calm
}

// tunnel sends and verifies until both sides have sent FIN.
func (f *HTTPFlow) tunnel(c *httpConn, at side) error {
	up, down := f.tunnelPrograms()
	mine, prog, in := Up, up, Down
	if at == server {
		mine, prog, in = Down, down, Up
	}
	eof, broken := make(chan struct{}), make(chan struct{})
	sent := make(chan error, 1)
	go func() {
		err := f.tunnelSend(c, mine, prog, at, eof, broken)
		if err != nil {
			_ = c.Close() // the reader need not wait for what will not come
		}
		sent <- err
	}()
	taken := f.tunnelTake(c, in)
	if taken == nil {
		close(eof)
	} else {
		close(broken)
		_ = c.Close()
	}
	// The one that failed first has closed, which the other then met.
	for _, err := range []error{<-sent, taken} {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("tunnel: %w", err)
		}
	}
	return nil
}

// tunnelSend sends what a side has to send, and FIN: a client when the flow is
// to end, a server after its client, who ends early at once. When the other
// side ended early, the flow's end is the end of this one.
func (f *HTTPFlow) tunnelSend(c *httpConn, d Direction, p tunnelProgram, at side, eof, broken <-chan struct{}) error {
	lent := httpScratch.Get().(*[]byte)
	defer httpScratch.Put(lent)
	ended := eof // what ends this side
	if at == client || f.Kind == HTTPConnectHalf {
		ended = f.ending
	}
	off := uint64(0)
	for {
		for left := p.piece; left > 0; {
			part := (*lent)[:min(left, len(*lent))]
			f.streams[d].Fill(part, off)
			if _, err := c.Write(part); err != nil {
				return fmt.Errorf("%v at %d: %w", d, off, err)
			}
			off += uint64(len(part))
			left -= len(part)
		}
		if p.early {
			break
		}
		t := time.NewTimer(p.every)
		select {
		case <-t.C:
			continue
		case <-broken:
			return net.ErrClosed
		case <-ended:
		}
		t.Stop()
		break
	}
	// Before the FIN can arrive: the peer checks it against this.
	f.finAt[d].Store(off + 1)
	if err := c.closeWrite(); err != nil {
		return fmt.Errorf("%v: FIN: %w", d, err)
	}
	return nil
}

// tunnelTake verifies what comes until FIN, which must come where it was sent.
func (f *HTTPFlow) tunnelTake(c *httpConn, d Direction) error {
	lent := httpScratch.Get().(*[]byte)
	defer httpScratch.Put(lent)
	v := Verifier{Stream: f.streams[d]}
	for {
		c.wait(0, "octet %d of a tunnel, %v", v.Off, d)
		n, err := c.br.Read(*lent)
		if wrong := v.Feed((*lent)[:n]); wrong != nil {
			return fmt.Errorf("%v: %w", d, wrong)
		}
		f.web.counted(f, 0, uint64(n))
		switch at := f.finAt[d].Load(); {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("%v at %d: %w", d, v.Off, err)
		case at == 0:
			return fmt.Errorf("%v: FIN at %d, the peer sent none: %w", d, v.Off, err)
		case at-1 != v.Off:
			return fmt.Errorf("%v: FIN at %d, the peer sent it at %d: %w", d, v.Off, at-1, err)
		default:
			return nil
		}
	}
}

// WebSocket, RFC 6455, section 5.2: messages of one frame.
const (
	webSocketBinary = 0x82 // FIN, opcode 2
	webSocketEnd    = 0x88 // FIN, opcode 8
)

func (f *HTTPFlow) webSocketKey() string {
	b := binary.BigEndian.AppendUint64(nil, mix(f.sizes+70))
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(b, mix(f.sizes+71)))
}

// webSocketAnswer proves that the server has understood (RFC 6455, section 4.2.2).
func webSocketAnswer(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// webSocketSize is that of the payload of a flow's i-th message: all three
// forms of a length occur.
func (f *HTTPFlow) webSocketSize(i int) int {
	h := mix(f.sizes + uint64(i)*golden + 72)
	return int(h>>8) % [4]int{125, 3000, 3000, 80000}[h%4]
}

// webSocketFrame is the i-th message of a direction, whose octets begin at off.
func (f *HTTPFlow) webSocketFrame(d Direction, i int, off uint64) []byte {
	n := f.webSocketSize(i)
	b := []byte{webSocketBinary}
	mask := byte(0)
	if d == Up {
		mask = 0x80
	}
	switch {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	if d == Up {
		b = binary.LittleEndian.AppendUint32(b, uint32(mix(f.sizes+uint64(i)+73)))
	}
	at := len(b)
	b = append(b, make([]byte, n)...)
	f.streams[d].Fill(b[at:], off)
	if d == Up {
		for k := range b[at:] {
			b[at+k] ^= b[at-4+k%4]
		}
	}
	return b
}

// takeWebSocket verifies the i-th message of a direction, octet by octet: head,
// mask and payload. ended says that a close frame came in its place.
func (f *HTTPFlow) takeWebSocket(c *httpConn, d Direction, i int, off uint64) (ended bool, err error) {
	c.wait(httpPatience, "message %d, %v", i, d)
	first, err := c.br.Peek(1)
	if err != nil {
		return false, fmt.Errorf("message %d: %w", i, err)
	}
	want := f.webSocketFrame(d, i, off)
	if first[0] == webSocketEnd {
		want, ended = webSocketFarewell(d), true
	}
	got := make([]byte, len(want))
	n, err := io.ReadFull(c.br, got)
	for k := range got[:n] {
		if got[k] != want[k] {
			return ended, httpWrongf("message %d: octet %d of %d is %#x, want %#x", i, k, len(want), got[k], want[k])
		}
	}
	if err != nil {
		return ended, fmt.Errorf("message %d at octet %d of %d: %w", i, n, len(want), err)
	}
	return ended, nil
}

// webSocketFarewell is a close frame with code 1000.
func webSocketFarewell(d Direction) []byte {
	if d == Up {
		return []byte{webSocketEnd, 0x82, 0, 0, 0, 0, 0x03, 0xe8}
	}
	return []byte{webSocketEnd, 2, 0x03, 0xe8}
}

// webSocketClient sends some messages, waits for as many, rests, and so on.
// Frames are cut: a rest may be in the middle of one.
func (f *HTTPFlow) webSocketClient(c *httpConn, n int, x httpPlan) error {
	if _, err := c.Write(f.requestHead(n, x)); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	c.wait(httpPatience, "the answer to an upgrade")
	res, err := f.readHead(c, n, x)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if got, want := res.Header.Get("Sec-WebSocket-Accept"), webSocketAnswer(f.webSocketKey()); got != want {
		return httpWrongf("Sec-WebSocket-Accept: %q, want %q", got, want)
	}
	up, down := uint64(0), uint64(0)
	for i := 0; !f.over(); {
		h := mix(f.sizes + uint64(i)*golden + 74)
		burst := 1 + int(h%3)
		for k := i; k < i+burst; k++ {
			b := f.webSocketFrame(Up, k, up)
			up += uint64(f.webSocketSize(k))
			cut := 1 + int(mix(h)%uint64(len(b)-1))
			if _, err := c.Write(b[:cut]); err != nil {
				return fmt.Errorf("message %d: %w", k, err)
			}
			f.sleep(jittered(h, f.web.patience*300*time.Millisecond), nil)
			if _, err := c.Write(b[cut:]); err != nil {
				return fmt.Errorf("message %d: %w", k, err)
			}
		}
		for range burst {
			switch ended, err := f.takeWebSocket(c, Down, i, down); {
			case err != nil:
				return err
			case ended:
				return httpWrongf("a close frame that nobody asked for")
			}
			down += uint64(f.webSocketSize(i))
			i++
		}
		f.web.counted(f, burst, 0)
		if err := c.rest(f, jittered(h+1, f.web.patience*500*time.Millisecond)); err != nil {
			return err
		}
	}
	f.web.counted(f, 0, up+down)
	if _, err := c.Write(webSocketFarewell(Up)); err != nil {
		return fmt.Errorf("close frame: %w", err)
	}
	switch ended, err := f.takeWebSocket(c, Down, 0, 0); {
	case err != nil:
		return err
	case !ended:
		return httpWrongf("a message in place of a close frame")
	}
	return f.farewell(c, true)
}

// webSocketServer answers each message by its own of the same number.
func (f *HTTPFlow) webSocketServer(c *httpConn) error {
	up, down := uint64(0), uint64(0)
	for i := 0; ; i++ {
		ended, err := f.takeWebSocket(c, Up, i, up)
		if err != nil {
			return err
		}
		if ended {
			_, err := c.Write(webSocketFarewell(Down))
			return err
		}
		up += uint64(f.webSocketSize(i))
		if _, err := c.Write(f.webSocketFrame(Down, i, down)); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		down += uint64(f.webSocketSize(i))
	}
}
