package corpus

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// The fields by which a backend's answer says what it answers.
const (
	SerialField = "X-Lab-Serial" // counts the requests that backends saw
	KeyField    = "X-Lab-Key"    // Message.Key of the request
	MethodField = "X-Lab-Method"
)

// Answer is a final response that a client got.
type Answer struct {
	Status int
	Serial string // "" if no backend made it
	Key    string
	Close  bool // it says that the connection ends
}

// Answers reads what a client got in return for its requests. whole is false
// if the last answer is not complete, or does not end where it says.
func Answers(b []byte, asked *Reading, closed bool) (all []Answer, whole bool, err error) {
	for len(b) > 0 {
		head, rest, ok := bytes.Cut(b, []byte("\r\n\r\n"))
		if !ok {
			return all, false, nil
		}
		lines := strings.Split(string(head), "\r\n")
		version, status, _ := strings.Cut(lines[0], " ")
		status, _, _ = strings.Cut(status, " ")
		n, err := strconv.Atoi(status)
		if err != nil || version != "HTTP/1.1" && version != "HTTP/1.0" || n < 100 || n > 599 {
			return all, false, fmt.Errorf("corpus: %.40q is no answer", lines[0])
		}
		a, framing, err := answerFields(lines[1:])
		if err != nil {
			return all, false, err
		}
		if n < 200 {
			b = rest
			continue
		}
		a.Answer.Status = n
		a.Close = a.Close || version == "HTTP/1.0" && !a.keeps
		method := a.method
		if requests := asked.Complete(); method == "" && len(all) < len(requests) {
			method = requests[len(all)].Method
		} else if method == "" {
			method, _, _ = strings.Cut(asked.Rest, " ") // of what was refused
		}
		switch {
		case method == "HEAD", n == 204, n == 304:
			b = rest
		case framing == "chunked":
			_, size, end, err := strictChunks(rest)
			if err != nil {
				return all, false, fmt.Errorf("corpus: answer %d: %w", len(all)+1, err)
			}
			if end != Boundary {
				return all, false, nil
			}
			b = rest[size:]
		case framing != "":
			size, err := strconv.Atoi(framing)
			if err != nil || size < 0 {
				return all, false, fmt.Errorf("corpus: an answer with Content-Length %q", framing)
			}
			if size > len(rest) {
				return all, false, nil
			}
			b = rest[size:]
		default:
			if !closed {
				return all, false, nil
			}
			a.Close, b = true, nil
		}
		all = append(all, a.Answer)
	}
	return all, true, nil
}

// answer is one with what its reading needs.
type answer struct {
	Answer
	method string
	keeps  bool // Connection: keep-alive
}

func answerFields(lines []string) (a answer, framing string, err error) {
	for _, l := range lines {
		f, err := strictField(l)
		if err != nil {
			return a, "", fmt.Errorf("corpus: an answer with the line %.60q", l)
		}
		switch f.Name {
		case strings.ToLower(SerialField):
			a.Serial = f.Value
		case strings.ToLower(KeyField):
			a.Key = f.Value
		case strings.ToLower(MethodField):
			a.method = f.Value
		case "connection":
			a.Close = a.Close || strings.EqualFold(f.Value, "close")
			a.keeps = a.keeps || strings.EqualFold(f.Value, "keep-alive")
		case "transfer-encoding", "content-length":
			if framing != "" {
				return a, "", fmt.Errorf("corpus: an answer that is framed twice")
			}
			framing = strings.ToLower(f.Value)
		}
	}
	return a, framing, nil
}

// Seen is a request that a backend read and answered. Key is "" if it refused
// to read it.
type Seen struct {
	Serial, Key string
}

// Exchange is all that was seen of one stream.
type Exchange struct {
	Sent     []byte // by the client
	Received []byte // by the client
	Closed   bool   // the client saw the end of its connection
	Reset    bool   // that end was a reset
	Seen     []Seen // by the backend, in order
}

// Wrong says how an answer belongs to another request than the one it came
// for; "" if each is in its place.
func Wrong(x *Exchange) string {
	asked := Strict(x.Sent)
	requests := asked.Complete()
	all, whole, err := Answers(x.Received, &asked, x.Closed)
	switch {
	case err != nil:
		return err.Error()
	case !whole && !x.Reset:
		return fmt.Sprintf("answer %d is not complete", len(all)+1)
	case asked.End != Unreadable && len(all) > len(requests)+1, asked.End == Boundary && len(all) > len(requests):
		return fmt.Sprintf("%d answers to %d requests", len(all), len(requests))
	}
	served := 0
	for i, a := range all {
		if a.Serial == "" {
			// Of the balancer. The requests behind it are those that it
			// understood, if any.
			if i < len(all)-1 && i >= len(requests) {
				return fmt.Sprintf("answer %d (%d) to what is no request, and the connection goes on", i+1, a.Status)
			}
			continue
		}
		if served >= len(x.Seen) || x.Seen[served].Serial != a.Serial {
			return fmt.Sprintf("answer %d is that of request %s, out of order", i+1, a.Serial)
		}
		if i < len(requests) && a.Key != "" && requests[i].Key() != a.Key {
			return fmt.Sprintf("answer %d belongs to another request", i+1)
		}
		served++
	}
	switch {
	case served < len(x.Seen):
		return fmt.Sprintf("%d requests reached the backend, %d of its answers the client", len(x.Seen), served)
	case len(all) < len(requests) && !x.Closed:
		return fmt.Sprintf("%d answers to %d requests, and the connection is open", len(all), len(requests))
	case len(all) < len(requests) && (len(all) == 0 || !all[len(all)-1].last(&requests[len(all)-1])):
		return fmt.Sprintf("%d answers to %d requests, then the end", len(all), len(requests))
	}
	return ""
}

// last says whether a connection may end after this answer to m: an error of
// the balancer ends it, and so does what either side has asked for.
func (a *Answer) last(m *Message) bool { return a.Serial == "" || a.Close || !m.Persists() }

// Persists says whether the client wants the connection to go on after m (RFC
// 9112, section 9.3).
func (m *Message) Persists() bool {
	keep := m.Minor > 0
	for _, f := range m.Fields {
		if f.Name != "connection" {
			continue
		}
		for option := range strings.SplitSeq(f.Value, ",") {
			switch strings.ToLower(strings.Trim(option, " \t")) {
			case "close":
				return false
			case "keep-alive":
				keep = true
			}
		}
	}
	return keep
}
