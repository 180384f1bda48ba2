package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// httpScratch lends room for one read or write of bulk.
var httpScratch = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// httpPacer writes in pieces with rests between them. Pieces and chunks have
// nothing to do with each other: a rest may be in a chunk's size, its octets,
// or between CR and LF.
type httpPacer struct {
	f     *HTTPFlow
	w     io.Writer
	piece int // 0: as the kernel takes them
	every time.Duration
	rest  func(time.Duration) error
	left  int // of the piece under way
}

func (p *httpPacer) Write(b []byte) (int, error) {
	whole := len(b)
	for len(b) > 0 {
		n := len(b)
		if p.piece > 0 && !p.f.over() {
			if p.left == 0 {
				if err := p.rest(p.every); err != nil {
					return 0, err
				}
				p.left = p.piece
			}
			n = min(n, p.left)
			p.left -= n
		}
		if _, err := p.w.Write(b[:n]); err != nil {
			return 0, err
		}
		b = b[n:]
	}
	return whole, nil
}

// sendBody writes the body of the flow's n-th request or answer.
func (f *HTTPFlow) sendBody(w io.Writer, d Direction, n int, b httpBody) error {
	lent := httpScratch.Get().(*[]byte)
	defer httpScratch.Put(lent)
	s, off, end := f.streams[d], httpBase(n), httpBase(n)+b.size
	for i := uint64(0); off < end; i++ {
		chunk := end - off
		if b.framing == httpChunked {
			// Sizes differ from chunk to chunk, and so do their digits.
			chunk = min(chunk, 1+mix(f.sizes+uint64(n)*golden+i)%b.chunk)
			if _, err := fmt.Fprintf(w, []string{"%x\r\n", "%X\r\n", "%05x\r\n"}[i%3], chunk); err != nil {
				return err
			}
		}
		for last := off + chunk; off < last; {
			part := (*lent)[:min(last-off, uint64(len(*lent)))]
			s.Fill(part, off)
			if _, err := w.Write(part); err != nil {
				return fmt.Errorf("at octet %d of %d: %w", off-httpBase(n), b.size, err)
			}
			off += uint64(len(part))
		}
		if b.framing == httpChunked {
			if _, err := io.WriteString(w, "\r\n"); err != nil {
				return err
			}
		}
	}
	if b.framing != httpChunked {
		return nil
	}
	last := "0\r\n\r\n"
	if b.trailer {
		last = fmt.Sprintf("0\r\n%s: %s\r\n\r\n", httpSumField, f.sum(d, n))
	}
	_, err := io.WriteString(w, last)
	return err
}

// takeBody verifies the body of the flow's n-th request or answer.
func (f *HTTPFlow) takeBody(c *httpConn, r io.Reader, d Direction, n int, b httpBody) error {
	lent := httpScratch.Get().(*[]byte)
	defer httpScratch.Put(lent)
	v := Verifier{Stream: f.streams[d], Off: httpBase(n)}
	left := b.readPiece
	for {
		part := *lent
		if b.readPiece > 0 && !f.over() {
			if left <= 0 {
				f.sleep(b.readEvery, nil)
				left = b.readPiece
			}
			part = part[:min(len(part), left)]
		}
		got := v.Off - httpBase(n)
		c.wait(httpPatience, "octet %d of %d of body %d", got, b.size, n)
		k, err := r.Read(part)
		left -= k
		if wrong := v.Feed(part[:k]); wrong != nil {
			wrong.Off -= httpBase(n)
			return fmt.Errorf("body: %w", wrong)
		}
		got = v.Off - httpBase(n)
		if got > b.size {
			return httpWrongf("a body of %d octets goes on", b.size)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("body at octet %d of %d: %w", got, b.size, err)
		}
	}
	if got := v.Off - httpBase(n); got != b.size {
		return httpWrongf("a body of %d octets ends after %d, as if it were whole", b.size, got)
	}
	f.web.counted(f, 0, b.size)
	return nil
}

// narrow bounds what the kernel keeps of a body that is rarely read: its
// octets shall wait in the balancer, for there they can be lost.
func (c *httpConn) narrow() {
	if s, ok := c.Conn.(*net.TCPConn); ok {
		_ = s.SetReadBuffer(slowBufferBytes)
		_ = s.SetWriteBuffer(slowBufferBytes)
	}
}

// closeWrite sends FIN.
func (c *httpConn) closeWrite() error {
	if s, ok := c.Conn.(*net.TCPConn); ok {
		return s.CloseWrite()
	}
	return unix.EOPNOTSUPP
}
