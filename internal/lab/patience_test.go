package lab

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// patienceRest is longer than a balancer waits for most things, and shorter
// than httpPatience.
const patienceRest = 70 * time.Second

// connected are a client's end and a server's of a flow, with nothing between.
func connected() (client, server *httpConn) {
	a, b := net.Pipe()
	f := &HTTPFlow{}
	client, server = &httpConn{Conn: a}, &httpConn{Conn: b}
	client.serves(f, Up)
	server.serves(f, Down)
	return client, server
}

// A sender has patience with a receiver that rests as long as that takes some
// now and then, be it in all much longer than httpPatience; and no longer.
func TestPatienceOfSender(t *testing.T) {
	const piece, all = 192 << 10, 11 * 192 << 10
	for _, c := range []struct {
		name  string
		reads int
		err   error
		after time.Duration
	}{
		{"taken slowly", 11, nil, 11 * patienceRest},
		{"no more taken", 3, os.ErrDeadlineExceeded, 3*patienceRest + httpPatience},
		{"nothing taken", 0, os.ErrDeadlineExceeded, httpPatience},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := connected()
				var reader sync.WaitGroup
				defer reader.Wait()
				defer func() { _ = client.Close() }()
				reader.Go(func() {
					for range c.reads {
						time.Sleep(patienceRest)
						_, _ = io.ReadFull(server, make([]byte, piece))
					}
				})
				began := time.Now()
				n, err := client.Write(make([]byte, all))
				if took := time.Since(began); n != c.reads*piece || !errors.Is(err, c.err) || took != c.after {
					t.Errorf("%d octets sent after %v: %v, want %d after %v: %v", n, took, err, c.reads*piece, c.after, c.err)
				}
			})
		})
	}
}

// Who has sent a request waits for the answer as long as the body still comes
// to the server, and then as long as for any answer.
func TestPatienceForAnswer(t *testing.T) {
	for _, answered := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const arrivals = 5
			client, server := connected()
			var sender sync.WaitGroup
			defer sender.Wait()
			defer func() { _ = client.Close() }()
			sender.Go(func() {
				for range arrivals {
					time.Sleep(patienceRest)
					server.in.Store(time.Now().UnixNano())
				}
				if answered {
					_, _ = server.Write([]byte("x"))
				}
			})
			began := time.Now()
			client.wait(httpPatience, "the answer")
			client.behind = client.out
			n, err := client.Read(make([]byte, 1))
			want := arrivals * patienceRest
			if !answered {
				want += httpPatience
			}
			if took := time.Since(began); took != want || answered != (n == 1) || answered == errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("answered %t: after %v, want %v: %d octets, %v", answered, took, want, n, err)
			}
		})
	}
}
