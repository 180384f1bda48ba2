package corpus

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
)

// reader reads the message at the front of b. end is Boundary if all of it is
// there; an error is a refusal.
type reader interface {
	name() string
	next(b []byte) (m Message, end End, err error)
}

// readers are all that a forwarded stream is shown to.
func readers() []reader {
	all := []reader{strict{}, standard{}}
	for _, l := range laxes {
		all = append(all, l)
	}
	return all
}

// Strict reads a stream by the letter of RFC 9112.
func Strict(b []byte) Reading { return read(strict{}, b) }

// read lets r read all of b.
func read(r reader, b []byte) Reading {
	out := Reading{Reader: r.name(), Rest: string(b)}
	for len(b) > 0 {
		m, end, err := r.next(b)
		if err != nil {
			out.End, out.Why = Unreadable, err.Error()
			return out
		}
		if end == InHead {
			out.End = InHead
			return out
		}
		if end == InBody {
			m.Size = len(b) // whatever the reader thinks of the last line
		}
		out.Messages = append(out.Messages, m)
		if end == InBody {
			out.End = InBody
			return out
		}
		b = b[m.Size:]
		out.Rest = string(b)
		if m.Method == "CONNECT" && len(b) > 0 && r == (reader)(strict{}) {
			// RFC 9110, section 9.3.6: nobody knows what it is before the
			// answer is there.
			out.End, out.Why = Unreadable, "octets behind CONNECT"
			return out
		}
	}
	return out
}

// standard is net/http's server side, which is neither ours nor lax by design.
type standard struct{}

func (standard) name() string { return "net/http" }

func (standard) next(b []byte) (m Message, end End, err error) {
	in := bytes.NewReader(b)
	buffered := bufio.NewReader(in)
	req, err := http.ReadRequest(buffered)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return m, InHead, nil
	case err != nil:
		return m, InHead, refusal(err.Error())
	}
	m = Message{Method: req.Method, Target: req.RequestURI, Host: req.Host, Minor: byte(min(req.ProtoMinor, 1))}
	m.Head = len(b) - in.Len() - buffered.Buffered()
	m.Body, err = io.ReadAll(req.Body)
	m.Size = len(b) - in.Len() - buffered.Buffered()
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return m, InBody, nil
	case err != nil:
		return m, InBody, refusal(err.Error())
	}
	return m, Boundary, nil
}
