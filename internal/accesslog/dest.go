package accesslog

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// dest is where lines go. Only its writer uses it, but for interrupt.
type dest interface {
	name() string
	// write tells how many lines were taken; fewer than all come with an error.
	write(b *batch) (lines int, err error)
	reopen() error
	// interrupt ends a write that does not end by itself, after d, if it can.
	interrupt(d time.Duration)
	close()
}

// localSyslog is where the host's own syslog listens.
const localSyslog = "/dev/log"

func openDest(to, tag string) (dest, error) {
	switch addr, remote := strings.CutPrefix(to, "syslog:"); {
	case remote:
		return openSyslog("udp", addr, tag)
	case to == "syslog":
		return openSyslog("unixgram", localSyslog, tag)
	}
	f := &file{to: to}
	return f, f.reopen()
}

// file is a file, a FIFO, or one of the process's own outputs.
type file struct {
	to   string
	f    atomic.Pointer[os.File] // replaced by reopen; interrupt looks at it, too
	torn bool                    // what was written last does not end a line
}

func (f *file) name() string { return f.to }

func (f *file) reopen() error {
	next, err := open(f.to)
	if err != nil {
		return err
	}
	f.close()
	f.f.Store(next)
	return nil
}

func open(to string) (*os.File, error) {
	number := 0
	switch to {
	case "stdout":
		number = 1
	case "stderr":
		number = 2
	default:
		return sock.OpenAppend(to)
	}
	// A descriptor of our own: of numbers 1 and 2 Go's runtime takes a broken pipe
	// for the end of the process.
	fd, err := sock.Dup(number)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd.Disown()), to), nil // the file owns it
}

func (f *file) write(b *batch) (lines int, err error) {
	to := f.f.Load()
	if f.torn { // the rest of that line is lost; the next one stands for itself
		if _, err := to.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
		f.torn = false
	}
	n, err := to.Write(b.octets)
	for lines < len(b.ends) && b.ends[lines] <= n {
		lines++
	}
	f.torn = n > 0 && b.octets[n-1] != '\n'
	if errors.Is(err, sock.BrokenPipe) && f.to[0] == '/' {
		_ = f.reopen() // a FIFO may have a new reader; if not, the next write tells
	}
	return lines, err
}

func (f *file) interrupt(d time.Duration) { _ = f.f.Load().SetWriteDeadline(time.Now().Add(d)) }

func (f *file) close() {
	if was := f.f.Load(); was != nil {
		_ = was.Close()
	}
}

const (
	// facility is local0 and severity informational (RFC 5424, section 6.2.1).
	facility, severity = 16, 6
	// datagramTime bounds how long one line waits for the local syslog.
	datagramTime = 100 * time.Millisecond
	// redialEvery bounds how often a syslog that is gone is looked for.
	redialEvery = time.Second
)

// syslog sends each line as a datagram.
type syslog struct {
	network, to string
	head        string // between the time and the line
	c           net.Conn
	redial      time.Time // not before
	why         error     // it is gone
	message     []byte
}

func openSyslog(network, to, tag string) (*syslog, error) {
	s := &syslog{network: network, to: to}
	pid := strconv.Itoa(os.Getpid())
	if network == "udp" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "-"
		}
		s.head = " " + host + " " + tag + " " + pid + " access - "
	} else {
		s.head = " " + tag + "[" + pid + "]: "
	}
	return s, s.reopen()
}

func (s *syslog) name() string { return "syslog:" + s.to }

func (s *syslog) reopen() error {
	c, err := net.Dial(s.network, s.to)
	if err != nil {
		return err
	}
	s.close()
	s.c = c
	return nil
}

func (s *syslog) write(b *batch) (lines int, err error) {
	if s.c == nil {
		now := time.Now()
		if now.Before(s.redial) {
			return 0, s.why
		}
		s.redial = now.Add(redialEvery)
		if s.why = s.reopen(); s.why != nil {
			return 0, s.why
		}
	}
	from := 0
	for i, end := range b.ends {
		if e := s.send(b.at[i], b.octets[from:end-1]); e != nil {
			err = e
			var slow net.Error
			if !errors.As(e, &slow) || !slow.Timeout() {
				// Nobody listens, or no longer there. Of UDP that is the answer to an
				// earlier line, and the next may be heard.
				if s.network != "udp" {
					s.close()
					s.c, s.why = nil, err
					return lines, err
				}
			} else {
				return lines, err // the others would wait as long
			}
		} else {
			lines++
		}
		from = end
	}
	return lines, err
}

// send sends one line: to another host by RFC 5424, to the local syslog in the
// form that it takes from syslog(3).
func (s *syslog) send(at int64, line []byte) error {
	m := append(s.message[:0], '<')
	m = strconv.AppendInt(m, facility*8+severity, 10)
	m = append(m, '>')
	if t := time.Unix(0, at); s.network == "udp" {
		m = append(m, "1 "...)
		m = t.UTC().AppendFormat(m, "2006-01-02T15:04:05.000000Z")
	} else {
		m = t.AppendFormat(m, time.Stamp)
	}
	m = append(m, s.head...)
	m = append(m, line...)
	s.message = m
	if err := s.c.SetWriteDeadline(time.Now().Add(datagramTime)); err != nil {
		return err
	}
	_, err := s.c.Write(m)
	return err
}

func (s *syslog) interrupt(time.Duration) {} // no line waits longer than datagramTime

func (s *syslog) close() {
	if s.c != nil {
		_ = s.c.Close()
	}
}
