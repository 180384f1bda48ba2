package lab

import (
	"fmt"
	"time"
)

// HTTPKind is what an HTTP flow does all its life. Kinds differ in what the
// balancer holds for a flow at a random moment: nothing, half a head, a body
// in the middle of a chunk, answers that are due.
type HTTPKind uint8

// The kinds of HTTP flow. All but the last two keep one connection open.
const (
	HTTPIdle         HTTPKind = iota // a small request now and then
	HTTPExchange                     // small requests of every sort
	HTTPHead                         // heads that come in pieces
	HTTPWaiting                      // the answer takes long to begin
	HTTPUpload                       // the client sends large bodies
	HTTPUploadSlow                   // bodies in small pieces, cut anywhere
	HTTPSlowServer                   // large bodies, which the server rarely reads
	HTTPDownload                     // the server sends large bodies
	HTTPDownloadSlow                 // answers in small pieces, cut anywhere
	HTTPSlowClient                   // large answers, which the client rarely reads
	HTTPContinue                     // the client waits for 100, which comes late
	HTTPPipelined                    // several requests before the first answer
	HTTPWebSocket                    // a WebSocket after an upgrade
	HTTPConnect                      // a tunnel after CONNECT
	HTTPConnectHalf                  // the same, and one side sends FIN early
	HTTPQueued                       // waits for a slot of a limited endpoint
	HTTPDialing                      // the server's kernel answers no SYN until told to
	HTTPEarly                        // the answer comes before the body, which goes on: again and again
	HTTPShort                        // connect, one request, close
	httpKinds        int      = iota
)

var httpKindNames = [httpKinds]string{
	"http-idle", "http-exchange", "http-head", "http-waiting", "http-upload", "http-upload-slow", "http-slow-server",
	"http-download", "http-download-slow", "http-slow-client", "http-continue", "http-pipelined", "http-websocket",
	"http-connect", "http-connect-half-closed", "http-queued", "http-dialing", "http-early-answer", "http-short",
}

func (k HTTPKind) String() string {
	if int(k) < len(httpKindNames) {
		return httpKindNames[k]
	}
	return fmt.Sprintf("httpKind(%d)", uint8(k))
}

// httpShares are the weights of the kinds in the mix. One flow in four is
// backpressured: those hold octets in the balancer at any moment.
var httpShares = [httpKinds]int{
	HTTPIdle: 110, HTTPExchange: 110, HTTPHead: 110, HTTPWaiting: 70, HTTPUpload: 40, HTTPUploadSlow: 90, HTTPSlowServer: 240,
	HTTPDownload: 40, HTTPDownloadSlow: 90, HTTPSlowClient: 240, HTTPContinue: 60, HTTPPipelined: 80, HTTPWebSocket: 60,
	HTTPConnect: 60, HTTPConnectHalf: 60, HTTPQueued: 90, HTTPDialing: 30,
}

// httpMixOf says how many flows of each kind make a mix of about n.
func httpMixOf(n int) (m [httpKinds]int) {
	sum := 0
	for _, s := range httpShares {
		sum += s
	}
	for k, s := range httpShares {
		if s > 0 {
			m[k] = max(2, n*s/sum)
		}
	}
	return m
}

// httpSlots is the limit of the endpoint that queued flows of a mix share:
// most of them wait.
func httpSlots(mix [httpKinds]int) int { return max(1, mix[HTTPQueued]/3) }

// httpFraming is how the end of a body is known (RFC 9112, section 6.3).
type httpFraming uint8

const (
	httpNoBody httpFraming = iota
	httpByLength
	httpChunked
	httpUntilFIN // of answers only
)

// httpBody is one body: its octets are known by the flow and the number of its
// request, this is their number and how they come.
type httpBody struct {
	framing httpFraming
	size    uint64
	chunk   uint64 // the most octets of a chunk
	trailer bool   // with a field behind the last chunk

	piece int           // octets at a time, framing included; 0: as the kernel takes them
	every time.Duration // from piece to piece

	readPiece int           // octets that the receiver reads before it rests; 0: always reads
	readEvery time.Duration // how long it rests
}

// httpPlan is a request and its answer, as both ends know them beforehand.
type httpPlan struct {
	method string
	minor  int // HTTP/1.minor
	status int
	up     httpBody
	down   httpBody

	headPieces int           // in which the request's head comes; 0: one
	headRest   time.Duration // between them
	expect     time.Duration // how late the 100 comes that the client waits for; 0: it does not
	hints      bool          // 103 comes before the answer
	think      time.Duration // how long the server waits before it answers
	rest       time.Duration // how long the client does after it
	serverEnds bool          // the server ends its connection after the answer
	clientEnds bool          // the client asks for the end of its own
	early      bool          // the server answers before the body
}

// jittered is d, 50 % to 150 % of it.
func jittered(h uint64, d time.Duration) time.Duration {
	return d/2 + time.Duration(mix(h)%uint64(d))
}

