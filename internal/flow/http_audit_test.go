package flow

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// hashed is HMAC-SHA256, or SHA-256 without a key.
func hashed(key string, parts ...string) []byte {
	h := sha256.New()
	if key != "" {
		h = hmac.New(sha256.New, []byte(key))
	}
	for _, p := range parts {
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

// goodCookie makes the cookie of an endpoint of a backend with the tests' key, by
// the words of sticky.go alone.
func goodCookie(backend, endpoint string, end int) string {
	id := hashed("", string(hashed(cookieKeyOfTests, "holdfast endpoints\x00", backend)), endpoint)[:8]
	raw := binary.BigEndian.AppendUint64(id, uint64(end))
	mac := hashed(cookieKeyOfTests, "holdfast cookie\x00", backend, "\x00", string(raw))[:16]
	return base64.RawURLEncoding.EncodeToString(append(raw, mac...))
}

// plainCookie is that of a backend without a key.
func plainCookie(backend, endpoint string) string {
	return base64.RawURLEncoding.EncodeToString(hashed("", string(hashed("", "holdfast endpoints\x00", backend)), endpoint)[:8])
}

// answeredBy is the leg whose server gave the client the answer about a target.
func (w *httpWorld) answeredBy(target string) *back {
	for _, b := range slices.Backward(w.backs) {
		all, _, _ := b.requestsIn(b.whole())
		if slices.ContainsFunc(all, func(h heard) bool { return h.target == target }) {
			return b
		}
	}
	return nil
}

// auditCookie: the client is given a cookie where it has none that is good for
// the endpoint that answers, once, and in no other answer.
func (w *httpWorld) auditCookie(p *http.Response, q *request, theirs bool) error {
	b := w.answeredBy(q.target)
	signed := b != nil && b.endpoint.Backend == "sticky"
	plain := b != nil && b.endpoint.Backend == "open"
	var ours []*http.Cookie
	for _, c := range p.Cookies() {
		if c.Name == "hf" && (signed || plain || strings.TrimSpace(c.Value) != "theirs") {
			ours = append(ours, c)
		}
	}
	if raw := b != nil && b.raw; raw || len(w.statuses) >= len(w.asked) {
		return nil // whatever it is, it was said by the script
	}
	if !theirs || !signed && !plain {
		if len(ours) > 0 && b != nil {
			return fmt.Errorf("%s is answered with a cookie %v", q.target, ours)
		}
		return nil
	}
	wall := int(w.desk.Wall)
	if q.stuck == b.endpoint.Name && q.good > wall && strings.HasPrefix(q.target, "/stick/") {
		if len(ours) > 0 {
			return fmt.Errorf("%s has a good cookie and gets another: %v", q.target, ours)
		}
		return nil
	}
	if q.stuck == b.endpoint.Name && q.good > wallAt+1 && len(ours) == 0 {
		return nil // it was good then
	}
	if len(ours) != 1 {
		return fmt.Errorf("%s gets %d cookies", q.target, len(ours))
	}
	c := ours[0]
	if !signed {
		if want := plainCookie("open", b.endpoint.Name); c.Value != want || c.MaxAge != 0 || c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != 0 {
			return fmt.Errorf("%s gets %v, want %s", q.target, c, want)
		}
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil || len(raw) != 32 {
		return fmt.Errorf("cookie %q: %w", c.Value, err)
	}
	end := int(binary.BigEndian.Uint64(raw[8:]))
	if want := goodCookie("sticky", b.endpoint.Name, end); c.Value != want || end < wallAt+3600 || end > wall+3600 {
		return fmt.Errorf("%s at %s gets %s that ends at %d, want %s", q.target, b.endpoint.Name, c.Value, end, want)
	}
	if c.MaxAge != 3600 || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "example.org" || c.SameSite != http.SameSiteLaxMode {
		return fmt.Errorf("%s gets %v", q.target, c)
	}
	return nil
}

// auditRetries: what is sent again, be it that a response is thrown away or none
// came, may be sent again, and all that came before was in vain.
func (w *httpWorld) auditRetries(target string, times int) error {
	_, r := w.find(target)
	if idempotent := slices.Contains([]string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}, r.method); !idempotent || r.body > 0 {
		return fmt.Errorf("%s %s was sent %d times, and may not", r.method, target, times)
	}
	repeats, good := 0, 0 // of all legs that got it, in whatever order
	for _, x := range w.backs {
		all, _, _ := x.requestsIn(x.whole())
		at := slices.IndexFunc(all, func(h heard) bool { return h.target == target })
		switch {
		case at < 0 || !all[at].whole || slices.Contains(x.busy, target):
		case !x.fin && !x.rst || x.answered > at:
			good++
		case at > 0:
			repeats++
		}
	}
	if good > 1 || times-repeats > 3 {
		return fmt.Errorf("%s was sent %d times, %d of them since a pooled leg was dead; %d legs may serve it still", target, times, repeats, good)
	}
	return nil
}

// auditRecords: of each request there is one record, in order, and it says what
// the client got.
func (w *httpWorld) auditRecords(finals int) error {
	numbers, requests := w.numbers, uint32(w.f.Requests())
	var r Record
	if w.f.State() != Done && w.f.Sum(w.now, &r) {
		numbers = append(slices.Clone(numbers), r.Number)
	}
	for i, n := range numbers {
		if n != uint32(i+1) {
			return fmt.Errorf("record %d is of request %d", i+1, n)
		}
	}
	if n := uint32(len(numbers)); n != requests && (n != requests+1 || !w.half()) {
		return fmt.Errorf("%d requests and %d records, one of which is still to come: %t", requests, n, w.f.State() != Done)
	}
	for i, got := range w.statuses[:min(len(w.statuses), len(w.status))] {
		if w.status[i] != got && i < finals {
			return fmt.Errorf("record %d says %d, the client got %d", i+1, w.status[i], got)
		}
	}
	if got := uint64(len(w.client.whole())); w.f.State() == Done && !w.client.rst && !w.client.wiped && w.out != got {
		return fmt.Errorf("the client got %d octets by the records, it is %d", w.out, got)
	}
	if got := uint64(w.client.said - len(w.client.in) - w.greeted()); w.in > got {
		return fmt.Errorf("the client said %d octets by the records, it is %d", w.in, got)
	}
	return nil
}

// half tells whether the last record is of a request whose head never came.
func (w *httpWorld) half() bool {
	var r Record
	if w.f.State() != Done && w.f.Sum(w.now, &r) {
		return r.Head < 0
	}
	return w.headless
}

var errRecords = errors.New("a flow of TCP has not exactly one record")

// greeted is the length of the PROXY header, as the client has said it.
func (w *httpWorld) greeted() int {
	if len(httpObjects.Listeners[w.listener].ProxyFrom) == 0 {
		return 0
	}
	return w.greeting()
}
