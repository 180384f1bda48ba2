package bench

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// patternPeriod is the period of the stream that a source sends. It is odd,
// so that a lost, doubled or displaced block shifts the pattern.
const patternPeriod = 251

// stopOctet asks a source to end its stream; what follows is the trailer: how
// many octets of pattern it sent, 8 octets, big-endian. Then it sends FIN.
const stopOctet = 's'

// trailerBytes is the length of that count.
const trailerBytes = 8

// pattern returns n octets of the stream of a source, from its beginning.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % patternPeriod)
	}
	return b
}

// backendSpec says what the backend serves.
type backendSpec struct {
	Kind  string // "echo", "source" or "http"
	Ports []int
	Bytes int // of the content of an HTTP answer

	// Proxied says that a proxy stands before us: it has to add
	// X-Forwarded-For and to use its connections again.
	Proxied bool
}

// backendConn is what the backend knows of one connection.
type backendConn struct {
	port   int    // of a listener; 0 is none
	ending bool   // the client asked a source to stop
	sent   uint64 // octets of pattern sent by a source
	tail   []byte // what is left of the trailer
}

// chunkBytes is what a source offers to the kernel in one call. 256 KiB fills
// a loopback socket and still lies in a second-level cache.
const chunkBytes = 256 << 10

// backend is one that serves on a poller.
type backend struct {
	spec    *backendSpec
	p       *poller
	mask    uint32
	conns   []backendConn // by descriptor
	served  []httpServed
	http    *httpBackend
	stream  []byte
	scratch []byte
}

// newBackend listens on all ports of spec.
func newBackend(spec *backendSpec, p *poller) (*backend, error) {
	const descriptorsMax = 20000
	b := &backend{
		spec: spec, p: p, mask: evConn, conns: make([]backendConn, descriptorsMax), served: make([]httpServed, descriptorsMax),
		http: newHTTPBackend(spec), stream: pattern(chunkBytes + patternPeriod), scratch: make([]byte, 64<<10),
	}
	if spec.Kind != "echo" {
		b.mask |= unix.EPOLLOUT
	}
	for _, port := range spec.Ports {
		fd, err := listen(port)
		if err != nil {
			return nil, err
		}
		b.conns[fd].port = port
		b.http.ports[port] = new(portUse)
		p.add(fd, unix.EPOLLIN)
	}
	return b, nil
}

// event deals with an event of a descriptor of the backend.
func (b *backend) event(ev unix.EpollEvent) {
	fd := int(ev.Fd)
	c := &b.conns[fd]
	switch {
	case c.port != 0:
		use := b.http.ports[c.port]
		for {
			n, e := accept(fd)
			if e != 0 {
				return
			}
			b.conns[n] = backendConn{}
			use.connections++
			b.served[n] = httpServed{use: use, in: b.served[n].in[:0]}
			b.p.add(n, b.mask)
		}
	case b.spec.Kind == "source":
		source(b.p, fd, c, ev.Events, b.stream, b.scratch)
	case b.spec.Kind == "http":
		b.http.event(fd, &b.served[fd], ev.Events, b.scratch)
	default:
		echo(fd, b.scratch)
	}
}

// runBackend serves until it is killed. It prints "ready" once it listens.
func runBackend(spec backendSpec) error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	b, err := newBackend(&spec, p)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		for _, ev := range p.wait(-1) {
			b.event(ev)
		}
	}
}

// echo returns what has arrived. The generator never has more under way on a
// connection than a socket buffer holds, so a short send is a fault.
func echo(fd int, scratch []byte) {
	for {
		n, e := recv(fd, scratch)
		if e == unix.EAGAIN {
			return
		}
		if e != 0 || n == 0 {
			closeFD(fd)
			return
		}
		w, e := send(fd, scratch[:n])
		if e == unix.EPIPE || e == unix.ECONNRESET {
			closeFD(fd)
			return
		}
		if e != 0 || w != n {
			fault("sent %d of %d octets: %v", w, n, e)
		}
		if n < len(scratch) {
			return // a new arrival is a new edge
		}
	}
}

// sendsMax bounds what one source connection may send in one turn.
const sendsMax = 8

func source(p *poller, fd int, c *backendConn, events uint32, stream, scratch []byte) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 && !c.ending {
		n, e := recv(fd, scratch)
		if e != unix.EAGAIN && (e != 0 || n == 0) {
			closeFD(fd)
			return
		}
		if n > 0 && e == 0 && scratch[0] == stopOctet {
			c.ending = true
			c.tail = binary.BigEndian.AppendUint64(nil, c.sent)
		}
	}
	if c.ending {
		for len(c.tail) > 0 {
			n, e := send(fd, c.tail)
			if e == unix.EAGAIN {
				return
			}
			if e != 0 {
				closeFD(fd)
				return
			}
			if c.tail = c.tail[n:]; len(c.tail) == 0 {
				shutdownWrite(fd)
			}
		}
		if events&(unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0 {
			closeFD(fd)
		}
		return
	}
	for range sendsMax {
		at := int(c.sent % patternPeriod)
		n, e := send(fd, stream[at:at+chunkBytes])
		if e == unix.EAGAIN {
			return
		}
		if e != 0 {
			closeFD(fd)
			return
		}
		c.sent += uint64(n)
	}
	// Still writable: ask for the edge again, after the others had their turn.
	p.mod(fd, evConn|unix.EPOLLOUT)
}