// plan is a flow's n-th exchange. It is a function of the flow alone, so both
// ends know it without talking.
func (f *HTTPFlow) plan(n int) httpPlan {
	h := mix(f.sizes + uint64(n)*golden)
	p := f.web.patience
	some := func(i, least, most uint64) uint64 { return least + mix(h+i)%(most-least+1) }
	wait := func(i uint64, d time.Duration) time.Duration { return jittered(h+i, p*d) }
	x := httpPlan{method: "GET", minor: 1, status: 200, down: httpBody{framing: httpByLength, size: some(1, 0, 3000)}}
	if n == 0 && f.Kind < HTTPQueued {
		// The first one is quick: that it was answered shows that the
		// balancer has the flow.
		x.rest = jittered(h, time.Second)
		return x
	}
	large := httpBody{framing: httpByLength, size: some(2, 2<<20, 8<<20), piece: 192 << 10, every: wait(3, 100*time.Millisecond)}
	small := httpBody{framing: httpChunked, size: some(4, 500, 9000), chunk: some(5, 1, 900), piece: int(some(6, 1, 600)), every: wait(7, 300*time.Millisecond)}
	small.size = min(small.size, uint64(small.piece)*24)
	flood := httpBody{framing: httpByLength, size: some(8, 1<<20, 3<<20), readPiece: 192 << 10, readEvery: wait(9, 1500*time.Millisecond)}
	if f.ID%16 < 2 && !f.web.t.brief {
		// Longer than any timeout that a balancer might set on octets that a
		// peer acknowledges but has no room for.
		flood.readEvery = 70 * time.Second
	}
	switch n % 3 {
	case 1:
		large.framing, large.chunk = httpChunked, 256<<10
		small.trailer = true
	case 2:
		small.framing = httpByLength
		flood.framing, flood.chunk = httpChunked, some(10, 1000, 100<<10)
	}
	switch f.Kind {
	case HTTPIdle:
		x.rest = wait(20, 4*time.Second)
	case HTTPExchange:
		x = f.mixed(n, h)
		x.rest = wait(20, 150*time.Millisecond)
	case HTTPHead:
		x.headPieces, x.headRest = int(some(20, 3, 6)), wait(21, time.Second)
		x.rest = wait(22, 300*time.Millisecond)
	case HTTPWaiting:
		x.think, x.hints, x.rest = wait(20, 3*time.Second), n%4 == 1, wait(21, 300*time.Millisecond)
	case HTTPUpload:
		x.method, x.up, x.rest = "PUT", large, wait(20, 200*time.Millisecond)
	case HTTPUploadSlow:
		x.method, x.up, x.rest = "POST", small, wait(20, 200*time.Millisecond)
	case HTTPSlowServer:
		x.method, x.up = "PUT", flood
	case HTTPDownload:
		x.down, x.rest = large, wait(20, 200*time.Millisecond)
	case HTTPDownloadSlow:
		x.down, x.rest = small, wait(20, 200*time.Millisecond)
	case HTTPSlowClient:
		x.down = flood
	case HTTPContinue:
		x.method, x.up, x.expect = "POST", httpBody{framing: httpByLength, size: some(20, 1, 40000)}, wait(21, 1500*time.Millisecond)
		x.rest = wait(22, 200*time.Millisecond)
	case HTTPPipelined:
		x.think, x.rest = wait(20, 250*time.Millisecond), wait(21, 100*time.Millisecond)
		x.down.size *= 4
	case HTTPWebSocket:
		x.status, x.down = 101, httpBody{}
	case HTTPConnect, HTTPConnectHalf:
		x.method, x.down = "CONNECT", httpBody{}
	case HTTPQueued:
		x.think, x.rest = wait(20, 400*time.Millisecond), wait(21, 20*time.Millisecond)
	case HTTPDialing:
		x.rest = wait(20, 200*time.Millisecond)
	case HTTPEarly:
		x.method, x.early, x.serverEnds = "POST", true, true
		x.up = httpBody{framing: httpByLength, size: 1 << 20, piece: int(some(20, 100, 9000)), every: jittered(h+21, 50*time.Millisecond)}
		x.up.framing += httpFraming(n % 2) // or in chunks
		x.up.chunk = 1000
	case HTTPShort:
		x = f.mixed(n, h)
		x.clientEnds = mix(h+30)%2 == 0
		switch mix(h+31) % 4 {
		case 0:
			x.minor = 0
			if x.up.framing == httpChunked {
				x.up.framing = httpByLength
			}
		case 1:
			// An answer to HEAD ends with its head, and a balancer may go on.
			if x.down.framing != httpNoBody && x.method != "HEAD" {
				x.down.framing = httpUntilFIN
			}
		}
		x.up.trailer, x.down.trailer = false, false
	default:
		panic("lab: no plan for " + f.Kind.String())
	}
	return x
}

// mixed is a small exchange of any sort.
func (f *HTTPFlow) mixed(n int, h uint64) httpPlan {
	up := httpBody{framing: httpByLength, size: mix(h+40) % 3000, chunk: 1 + mix(h+41)%500}
	down := httpBody{framing: httpByLength, size: mix(h+42) % 5000, chunk: 1 + mix(h+43)%500}
	x := httpPlan{method: "GET", minor: 1, status: 200, down: down}
	x.serverEnds = !f.web.direct && n > 0 && mix(h+44)%16 == 0
	switch mix(h+45) % 9 {
	case 0:
		x.down.framing = httpChunked
	case 1:
		x.method = "HEAD"
	case 2:
		x.method, x.up = "POST", up
	case 3:
		x.method, x.up = "PUT", up
		x.up.framing, x.up.trailer, x.down.framing, x.down.trailer = httpChunked, true, httpChunked, true
	case 4:
		x.method, x.status, x.down = "DELETE", 204, httpBody{}
	case 5:
		x.status, x.down = 304, httpBody{}
	case 6:
		x.method, x.up, x.down.size = "POST", httpBody{framing: httpByLength}, 0
	case 7:
		x.method, x.status = "OPTIONS", 404
	}
	return x
}
