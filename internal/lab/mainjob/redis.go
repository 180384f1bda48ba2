package mainjob

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// redis is one connection that speaks RESP, the protocol of redis. One
// goroutine uses it at a time; it never connects again.
type redis struct {
	name string
	conn net.Conn
	in   *bufio.Reader
}

func dialRedis(name, addr string) (*redis, error) {
	c, err := net.DialTimeout("tcp", addr, answerTime)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &redis{name, c, bufio.NewReader(c)}, nil
}

// do sends a command and gives the reply: a text, or the texts of an array
// joined by blanks.
func (r *redis) do(args ...string) (string, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&out, "$%d\r\n%s\r\n", len(a), a)
	}
	if err := r.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(r.conn, out.String()); err != nil {
		return "", fmt.Errorf("%s: %s: %w", r.name, args[0], err)
	}
	reply, err := r.reply()
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w", r.name, args[0], err)
	}
	return reply, nil
}

// expect is do for a command whose reply is known.
func (r *redis) expect(want string, args ...string) error {
	got, err := r.do(args...)
	if err == nil && got != want {
		return fmt.Errorf("%s: %s: the reply is %q, want %q", r.name, strings.Join(args, " "), got, want)
	}
	return err
}

// identity is what redis calls this connection; a new one has a new number.
func (r *redis) identity() (string, error) { return r.do("CLIENT", "ID") }

func (r *redis) line() (string, error) {
	s, err := r.in.ReadString('\n')
	return strings.TrimSuffix(s, "\r\n"), err
}

// reply reads one reply (https://redis.io/docs/latest/develop/reference/protocol-spec/).
func (r *redis) reply() (string, error) {
	head, err := r.line()
	if err != nil {
		return "", err
	}
	if head == "" {
		return "", errors.New("an empty line is no reply")
	}
	kind, rest := head[0], head[1:]
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New(rest)
	case '$', '*':
	default:
		return "", fmt.Errorf("%q is no reply", head)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < -1 || n > 1<<20 {
		return "", fmt.Errorf("%q is no reply", head)
	}
	if n < 0 {
		return "", nil
	}
	if kind == '$' {
		b := make([]byte, n+2)
		_, err := io.ReadFull(r.in, b)
		return string(b[:n]), err
	}
	var all []string
	for range n {
		x, err := r.reply()
		if err != nil {
			return "", err
		}
		all = append(all, x)
	}
	return strings.Join(all, " "), nil
}

// transaction is a connection with a MULTI that stays open over an event.
type transaction struct {
	*redis
	done int // transactions so far
}

func (t *transaction) open() error {
	for _, c := range [][2]string{{"OK", "MULTI"}, {"QUEUED", "INCR counter"}, {"QUEUED", "GET counter"}} {
		if err := t.expect(c[0], strings.Fields(c[1])...); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) exec() error {
	t.done++
	return t.expect(fmt.Sprintf("%d %d", t.done, t.done), "EXEC")
}

// channel is what is published on one connection and heard on another.
type channel struct {
	publisher, subscriber *redis
	id                    string // of the subscriber
	sent                  int
	heard                 chan int // how many came, in order, when the last has
	fault                 error    // valid after heard
}

const channelName, lastMessage = "events", "last"

func openChannel() (*channel, error) {
	p, err := dialRedis("redis publisher", redisVIP)
	if err != nil {
		return nil, err
	}
	s, err := dialRedis("redis subscriber", redisVIP)
	if err != nil {
		return nil, err
	}
	c := &channel{publisher: p, subscriber: s, heard: make(chan int, 1)}
	if c.id, err = s.identity(); err != nil {
		return nil, err
	}
	if err := s.expect("subscribe "+channelName+" 1", "SUBSCRIBE", channelName); err != nil {
		return nil, err
	}
	go c.listen() // ends with the last message, or the connection
	return c, nil
}

// publish sends the next message; redis says to how many subscribers.
func (c *channel) publish() error {
	c.sent++
	return c.publisher.expect("1", "PUBLISH", channelName, strconv.Itoa(c.sent))
}

func (c *channel) listen() {
	n := 0
	defer func() { c.heard <- n }()
	for {
		_ = c.subscriber.conn.SetReadDeadline(time.Now().Add(4 * answerTime))
		got, err := c.subscriber.reply()
		if err == nil && got == "message "+channelName+" "+lastMessage {
			return
		}
		if want := fmt.Sprintf("message %s %d", channelName, n+1); err == nil && got != want {
			err = fmt.Errorf("heard %q, want %q", got, want)
		}
		if err != nil {
			c.fault = fmt.Errorf("redis subscriber, after message %d: %w", n, err)
			return
		}
		n++
	}
}

// finish sends the last message and tells how many came.
func (c *channel) finish() (heard int, err error) {
	err = c.publisher.expect("1", "PUBLISH", channelName, lastMessage)
	select {
	case heard = <-c.heard:
		return heard, errors.Join(err, c.fault)
	case <-time.After(answerTime):
		return 0, errors.Join(err, errors.New("redis subscriber: the last message has not come"))
	}
}
