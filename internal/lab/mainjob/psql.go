package mainjob

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

func psqlCommand(addr string, args ...string) []string {
	host, port, _ := net.SplitHostPort(addr)
	// The word for the connection says so much that psql has nothing to try.
	target := fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres sslmode=disable gssencmode=disable connect_timeout=10", host, port)
	return append([]string{program("psql"), "-X", "-A", "-t", "-q", "-d", target}, args...)
}

func pgbenchCommand(addr string, args ...string) []string {
	host, port, _ := net.SplitHostPort(addr)
	return append([]string{program("pgbench"), "-h", host, "-p", port, "-U", "postgres"}, append(args, "postgres")...)
}

// psql is one psql for the whole run, driven through its standard input.
type psql struct {
	*process
	lines   chan string
	markers int
}

// answerTime bounds every answer that a client waits for. A pause of a move
// is a matter of milliseconds; this is a session that is dead.
const answerTime = 5 * time.Second

func (j *job) startPsql(name, addr string) (*psql, error) {
	r, w := io.Pipe()
	p, err := j.start(spec{name: name, argv: psqlCommand(addr), talks: true, hears: w})
	if err != nil {
		return nil, err
	}
	q := &psql{process: p, lines: make(chan string, 1000)}
	go readLines(r, q.lines) // ends with the process
	return q, nil
}

// readLines ends, and closes lines, when r does.
func readLines(r io.Reader, lines chan<- string) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		lines <- s.Text()
	}
	close(lines)
}

// begin sends statements; the returned function waits for their rows, joined
// by blanks.
func (q *psql) begin(sql string) func() (string, error) {
	q.markers++
	marker := fmt.Sprintf("-- %s %d --", q.name, q.markers)
	_, err := io.WriteString(q.in, sql+"\n\\echo '"+marker+"'\n")
	return func() (string, error) {
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", q.name, err, q.tail())
		}
		var rows []string
		late := time.NewTimer(answerTime)
		defer late.Stop()
		for {
			select {
			case line, ok := <-q.lines:
				if !ok {
					return "", fmt.Errorf("%s has ended: %s", q.name, q.tail())
				}
				if line == marker {
					return strings.Join(rows, " "), nil
				}
				if line != "" {
					rows = append(rows, line)
				}
			case <-late.C:
				return "", fmt.Errorf("%s: no answer for %v: %s", q.name, answerTime, q.tail())
			}
		}
	}
}

func (q *psql) ask(sql string) (string, error) { return q.begin(sql)() }

// session is the psql whose transaction stays open.
type session struct {
	*psql
	rows int // that the temporary table must have
}

const rowsAtFirst = 1000

func (j *job) openSession() (*session, error) {
	q, err := j.startPsql("psql", postgresVIP)
	if err != nil {
		return nil, err
	}
	s := &session{q, rowsAtFirst}
	_, err = s.ask(fmt.Sprintf(`BEGIN; CREATE TEMP TABLE held (n int); INSERT INTO held SELECT generate_series(1, %d);`, rowsAtFirst))
	return s, err
}

// identity is what a session that was opened again could not have: the
// backend's pid and start, its view of the client's port, the transaction.
func (s *session) identity() (string, error) {
	return s.ask(`SELECT pg_backend_pid(), inet_client_port(), pg_current_xact_id(), extract(epoch from now());`)
}

// grow inserts one more row and looks whether all are there.
func (s *session) grow() error {
	s.rows++
	got, err := s.ask(fmt.Sprintf(`INSERT INTO held VALUES (%d); SELECT count(*), sum(n) FROM held;`, s.rows))
	if want := fmt.Sprintf("%d|%d", s.rows, s.rows*(s.rows+1)/2); err == nil && got != want {
		return fmt.Errorf("psql: rows and their sum are %q, want %q: %s", got, want, s.tail())
	}
	return err
}

// slowQuery is asked before an event and answered during or after it.
const slowQuery = `SELECT 'slept' FROM pg_sleep(0.15);`
