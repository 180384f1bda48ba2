package accesslog

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
)

// former makes lines. What clients sent never ends a line nor brings a control
// octet into one: JSON escapes each octet that is not printable ASCII as the
// code point of the same number, text as \xHH.
type former struct {
	second int64  // of stamp
	stamp  []byte // "2026-11-22T11:48:44."
}

// line appends the line of a record that was noted at a time, in nanoseconds
// since 1970.
func (f *former) line(dst []byte, form config.LogFormat, at int64, r *flow.Record) []byte {
	switch form {
	case config.LogJSON:
		return f.json(dst, at, r)
	case config.LogText:
		return f.text(dst, at, r)
	}
	panic("accesslog: no format " + form.String())
}

// time appends a time of day with microseconds (RFC 3339, UTC).
func (f *former) time(dst []byte, at int64) []byte {
	second, rest := at/1e9, at%1e9
	if f.second != second || f.stamp == nil {
		f.second = second
		f.stamp = time.Unix(second, 0).UTC().AppendFormat(f.stamp[:0], "2006-01-02T15:04:05.")
	}
	dst = append(dst, f.stamp...)
	return append(fixed(dst, rest/1000, 6), 'Z')
}

// fixed appends n with so many digits.
func fixed(dst []byte, n int64, digits int) []byte {
	for unit := power(digits - 1); unit > 0; unit /= 10 {
		dst = append(dst, byte('0'+n/unit%10))
	}
	return dst
}

func power(n int) int64 {
	p := int64(1)
	for range n {
		p *= 10
	}
	return p
}

// millis appends d in milliseconds with three decimals, or -1 of a part that the
// flow did not come to.
func millis(dst []byte, d time.Duration) []byte {
	if d < 0 {
		return append(dst, "-1"...)
	}
	us := d.Microseconds()
	dst = strconv.AppendInt(dst, us/1000, 10)
	return fixed(append(dst, '.'), us%1000, 3)
}

const hexDigits = "0123456789abcdef"

// quoted appends a JSON string.
func quoted[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= ' ' && c < 0x7f:
			dst = append(dst, c)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(dst, '"')
}

// said appends a quoted string of the text form.
func said[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	dst = bare(dst, s)
	return append(dst, '"')
}

func bare[T string | []byte](dst []byte, s T) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= ' ' && c < 0x7f:
			dst = append(dst, c)
		default:
			dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return dst
}

func addr(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(dst, '-')
	}
	if a.Port() == 0 { // named by a proxy
		return a.Addr().AppendTo(dst)
	}
	return a.AppendTo(dst)
}

// json appends an object and LF. Members that would be empty, 0 or false are
// left out, but for the status of an HTTP exchange, the octets and the total time.
func (f *former) json(dst []byte, at int64, r *flow.Record) []byte {
	http := r.Protocol == config.HTTP
	dst = append(dst, `{"time":"`...)
	dst = f.time(dst, at)
	dst = append(dst, `","flow":"f-`...)
	dst = strconv.AppendUint(dst, r.Flow, 16)
	dst = append(dst, '"')
	if http {
		dst = append(dst, `,"number":`...)
		dst = strconv.AppendUint(dst, uint64(r.Number), 10)
	}
	dst = append(dst, `,"client":"`...)
	dst = addr(dst, r.Client)
	dst = append(dst, `","listener":`...)
	dst = quoted(dst, r.Listener.Ref.Name)
	if r.Route >= 0 {
		dst = append(dst, `,"route":`...)
		dst = strconv.AppendInt(dst, int64(r.Route), 10)
	}
	if r.Backend != nil {
		dst = append(dst, `,"backend":`...)
		dst = quoted(dst, r.Backend.Ref.Name)
	}
	if r.Endpoint != nil {
		dst = append(dst, `,"endpoint":`...)
		dst = quoted(dst, r.Endpoint.Name)
	}
	dst = append(dst, `,"protocol":"`...)
	dst = append(dst, r.Protocol.String()...)
	dst = append(dst, '"')
	if http {
		if len(r.Note.Method) > 0 {
			dst = append(dst, `,"version":"1.`...)
			dst = strconv.AppendUint(dst, uint64(r.Minor), 10)
			dst = append(dst, '"')
		}
		dst = member(dst, "method", r.Note.Method)
		dst = member(dst, "target", r.Note.Target)
		dst = member(dst, "host", r.Note.Host)
		dst = member(dst, "agent", r.Note.Agent)
		dst = append(dst, `,"status":`...)
		dst = strconv.AppendInt(dst, int64(r.Status), 10)
	}
	dst = append(dst, `,"cause":"`...)
	dst = append(dst, r.Cause.String()...)
	dst = append(dst, `","phase":"`...)
	dst = append(dst, r.Phase.String()...)
	dst = append(dst, `","attempts":`...)
	dst = strconv.AppendUint(dst, uint64(r.Attempts), 10)
	if r.Moves > 0 {
		dst = append(dst, `,"moves":`...)
		dst = strconv.AppendUint(dst, uint64(r.Moves), 10)
	}
	for _, x := range [...]struct {
		is   bool
		text string
	}{{r.Tunnel, `,"tunnel":true`}, {r.Stuck, `,"stuck":true`}, {r.Reused, `,"reused":true`}, {r.Own, `,"own":true`}} {
		if x.is {
			dst = append(dst, x.text...)
		}
	}
	for _, x := range [...]struct {
		name string
		d    time.Duration
	}{{`,"head_ms":`, r.Head}, {`,"wait_ms":`, r.Wait}, {`,"connect_ms":`, r.Connect}, {`,"answer_ms":`, r.Answer}, {`,"total_ms":`, r.Total}} {
		if x.d >= 0 {
			dst = append(dst, x.name...)
			dst = millis(dst, x.d)
		}
	}
	dst = append(dst, `,"in":`...)
	dst = strconv.AppendUint(dst, r.In, 10)
	dst = append(dst, `,"out":`...)
	dst = strconv.AppendUint(dst, r.Out, 10)
	return append(dst, '}', '\n')
}

