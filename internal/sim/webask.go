package sim

import (
	"fmt"
)

// ask is one request: what its client plans to send and its server to answer,
// and what has become of it.
type ask struct {
	id      int
	kind    askKind
	client  *webClient
	method  string
	minor   int
	framing framing
	size    int // octets of content
	expect  bool
	closes  bool // the client says that it is the last

	status        int
	answerFraming framing
	answerSize    int
	interim       int
	early         bool // it is answered before all of it is there
	farewell      bool // the server says that its connection ends with it

	begunAt  int // the turn
	stuckTo  int // 1 + the endpoint that its cookie names, 0: it has none
	arrivals []*webServer
	heard    bool   // a server has begun to answer
	said     int    // interim answers so far
	harm     string // why it may have been answered otherwise
	done     bool
	own      int // the status of an answer by nobody but the balancer
}

type askKind uint8

const (
	plainAsk   askKind = iota
	pingAsk            // answered by the balancer
	nowhereAsk         // no route leads anywhere
	badAsk             // it is no request
	upgradeAsk         // to a protocol of octets
	connectAsk
)

// repeatable tells whether the request may be sent a second time.
func (a *ask) repeatable() bool {
	switch a.method {
	case "GET", "HEAD", "PUT", "DELETE", "OPTIONS":
		return a.framing == bodiless && a.kind == plainAsk
	}
	return false
}

// tunnels tells whether its answer makes a tunnel.
func (a *ask) tunnels() bool {
	return a.kind == upgradeAsk && a.status == 101 || a.kind == connectAsk && a.status == 200
}

func (a *ask) up() uint64   { return mix(uint64(a.id), 1) }
func (a *ask) down() uint64 { return mix(uint64(a.id), 2) }

// bare tells whether the answer has no content, whatever its head says.
func (a *ask) bare() bool {
	return a.method == "HEAD" || a.status == 204 || a.status == 304
}

func (a *ask) String() string {
	if a == nil {
		return "none is here"
	}
	return fmt.Sprintf("request %d (%s, HTTP/1.%d, %v of %d; to be answered %d, %v of %d; arrived %d times, %q, done %t, own %d)", a.id, a.method, a.minor, a.framing, a.size,
		a.status, a.answerFraming, a.answerSize, len(a.arrivals), a.harm, a.done, a.own)
}

// newAsk plans a request.
func (h *web) newAsk(c *webClient, calm bool) *ask {
	r := h.w.net.rng
	pick := func(sizes ...int) int { return r.IntN(1 + sizes[r.IntN(len(sizes))]) }
	a := &ask{id: len(h.asks) + 1, client: c, minor: c.minor, method: "GET", status: 200}
	h.asks = append(h.asks, a)
	switch r.IntN(24) {
	case 0:
		a.kind = pingAsk
		return a
	case 1:
		a.kind = nowhereAsk
		return a
	case 2:
		if !calm && r.IntN(3) == 0 {
			a.kind = badAsk
			return a
		}
	case 3:
		if a.minor == 1 {
			a.kind, a.status = upgradeAsk, 101
			a.size, a.answerSize = pick(200, 20000, 200000), pick(200, 20000, 200000)
			if r.IntN(4) == 0 {
				a.status, a.size = 200, 0
			}
		}
	case 4:
		a.kind, a.method = connectAsk, "CONNECT"
		a.size, a.answerSize = pick(200, 20000, 200000), pick(200, 20000, 200000)
		if r.IntN(4) == 0 {
			a.status, a.size = 403, 0
		}
	default:
		a.method = []string{"GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "BREW", "OPTIONS"}[r.IntN(10)]
	}
	if a.kind == plainAsk {
		switch a.method {
		case "POST", "PUT", "BREW", "DELETE":
			if a.method != "DELETE" && r.IntN(3) > 0 || r.IntN(4) == 0 {
				a.framing = byLength
				if a.size = pick(20, 5000, 70000, 200000); a.size == 0 {
					a.framing = bodiless
				} else if a.minor == 1 && r.IntN(2) == 0 {
					a.framing = chunked
				}
			}
		}
		a.expect = a.framing != bodiless && a.minor == 1 && r.IntN(4) == 0
		a.status = []int{200, 200, 200, 200, 201, 204, 304, 404, 500}[r.IntN(9)]
		a.early = a.framing != bodiless && r.IntN(6) == 0
	}
	if a.tunnels() {
		return a
	}
	a.answerSize = pick(20, 5000, 70000, 200000, 400000)
	a.answerFraming = []framing{byLength, byLength, chunked, untilClose}[r.IntN(4)]
	if a.answerFraming == byLength && a.answerSize == 0 || a.bare() && a.answerFraming == untilClose {
		a.answerFraming = bodiless
	}
	if r.IntN(6) == 0 {
		a.interim = 1 + r.IntN(3)
	}
	a.farewell = a.answerFraming == untilClose || r.IntN(5) == 0
	a.closes = r.IntN(12) == 0
	return a
}
