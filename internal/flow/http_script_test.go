package flow

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/proxyproto"
)

// content is what a message about target holds. No two near octets are equal,
// and no two targets or directions, so that one lost, doubled or foreign shows.
func content(from Side, target string, n int) []byte {
	h := fnv.New32a()
	fmt.Fprint(h, from, target)
	b := make([]byte, n)
	for i := range b {
		b[i] = octet(from, i+int(h.Sum32()>>8))
	}
	return b
}

// parseHTTP reads a script, one hop a line.
func parseHTTP(text string) (*httpScript, error) {
	s := &httpScript{listener: "web"}
	later := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		words := strings.Fields(line)
		var o hop
		switch words[0] {
		case "bulk":
			s.bulk = true
			continue
		case "manual":
			s.manual = true
			continue
		case "listener":
			s.listener = words[1]
			continue
		case "pace":
			for _, n := range words[1:] {
				k, err := strconv.Atoi(n)
				if err != nil {
					return nil, err
				}
				s.pace = append(s.pace, k)
			}
			continue
		case "client", "backend":
			if words[0] == "backend" {
				o.side = Backend
			}
			words = words[1:]
		}
		o.verb = words[0]
		switch o.verb {
		case "asks", "asks-also": // with what the client said before, in one piece
			r, now, then := ask(words[1:])
			later = then
			s.asked = append(s.asked, r)
			if n := len(s.hops); n > 0 && words[0] == "asks-also" && s.hops[n-1].verb == "says" && s.hops[n-1].side == Client {
				s.hops[n-1].text += now
				continue
			}
			o = hop{verb: "says", text: now, arg: strings.Join(words[1:], " ")}
		case "goes-on": // with the content that it held back
			o = hop{verb: "says", text: later, arg: "the rest"}
		case "greets":
			header := proxyproto.Append(nil, uint8(config.ProxyV1), greetedAs, greetedAs)
			if len(words) > 1 {
				header = proxyproto.Append(nil, uint8(config.ProxyV2), greetedAs, greetedAs)
			}
			o = hop{verb: "says", text: string(header), arg: "a greeting"}
		case "says":
			quoted, err := strconv.Unquote(line[strings.Index(line, `"`):])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
			o.text = quoted
			s.raw = s.raw || o.side == Client
		case "answers", "mutters", "dialed":
			if len(words) > 1 {
				o.arg = words[1]
			}
			if len(words) > 2 {
				o.n, _ = strconv.Atoi(words[2])
			}
		case "body", "takes", "room", "wait", "secured", "limited":
			n, err := strconv.Atoi(words[1])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
			o.n = n
			s.raw = s.raw || o.verb == "body" && o.side == Client
		case "fin", "rst", "vanishes", "slow", "unavailable", "rejected", "dial-failed", "place", "kill", "tick", "tripped", "spent", "stingy":
			if o.verb == "stingy" && len(words) > 1 || o.verb == "kill" && len(words) > 1 {
				o.n = 1
			}
			if len(words) > 1 && words[1] == "fin" {
				o.n = 2
			}
		default:
			return nil, fmt.Errorf("%q is no hop", line)
		}
		s.hops = append(s.hops, o)
	}
	s.stretch()
	return s, nil
}

// stretch gives peers that say little at once the time to say it all.
func (s *httpScript) stretch() {
	if len(s.pace) == 0 {
		return
	}
	sum := 0
	for _, n := range s.pace {
		sum += n
	}
	var all []hop
	for i, o := range s.hops {
		all = append(all, o)
		if i+1 < len(s.hops) && (s.hops[i+1].verb == "fin" || s.hops[i+1].verb == "rst") && i%2 == 0 {
			continue // its end comes right behind it
		}
		for range (o.said()*len(s.pace) + sum - 1) / sum {
			all = append(all, hop{verb: "tick"})
		}
	}
	s.hops = all
}

// said is about how many octets a peer says by o.
func (o hop) said() int {
	switch o.verb {
	case "answers", "mutters":
		return len(answer(o.arg, o.n, "GET", "/some")) + o.n
	case "body":
		return o.n
	}
	return len(o.text)
}

