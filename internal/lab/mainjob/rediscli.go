package mainjob

import (
	"fmt"
	"io"
	"net"
	"time"
)

// redisCLI is one redis-cli for the whole run, driven through its standard input. It
// connects again when it has to, and says nothing: then redis calls it by another
// number.
type redisCLI struct {
	*process
	lines chan string
	count int
}

func (j *job) openRedisCLI() (*redisCLI, error) {
	host, port, _ := net.SplitHostPort(redisVIP)
	r, w := io.Pipe()
	p, err := j.start(spec{name: "redis-cli", talks: true, hears: w, argv: []string{program("redis-cli"), "-h", host, "-p", port}})
	if err != nil {
		return nil, err
	}
	c := &redisCLI{process: p, lines: make(chan string, 100)}
	go readLines(r, c.lines) // ends with the process
	return c, nil
}

// identity has redis count, and say who asks. The count is kept by redis; that no
// command was made twice, or not at all, shows in it.
func (c *redisCLI) identity() (string, error) {
	c.count++
	if got, err := c.ask("INCR redis-cli"); err != nil || got != fmt.Sprint(c.count) {
		return "", fmt.Errorf("redis-cli: the count is %q, want %d (%w)", got, c.count, orUnexpected(err))
	}
	return c.ask("CLIENT ID")
}

func (c *redisCLI) ask(command string) (string, error) {
	if _, err := io.WriteString(c.in, command+"\n"); err != nil {
		return "", fmt.Errorf("redis-cli: %w: %s", err, c.tail())
	}
	select {
	case line, ok := <-c.lines:
		if !ok {
			return "", fmt.Errorf("redis-cli has ended: %s", c.tail())
		}
		return line, nil
	case <-time.After(answerTime):
		return "", fmt.Errorf("redis-cli: no answer for %v: %s", answerTime, c.tail())
	}
}
