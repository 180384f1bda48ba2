package corpus

import (
	"bytes"
	"strings"
)

// lax reads what a strict reader refuses, in one of the ways that servers have
// been seen to. A stream is only safe to forward if each of these readers finds
// the same messages in it.
type lax struct {
	as string

	lf, cr      bool // LF, or CR, ends a line alone
	nul         bool // NUL ends a value, as it does a C string
	lengthFirst bool // Content-Length rules over Transfer-Encoding
	last        bool // of several fields the last counts, not the first
	loose       bool // any value with "chunked" in it, any name with white space or rubbish around it
	folds       bool // a line that begins with white space belongs to the one before it
	size        bool // a chunk size is what can be read of it, after 0x or white space too
	exact       bool // a length that is none does not count
	old         bool // HTTP/1.0 knows no Transfer-Encoding
	data        bool // what is behind a chunk's data is looked for, not counted
}

// laxes are the minds that are asked.
var laxes = []lax{
	{as: "length first", lengthFirst: true},
	{as: "coding first", loose: true},
	{as: "coding first, folding", loose: true, folds: true},
	{as: "bare LF", lf: true, loose: true},
	{as: "bare LF, length first", lf: true, lengthFirst: true, folds: true},
	{as: "bare CR", lf: true, cr: true},
	{as: "bare CR, coding first", lf: true, cr: true, loose: true},
	{as: "C strings", nul: true, lf: true},
	{as: "last field", last: true},
	{as: "last field, coding first", last: true, loose: true},
	{as: "any chunk size", size: true, loose: true},
	{as: "any chunk size, bare LF", size: true, lf: true},
	{as: "any chunk end", data: true, size: true, lf: true},
	{as: "exact", exact: true, lengthFirst: true},
	{as: "exact, last field", exact: true, last: true},
	{as: "old", old: true},
}

func (l lax) name() string { return l.as }

// line cuts the first line off b. ok is false if its end is not there.
func (l lax) line(b []byte) (line, rest []byte, ok bool) {
	for i, c := range b {
		switch {
		case c == '\r' && i+1 < len(b) && b[i+1] == '\n':
			return b[:i], b[i+2:], true
		case c == '\n' && l.lf:
			return b[:i], b[i+1:], true
		case c == '\r' && l.cr:
			if i+1 == len(b) {
				return nil, b, false // LF may follow
			}
			return b[:i], b[i+1:], true
		}
	}
	return nil, b, false
}

// rubbish is what some readers trim.
const rubbish = " \t\r\n\v\f\x00\x1c\x1d\x1e\x1f\x7f\x85\xa0"

// trimLeft takes rubbish and more off the front, octet by octet: it is no text.
func trimLeft(s, more string) string {
	for s != "" && (strings.IndexByte(rubbish, s[0]) >= 0 || strings.IndexByte(more, s[0]) >= 0) {
		s = s[1:]
	}
	return s
}

// trim takes rubbish off both ends.
func trim(s string) string {
	for s != "" && strings.IndexByte(rubbish, s[len(s)-1]) >= 0 {
		s = s[:len(s)-1]
	}
	return trimLeft(s, "")
}

// next reads the message at the front of b.
func (l lax) next(b []byte) (m Message, end End, err error) {
	rest := b
	var line []byte
	var ok bool
	for { // empty lines before a request are passed over
		if line, rest, ok = l.line(rest); !ok {
			return m, InHead, nil
		}
		if len(line) > 0 {
			break
		}
	}
	part := strings.FieldsFunc(string(line), func(r rune) bool { return strings.ContainsRune(" \t\v\f\r", r) })
	if len(part) < 3 || !strings.HasPrefix(part[len(part)-1], "HTTP/") {
		return m, InHead, refusal("no request line")
	}
	version := part[len(part)-1]
	m.Method, m.Target = part[0], strings.Join(part[1:len(part)-1], " ")
	if version != "HTTP/1.0" {
		m.Minor = 1
	}
	m.Fields = []Field{}
	for {
		if line, rest, ok = l.line(rest); !ok {
			return m, InHead, nil
		}
		if len(line) == 0 {
			break
		}
		l.field(&m, string(line))
	}
	m.Head = len(b) - len(rest)
	host, _ := l.value(m.Fields, "host")
	m.Host = authority(m.Method, m.Target, host)
	length, hasLength := l.value(m.Fields, "content-length")
	coding, hasCoding := l.value(m.Fields, "transfer-encoding")
	chunked := hasCoding && (strings.EqualFold(coding, "chunked") || l.loose && strings.Contains(strings.ToLower(coding), "chunked"))
	switch {
	case chunked && !(l.lengthFirst && hasLength) && !(l.old && m.Minor == 0):
		body, size, end := l.chunks(rest)
		m.Body, m.Size = body, m.Head+size
		return m, end, nil
	case hasLength && !(l.exact && anyBut(length, "0123456789")):
		n := number(trimLeft(length, "+"), 10)
		if n > len(rest) {
			m.Body, m.Size = rest, len(b)
			return m, InBody, nil
		}
		m.Body, m.Size = rest[:n], m.Head+n
	default:
		m.Size = m.Head
	}
	return m, Boundary, nil
}

