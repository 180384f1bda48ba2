package corpus

import (
	"bytes"
	"strconv"
	"strings"
)

// strict reads as RFC 9112 demands and refuses the rest. Where the RFC leaves a
// choice between repairing and refusing, it refuses.
type strict struct{}

func (strict) name() string { return "strict" }

// refusal is why a reader does not read on.
type refusal string

func (r refusal) Error() string { return string(r) }

// next reads the message at the front of b. It gives end InHead or InBody if b
// is too short for it.
func (strict) next(b []byte) (m Message, end End, err error) {
	head, ok, err := strictHead(b)
	if err != nil || !ok {
		return m, InHead, err
	}
	m.Head = len(head)
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	if err := strictRequestLine(&m, lines[0]); err != nil {
		return m, InHead, err
	}
	var hosts, lengths, codings []string
	m.Fields = []Field{}
	for _, l := range lines[1:] {
		f, err := strictField(l)
		if err != nil {
			return m, InHead, err
		}
		m.Fields = append(m.Fields, f)
		switch f.Name {
		case "host":
			hosts = append(hosts, f.Value)
		case "content-length":
			lengths = append(lengths, f.Value)
		case "transfer-encoding":
			codings = append(codings, f.Value)
		}
	}
	// RFC 9112, section 3.2.
	switch {
	case len(hosts) > 1:
		return m, InHead, refusal("two Host fields")
	case len(hosts) == 0 && m.Minor > 0:
		return m, InHead, refusal("no Host")
	case len(hosts) == 1:
		m.Host = hosts[0]
		if anyBut(m.Host, hostOctets) {
			return m, InHead, refusal("a Host that is none")
		}
	}
	m.Host = authority(m.Method, m.Target, m.Host)
	return strictBody(m, b, lengths, codings)
}

const (
	alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	tokenOctets  = alphanumeric + "!#$%&'*+-.^_`|~"     // RFC 9110, section 5.6.2
	hostOctets   = alphanumeric + "-._~%!$&'()*+,;=:[]" // RFC 3986, section 3.2.2, and a port
	hexDigits    = "0123456789abcdefABCDEF"
)

// strictHead gives the head at the front of b, its empty line included.
// Octets that no head can have are refused before its end is there.
func strictHead(b []byte) (head []byte, ok bool, err error) {
	if len(b) > 0 && !strings.ContainsRune(tokenOctets, rune(b[0])) {
		return nil, false, refusal("no request begins so")
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	head = b
	if end >= 0 {
		head = b[:end+4]
	}
	for i, c := range head {
		switch {
		case c == '\n' && (i == 0 || head[i-1] != '\r'):
			return nil, false, refusal("LF without CR")
		case c == '\r' && i+1 < len(head) && head[i+1] != '\n':
			return nil, false, refusal("CR without LF")
		case c < ' ' && c != '\t' && c != '\r' && c != '\n', c == 0x7f:
			return nil, false, refusal("a control octet")
		}
	}
	return head, end >= 0, nil
}

// strictRequestLine: method SP request-target SP HTTP-version (RFC 9112,
// section 3).
func strictRequestLine(m *Message, line string) error {
	part := strings.Split(line, " ")
	if len(part) != 3 {
		return refusal("a request line of other than three parts")
	}
	m.Method, m.Target = part[0], part[1]
	if m.Method == "" || anyBut(m.Method, tokenOctets) {
		return refusal("a method that is no token")
	}
	for i := range len(m.Target) {
		if c := m.Target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return refusal("a target with octets that none has")
		}
	}
	lower := strings.ToLower(m.Target)
	absolute := strings.HasPrefix(lower, "http://") || strings.HasPrefix(lower, "https://")
	origin := strings.HasPrefix(m.Target, "/")
	switch {
	case m.Method == "CONNECT" && (origin || absolute || !strings.Contains(m.Target, ":")),
		m.Method != "CONNECT" && !origin && !absolute && (m.Target != "*" || m.Method != "OPTIONS"):
		return refusal("a target of no form")
	}
	switch v := part[2]; {
	case len(v) != len("HTTP/1.1") || !strings.HasPrefix(v, "HTTP/1.") || v[7] < '0' || v[7] > '9':
		return refusal("another protocol")
	case v[7] != '0': // a higher minor version is read as the highest known one
		m.Minor = 1
	}
	return nil
}

// strictField: field-name ":" OWS field-value OWS, no folding (RFC 9112,
// section 5).
func strictField(line string) (Field, error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || anyBut(name, tokenOctets) {
		return Field{}, refusal("a field without a name")
	}
	return Field{strings.ToLower(name), strings.Trim(value, " \t")}, nil
}

// anyBut says whether s has an octet that is not in set.
func anyBut(s, set string) bool {
	for i := range len(s) {
		if strings.IndexByte(set, s[i]) < 0 {
			return true
		}
	}
	return false
}

