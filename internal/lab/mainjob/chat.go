package mainjob

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// room is the server's side of a chat: what one member says all hear, in one order.
type room struct {
	mu      sync.Mutex // guards all below
	joined  int        // members so far
	said    int        // messages so far
	members map[int]*lab.WebSocket
}

// ServeHTTP is the life of a member.
func (r *room) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	ws, err := lab.AcceptWebSocket(w, q, nil)
	if err != nil {
		return // the member is gone, or was none
	}
	defer ws.Close()
	r.mu.Lock()
	r.joined++
	me := r.joined
	if r.members == nil {
		r.members = map[int]*lab.WebSocket{}
	}
	r.members[me] = ws
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.members, me)
		r.mu.Unlock()
	}()
	for {
		_, text, err := ws.Receive()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.said++
		for to, other := range r.members {
			// A member that is gone finds that out by itself.
			_ = other.Send(lab.TextMessage, fmt.Appendf(nil, "to %d, message %d, of %d: %s", to, r.said, me, text))
		}
		r.mu.Unlock()
	}
}

// chatMembers is how many talk.
const chatMembers = 4

// chat is the members' side.
type chat struct {
	members []*lab.WebSocket
	said    int
}

func openChat() (*chat, error) {
	c := &chat{}
	for range chatMembers {
		conn, err := net.DialTimeout("tcp", webVIP, answerTime)
		if err != nil {
			return nil, err
		}
		_ = conn.SetDeadline(time.Now().Add(answerTime))
		ws, _, err := lab.DialWebSocket(conn, webVIP, "/chat")
		if err != nil {
			return nil, fmt.Errorf("chat: %w", err)
		}
		c.members = append(c.members, ws)
	}
	return c, nil
}

// identity lets the next member say something, which all must hear as the same next
// message of the room. Who they are is what the room calls them: one that had to join
// again would have another number, and the messages would have a gap.
func (c *chat) identity() (string, error) {
	speaker := c.members[c.said%chatMembers]
	c.said++
	text := fmt.Sprintf("hello %d", c.said)
	speaker.Deadline(time.Now().Add(answerTime))
	if err := speaker.Send(lab.TextMessage, []byte(text)); err != nil {
		return "", fmt.Errorf("chat: %w", err)
	}
	var who []string
	heard := ""
	for i, m := range c.members {
		m.Deadline(time.Now().Add(answerTime))
		_, b, err := m.Receive()
		if err != nil {
			return "", fmt.Errorf("chat: member %d: %w", i+1, err)
		}
		me, message, _ := strings.Cut(string(b), ", ")
		if heard == "" {
			heard = message
		}
		of, _ := strings.CutPrefix(message, fmt.Sprintf("message %d, of ", c.said))
		if message != heard || !strings.HasSuffix(of, ": "+text) {
			return "", fmt.Errorf("chat: member %d hears %q after %q, when %q was said as message %d", i+1, message, heard, text, c.said)
		}
		who = append(who, me)
	}
	return strings.Join(who, ", "), nil
}
