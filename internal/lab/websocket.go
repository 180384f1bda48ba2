package lab

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Opcodes of RFC 6455, section 5.2.
const (
	TextMessage   = 1
	BinaryMessage = 2
	closeFrame    = 8
	pingFrame     = 9
	pongFrame     = 10
)

// webSocketGUID is that of RFC 6455, section 1.3.
const webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// webSocketMax bounds a message that is received, in octets.
const webSocketMax = 8 << 20

// errWebSocketClosed is a close frame in place of a message.
var errWebSocketClosed = errors.New("lab: the WebSocket was closed by a close frame")

// WebSocket is one end of a WebSocket connection (RFC 6455): whole messages,
// no extensions. One goroutine receives; several may send.
type WebSocket struct {
	conn  net.Conn
	in    *bufio.Reader
	masks bool // a client's end

	mu  sync.Mutex // guards out and what is written
	out []byte
}

// DialWebSocket opens a WebSocket over a connection, which it then owns. The
// header of the answer is returned for what the server says there.
func DialWebSocket(conn net.Conn, host, path string) (*WebSocket, http.Header, error) {
	key := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(
		binary.BigEndian.AppendUint64(nil, rand.Uint64()), rand.Uint64()))
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", path, host, key)
	if err != nil {
		return nil, nil, err
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
	if err != nil {
		return nil, nil, fmt.Errorf("lab: WebSocket: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-WebSocket-Accept") != acceptKey(key) {
		return nil, res.Header, fmt.Errorf("lab: WebSocket: %w", statusError{res.StatusCode})
	}
	return &WebSocket{conn: conn, in: in, masks: true}, res.Header, nil
}

func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + webSocketGUID))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// AcceptWebSocket answers a client's handshake with these fields besides.
func AcceptWebSocket(w http.ResponseWriter, r *http.Request, fields map[string]string) (*WebSocket, error) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || key == "" {
		http.Error(w, "a WebSocket is wanted here", http.StatusUpgradeRequired)
		return nil, errors.New("lab: a request without a WebSocket handshake")
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n", acceptKey(key))
	for name, value := range fields {
		fmt.Fprintf(&head, "%s: %s\r\n", name, value)
	}
	if _, err := io.WriteString(conn, head.String()+"\r\n"); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &WebSocket{conn: conn, in: rw.Reader}, nil
}

// Send sends one message in one frame.
func (s *WebSocket) Send(op byte, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := append(s.out[:0], 0x80|op)
	mask := byte(0)
	if s.masks {
		mask = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	if s.masks {
		key := [4]byte{}
		binary.LittleEndian.PutUint32(key[:], rand.Uint32())
		b = append(b, key[:]...)
		at := len(b)
		b = append(b, payload...)
		for i := range payload {
			b[at+i] ^= key[i%4]
		}
	} else {
		b = append(b, payload...)
	}
	s.out = b
	_, err := s.conn.Write(b)
	return err
}

// Receive gives the next message, and answers pings until it comes. A FIN in
// place of a message is io.EOF.
func (s *WebSocket) Receive() (op byte, payload []byte, err error) {
	for {
		frame, final, b, err := s.frame(len(payload))
		if err != nil {
			return 0, nil, err
		}
		switch frame {
		case pingFrame:
			if err := s.Send(pongFrame, b); err != nil {
				return 0, nil, err
			}
			continue
		case pongFrame:
			continue
		case closeFrame:
			return 0, nil, errWebSocketClosed
		case TextMessage, BinaryMessage:
			op = frame
		}
		payload = append(payload, b...)
		if final {
			return op, payload, nil
		}
	}
}

// frame reads one, of a message of which had octets came before.
func (s *WebSocket) frame(had int) (op byte, final bool, payload []byte, err error) {
	var h [8]byte
	if _, err := io.ReadFull(s.in, h[:1]); err != nil {
		return 0, false, nil, err
	}
	final, op = h[0]&0x80 != 0, h[0]&0x0f
	if h[0]&0x70 != 0 || op > pongFrame || op > BinaryMessage && op < closeFrame {
		return 0, false, nil, fmt.Errorf("lab: WebSocket: a frame that begins with %#x", h[0])
	}
	if _, err := io.ReadFull(s.in, h[:1]); err != nil {
		return 0, false, nil, cut(err)
	}
	masked, n := h[0]&0x80 != 0, uint64(h[0]&0x7f)
	if masked == s.masks {
		return 0, false, nil, errors.New("lab: WebSocket: a frame masked as the other side's")
	}
	switch n {
	case 126:
		_, err = io.ReadFull(s.in, h[:2])
		n = uint64(binary.BigEndian.Uint16(h[:2]))
	case 127:
		_, err = io.ReadFull(s.in, h[:8])
		n = binary.BigEndian.Uint64(h[:8])
	}
	if err != nil {
		return 0, false, nil, cut(err)
	}
	if n > uint64(webSocketMax-had) {
		return 0, false, nil, fmt.Errorf("lab: WebSocket: a frame of %d octets", n)
	}
	var key [4]byte
	if masked {
		if _, err := io.ReadFull(s.in, key[:]); err != nil {
			return 0, false, nil, cut(err)
		}
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(s.in, payload); err != nil {
		return 0, false, nil, cut(err)
	}
	if masked {
		for i := range payload {
			payload[i] ^= key[i%4]
		}
	}
	return op, final, payload, nil
}

// cut makes of an end inside a message what it is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Deadline bounds all that comes after, until the next one.
func (s *WebSocket) Deadline(t time.Time) { _ = s.conn.SetDeadline(t) }

// Close sends a close frame and ends the connection.
func (s *WebSocket) Close() {
	_ = s.Send(closeFrame, []byte{0x03, 0xe8}) // 1000: RFC 6455, section 7.4.1
	_ = s.conn.Close()
}

// statusError is an answer other than the one that was wanted.
type statusError struct{ status int }

func (e statusError) Error() string { return fmt.Sprintf("status %d", e.status) }