func (s *httpScript) said() (n int) {
	for _, o := range s.hops {
		n += o.said()
	}
	return n
}

// paced is s with peers that say no more than so many octets a step.
func (s *httpScript) paced(pace ...int) *httpScript {
	c := *s
	c.pace = pace
	c.stretch()
	return &c
}

// ask makes a request: its head, or all of it, and what comes later.
func ask(words []string) (r request, now, later string) {
	r = request{method: words[0], target: words[1], minor: 1}
	for _, word := range words[2:] {
		if word == "1.0" {
			r.minor = 0
		}
	}
	var b, c strings.Builder
	host := "h"
	if r.method == "CONNECT" {
		host = r.target
	}
	fmt.Fprintf(&b, "%s %s HTTP/1.%d\r\nHost: %s\r\n", r.method, r.target, r.minor, host)
	hold, extended := false, false
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "1.0":
		case "close":
			b.WriteString("Connection: close\r\n")
		case "keep":
			b.WriteString("Connection: keep-alive\r\n")
		case "expect":
			b.WriteString("Expect: 100-continue\r\n")
			hold = true
		case "later":
			hold = true
		case "ext":
			extended = true
		case "upgrade":
			b.WriteString("Connection: upgrade\r\nUpgrade: " + value + "\r\n")
			r.tunnel = value != "h2c"
		case "long":
			n, _ := strconv.Atoi(value)
			fmt.Fprintf(&b, "X-Long: %s\r\n", strings.Repeat("x", n))
		case "cookie":
			b.WriteString("Cookie: a=b; " + value + "\r\n")
		case "stuck": // a good cookie for an endpoint of backend sticky, that ends in so many seconds
			name, left, _ := strings.Cut(value, ",")
			n, _ := strconv.Atoi(left)
			fmt.Fprintf(&b, "Cookie: hf=%s\r\n", goodCookie("sticky", name, wallAt+n))
			r.stuck, r.good = name, wallAt+n
		case "forged": // a cookie that somebody else has signed
			good := goodCookie("sticky", value, wallAt+3600)
			fmt.Fprintf(&b, "Cookie: hf=%s\r\n", good[:40]+"AAA"+"\r\nCookie: hf="+good[:20]+"B"+good[21:])
		case "user":
			b.WriteString("X-User: " + value + "\r\n")
		case "agent":
			b.WriteString("User-Agent: " + value + "\r\n")
		case "len":
			r.body, _ = strconv.Atoi(value)
			fmt.Fprintf(&b, "Content-Length: %d\r\n", r.body)
			c.Write(content(Client, r.target, r.body))
		case "chunks":
			b.WriteString("Transfer-Encoding: chunked\r\n")
			for i, size := range strings.Split(value, ",") {
				n, _ := strconv.Atoi(size)
				c.WriteString(chunk(content(Client, r.target, r.body+n)[r.body:], extended && i%2 == 0))
				r.body += n
			}
			c.WriteString("0\r\n")
			if extended {
				c.WriteString("X-Sum: 1\r\n")
			}
			c.WriteString("\r\n")
		default:
			panic(word)
		}
	}
	r.tunnel = r.tunnel || r.method == "CONNECT"
	b.WriteString("\r\n")
	if hold {
		return r, b.String(), c.String()
	}
	return r, b.String() + c.String(), ""
}

func chunk(octets []byte, extended bool) string {
	extension := ""
	if extended {
		extension = `;name="a value;"`
	}
	return fmt.Sprintf("%x%s\r\n%s\r\n", len(octets), extension, octets)
}

