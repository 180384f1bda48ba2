package bench

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// WebSockets, RFC 6455, as far as both ends of a row need them: single binary
// frames of at most 125 octets, masked on the way to the backend.

const (
	frameBinary   = 0x82 // section 5.2: FIN, opcode 2
	frameMasked   = 0x80
	framePlainMax = 125 // the longest payload whose length is one octet
	maskBytes     = 4
)

// acceptOf is the answer to a key. RFC 6455, section 1.3.
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// upgrade reports whether a request asks for a WebSocket.
func upgrade(head []byte) bool {
	return oneField(head, "Upgrade", "websocket") && oneField(head, "Connection", "upgrade") &&
		oneField(head, "Sec-WebSocket-Version", "13") && len(fieldValues(head, "Sec-WebSocket-Key")) == 1
}

// switching is the answer to such a request.
func switching(head []byte) []byte {
	return []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		acceptOf(fieldValues(head, "Sec-WebSocket-Key")[0]) + "\r\n\r\n")
}

// frames echoes the whole frames in b without their masks and returns how many
// octets these had.
func (h *httpBackend) frames(fd int, b []byte) int {
	used, out := 0, h.out[:0]
	for rest := b; len(rest) >= 2+maskBytes; rest = b[used:] {
		n := int(rest[1] &^ frameMasked)
		if rest[0] != frameBinary || rest[1]&frameMasked == 0 || n > framePlainMax {
			fault("frame %.20x", rest)
		}
		if len(rest) < 2+maskBytes+n {
			break
		}
		mask := binary.LittleEndian.Uint32(rest[2:])
		out = append(append(out, frameBinary, byte(n)), rest[2+maskBytes:2+maskBytes+n]...)
		unmask(out[len(out)-n:], mask)
		used += 2 + maskBytes + n
	}
	if len(out) > 0 {
		h.answer(fd, out)
	}
	return used
}

// unmask applies a mask, or takes it off. RFC 6455, section 5.3.
func unmask(b []byte, mask uint32) {
	for ; len(b) >= 4; b = b[4:] {
		binary.LittleEndian.PutUint32(b, binary.LittleEndian.Uint32(b)^mask)
	}
	for i := range b {
		b[i] ^= byte(mask >> (8 * i))
	}
}

// socketTalk is one client of the generator that upgrades with its first
// message and then has frames echoed.
type socketTalk struct {
	key    string
	open   bool
	out    []byte // the frame that is under way, masked
	want   []byte // its echo, header and payload
	head   []byte // the beginning of the answer to the upgrade
	got    int
	octets int // of payload
}

func newSocketTalk(octets int) *socketTalk {
	return &socketTalk{octets: octets, out: make([]byte, 2+maskBytes+octets), want: make([]byte, 2+octets)}
}

// message returns the request for the upgrade at first, then frames.
func (t *socketTalk) message(conn, serial uint32) []byte {
	t.got = 0
	if !t.open {
		var nonce [16]byte
		binary.BigEndian.PutUint32(nonce[:], conn)
		t.key = base64.StdEncoding.EncodeToString(nonce[:])
		tag := make([]byte, tagBytes)
		putTag(tag, conn, serial)
		return []byte(requestBegin + string(tag) + requestLine + requestFields +
			"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + t.key + "\r\n\r\n")
	}
	t.want[0], t.want[1] = frameBinary, byte(t.octets)
	message(t.want[2:], conn, serial)
	mask := (conn+1)*0x9e3779b1 ^ serial
	t.out[0], t.out[1] = frameBinary, byte(t.octets)|frameMasked
	binary.LittleEndian.PutUint32(t.out[2:], mask)
	copy(t.out[2+maskBytes:], t.want[2:])
	unmask(t.out[2+maskBytes:], mask)
	return t.out
}

// take checks what has arrived and reports true when the echo is complete.
func (t *socketTalk) take(b []byte) (bool, error) {
	if !t.open {
		t.head = append(t.head, b...)
		end := bytes.Index(t.head, headEnd)
		switch {
		case end < 0 && len(t.head) > headMax:
			return false, fmt.Errorf("no end of the head within %d octets: %.300q", len(t.head), t.head)
		case end < 0:
			return false, nil
		}
		end += len(headEnd)
		if err := t.check(t.head[:end]); err != nil {
			return false, err
		}
		if end < len(t.head) {
			return false, fmt.Errorf("%d %w", len(t.head)-end, errTooMany)
		}
		t.open = true
		return true, nil
	}
	if len(b) > len(t.want)-t.got {
		return false, fmt.Errorf("%d %w", len(b)-(len(t.want)-t.got), errTooMany)
	}
	if want := t.want[t.got : t.got+len(b)]; !bytes.Equal(b, want) {
		return false, fmt.Errorf("octets %x, want %x", b, want)
	}
	t.got += len(b)
	return t.got == len(t.want), nil
}

// check looks at the answer to the upgrade.
func (t *socketTalk) check(head []byte) error {
	switch {
	case !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")):
		return fmt.Errorf("answer %.60q, want 101", head)
	case !oneField(head, "Upgrade", "websocket") || !oneField(head, "Connection", "upgrade"):
		return errors.New("no Upgrade to a WebSocket in the answer")
	}
	if got := strings.Join(fieldValues(head, "Sec-WebSocket-Accept"), ", "); got != acceptOf(t.key) {
		return fmt.Errorf("Sec-WebSocket-Accept %q, want %q", got, acceptOf(t.key))
	}
	return nil
}

// Nothing of an echo is left unread, and no connection ends of itself.

func (t *socketTalk) unread() int { return 0 }
func (t *socketTalk) skip(int)    {}
func (t *socketTalk) ends() bool  { return false }
