package lab

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// attack is one way to mean harm.
type attack struct {
	name  string
	conns int
	// boundOctets is what one such connection may cost the balancer in
	// resident memory, the garbage of Go's collector included.
	boundOctets int
	legs        int // descriptors that it may cost; 0 is 2
	bufferBytes int // of the client's receive buffer; 0: the kernel's
	// say says what there is to say. It returns when that is over or the
	// connection is.
	say func(c net.Conn, i int)
	// deaf: it does not read for so long.
	deaf time.Duration
	// within: the balancer must have ended the connection by then; 0: the
	// attacker ends it.
	within time.Duration
	// answers are the status codes that are due, one of them; 0 is none.
	answers []int
}

func (a attack) fds() int {
	if a.legs == 0 {
		return 2
	}
	return a.legs
}

// blockOctets is what holds the head of a request, or octets that came before
// it was their turn. Twice: the collector.
const blockOctets = 2 * (16 << 10)

// attacks are all of them. Sizes of bombs are far beyond the default limits.
var attacks = []attack{
	{name: "idle connections", conns: 10000, boundOctets: 2 << 10, legs: 1, say: sayNothing,
		within: max(hostileHeader, hostileKeepalive) + overdue, answers: []int{0, 408}},
	{name: "slowloris", conns: 1000, boundOctets: blockOctets + 4<<10, legs: 1, say: dripHead,
		within: hostileHeader + overdue, answers: []int{408}},
	{name: "half a head", conns: 500, boundOctets: blockOctets + 4<<10, legs: 1, say: halfHead,
		within: hostileHeader + overdue, answers: []int{408}},
	{name: "bodies that stop", conns: 400, boundOctets: blockOctets + 8<<10, say: stopBody,
		within: hostileBody + overdue, answers: []int{408}},
	{name: "heads after heads that drip", conns: 200, boundOctets: blockOctets + 8<<10, say: secondHead,
		within: hostileHeader + overdue, answers: []int{200}},
	{name: "slow readers", conns: 200, boundOctets: 64 << 10, legs: 4, bufferBytes: 4 << 10, say: readSlowly},
	{name: "zero windows", conns: 200, boundOctets: 64 << 10, legs: 4, bufferBytes: 4 << 10, say: askMuch,
		deaf: hostileBody + overdue, within: hostileBody + 2*overdue, answers: []int{200}},
	{name: "pipelining floods", conns: 50, boundOctets: 128 << 10, legs: 4, bufferBytes: 4 << 10, say: flood,
		deaf: hostileBody + overdue, within: hostileBody + 2*overdue, answers: []int{200}},
	{name: "heads of too many fields", conns: 300, boundOctets: blockOctets + 4<<10, legs: 1, say: manyFields,
		within: hostileHeader + overdue, answers: []int{431, 400}},
	{name: "heads that are too long", conns: 300, boundOctets: blockOctets + 4<<10, legs: 1, say: longField,
		within: hostileHeader + overdue, answers: []int{431, 400}},
	{name: "targets that are too long", conns: 300, boundOctets: blockOctets + 4<<10, legs: 1, say: longTarget,
		within: hostileHeader + overdue, answers: []int{414, 431, 400}},
	{name: "garbage", conns: 500, boundOctets: blockOctets + 4<<10, legs: 1, say: garbage,
		within: hostileHeader + overdue, answers: []int{400, 408, 505, 414, 431, 0}},
	{name: "TLS hellos", conns: 300, boundOctets: blockOctets + 4<<10, legs: 1, say: hello,
		within: hostileHeader + overdue, answers: []int{400}},
	{name: "chunk extensions without end", conns: 100, boundOctets: blockOctets + 16<<10, say: longExtension,
		within: hostileBody + overdue, answers: []int{400, 413, 431, 408, 502}},
	{name: "trailers without end", conns: 100, boundOctets: blockOctets + 16<<10, say: longTrailer,
		within: hostileBody + overdue, answers: []int{400, 413, 431, 408, 502}},
	{name: "chunk sizes without end", conns: 100, boundOctets: blockOctets + 16<<10, say: longSize,
		within: hostileBody + overdue, answers: []int{400, 413, 408, 502}},
	{name: "resets", conns: 4000, boundOctets: blockOctets + 8<<10, say: resetSoon},
}

const attackHost = "Host: holdfast.example\r\n"

func sayNothing(net.Conn, int) {}

// dripHead sends a field now and then: each comes in time, the head never does.
func dripHead(c net.Conn, _ int) {
	_, err := io.WriteString(c, "GET /never HTTP/1.1\r\n"+attackHost)
	for n := 0; err == nil; n++ {
		time.Sleep(250 * time.Millisecond)
		_, err = fmt.Fprintf(c, "X-%d: %d\r\n", n, n)
	}
}

