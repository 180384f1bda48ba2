package corpus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Message is a request as a reader understands it.
type Message struct {
	Method, Target string
	Minor          byte    // 1 of HTTP/1.1
	Host           string  // of the target if that has one, else of the field
	Fields         []Field // nil from a reader that does not keep them in order
	Body           []byte  // without its framing; of an unfinished message what there is
	Size           int     // octets of the stream that it took
	Head           int     // octets of these that are the head
}

// Field is a field as a reader understands it: the name in lower case, the
// value without white space around it.
type Field struct{ Name, Value string }

// End is how a stream ends for a reader.
type End uint8

// The ends.
const (
	Boundary   End = iota // with the last message
	InHead                // before the end of a head
	InBody                // before the end of a body: the last message is not complete
	Unreadable            // the reader refuses what follows
)

func (e End) String() string {
	return [...]string{"at a boundary", "within a head", "within a body", "refusing"}[e]
}

// Reading is a stream as one reader understands it.
type Reading struct {
	Reader   string
	Messages []Message
	End      End
	Why      string // of a refusal
	Rest     string // what is behind the last complete message
}

// Complete gives the messages that are.
func (r *Reading) Complete() []Message {
	if r.End == InBody {
		return r.Messages[:len(r.Messages)-1]
	}
	return r.Messages
}

// Key identifies what a request asks for: its method, its target in a form
// that proxies do not change, and its body.
func (m *Message) Key() string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q %q %q", m.Method, originForm(m.Method, m.Target), m.Body)
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// originForm is the target without scheme and authority: a proxy may send
// either form on (RFC 9112, section 3.2).
func originForm(method, target string) string {
	if i := strings.Index(target, "://"); i > 0 && !strings.HasPrefix(target, "/") {
		rest := target[i+3:]
		k := strings.IndexAny(rest, "/?")
		switch {
		case k < 0 && method == "OPTIONS":
			return "*"
		case k < 0:
			return "/"
		case rest[k] == '?':
			return "/" + rest[k:]
		}
		return rest[k:]
	}
	return target
}

// authority is the host of a target that has one, else that of the Host field
// (RFC 9112, section 3.2.2).
func authority(method, target, host string) string {
	if method == "CONNECT" {
		return target
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || strings.Contains(scheme, "/") {
		return host
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	return rest[strings.LastIndexByte(rest, '@')+1:]
}

// differ says in what two readers' messages are different, "" if in nothing
// that both of them know.
func differ(a, b *Message) string {
	switch {
	case a.Method != b.Method || a.Target != b.Target:
		return fmt.Sprintf("%q %q, and %q %q", a.Method, a.Target, b.Method, b.Target)
	case a.Minor != b.Minor:
		return fmt.Sprintf("version 1.%d, and 1.%d", a.Minor, b.Minor)
	case a.Host != b.Host:
		return fmt.Sprintf("host %q, and %q", a.Host, b.Host)
	case string(a.Body) != string(b.Body):
		return fmt.Sprintf("a body of %d octets, and of %d", len(a.Body), len(b.Body))
	case a.Size != b.Size:
		return fmt.Sprintf("it takes %d octets, and %d", a.Size, b.Size)
	case a.Fields != nil && b.Fields != nil && !slices.Equal(a.Fields, b.Fields):
		return fmt.Sprintf("fields %q, and %q", a.Fields, b.Fields)
	}
	return ""
}
