package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Bounds of the audit log on disk.
const (
	auditMax   = 8 << 20 // octets of one file
	auditKept  = 4       // older files
	auditText  = 512     // octets of what somebody else wrote
	auditEdits = 8       // objects that are named
)

// audit keeps who has done what: in the log, and in a file of the state's
// directory if there is one. What it never has are values: of configurations and
// edits it has names.
type audit struct {
	log *slog.Logger
	// dir is asked each time: a successor has none before it has the journal.
	dir func() string

	// mu guards what follows.
	mu   sync.Mutex
	said string // of the file's last trouble
}

// entry is one write.
type entry struct {
	call            *call
	method          string
	request, answer proto.Message // nil: it was not read, there is none
	err             error
	took            time.Duration
}

// auditLine is an entry as it stands in the file.
type auditLine struct {
	At         time.Time `json:"at"`
	Who        string    `json:"who"`
	Role       string    `json:"role"`
	From       string    `json:"from,omitempty"`
	Method     string    `json:"method"`
	Object     string    `json:"object,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Key        string    `json:"idempotency_key,omitempty"`
	Expected   uint64    `json:"expected_generation,omitempty"`
	Generation uint64    `json:"generation,omitempty"`
	Result     string    `json:"result"` // ok, or the code of the error
	Error      string    `json:"error,omitempty"`
	Millis     float64   `json:"took_ms"`
}

func (a *audit) note(e entry) {
	l := auditLine{
		At: time.Now().UTC(), Who: e.call.name, Role: "none", From: e.call.from, Method: e.method, Result: "ok",
		Millis: float64(e.took.Microseconds()) / 1000,
	}
	if e.call.may {
		l.Role = e.call.role.String()
	}
	if e.request != nil {
		m := e.request.ProtoReflect()
		l.Object = objectOf(m)
		l.Reason, l.Key = short(textOf(m, "reason")), short(textOf(m, "idempotency_key"))
		l.Expected = numberOf(m, "expected_generation")
	}
	if e.answer != nil {
		l.Generation = numberOf(e.answer.ProtoReflect(), "generation")
	}
	if e.err != nil {
		l.Result = connect.CodeOf(e.err).String()
		// What is wrong with a configuration may quote from it.
		if connect.CodeOf(e.err) != connect.CodeInvalidArgument {
			var said *connect.Error
			if errors.As(e.err, &said) {
				l.Error = short(said.Message())
			}
		}
	}
	a.log.Info("audit", "who", l.Who, "role", l.Role, "from", l.From, "method", l.Method, "object", l.Object, "reason", l.Reason,
		"generation", l.Generation, "result", l.Result, "error", l.Error, "took", e.took)
	a.keep(l)
}

// keep writes a line to the file.
func (a *audit) keep(l auditLine) {
	dir := a.dir()
	if dir == "" {
		return
	}
	b, err := json.Marshal(l)
	if err != nil {
		panic(fmt.Sprintf("admin: audit: %v", err)) // words and numbers
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	err = appendTo(filepath.Join(dir, "audit.log"), append(b, '\n'))
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != a.said && text != "" {
		a.log.Error("the audit log on disk has gaps", "error", err)
	}
	a.said = text
}

// appendTo opens the file each time: a predecessor or an operator may have put it
// away meanwhile.
func appendTo(path string, line []byte) error {
	if st, err := os.Lstat(path); err == nil && st.Size()+int64(len(line)) > auditMax {
		for i := auditKept - 1; i > 0; i-- {
			_ = os.Rename(fmt.Sprintf("%s.%d", path, i), fmt.Sprintf("%s.%d", path, i+1))
		}
		if err := os.Rename(path, path+".1"); err != nil {
			return fmt.Errorf("admin: audit log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("admin: audit log: %w", err)
	}
	_, err = f.Write(line)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("admin: audit log: %w", err)
	}
	return nil
}

// objectOf says in a word what a request is about, by the fields it has.
func objectOf(m protoreflect.Message) string {
	var all []string
	for _, name := range []protoreflect.Name{"edits", "revert"} {
		d := m.Descriptor().Fields().ByName(name)
		if d == nil {
			continue
		}
		list := m.Get(d).List()
		for i := range min(list.Len(), auditEdits) {
			x := list.Get(i).Message()
			object := textOf(x, "object")
			if field := textOf(x, "field"); field != "" {
				object += "." + field
			}
			all = append(all, object)
		}
		if more := list.Len() - auditEdits; more > 0 {
			all = append(all, fmt.Sprintf("and %d more", more))
		}
	}
	switch object, backend := textOf(m, "object"), textOf(m, "backend"); {
	case object != "":
		all = append(all, object)
	case textOf(m, "endpoint") != "":
		all = append(all, "endpoint/"+backend+"/"+textOf(m, "endpoint"))
	case backend != "":
		all = append(all, "backend/"+backend)
	}
	if n := len(textOf(m, "source")); n > 0 {
		all = append(all, fmt.Sprintf("a configuration of %d octets", n))
	}
	for _, name := range []string{"do", "to", "level", "id", "binary"} {
		if s := textOf(m, name); s != "" {
			all = append(all, name+" "+s)
		}
	}
	if n := numberOf(m, "rollback"); n > 0 {
		all = append(all, fmt.Sprintf("rollback to %d", n))
	}
	for _, name := range []protoreflect.Name{"reread", "dry_run", "keep", "all", "force"} {
		if d := m.Descriptor().Fields().ByName(name); d != nil && m.Get(d).Bool() {
			all = append(all, string(name))
		}
	}
	return short(strings.Join(all, " "))
}

func textOf(m protoreflect.Message, name string) string {
	if d := m.Descriptor().Fields().ByName(protoreflect.Name(name)); d != nil && d.Kind() == protoreflect.StringKind && !d.IsList() {
		return m.Get(d).String()
	}
	return ""
}

// numberOf is a field of m, or of the report in it.
func numberOf(m protoreflect.Message, name string) uint64 {
	fields := m.Descriptor().Fields()
	if d := fields.ByName(protoreflect.Name(name)); d != nil && d.Kind() == protoreflect.Uint64Kind {
		return m.Get(d).Uint()
	}
	if d := fields.ByName("report"); d != nil && m.Has(d) {
		return numberOf(m.Get(d).Message(), name)
	}
	return 0
}

func short(s string) string {
	if len(s) > auditText {
		return strings.ToValidUTF8(s[:auditText], "") + "..."
	}
	return s
}
