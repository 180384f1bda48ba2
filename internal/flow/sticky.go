package flow

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
	"github.com/holdfast-lb/holdfast/internal/planted"
)

// A sticky cookie names the endpoint that its client goes to; we remember
// nothing. All hosts and releases read it, so its form is fixed, in base64url
// without padding (RFC 4648, section 5):
//
//	without a key    id
//	with a key       id, end, mac
//
//	id    8 octets  of an endpoint: the first of SHA-256(seed, its name)
//	end   8 octets  big-endian: when it ends, in seconds of the epoch; 0 is never
//	mac  16 octets  the first of HMAC-SHA256(key, "holdfast cookie", 0, the backend's name, 0, id, end)
//
// seed is HMAC-SHA256 with the key (SHA-256 without one) of "holdfast
// endpoints", 0 and the backend's name. So a cookie does not say where an
// endpoint is; without the key, though, who guesses a name can see that it was
// right.
const (
	idBytes     = 8
	macBytes    = 16
	signedBytes = idBytes + 8 + macBytes

	cookieLabel   = "holdfast cookie\x00"
	endpointLabel = "holdfast endpoints\x00"
)

var cookieText = base64.RawURLEncoding.Strict()

// triesMax bounds how many cookies of our name, in one request, are looked at:
// each costs a hash or two.
const triesMax = 4

// cookies knows the endpoints of backends by what cookies call them. It is a
// part of a [Desk]: what it holds can be had again from the configuration.
type cookies struct {
	of   *config.Config // at the last look
	by   map[config.Ref]*names
	line []byte // a Set-Cookie field
	raw  [signedBytes]byte
	sum  [sha256.Size]byte
}

// names are those of one version of a backend.
type names struct {
	label []byte
	mac   hash.Hash // nil without a key
	seed  [sha256.Size]byte
	at    map[uint64]uint32 // 1 + the index of the endpoint, by its id
}

// of gives the names of b's endpoints. They are made on first use; what has left
// the configuration goes when that changes.
func (c *cookies) names(now *config.Config, b *config.Backend) *names {
	if c.of != now {
		c.of = now
		for r := range c.by {
			if in := now.Backends[r.Name]; in == nil || in.Ref != r {
				delete(c.by, r)
			}
		}
	}
	n := c.by[b.Ref]
	if n != nil {
		return n
	}
	n = &names{label: []byte(cookieLabel + b.Ref.Name + "\x00"), at: make(map[uint64]uint32, len(b.Endpoints))}
	label := []byte(endpointLabel + b.Ref.Name)
	if key := b.Sticky.Key; key == "" {
		n.seed = sha256.Sum256(label)
	} else {
		n.mac = hmac.New(sha256.New, []byte(key))
		n.mac.Write(label)
		n.mac.Sum(n.seed[:0])
	}
	for i, e := range b.Endpoints {
		n.at[n.id(e.Name)] = uint32(i + 1)
	}
	if c.by == nil {
		c.by = map[config.Ref]*names{}
	}
	c.by[b.Ref] = n
	return n
}

// id is what cookies call an endpoint.
func (n *names) id(name string) uint64 {
	var room [sha256.Size + 256]byte
	sum := sha256.Sum256(append(append(room[:0], n.seed[:]...), name...))
	return binary.BigEndian.Uint64(sum[:])
}

// sign appends the mac of what raw begins with, in sum.
func (n *names) sign(raw, sum []byte) []byte {
	n.mac.Reset()
	n.mac.Write(n.label)
	n.mac.Write(raw[:idBytes+8])
	return n.mac.Sum(sum[:0])[:macBytes]
}

// endpoint gives 1 + the index of the endpoint that a cookie of the request names,
// 0 if no valid one does.
func (c *cookies) endpoint(d *Desk, b *config.Backend, h *h1.Head) uint32 {
	if b.Sticky == nil || b.Sticky.Kind != config.StickyCookie {
		return 0
	}
	all := jar{h: h}
	for range triesMax {
		v := all.next(b.Sticky.Name)
		if v == nil {
			break
		}
		if i := c.read(d, b, v); i != 0 {
			return i
		}
	}
	return 0
}

