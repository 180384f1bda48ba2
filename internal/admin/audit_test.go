package admin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/node"
)

// spool is a log that a test reads.
type spool struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *spool) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func audited(t *testing.T, path string) (all []auditLine, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var l auditLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, l)
	}
	return all, string(b)
}

// Each write leaves a line that says who did what, done or refused, in the log and
// in the state's directory; a read leaves none, and what was written is in neither.
func TestAuditLog(t *testing.T) {
	log := new(spool)
	dir := filepath.Join(t.TempDir(), "state")
	s := servingAs(t, "", func(o *node.Options) {
		o.State, o.Log = dir, slog.New(slog.NewTextHandler(log, nil))
		// There is a journal of a node that has a file.
		o.File = filepath.Join(t.TempDir(), "holdfast.yaml")
		if err := os.WriteFile(o.File, o.Source, 0o600); err != nil {
			t.Fatal(err)
		}
		o.Source = nil
	})
	const secret = "hunter2-hunter2"
	writes := 0
	for _, m := range methodsOf() {
		q := questions[string(m.Name())]
		s.line(string(m.Name()), jsonOf(t, q.ask))
		if !isRead(m) {
			writes++
		}
	}
	path := filepath.Join(dir, "audit.log")
	all, _ := audited(t, path)
	if len(all) != writes {
		t.Errorf("%d lines for %d writes", len(all), writes)
	}
	for _, l := range all {
		want := cmp.Or(questions[l.Method].code, "ok")
		if l.Result != want || l.Who == "" || l.Role != "admin" {
			t.Errorf("%+v", l)
		}
	}
	for _, x := range []struct{ name, body, object, result string }{
		{"Apply", weigh(21, `,"reason":"more room","idempotency_key":"k-7"`), "endpoint/app/b.weight", "ok"},
		{"Apply", fmt.Sprintf(`{"edits":[{"object":"listener/web","field":"nothing","value":%q}]}`, secret), "listener/web.nothing", "invalid_argument"},
		{"Apply", fmt.Sprintf(`{"source":"listeners: { password: %s }"}`, secret), "a configuration of 40 octets", "invalid_argument"},
		{"SetEndpoint", `{"backend":"app","endpoint":"a","do":"ready"}`, "endpoint/app/a do ready", "ok"},
		{"Kill", `{"id":"f-1"}`, "id f-1", "ok"},
		{"Remove", `{"object":"endpoint/app/none"}`, "endpoint/app/none", "not_found"},
	} {
		s.send(x.name, x.body)
		all, _ := audited(t, path)
		if l := all[len(all)-1]; l.Method != x.name || l.Object != x.object || l.Result != x.result {
			t.Errorf("%s: %+v", x.body, l)
		}
	}
	all, text := audited(t, path)
	was := s.Generation()
	s.send("Apply", weigh(22, ""), "X-Reason", "less room", "Idempotency-Key", "k-8", "If-Match", fmt.Sprint(was))
	byHeaders, _ := audited(t, path)
	if l := byHeaders[len(byHeaders)-1]; l.Reason != "less room" || l.Key != "k-8" || l.Expected != was || l.Result != "ok" {
		t.Errorf("what headers say: %+v", l)
	}
	if l := all[writes]; l.Reason != "more room" || l.Key != "k-7" || l.Generation == 0 {
		t.Errorf("%+v", l)
	}
	if strings.Contains(text, secret) || strings.Contains(log.String(), secret) {
		t.Errorf("a secret is told:\n%s\n%s", text, log)
	}
	if n := strings.Count(log.String(), "msg=audit"); n != len(byHeaders) {
		t.Errorf("%d lines in the log, %d on disk", n, len(byHeaders))
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// A large file makes place for another one, and so many are kept; where it cannot
// be written, work goes on and the log says so once.
func TestAuditLogIsBounded(t *testing.T) {
	dir, log := t.TempDir(), new(spool)
	a := &audit{log: slog.New(slog.NewTextHandler(log, nil)), dir: func() string { return dir }}
	path := filepath.Join(dir, "audit.log")
	for i := range auditKept + 3 {
		if err := os.WriteFile(path, bytes.Repeat([]byte{'x'}, auditMax-10), 0o600); err != nil {
			t.Fatal(err)
		}
		a.note(entry{call: &call{caller: caller{name: fmt.Sprint("anna ", i)}}, method: "Kill"})
		if all, _ := audited(t, path); len(all) != 1 || all[0].Who != fmt.Sprint("anna ", i) {
			t.Errorf("%+v", all)
		}
	}
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) != auditKept+1 {
		t.Errorf("%q, %v", names, err)
	}
	dir = filepath.Join(dir, "gone")
	for range 2 {
		a.note(entry{call: &call{caller: caller{name: "anna"}}, method: "Kill"})
	}
	if n := strings.Count(log.String(), "has gaps"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log)
	}
}