func member(dst []byte, name string, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = append(append(append(dst, `,"`...), name...), `":`...)
	return quoted(dst, value)
}

// text appends a line of words, in the order of ideas of HAProxy's log:
//
//	time client listener[/route] backend/endpoint head/wait/connect/answer/total status in/out cause/phase attempts flow "request" "host" "agent"
//
// "-" is what there is not. Without HTTP the line ends after the flow.
func (f *former) text(dst []byte, at int64, r *flow.Record) []byte {
	dst = f.time(dst, at)
	dst = append(dst, ' ')
	dst = addr(dst, r.Client)
	dst = append(dst, ' ')
	dst = bare(dst, r.Listener.Ref.Name)
	if r.Route >= 0 {
		dst = append(dst, '/')
		dst = strconv.AppendInt(dst, int64(r.Route), 10)
	}
	dst = append(dst, ' ')
	switch {
	case r.Endpoint != nil:
		dst = bare(dst, r.Endpoint.Ref.Name) // with its backend's
	case r.Backend != nil:
		dst = append(bare(dst, r.Backend.Ref.Name), "/-"...)
	default:
		dst = append(dst, "-/-"...)
	}
	dst = append(dst, ' ')
	for _, d := range [...]time.Duration{r.Head, r.Wait, r.Connect, r.Answer} {
		dst = append(millis(dst, d), '/')
	}
	dst = append(millis(dst, r.Total), ' ')
	if r.Protocol == config.HTTP {
		dst = strconv.AppendInt(dst, int64(r.Status), 10)
	} else {
		dst = append(dst, '-')
	}
	dst = append(dst, ' ')
	dst = append(strconv.AppendUint(dst, r.In, 10), '/')
	dst = append(strconv.AppendUint(dst, r.Out, 10), ' ')
	dst = append(append(dst, r.Cause.String()...), '/')
	dst = append(append(dst, r.Phase.String()...), ' ')
	dst = append(strconv.AppendUint(dst, uint64(r.Attempts), 10), " f-"...)
	dst = strconv.AppendUint(dst, r.Flow, 16)
	if r.Protocol != config.HTTP {
		return append(dst, '\n')
	}
	dst = append(dst, '#')
	dst = strconv.AppendUint(dst, uint64(r.Number), 10)
	if len(r.Note.Method) == 0 { // its head was not understood, or did not come
		return append(dst, ` "-" "-" "-"`+"\n"...)
	}
	dst = append(dst, ' ', '"')
	dst = append(bare(dst, r.Note.Method), ' ')
	dst = append(bare(dst, r.Note.Target), " HTTP/1."...)
	dst = append(strconv.AppendUint(dst, uint64(r.Minor), 10), '"')
	dst = said(append(dst, ' '), r.Note.Host)
	dst = said(append(dst, ' '), r.Note.Agent)
	return append(dst, '\n')
}
