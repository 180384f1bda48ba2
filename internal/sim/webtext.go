package sim

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// The clients and servers of HTTP read and write it by themselves, in the
// simplest way that is right, so that no mistake of package h1 is shared.

// head is the first part of a message.
type head struct {
	line   string
	fields [][2]string // names in lower case
}

// cutHead takes a head from the front of b; n is 0 while its end is not there.
func cutHead(b []byte) (h head, n int, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return head{}, 0, nil
	}
	lines := strings.Split(string(b[:end]), "\r\n")
	h.line = lines[0]
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return head{}, 0, fmt.Errorf("%q is no field", line)
		}
		h.fields = append(h.fields, [2]string{strings.ToLower(name), strings.TrimSpace(value)})
	}
	return h, end + 4, nil
}

// get gives the values of a field in one line.
func (h *head) get(name string) string {
	var all []string
	for _, f := range h.fields {
		if f[0] == name {
			all = append(all, f[1])
		}
	}
	return strings.Join(all, ", ")
}

// says tells whether the field's list has the word.
func (h *head) says(name, word string) bool {
	for _, s := range strings.Split(h.get(name), ",") {
		if strings.EqualFold(strings.TrimSpace(s), word) {
			return true
		}
	}
	return false
}

// framing is how the end of a body is known.
type framing uint8

const (
	bodiless framing = iota
	byLength
	chunked
	untilClose
)

var framingNames = [...]string{"no body", "a length", "chunks", "the end of the connection"}

func (f framing) String() string { return framingNames[f] }

// framed reads how the body behind a head is framed; a request's never is
// untilClose.
func (h *head) framed(response bool) (framing, int, error) {
	length, coding := h.get("content-length"), h.get("transfer-encoding")
	switch {
	case length != "" && coding != "":
		return 0, 0, fmt.Errorf("both a length (%s) and a coding (%s)", length, coding)
	case coding == "chunked":
		return chunked, 0, nil
	case coding != "":
		return 0, 0, fmt.Errorf("a coding %q", coding)
	case length != "":
		n, err := strconv.Atoi(length)
		if n == 0 && err == nil {
			return bodiless, 0, nil
		}
		return byLength, n, err
	case response:
		return untilClose, 0, nil
	}
	return bodiless, 0, nil
}

// content reads a body.
type content struct {
	framing framing
	left    int // of the length, or of the chunk
	where   chunkPart
	over    bool
}

type chunkPart uint8

const (
	chunkSize chunkPart = iota
	chunkData
	chunkEnd
	chunkTrailer
)

func newContent(f framing, length int) content {
	return content{framing: f, left: length, over: f == bodiless}
}

// next takes some octets from the front of b, of which those in data are
// content. Nothing is taken when more is needed first, or when it is over.
func (c *content) next(b []byte) (n int, data []byte, err error) {
	switch {
	case c.over || len(b) == 0:
		return 0, nil, nil
	case c.framing == untilClose:
		return len(b), b, nil
	case c.framing == byLength, c.where == chunkData:
		n = min(c.left, len(b))
		if c.left -= n; c.left == 0 {
			c.over, c.where = c.framing == byLength, chunkEnd
		}
		return n, b[:n], nil
	}
	end := bytes.Index(b, []byte("\r\n"))
	if end < 0 {
		return 0, nil, nil
	}
	line := string(b[:end])
	switch c.where {
	case chunkEnd:
		if line != "" {
			return 0, nil, fmt.Errorf("%.20q behind a chunk", line)
		}
		c.where = chunkSize
	case chunkSize:
		size, err := strconv.ParseUint(line, 16, 31)
		if err != nil {
			return 0, nil, fmt.Errorf("%.20q is no size of a chunk", line)
		}
		if c.left, c.where = int(size), chunkData; size == 0 {
			c.where = chunkTrailer
		}
	case chunkTrailer:
		if c.over = line == ""; !c.over && !strings.HasPrefix(line, "X-Sum:") {
			return 0, nil, fmt.Errorf("%.20q is no trailer that was sent", line)
		}
	}
	return end + 2, nil, nil
}

// inChunks writes a body in chunks whose sizes pick gives, with extensions and
// trailers now and then.
func inChunks(b []byte, pick func(n int) int) []byte {
	var out []byte
	for len(b) > 0 {
		k := 1 + pick(min(len(b), 1<<pick(18)))
		out = strconv.AppendUint(out, uint64(k), 16)
		if pick(8) == 0 {
			out = append(out, ";a=b;c=\"d\\\"e\""...)
		}
		out = append(out, "\r\n"...)
		out = append(append(out, b[:k]...), "\r\n"...)
		b = b[k:]
	}
	out = append(out, "0\r\n"...)
	if pick(4) == 0 {
		out = append(out, "X-Sum: 1\r\n"...)
	}
	return append(out, "\r\n"...)
}

// same tells at which of the octets got, which are those from at on, the
// stream of key is left; -1 if nowhere.
func same(got []byte, key uint64, at int) int {
	var want [4096]byte
	for i := 0; i < len(got); {
		k := min(len(got)-i, len(want))
		fill(want[:k], key, at+i)
		if !bytes.Equal(got[i:i+k], want[:k]) {
			for j := range k {
				if got[i+j] != want[j] {
					return at + i + j
				}
			}
		}
		i += k
	}
	return -1
}
