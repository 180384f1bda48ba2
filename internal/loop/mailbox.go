package loop

import (
	"sync"
	"sync/atomic"
)

// letter is one message to a loop. Flows come frozen, never as pointers.
type letter struct {
	accepted arrival     // a connection that another loop accepted
	parcel   *Parcel     // flows that move here
	token    uint64      // without all else: the ledger has served a waiter
	do       func(*Loop) // work of the control side, run between turns
	kind     letterKind
}

type letterKind uint8

const (
	acceptedLetter letterKind = iota
	parcelLetter
	grantLetter
	doLetter
)

// mailbox takes letters from any thread. The loop empties it between turns.
type mailbox struct {
	// mu guards in.
	mu   sync.Mutex
	in   []letter
	out  []letter // being read by the loop
	full atomic.Bool
	// urgent: flows stand still for a letter, so it waits for the flow of the moment
	// and not for the turn, which may have hundreds of others to deal with.
	urgent atomic.Bool
}

func (m *mailbox) put(x letter) (first bool) {
	m.mu.Lock()
	m.in = append(m.in, x)
	first = len(m.in) == 1
	m.full.Store(true)
	if x.kind == parcelLetter {
		m.urgent.Store(true)
	}
	m.mu.Unlock()
	return first
}

// take returns all letters; they are valid until the next take.
func (m *mailbox) take() []letter {
	if !m.full.Load() {
		return nil
	}
	m.mu.Lock()
	m.full.Store(false)
	m.urgent.Store(false)
	clear(m.out)
	m.out, m.in = m.in, m.out[:0]
	m.mu.Unlock()
	return m.out
}

func (l *Loop) post(x letter) {
	if l.mail.put(x) {
		l.k.Wake()
	}
}

// Do has f run on the loop's thread between two turns and returns at once. f
// must be short; it may use all of the loop.
func (l *Loop) Do(f func(*Loop)) { l.post(letter{kind: doLetter, do: f}) }

// Ask is Do that waits until f has run. It must not be called from a loop.
func (l *Loop) Ask(f func(*Loop)) {
	done := make(chan struct{})
	l.Do(func(l *Loop) { f(l); close(done) })
	<-done
}

// Ring tells the loop that the ledger has decided about one of its waiters.
func (l *Loop) Ring(token uint64) { l.post(letter{kind: grantLetter, token: token}) }

// readMail does what has come in.
func (l *Loop) readMail() {
	for _, x := range l.mail.take() {
		switch x.kind {
		case acceptedLetter:
			l.begin(&x.accepted)
		case parcelLetter:
			l.unpack(x.parcel)
		case grantLetter:
			l.served(x.token)
		case doLetter:
			x.do(l)
		}
	}
}
