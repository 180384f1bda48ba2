package admin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
)

// olderForm tells whether a question is that of a command of v0.5.0, for which
// Upgrade and Migrate had one answer, the report. Whoever goes back to that release may
// have no other command at hand.
func olderForm(r *http.Request, kind string) bool {
	if m := method(r.URL.Path); m != "Upgrade" && m != "Migrate" {
		return false
	}
	return kind == "application/proto" || kind == "application/json" && r.Header.Get("Connect-Protocol-Version") != ""
}

// inReport serves the stream of a move to a client that wants its report and
// nothing else.
func inReport(w http.ResponseWriter, r *http.Request, kind string, next http.Handler) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			problem(w, http.StatusRequestEntityTooLarge, connect.CodeResourceExhausted, fmt.Sprintf("admin: a request has %d octets at most", bodyMax))
		}
		return // else the client is gone
	}
	form := kind[len("application/"):]
	r = r.Clone(r.Context())
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(head), bytes.NewReader(body)))
	r.ContentLength = int64(envelopeHead + len(body))
	r.Header.Set("Content-Type", "application/connect+"+form)
	r.Header.Set("Connect-Protocol-Version", "1")
	r.Header.Del("Connect-Accept-Encoding")
	r.Header.Del("Accept-Encoding")
	x := &lastOf{to: w, header: http.Header{}}
	next.ServeHTTP(x, r)
	x.finish(kind)
}

// lastOf keeps the last message of a stream.
type lastOf struct {
	to     http.ResponseWriter
	header http.Header // of the handler: that of the answer is another
	kept   []byte      // the beginning of an envelope
	last   []byte
	end    []byte // the last envelope, which has the error if there is one
	status int
}

func (l *lastOf) Header() http.Header { return l.header }

func (l *lastOf) WriteHeader(status int) {
	if status != http.StatusOK {
		l.status = status // it goes on in plain text
		l.to.Header().Set("Content-Type", l.header.Get("Content-Type"))
		l.to.WriteHeader(status)
	}
}

func (l *lastOf) Write(b []byte) (int, error) {
	if l.status != 0 {
		return l.to.Write(b)
	}
	l.kept = append(l.kept, b...)
	for len(l.kept) >= envelopeHead {
		end := envelopeHead + int(binary.BigEndian.Uint32(l.kept[1:]))
		if len(l.kept) < end {
			break
		}
		payload := bytes.Clone(l.kept[envelopeHead:end])
		if l.kept[0]&envelopeEnd != 0 {
			l.end = payload
		} else {
			l.last = payload
		}
		l.kept = l.kept[end:]
	}
	return len(b), nil
}

// Flush is there for a stream; nothing is sent before the end.
func (l *lastOf) Flush() {}

// finish answers with the report of the last step, or with the error.
func (l *lastOf) finish(kind string) {
	if l.status != 0 {
		return
	}
	var end struct {
		Error *struct {
			Code    connect.Code `json:"code"`
			Message string       `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(l.end, &end); err != nil {
		problem(l.to, http.StatusInternalServerError, connect.CodeInternal, "admin: the move has told nothing of its end")
		return
	}
	if end.Error != nil {
		problem(l.to, statusOf(end.Error.Code), end.Error.Code, end.Error.Message)
		return
	}
	report, err := reportOf(kind, l.last)
	if err != nil {
		problem(l.to, http.StatusInternalServerError, connect.CodeInternal, err.Error())
		return
	}
	l.to.Header().Set("Content-Type", kind)
	_, _ = l.to.Write(report) // a client that is gone does not hear of it
}

// reportOf is the report in a step, in the form of both.
func reportOf(kind string, step []byte) ([]byte, error) {
	if kind == "application/json" {
		var p struct {
			Move json.RawMessage `json:"move"`
		}
		if err := json.Unmarshal(step, &p); err != nil || len(p.Move) == 0 {
			return nil, fmt.Errorf("admin: the last step has no report (%v)", err)
		}
		return p.Move, nil
	}
	var p api.Progress
	if err := proto.Unmarshal(step, &p); err != nil || p.Move == nil {
		return nil, fmt.Errorf("admin: the last step has no report (%v)", err)
	}
	return proto.Marshal(p.Move)
}