// answer makes what a server says to a request.
func answer(kind string, n int, method, target string) string {
	var b strings.Builder
	empty := method == "HEAD"
	head := func(line string) {
		fmt.Fprintf(&b, "%s\r\nX-For: %s\r\nX-Len: %d\r\n", line, target, n)
	}
	octets := func(n int) []byte {
		if empty {
			return nil
		}
		return content(Backend, target, n)
	}
	switch kind {
	case "len", "bye", "error", "busy", "busy-bye", "sets", "old", "old-keep":
		head(map[string]string{"error": "HTTP/1.1 500 Broken", "busy": "HTTP/1.1 503 Busy", "busy-bye": "HTTP/1.1 503 Busy", "old": "HTTP/1.0 200 OK", "old-keep": "HTTP/1.0 200 OK"}[kind])
		if b.String()[0] == '\r' {
			b.Reset()
			head("HTTP/1.1 200 OK")
		}
		switch kind {
		case "bye", "busy-bye":
			b.WriteString("Connection: close\r\n")
		case "sets":
			b.WriteString("Set-Cookie: hf=theirs; Path=/\r\nSet-Cookie: other=1\r\nset-cookie: hf = theirs\r\n")
		case "old-keep":
			b.WriteString("Connection: keep-alive\r\n")
		}
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", n, octets(n))
	case "chunks":
		head("HTTP/1.1 200 OK")
		b.WriteString("Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
		if empty {
			break
		}
		all := octets(n)
		for at, size := 0, 1; at < n; size *= 9 {
			k := min(size, n-at)
			b.WriteString(chunk(all[at:at+k], at == 1))
			at += k
		}
		b.WriteString("0\r\nX-Sum: 5\r\n\r\n")
	case "close", "old-close":
		head("HTTP/1." + map[string]string{"close": "1", "old-close": "0"}[kind] + " 200 OK")
		fmt.Fprintf(&b, "\r\n%s", octets(n))
	case "204":
		n = 0
		head("HTTP/1.1 204 None")
		b.WriteString("\r\n")
	case "304":
		head("HTTP/1.1 304 Same")
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", n)
	case "continue":
		b.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
	case "hints":
		fmt.Fprintf(&b, "HTTP/1.1 103 Early\r\nX-For: %s\r\nLink: </a>\r\n\r\n", target)
	case "switch":
		b.WriteString("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
	case "connected":
		head("HTTP/1.1 200 OK")
		b.WriteString("\r\n")
	default:
		panic(kind)
	}
	return b.String()
}

// heard is what a server has read of a request.
type heard struct {
	method, target string
	body           []byte
	whole          bool
	fields         http.Header
}

// requestsIn reads all that a server got on one leg by means of net/http. What
// follows a request that was granted a tunnel is rest.
func (b *back) requestsIn(octets []byte) (all []heard, rest []byte, err error) {
	if b.told {
		n, _, _, _, err := proxyproto.Parse(octets)
		if err != nil {
			return nil, nil, err
		}
		octets = octets[n:]
		if n == 0 {
			return nil, nil, nil
		}
	}
	r := bufio.NewReaderSize(bytes.NewReader(octets), len(octets)+16)
	for {
		if !headIn(r) {
			return all, nil, nil
		}
		q, err := http.ReadRequest(r)
		if err != nil {
			return nil, nil, fmt.Errorf("leg %d: %w in %q", b.number, err, octets[:min(len(octets), 400)])
		}
		h := heard{method: q.Method, target: q.RequestURI, fields: q.Header}
		h.body, err = io.ReadAll(q.Body)
		h.whole = err == nil
		all = append(all, h)
		if !h.whole {
			if !strings.Contains(err.Error(), "unexpected EOF") { // it has several
				return nil, nil, fmt.Errorf("leg %d: %w", b.number, err)
			}
			return all, nil, nil
		}
		if b.tunnel == len(all) {
			rest, err = io.ReadAll(r)
			return all, rest, err
		}
	}
}

// headIn tells whether all of a head is there. The buffer of r has room for all.
func headIn(r *bufio.Reader) bool {
	_, _ = r.Peek(1)
	all, _ := r.Peek(r.Buffered())
	return bytes.Contains(all, []byte("\r\n\r\n"))
}

// answers has the server of a leg answer the first request that it has not.
func (w *httpWorld) answers(b *back, kind string, n int) {
	all, _, err := b.requestsIn(b.got)
	if err != nil || b.tunnel > 0 || b.answered >= len(all) {
		return // Verify tells
	}
	q := all[b.answered]
	switch kind {
	case "continue", "hints":
		b.pending = append(b.pending, answer(kind, n, q.method, q.target)...)
		return
	case "switch", "connected":
		if granted := q.method == "CONNECT" && kind == "connected" || q.fields.Get("Upgrade") == "websocket" && kind == "switch"; granted {
			b.tunnel, b.tunneled = b.answered+1, n
		} else if w.troubled = true; kind == "connected" {
			kind = "bye"
		}
	}
	b.answered++
	if strings.HasPrefix(kind, "busy") {
		b.busy = append(b.busy, q.target)
	}
	b.pending = append(b.pending, answer(kind, n, q.method, q.target)...)
	if b.tunnel > 0 {
		b.pending = append(b.pending, octets(Backend, 0, n)...)
	}
	b.parting = b.parting || slices.Contains([]string{"close", "bye", "busy-bye", "old", "old-close"}, kind) && q.method != "HEAD"
}

// audit holds all that the peers got against what the others said. It knows
// nothing of how the flow works: net/http reads both sides.
func (w *httpWorld) audit() error {
	if w.at != len(w.hops)-1 {
		return nil
	}
	if w.f.listener.Protocol == config.TCP {
		return w.auditPlain()
	}
	served := map[string]int{}
	for _, b := range w.backs {
		if err := w.auditBack(b, served); err != nil {
			return err
		}
	}
	finals, err := w.auditClient()
	if err == nil {
		err = w.auditRecords(finals)
	}
	if err != nil {
		return fmt.Errorf("%w\nthe client got %q", err, shortened(w.client.whole()))
	}
	if w.f.State() == Reading && w.f.Phase() == Idle && finals != w.f.Requests() {
		return fmt.Errorf("%d answers to %d requests", finals, w.f.Requests())
	}
	return nil
}

func shortened(b []byte) []byte { return b[:min(len(b), 2000)] }

func (w *httpWorld) find(target string) (int, *request) {
	i := slices.IndexFunc(w.asked, func(r request) bool { return r.target == target })
	if i < 0 {
		return i, nil
	}
	return i, &w.asked[i]
}

func (w *httpWorld) auditBack(b *back, served map[string]int) error {
	all, rest, err := b.requestsIn(b.whole())
	if err != nil {
		return err
	}
	for k, h := range all {
		i, r := w.find(h.target)
		if r == nil || r.method != h.method {
			return fmt.Errorf("leg %d got %s %s, which nobody asked for", b.number, h.method, h.target)
		}
		want := content(Client, r.target, r.body)
		if !bytes.HasPrefix(want, h.body) || h.whole && len(h.body) != len(want) {
			return fmt.Errorf("leg %d got %d octets with %s, the client said %d of other contents", b.number, len(h.body), h.target, len(want))
		}
		if (r.method == "CONNECT" || r.tunnel && h.fields.Get("Upgrade") != "") && i != len(w.asked)-1 && b.tunnel == k+1 {
			return fmt.Errorf("%s was granted a tunnel, and the client asked for more", h.target)
		}
		if !h.whole {
			continue
		}
		if served[h.target] += 1; served[h.target] == 1 {
			continue
		}
		if retries := []string{"/again/", "/stick/", "/falls/", "/sorry/"}; slices.ContainsFunc(retries, func(p string) bool { return strings.HasPrefix(h.target, p) }) {
			if err := w.auditRetries(h.target, served[h.target]); err != nil {
				return err
			}
			continue
		}
		// Only once more, and only if the leg before had served before and broke
		// without a word.
		before := w.backs[w.firstWith(h.target)]
		was, _, _ := before.requestsIn(before.whole())
		at := slices.IndexFunc(was, func(x heard) bool { return x.target == h.target })
		idempotent := slices.Contains([]string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"}, r.method)
		if served[h.target] > 2 || !idempotent || r.body > 0 || at == 0 || before.answered > at || !before.fin && !before.rst || k > 0 {
			return fmt.Errorf("%s %s was sent %d times, first on leg %d as request %d of which %d were answered", r.method, h.target, served[h.target], before.number, at, before.answered)
		}
	}
	if b.idle && b.parting {
		return fmt.Errorf("leg %d is idle, though its server said that it ends", b.number)
	}
	if b.idle && !b.raw && (len(all) != b.answered || len(all) > 0 && !all[len(all)-1].whole) {
		return fmt.Errorf("leg %d is idle with %d requests, %d answered", b.number, len(all), b.answered)
	}
	if want := octets(Client, 0, w.tunneled); !bytes.HasPrefix(want, rest) {
		return fmt.Errorf("leg %d got other octets through the tunnel than the client said", b.number)
	}
	return nil
}

func (w *httpWorld) firstWith(target string) int {
	return slices.IndexFunc(w.backs, func(b *back) bool {
		all, _, _ := b.requestsIn(b.whole())
		return slices.ContainsFunc(all, func(h heard) bool { return h.target == target })
	})
}

// auditClient reads what the client got and tells how many final answers there
// are.
func (w *httpWorld) auditClient() (finals int, err error) {
	k := &w.client
	w.statuses = nil
	fin := !k.rst && (k.ended || k.shut && !k.wiped)
	octets := k.whole()
	r := bufio.NewReaderSize(bytes.NewReader(octets), len(octets)+16)
	for {
		if !headIn(r) {
			if r.Buffered() > 0 && fin {
				return 0, fmt.Errorf("half a head, then FIN, as answer %d", finals)
			}
			return finals, nil
		}
		q := request{method: "GET", minor: 1}
		extra := finals >= len(w.asked)
		if !extra {
			q = w.asked[finals]
		}
		p, err := http.ReadResponse(r, &http.Request{Method: q.method})
		if err != nil {
			return 0, fmt.Errorf("answer %d: %w", finals, err)
		}
		about, theirs := p.Header["X-For"]
		if theirs && about[0] != q.target || !theirs && len(p.Header["X-Len"]) > 0 {
			return 0, fmt.Errorf("answer %d to %s is about %v", finals, q.target, about)
		}
		if tunnel := p.StatusCode == 101 || q.method == "CONNECT" && p.StatusCode/100 == 2; tunnel {
			got, _ := io.ReadAll(r)
			if !q.tunnel || !w.granted(got) {
				return 0, fmt.Errorf("answer %d opens a tunnel with other octets than the backend said", finals)
			}
			w.statuses = append(w.statuses, p.StatusCode)
			return finals + 1, nil
		}
		if p.StatusCode < 200 {
			if q.minor == 0 || p.StatusCode == 103 && !theirs {
				return 0, fmt.Errorf("interim answer %d to HTTP/1.%d", p.StatusCode, q.minor)
			}
			continue
		}
		if err := w.auditCookie(p, &q, theirs); err != nil {
			return 0, fmt.Errorf("answer %d: %w", finals, err)
		}
		w.statuses = append(w.statuses, p.StatusCode)
		got, err := io.ReadAll(p.Body)
		toEnd := p.ContentLength < 0 && len(p.TransferEncoding) == 0 && q.method != "HEAD" && p.StatusCode != 304
		whole := err == nil && (!toEnd || fin)
		if toEnd && !p.Close || len(p.TransferEncoding) > 0 && q.minor == 0 {
			return 0, fmt.Errorf("answer %d to HTTP/1.%d has no framing that it understands: %v", finals, q.minor, p.Header)
		}
		if theirs {
			n, _ := strconv.Atoi(p.Header.Get("X-Len"))
			if q.method == "HEAD" || p.StatusCode == 204 || p.StatusCode == 304 {
				n = 0
			}
			want := content(Backend, q.target, n)
			if raw := slices.ContainsFunc(w.backs, func(b *back) bool { return b.raw }); raw && toEnd && len(got) > n {
				got = got[:n] // what the script had it say behind
			}
			if !bytes.HasPrefix(want, got) || whole && len(got) != n {
				return 0, fmt.Errorf("answer %d to %s has %d octets, the backend said %d of other contents, it looks whole: %t", finals, q.target, len(got), n, whole)
			}
		} else if err := w.ours(p, &q, got, whole, extra); err != nil {
			return 0, err
		}
		if !whole {
			if fin && !w.ends {
				return 0, fmt.Errorf("half of answer %d, then FIN", finals)
			}
			return finals, nil
		}
		finals++
		if p.Close {
			if left, _ := io.ReadAll(r); len(left) > 0 && (q.method != "HEAD" || p.StatusCode != 408) { // the method may not have come yet
				return 0, fmt.Errorf("%d octets behind the last answer", len(left))
			}
			return finals, nil
		}
	}
}

// granted tells whether the octets are what a backend said in a tunnel.
func (w *httpWorld) granted(got []byte) bool {
	for _, b := range w.backs {
		if b.tunnel > 0 {
			return bytes.HasPrefix(octets(Backend, 0, b.tunneled), got)
		}
	}
	return false
}

// ours sees whether an answer of our own has its reason.
func (w *httpWorld) ours(p *http.Response, q *request, got []byte, whole, extra bool) error {
	right := false
	switch p.StatusCode {
	case 429:
		right = w.limited > 0 && strings.HasPrefix(q.target, "/falls/") && p.Header.Get("Retry-After") != ""
	case 200:
		right = strings.HasPrefix(q.target, "/sorry/") && w.refused && (!whole || string(got) == "sorry\n" || q.method == "HEAD") || strings.HasPrefix(q.target, "/hello/") && (!whole || string(got) == "hello\n" || q.method == "HEAD") ||
			p.Header.Get("Via") != "" && slices.ContainsFunc(w.backs, func(b *back) bool { return b.raw }) // what the script had it say
	case 308:
		right = strings.HasPrefix(q.target, "/moved/") && p.Header.Get("Location") == "http://elsewhere"+q.target
	case 400:
		right = w.raw || w.client.fin || strings.Contains(q.target, "..")
	case 404:
		right = w.listener == "strict" && !strings.HasPrefix(q.target, "/only/")
	case 408:
		right = w.expired
	case 413:
		right = q.body > 64<<10
	case 414:
		right = len(q.target) > 200
	case 417, 501, 505:
		right = w.raw
	case 431:
		right = w.raw || strings.HasPrefix(q.target, "/long")
	case 502:
		right = w.troubled
	case 503:
		right = w.refused || w.expired || w.ends
	case 504:
		right = w.expired
	}
	if extra && p.StatusCode != 400 && p.StatusCode != 408 && !w.raw {
		right = false
	}
	if !right {
		return fmt.Errorf("our answer %d to %s %s is for nothing: %q", p.StatusCode, q.method, q.target, got)
	}
	if p.StatusCode >= 400 && whole && q.method != "HEAD" && !strings.HasPrefix(string(got), strconv.Itoa(p.StatusCode)+" ") {
		return fmt.Errorf("our answer %d says %q", p.StatusCode, got)
	}
	return nil
}

// auditPlain: a flow without HTTP that begins with a PROXY header passes on what
// stands behind it, behind one of our own.
func (w *httpWorld) auditPlain() error {
	if (w.f.State() == Done) != (len(w.numbers) == 1) || len(w.numbers) > 1 {
		return errRecords
	}
	want, n := "", 0
	for _, o := range w.hops {
		switch {
		case o.side != Client:
		case o.verb == "says":
			want += o.text
		case o.verb == "body":
			want += string(octets(Client, n, o.n))
			n += o.n
		}
	}
	var from netip.AddrPort
	n, from, _, _, _ = proxyproto.Parse([]byte(want))
	for _, b := range w.backs {
		got := b.whole()
		k, told, _, _, err := proxyproto.Parse(got)
		if err != nil || k > 0 && told != from {
			return fmt.Errorf("leg %d is told %v: %v", b.number, told, err)
		}
		if !strings.HasPrefix(want[n:], string(got[k:])) {
			return fmt.Errorf("leg %d got %q, the client said %q", b.number, got[k:], want[n:])
		}
	}
	return nil
}
