package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfast-lb/holdfast/internal/flow"
)

// Peer is a client or a server: a script over one connection. It says headLen
// octets that name its stream, then the stream; it checks every octet it gets.
type Peer struct {
	name string
	net  *Net
	s    *Sock
	key  uint64
	plan plan

	said     int // octets written
	shut     bool
	got      int
	head     [headLen]byte
	peerKey  uint64
	fin, rst bool // seen
	closed   bool
	reset    bool // it ended by its own RST
	excused  string
	sleeps   flow.Instant // reads nothing until then
	born     flow.Instant
	turn     int // when it began
	client   bool
	denied   bool     // nobody may serve it
	svc      *service // of a server: which
	judged   bool     // a server, whose client is known
	bad      error
	buf      []byte
}

const headLen = 8

// plan is what a peer does.
type plan struct {
	total   int  // octets it says, with the head
	after   int  // speaks once it has got so many; -1: once it has got FIN
	reset   bool // ends by RST once all is said
	hold    bool // says FIN only when the world asks all to finish
	sloth   int  // one reading in so many puts it to sleep; 0 = never
	gulp    int  // octets it reads at once
	mouth   int  // octets it writes at once
	sleepMS int
}

// mix is the stream of all streams: eight octets at place i of stream key.
func mix(key, i uint64) uint64 {
	z := key + (i+1)*0x9E3779B97F4A7C15
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// fill writes the stream of key from octet at on.
func fill(b []byte, key uint64, at int) {
	for i := 0; i < len(b); {
		x := at + i
		v := mix(key, uint64(x/8)) >> (8 * (x % 8))
		for k := x % 8; k < 8 && i < len(b); k++ {
			b[i] = byte(v)
			v >>= 8
			i++
		}
	}
}

func (p *Peer) excuse(why string) {
	if p.excused == "" {
		p.excused = why
	}
}

func (p *Peer) fault(format string, args ...any) {
	if p.bad == nil {
		p.bad = fmt.Errorf("%s: %s", p.name, fmt.Sprintf(format, args...))
	}
}

// step does one thing and tells whether there was one to do. last: nothing is
// held back any more.
func (p *Peer) step(last bool) bool {
	if p.closed || !p.s.connected && !p.s.dead {
		return false
	}
	if p.s.dead && p.s.errno == 0 && p.rst {
		p.closed = true
		p.s.orphan = true
		return true
	}
	if p.net.rng.IntN(2) == 0 {
		return p.read(last) || p.write(last)
	}
	return p.write(last) || p.read(last)
}

func (p *Peer) write(last bool) bool {
	pl := &p.plan
	if p.shut || p.rst {
		return false
	}
	if pl.after < 0 && !p.fin && !last || pl.after > p.got && !p.fin && !last {
		return false
	}
	if p.said < pl.total {
		n := min(pl.mouth, pl.total-p.said, p.s.free()+1)
		b := p.room(n)
		if p.said < headLen {
			var head [headLen]byte
			binary.BigEndian.PutUint64(head[:], p.key)
			n = min(n, headLen-p.said)
			b = append(b[:0], head[p.said:p.said+n]...)
		} else {
			fill(b, p.key, p.said)
		}
		n, e := p.s.send(b)
		p.said += n
		if e != 0 && n == 0 {
			return p.s.dead && p.lost(fmt.Sprint(e))
		}
		return n > 0
	}
	switch {
	case pl.reset:
		p.reset, p.closed = true, true
		p.s.excuse("its peer reset it")
		p.s.orphan = true
		p.s.reset()
		return true
	case pl.hold && !last:
		return false
	}
	p.shut = true
	p.s.shutdown()
	p.end()
	return true
}

func (p *Peer) room(n int) []byte {
	if cap(p.buf) < n {
		p.buf = make([]byte, n)
	}
	return p.buf[:n]
}

func (p *Peer) read(last bool) bool {
	if p.fin || p.rst {
		return false
	}
	if p.net.now < p.sleeps && !last {
		return false
	}
	if p.plan.sloth > 0 && !last && p.net.rng.IntN(p.plan.sloth) == 0 {
		p.sleeps = p.net.now + flow.Instant(p.plan.sleepMS)*1e6
		return true
	}
	b := p.room(p.plan.gulp)
	n, e := p.s.recv(b)
	switch {
	case n > 0:
		p.check(b[:n])
		return true
	case e == 0 && p.s.dead && !p.s.finIn:
		return p.lost("reset")
	case e == 0:
		p.fin = true
		p.ended()
		p.end()
		return true
	case p.s.dead:
		return p.lost(fmt.Sprint(e))
	}
	return false
}

// lost notes RST.
func (p *Peer) lost(string) bool {
	if p.rst {
		return false
	}
	p.rst = true
	return true
}

func (p *Peer) check(b []byte) {
	if p.denied {
		p.fault("it is denied and got %d octets", len(b))
	}
	for len(b) > 0 && p.got < headLen {
		p.head[p.got] = b[0]
		p.got++
		b = b[1:]
		if p.got == headLen {
			p.peerKey = binary.BigEndian.Uint64(p.head[:])
			if p.other() == nil {
				p.fault("the head of the stream names nobody: %x", p.peerKey)
				return
			}
		}
	}
	if len(b) == 0 || p.bad != nil {
		return
	}
	want := make([]byte, min(len(b), 4096))
	for len(b) > 0 {
		k := min(len(b), len(want))
		fill(want[:k], p.peerKey, p.got)
		for i := range k {
			if b[i] != want[i] {
				p.fault("octet %d is %#02x, want %#02x of stream %x", p.got+i, b[i], want[i], p.peerKey)
				return
			}
		}
		p.got += k
		b = b[k:]
	}
}

// other is the peer whose stream it gets, if that is known.
func (p *Peer) other() *Peer { return p.net.peers[p.peerKey] }

// ended judges FIN: it may only come when the other side has said FIN, and
// after all that it said.
func (p *Peer) ended() {
	if p.excused != "" {
		return
	}
	o := p.other()
	switch {
	case o == nil && p.got == 0 && p.client && p.net.sinks:
		// It came to a sink.
	case o == nil && p.got > 0:
		p.fault("FIN after %d octets, within the head", p.got)
	case o == nil:
		p.fault("FIN of nobody") // every stream has a head
	case !o.shut:
		p.fault("FIN after %d octets, but %s has not said FIN (it said %d, reset %t)", p.got, o.name, o.said, o.reset)
	case p.got != o.said:
		p.fault("FIN after %d octets, but %s said %d", p.got, o.name, o.said)
	}
}

// end closes a connection that both sides have ended.
func (p *Peer) end() {
	if p.shut && p.fin && !p.closed {
		p.closed = true
		p.s.close()
	}
}

func (p *Peer) String() string {
	return fmt.Sprintf("%s said %d of %d shut %t, got %d, fin %t rst %t closed %t excused %q (dead %t, errno %v, rcv %d, snd %d)", p.name, p.said, p.plan.total, p.shut, p.got, p.fin, p.rst, p.closed, p.excused, p.s.dead, p.s.errno, len(p.s.rcv), len(p.s.snd))
}