// strictBody decides about the framing (RFC 9112, section 6.3).
func strictBody(m Message, b []byte, lengths, codings []string) (Message, End, error) {
	rest := b[m.Head:]
	switch {
	case m.Method == "CONNECT" && len(codings)+len(lengths) > 0:
		return m, InHead, refusal("a body of CONNECT") // RFC 9110, section 9.3.6
	case len(codings) > 0:
		if len(lengths) > 0 || len(codings) > 1 || m.Minor == 0 || !strings.EqualFold(codings[0], "chunked") {
			return m, InHead, refusal("Transfer-Encoding that is not just chunked, alone, in HTTP/1.1")
		}
		body, size, end, err := strictChunks(rest)
		m.Body, m.Size = body, m.Head+size
		return m, end, err
	case len(lengths) > 1:
		return m, InHead, refusal("two Content-Length fields")
	case len(lengths) == 1:
		const digitsMax = 15
		if l := lengths[0]; l == "" || len(l) > digitsMax || anyBut(l, "0123456789") {
			return m, InHead, refusal("a Content-Length that is no number")
		}
		n, _ := strconv.Atoi(lengths[0])
		if n > len(rest) {
			m.Body, m.Size = rest, len(b)
			return m, InBody, nil
		}
		m.Body, m.Size = rest[:n], m.Head+n
		return m, Boundary, nil
	}
	m.Size = m.Head
	return m, Boundary, nil
}

// strictChunks: RFC 9112, section 7.1. Of a body that is not complete it gives
// the data that is there.
func strictChunks(b []byte) (body []byte, size int, end End, err error) {
	at := 0
	line := func() (string, bool, error) {
		rest := b[at:]
		i := bytes.IndexByte(rest, '\n')
		l := rest
		if i >= 0 {
			l = rest[:i+1]
		}
		for k, c := range l {
			last := k == len(l)-1
			switch {
			case c == '\n' && (k == 0 || l[k-1] != '\r'):
				return "", false, refusal("a line of the chunks that ends in LF")
			case c == '\r' && !last && l[k+1] != '\n', c < ' ' && c != '\t' && c != '\r' && c != '\n', c == 0x7f:
				return "", false, refusal("a control octet in a line of the chunks")
			}
		}
		if i < 0 {
			return "", false, nil
		}
		at += i + 1
		return string(l[:len(l)-2]), true, nil
	}
	for {
		l, ok, err := line()
		if err != nil || !ok {
			return body, at, InBody, err
		}
		digits := len(l) - len(strings.TrimLeft(l, hexDigits))
		size, err := strconv.ParseInt(l[:digits], 16, 64)
		if digits == 0 || digits > 16 || err != nil || !strictExtensions(l[digits:]) {
			return body, at, InBody, refusal("a chunk size that is none")
		}
		n := int(size)
		if n == 0 {
			break
		}
		if len(b)-at < n {
			return append(body, b[at:]...), len(b), InBody, nil
		}
		body = append(body, b[at:at+n]...)
		at += n
		switch rest := b[at:]; {
		case len(rest) < 2 && bytes.HasPrefix([]byte("\r\n"), rest):
			return body, len(b), InBody, nil
		case !bytes.HasPrefix(rest, []byte("\r\n")):
			return body, at, InBody, refusal("a chunk that does not end where it should")
		}
		at += 2
	}
	for { // trailers
		l, ok, err := line()
		if err != nil || !ok {
			return body, at, InBody, err
		}
		if l == "" {
			return body, at, Boundary, nil
		}
		f, err := strictField(l)
		if err != nil {
			return body, at, InBody, err
		}
		if f.Name == "content-length" || f.Name == "transfer-encoding" || f.Name == "host" {
			return body, at, InBody, refusal("framing in a trailer") // RFC 9110, section 6.5.1
		}
	}
}

// strictExtensions: *( BWS ";" BWS name [ BWS "=" BWS value ] ), with values
// that are tokens or quoted (RFC 9112, section 7.1.1).
func strictExtensions(s string) bool {
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" {
			return true
		}
		if s[0] != ';' {
			return false
		}
		s = strings.TrimLeft(s[1:], " \t")
		name := len(s) - len(strings.TrimLeft(s, tokenOctets))
		if name == 0 {
			return false
		}
		s = strings.TrimLeft(s[name:], " \t")
		if s == "" || s[0] != '=' {
			continue
		}
		s = strings.TrimLeft(s[1:], " \t")
		if s != "" && s[0] == '"' {
			i := 1
			for i < len(s) && s[i] != '"' {
				if s[i] == '\\' {
					i++
				}
				i++
			}
			if i >= len(s) {
				return false
			}
			s = s[i+1:]
			continue
		}
		value := len(s) - len(strings.TrimLeft(s, tokenOctets))
		if value == 0 {
			return false
		}
		s = s[value:]
	}
}