// read verifies the value of a cookie and gives 1 + the index of its endpoint, 0
// of one that is not valid.
func (c *cookies) read(d *Desk, b *config.Backend, value []byte) uint32 {
	n := c.names(d.Config, b)
	want := idBytes
	if n.mac != nil {
		want = signedBytes
	}
	if len(value) != cookieText.EncodedLen(want) {
		return 0
	}
	if _, err := cookieText.Decode(c.raw[:], value); err != nil {
		return 0
	}
	if n.mac != nil {
		if !hmac.Equal(n.sign(c.raw[:], c.sum[:]), c.raw[idBytes+8:]) && !planted.Bug(54) {
			return 0
		}
		if end := binary.BigEndian.Uint64(c.raw[idBytes:]); end != 0 && uint64(max(0, d.Wall)) >= end && !planted.Bug(55) {
			return 0
		}
	}
	return n.at[binary.BigEndian.Uint64(c.raw[:])]
}

// field makes the line that sets the cookie for an endpoint. It is valid until
// the next one is made.
func (c *cookies) field(d *Desk, b *config.Backend, e *config.Endpoint) []byte {
	n, s := c.names(d.Config, b), b.Sticky
	raw := c.raw[:idBytes]
	binary.BigEndian.PutUint64(raw, n.id(e.Name))
	if n.mac != nil {
		raw = c.raw[:]
		end := uint64(0)
		if s.MaxAge > 0 {
			end = uint64(max(0, d.Wall)) + uint64(seconds(s.MaxAge))
		}
		binary.BigEndian.PutUint64(raw[idBytes:], end)
		copy(raw[idBytes+8:], n.sign(raw, c.sum[:]))
	}
	line := append(c.line[:0], "Set-Cookie: "...)
	line = append(line, s.Name...)
	line = append(line, '=')
	line = cookieText.AppendEncode(line, raw)
	line = append(line, "; Path="...)
	if s.Path == "" {
		line = append(line, '/')
	}
	line = append(line, s.Path...)
	if s.Domain != "" {
		line = append(line, "; Domain="...)
		line = append(line, s.Domain...)
	}
	if s.MaxAge > 0 {
		line = append(line, "; Max-Age="...)
		line = strconv.AppendInt(line, seconds(s.MaxAge), 10)
	}
	line = append(line, "; HttpOnly"...)
	if s.Secure {
		line = append(line, "; Secure"...)
	}
	if s.SameSite != "" {
		line = append(line, "; SameSite="...)
		line = append(line, s.SameSite...)
	}
	c.line = append(line, '\r', '\n')
	return c.line
}

func seconds(d time.Duration) int64 { return int64((d-1)/time.Second) + 1 }

// cookie gives the line to add to the head h of a final response, if its
// endpoint is not the one that the client's cookie names. The name of the cookie
// is ours: what the backend sets by it is dropped.
func (f *Flow) cookie(d *Desk, h *h1.Head) []byte {
	b, x := f.backend, f.x
	s := b.Sticky
	if s == nil || s.Kind != config.StickyCookie {
		return nil
	}
	for i := range h.Fields {
		line := &h.Fields[i]
		if line.Known != h1.Other || !same(line.Name.Of(h.Octets), "Set-Cookie") {
			continue
		}
		name, _, _ := bytes.Cut(line.Value.Of(h.Octets), equals)
		line.Drop = line.Drop || string(bytes.TrimRight(name, " \t")) == s.Name
	}
	if n := int(x.stuck); n > 0 && n <= len(b.Endpoints) && b.Endpoints[n-1].Name == f.endpoint.Name && !planted.Bug(52) {
		return nil
	}
	return d.cookies.field(d, b, f.endpoint)
}

// jar goes through the cookies of a request (RFC 6265, section 4.2.1).
type jar struct {
	h    *h1.Head
	at   int    // the next field
	rest []byte // of the field before it
}

var semicolon = []byte(";")

// next gives the value of the next cookie of that name, without the quotes that
// it may have; nil if there is none. An empty one is not told from none.
func (j *jar) next(name string) []byte {
	for {
		for len(j.rest) > 0 {
			var one []byte
			one, j.rest, _ = bytes.Cut(j.rest, semicolon)
			k, v, ok := bytes.Cut(bytes.Trim(one, " \t"), equals)
			// A name may have room behind it (section 5.2).
			if !ok || string(bytes.TrimRight(k, " \t")) != name {
				continue
			}
			if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
				v = v[1 : n-1]
			}
			if len(v) > 0 {
				return v
			}
		}
		for ; ; j.at++ {
			if j.at == len(j.h.Fields) {
				return nil
			}
			if f := &j.h.Fields[j.at]; f.Known == h1.Other && same(f.Name.Of(j.h.Octets), "Cookie") {
				j.rest = f.Value.Of(j.h.Octets)
				j.at++
				break
			}
		}
	}
}
