package mainjob

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// shell is a shell at the other end of an ssh connection. It counts what it is
// asked, and says who it is.
type shell struct {
	*process
	lines chan string
	count int
}

// script counts and answers line by line: count, what was said, the shell's
// pid, and the ends of the connection as sshd sees them.
const script = `n=0; while read -r line; do n=$((n+1)); echo "$n $line $$ $SSH_CONNECTION"; done`

func (j *job) openShell() (*shell, error) {
	host, port, _ := net.SplitHostPort(sshVIP)
	r, w := io.Pipe()
	p, err := j.start(spec{name: "ssh", talks: true, hears: w, argv: []string{
		program("ssh"), "-F", "none", "-T", "-i", filepath.Join(j.dir, "ssh-key"), "-p", port,
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@" + host, "exec sh -c '" + script + "'",
	}})
	if err != nil {
		return nil, err
	}
	s := &shell{process: p, lines: make(chan string, 100)}
	go readLines(r, s.lines) // ends with the process
	return s, nil
}

// identity lets the shell count on. Its pid and its connection stay the same.
func (s *shell) identity() (string, error) {
	s.count++
	said := fmt.Sprintf("said-%d", s.count)
	if _, err := io.WriteString(s.in, said+"\n"); err != nil {
		return "", fmt.Errorf("ssh: %w: %s", err, s.tail())
	}
	select {
	case line, ok := <-s.lines:
		if !ok {
			return "", fmt.Errorf("ssh has ended: %s", s.tail())
		}
		id, right := strings.CutPrefix(line, fmt.Sprintf("%d %s ", s.count, said))
		if !right {
			return "", fmt.Errorf("ssh: the shell says %q at count %d", line, s.count)
		}
		return id, nil
	case <-time.After(answerTime):
		return "", fmt.Errorf("ssh: no answer for %v: %s", answerTime, s.tail())
	}
}