func halfHead(c net.Conn, _ int) {
	_, _ = io.WriteString(c, "GET /never HTTP/1.1\r\nHos")
}

// stopBody sends a part of a body, and no more.
func stopBody(c net.Conn, i int) {
	framing := "Content-Length: 100000\r\n\r\nx"
	if i%2 == 1 {
		framing = "Transfer-Encoding: chunked\r\n\r\n100\r\nx"
	}
	_, _ = io.WriteString(c, "POST /drain HTTP/1.1\r\n"+attackHost+framing)
}

// secondHead is a good client at first: what it is told is about its first
// request, and the second times out all the same.
func secondHead(c net.Conn, _ int) {
	_, _ = io.WriteString(c, "GET /plain HTTP/1.1\r\n"+attackHost+"\r\nGET /plain HT")
}

const askFor = "GET /o?id=1&down=%d HTTP/1.1\r\n" + attackHost + "\r\n"

func askMuch(c net.Conn, _ int) { _, _ = fmt.Fprintf(c, askFor, 8<<20) }

// readSlowly is no reason to end it: it makes progress.
func readSlowly(c net.Conn, _ int) {
	_, _ = fmt.Fprintf(c, askFor, 8<<20)
	buf := make([]byte, 2<<10)
	for until := time.Now().Add(hostileBody + overdue); time.Now().Before(until); {
		_ = c.SetReadDeadline(until)
		if _, err := c.Read(buf); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// flood sends thousands of requests and reads no answer.
func flood(c net.Conn, _ int) {
	many := []byte(strings.Repeat(fmt.Sprintf(askFor, 20000), 3000))
	_ = c.SetWriteDeadline(time.Now().Add(hostileBody))
	_, _ = c.Write(many)
}

func manyFields(c net.Conn, _ int) {
	var b bytes.Buffer
	for i := range 5000 {
		fmt.Fprintf(&b, "X-%d: y\r\n", i)
	}
	_, _ = io.WriteString(c, "GET /never HTTP/1.1\r\n"+attackHost+b.String()+"\r\n")
}

var longOctets = strings.Repeat("a", 1<<20)

func longField(c net.Conn, _ int) {
	_, _ = io.WriteString(c, "GET /never HTTP/1.1\r\n"+attackHost+"X-Long: "+longOctets+"\r\n\r\n")
}

func longTarget(c net.Conn, _ int) {
	_, _ = io.WriteString(c, "GET /"+longOctets+" HTTP/1.1\r\n"+attackHost+"\r\n")
}

func garbage(c net.Conn, i int) {
	r := rand.New(rand.NewPCG(1, uint64(i)))
	b := make([]byte, 1+r.IntN(20000))
	for k := range b {
		b[k] = byte(r.Uint32())
	}
	_, _ = c.Write(b)
}

// hello is what a browser says that takes the port for one of HTTPS.
func hello(c net.Conn, _ int) {
	_ = c.SetWriteDeadline(time.Now().Add(hostileHeader))
	recorder := &heard{Conn: c}
	_ = tls.Client(recorder, &tls.Config{ServerName: "holdfast.example"}).Handshake()
}

// heard leaves the reading to others.
type heard struct{ net.Conn }

func (heard) Read([]byte) (int, error) { return 0, io.EOF }

const chunkedPost = "POST /drain HTTP/1.1\r\n" + attackHost + "Transfer-Encoding: chunked\r\n\r\n"

func longExtension(c net.Conn, _ int) {
	_, _ = io.WriteString(c, chunkedPost+"1;a="+longOctets+longOctets)
}

func longTrailer(c net.Conn, _ int) {
	_, _ = io.WriteString(c, chunkedPost+"0\r\nX-Long: "+longOctets+longOctets)
}

func longSize(c net.Conn, _ int) {
	_, _ = io.WriteString(c, chunkedPost+strings.Repeat("0", 1<<20))
}

// resetSoon goes away in the middle of something.
func resetSoon(c net.Conn, i int) {
	_, _ = io.WriteString(c, []string{
		"", "GET /pl", "GET /plain HTTP/1.1\r\n" + attackHost, "GET /plain HTTP/1.1\r\n" + attackHost + "\r\n",
		"POST /drain HTTP/1.1\r\n" + attackHost + "Content-Length: 1000\r\n\r\nabc",
		fmt.Sprintf(askFor, 1<<20),
	}[i%6])
	if i%3 == 0 {
		time.Sleep(time.Duration(i%20) * time.Millisecond)
	}
	reset(c)
}