// field adds a line to the message's fields. A line that is none is passed
// over.
func (l lax) field(m *Message, line string) {
	if l.folds && strings.ContainsAny(line[:1], " \t") && len(m.Fields) > 0 {
		f := &m.Fields[len(m.Fields)-1]
		f.Value = strings.Trim(f.Value+" "+strings.Trim(line, " \t"), " \t")
		return
	}
	name, value, ok := strings.Cut(line, ":")
	if !ok {
		return
	}
	if l.nul {
		value, _, _ = strings.Cut(value, "\x00")
		name, _, _ = strings.Cut(name, "\x00")
	}
	if l.loose {
		// Only what rules the framing: of the others, rubbish is contents.
		switch n := trimOctets(name, tokenOctets); strings.ToLower(n) {
		case "content-length", "transfer-encoding":
			name, value = n, trim(value)
		}
	}
	m.Fields = append(m.Fields, Field{strings.ToLower(name), strings.Trim(value, " \t")})
}

// trimOctets cuts octets that are not in set off both ends of s.
func trimOctets(s, set string) string {
	for s != "" && strings.IndexByte(set, s[0]) < 0 {
		s = s[1:]
	}
	for s != "" && strings.IndexByte(set, s[len(s)-1]) < 0 {
		s = s[:len(s)-1]
	}
	return s
}

// value gives the field that counts among those of a name.
func (l lax) value(all []Field, name string) (value string, ok bool) {
	for _, f := range all {
		if f.Name == name && (!ok || l.last) {
			value, ok = f.Value, true
		}
	}
	return value, ok
}

// number reads digits as strtol does: as many as there are.
func number(s string, base int) int {
	n := 0
	for _, c := range strings.ToLower(s) {
		d := strings.IndexRune("0123456789abcdef"[:base], c)
		if d < 0 || n > 1<<40 {
			break
		}
		n = n*base + d
	}
	return n
}

// chunks reads a chunked body. Of one that is not complete it gives the data
// that is there.
func (l lax) chunks(b []byte) (body []byte, size int, end End) {
	rest := b
	for {
		line, after, ok := l.line(rest)
		if !ok {
			return body, len(b), InBody
		}
		rest = after
		digits := string(line)
		if l.size {
			digits = trimLeft(digits, "+")
			digits = strings.TrimPrefix(strings.TrimPrefix(digits, "0x"), "0X")
			digits = strings.ReplaceAll(digits, "_", "")
		}
		n := number(digits, 16)
		if n == 0 {
			break
		}
		if n > len(rest) {
			return append(body, rest...), len(b), InBody
		}
		body = append(body, rest[:n]...)
		rest = rest[n:]
		if l.data {
			rest = bytes.TrimLeft(rest, "\r\n")
			continue
		}
		// What stands where the line's end should be is skipped unseen.
		if len(rest) < 2 {
			return body, len(b), InBody
		}
		if l.lf && rest[0] == '\n' {
			rest = rest[1:]
		} else {
			rest = rest[2:]
		}
	}
	for {
		line, after, ok := l.line(rest)
		if !ok {
			return body, len(b), InBody
		}
		rest = after
		if len(line) == 0 {
			return body, len(b) - len(rest), Boundary
		}
	}
}
