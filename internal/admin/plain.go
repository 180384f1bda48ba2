package admin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
)

// plain makes the API pleasant for curl, where Connect alone is not: a read is a
// GET with the fields as its query, and a stream is a line of JSON for each
// message. All else goes to next as it is, and so do these after a change of form:
// roles, limits and audit are the same for everybody.
func plain(next http.Handler) http.Handler {
	kinds := map[string]protoreflect.MethodDescriptor{}
	all := api.File_holdfast_v1_holdfast_proto.Services().ByName("Node").Methods()
	for i := range all.Len() {
		kinds[string(all.Get(i).Name())] = all.Get(i)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := kinds[method(r.URL.Path)]
		if m == nil {
			next.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodGet && isRead(m) && !r.URL.Query().Has("encoding") {
			r = rewritten(r, m)
		}
		if r.Method != http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) // "" is none
		switch {
		case !strings.HasPrefix(kind, "application/") || kind == "application/x-www-form-urlencoded":
			problem(w, http.StatusUnsupportedMediaType, connect.CodeInvalidArgument,
				"admin: say what is sent: Content-Type: application/json, or application/yaml for a file; curl does so with --json")
		case olderForm(r, kind):
			inReport(w, r, kind, next)
		case m.IsStreamingServer() && (kind == "application/json" || kind == "application/x-ndjson"):
			inLines(w, r, next)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isRead tells whether a method only looks.
func isRead(m protoreflect.MethodDescriptor) bool {
	o, _ := m.Options().(*descriptorpb.MethodOptions)
	return o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

// fieldsOf makes the query of a GET a message of kind d in JSON. What d does not
// have stays in it, to be refused like in any other request.
func fieldsOf(q url.Values, d protoreflect.MessageDescriptor) []byte {
	fields := map[string]any{}
	for name, values := range q {
		var value any = values[0] // which a number may be as well
		f := d.Fields().ByName(protoreflect.Name(name))
		switch {
		case f == nil:
		case f.IsList():
			value = values
		case f.Kind() == protoreflect.BoolKind:
			if is, err := strconv.ParseBool(values[0]); err == nil {
				value = is
			}
		}
		fields[name] = value
	}
	b, _ := json.Marshal(fields) // strings and bools
	return b
}

// rewritten is a GET as Connect has it, or a POST for what is a stream.
func rewritten(r *http.Request, m protoreflect.MethodDescriptor) *http.Request {
	message := fieldsOf(r.URL.Query(), m.Input())
	r = r.Clone(r.Context())
	if m.IsStreamingServer() {
		r.Method, r.Body, r.ContentLength = http.MethodPost, io.NopCloser(bytes.NewReader(message)), int64(len(message))
		r.Header.Set("Content-Type", "application/json")
		r.URL.RawQuery = ""
		return r
	}
	r.URL.RawQuery = url.Values{"connect": {"v1"}, "encoding": {"json"}, "message": {string(message)}}.Encode()
	return r
}

// problem writes an error as Connect's plain form has it.
func problem(w http.ResponseWriter, status int, code connect.Code, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	b, _ := json.Marshal(map[string]string{"code": code.String(), "message": text})
	_, _ = w.Write(append(b, '\n'))
}

// Connect puts each message of a stream into an envelope: an octet of flags, and
// its length in four.
const (
	envelopeHead = 5
	envelopeEnd  = 2 // the flag of the last one, which has the error if there is one
)

// inLines serves a stream to a client that wants lines.
func inLines(w http.ResponseWriter, r *http.Request, next http.Handler) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			problem(w, http.StatusRequestEntityTooLarge, connect.CodeResourceExhausted, fmt.Sprintf("admin: a request has %d octets at most", bodyMax))
		}
		return // else the client is gone
	}
	r = r.Clone(r.Context())
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(head), bytes.NewReader(body)))
	r.ContentLength = int64(envelopeHead + len(body))
	r.Header.Set("Content-Type", "application/connect+json")
	r.Header.Set("Connect-Protocol-Version", "1")
	r.Header.Del("Connect-Accept-Encoding")
	next.ServeHTTP(&lines{to: w, header: http.Header{}}, r)
}

// lines unpacks the envelopes that are written to it. It begins to answer with the
// first message, so that an error before it has its status.
type lines struct {
	to      http.ResponseWriter
	header  http.Header // of the handler: that of the answer is another
	kept    []byte      // the beginning of an envelope
	status  int
	answers bool
}

func (l *lines) Header() http.Header { return l.header }

func (l *lines) WriteHeader(status int) {
	if status != http.StatusOK {
		l.status = status // it goes on in plain text
		l.begin(l.header.Get("Content-Type"), status)
	}
}

func (l *lines) begin(kind string, status int) {
	if !l.answers {
		l.answers = true
		if kind != "" {
			l.to.Header().Set("Content-Type", kind)
		}
		l.to.WriteHeader(status)
	}
}

func (l *lines) Write(b []byte) (int, error) {
	if l.status != 0 {
		return l.to.Write(b)
	}
	l.kept = append(l.kept, b...)
	for len(l.kept) >= envelopeHead {
		end := envelopeHead + int(binary.BigEndian.Uint32(l.kept[1:]))
		if len(l.kept) < end {
			break
		}
		if err := l.envelope(l.kept[0], l.kept[envelopeHead:end]); err != nil {
			return 0, err
		}
		l.kept = l.kept[end:]
	}
	return len(b), nil
}

func (l *lines) envelope(flags byte, payload []byte) error {
	if flags&envelopeEnd == 0 {
		l.begin("application/x-ndjson", http.StatusOK)
		_, err := l.to.Write(payload)
		return err
	}
	var end struct {
		Error *struct {
			Code    connect.Code `json:"code"`
			Message string       `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(payload, &end); err != nil {
		return fmt.Errorf("admin: end of a stream: %w", err)
	}
	switch {
	case end.Error == nil:
		l.begin("application/x-ndjson", http.StatusOK)
		return nil
	case !l.answers:
		l.answers = true
		problem(l.to, statusOf(end.Error.Code), end.Error.Code, end.Error.Message)
		return nil
	}
	b, _ := json.Marshal(map[string]any{"error": map[string]string{"code": end.Error.Code.String(), "message": end.Error.Message}})
	_, err := l.to.Write(append(b, '\n'))
	return err
}

// Flush sends what is written.
func (l *lines) Flush() {
	if l.answers {
		_ = http.NewResponseController(l.to).Flush() // the client is gone: the next write says so
	}
}

// statusOf is the status that Connect's plain form has for a code.
func statusOf(c connect.Code) int {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		return http.StatusBadRequest
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	case connect.CodePermissionDenied:
		return http.StatusForbidden
	case connect.CodeNotFound:
		return http.StatusNotFound
	case connect.CodeAborted, connect.CodeAlreadyExists:
		return http.StatusConflict
	case connect.CodeResourceExhausted:
		return http.StatusTooManyRequests
	case connect.CodeUnavailable:
		return http.StatusServiceUnavailable
	case connect.CodeCanceled:
		return 499
	case connect.CodeUnimplemented:
		return http.StatusNotImplemented
	case connect.CodeDeadlineExceeded:
		return http.StatusGatewayTimeout
	case connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss:
		return http.StatusInternalServerError
	default:
		return http.StatusInternalServerError
	}
}
