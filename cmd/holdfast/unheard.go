package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// unheard writes to a place that may take nothing, as a pipe that nobody reads,
// and nobody who writes waits for it: what does not fit is lost, and counted. The
// log is written under locks, and the process must end when it is told to.
type unheard struct {
	to    io.Writer
	lines chan []byte
	lost  atomic.Uint64
	quit  chan struct{}
	done  chan struct{}
}

const (
	// unheardMax is how many writes wait at most, unheardTime how long end waits
	// for them.
	unheardMax  = 1024
	unheardTime = time.Second
)

func newUnheard(to io.Writer) *unheard {
	u := &unheard{to: to, lines: make(chan []byte, unheardMax), quit: make(chan struct{}), done: make(chan struct{})}
	go u.run() // ended by end
	return u
}

// Write never waits, and never fails.
func (u *unheard) Write(b []byte) (int, error) {
	select {
	case u.lines <- append([]byte(nil), b...):
	default:
		u.lost.Add(1)
	}
	return len(b), nil
}

func (u *unheard) run() {
	defer close(u.done)
	for {
		select {
		case line := <-u.lines:
			u.write(line)
			continue
		default:
		}
		select {
		case line := <-u.lines:
			u.write(line)
		case <-u.quit:
			for len(u.lines) > 0 {
				u.write(<-u.lines)
			}
			return
		}
	}
}

func (u *unheard) write(line []byte) {
	_, _ = u.to.Write(line) // there is no other place to tell it at
	if n := u.lost.Swap(0); n > 0 {
		_, _ = fmt.Fprintf(u.to, "%d lines were lost here: nobody took them\n", n)
	}
}

// end writes what there is, if somebody takes it soon.
func (u *unheard) end() {
	close(u.quit)
	select {
	case <-u.done:
	case <-time.After(unheardTime):
	}
}
