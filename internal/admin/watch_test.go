package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// changes makes n events.
func (s *served) changes(n int) {
	s.t.Helper()
	for i := range n {
		if _, err := s.SetEndpoint(node.EndpointRequest{Backend: "app", Endpoint: "b", Do: "weight", Weight: i%500 + 1}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// watch begins to watch by gRPC.
func (s *served) watch(ctx context.Context, q *api.WatchRequest) *connect.ServerStreamForClient[api.Event] {
	s.t.Helper()
	c := holdfastv1connect.NewNodeClient(clear(s.t, s.path), "http://localhost", connect.WithGRPC())
	w, err := c.Watch(ctx, q)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = w.Close() })
	if !w.Receive() || w.Msg().Kind != "watching" {
		s.t.Fatalf("begins with %v, %v", w.Msg(), w.Err())
	}
	return w
}

// A watcher that was cut off goes on behind what it has seen: it misses nothing
// and sees nothing twice.
func TestWatchIsResumable(t *testing.T) {
	s := serving(t, "")
	w := s.watch(t.Context(), &api.WatchRequest{})
	from := w.Msg().Seq
	s.changes(3)
	var seen []uint64
	for len(seen) < 2 && w.Receive() {
		seen = append(seen, w.Msg().Seq)
	}
	_ = w.Close()
	s.changes(3)
	w = s.watch(t.Context(), &api.WatchRequest{After: seen[1]})
	if w.Msg().Seq != seen[1] || w.Msg().Fields["last"] == "" {
		t.Errorf("begins with %v", w.Msg())
	}
	for len(seen) < 6 && w.Receive() {
		seen = append(seen, w.Msg().Seq)
	}
	for i, seq := range seen {
		if seq != from+1+uint64(i) {
			t.Fatalf("saw %d, from %d", seen, from)
		}
	}
	if len(seen) != 6 {
		t.Errorf("saw %d and then %v", seen, w.Err())
	}
}

// Kinds are chosen, and how things are comes along when that is wanted.
func TestWatchKindsAndStatus(t *testing.T) {
	s := serving(t, "")
	w := s.watch(t.Context(), &api.WatchRequest{Kinds: []string{"log"}, StatusEvery: durationpb.New(time.Hour)})
	if !w.Receive() || w.Msg().Kind != "status" || w.Msg().Status.GetGeneration() != s.Generation() || len(w.Msg().Status.GetListeners()) != 2 {
		t.Errorf("%v, %v", w.Msg(), w.Err())
	}
	w = s.watch(t.Context(), &api.WatchRequest{Kinds: []string{"nothing"}, StatusEvery: durationpb.New(statusLeast)})
	for i := range 2 {
		s.changes(1)
		if !w.Receive() || w.Msg().Kind != "status" {
			t.Errorf("%d: %v, %v", i, w.Msg(), w.Err())
		}
	}
	if status, text := s.send("Watch", `{"status_every":"1ms"}`); status != 400 || !strings.Contains(text, "200ms at least") {
		t.Errorf("%d %s", status, text)
	}
}

// A watcher that does not read holds up nobody. It is told how many events it has
// missed, and what it sees and what it is told are all that there were.
func TestSlowWatcher(t *testing.T) {
	s := serving(t, "")
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET /holdfast.v1.Node/Watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
	a, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(a.Body) // which never ends: closing c is enough
	next, missed := uint64(0), uint64(0)
	read := func() {
		var e api.Event
		if !lines.Scan() {
			t.Fatalf("ends with %v", lines.Err())
		}
		if err := (wire.JSON{}).Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Kind == "missed":
			missed += e.Seq - next + 1
		case e.Kind != "watching" && e.Seq != next:
			t.Fatalf("event %d after %d, and nobody said so", e.Seq, next-1)
		}
		next = e.Seq + 1
	}
	read()
	s.changes(8000) // more than are kept, and than fit into the buffers of a connection
	_, last := s.place(t)
	for next <= last {
		read()
	}
	if missed == 0 || next != last+1 {
		t.Errorf("%d missed, came to %d of %d", missed, next-1, last)
	}
}

func (s *served) place(t *testing.T) (read, last uint64) {
	t.Helper()
	w, err := s.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.Place()
}

// There are so many watchers and no more; one that leaves makes room.
func TestWatchersAreBounded(t *testing.T) {
	s := serving(t, "")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	c := holdfastv1connect.NewNodeClient(clear(t, s.path), "http://localhost", connect.WithGRPC())
	n := 0
	for ; n < 1000; n++ {
		w, err := c.Watch(ctx, &api.WatchRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !w.Receive() {
			if connect.CodeOf(w.Err()) != connect.CodeResourceExhausted {
				t.Errorf("%v", w.Err())
			}
			break
		}
	}
	if n != 64 {
		t.Errorf("%d watch", n)
	}
	leave()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w, err := s.Watch(0)
		if err == nil {
			w.Close()
			break
		}
		if !errors.Is(err, node.ErrBusy) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// When a process is done its watchers are told that, and where to go on; requests
// under way are answered, and idle connections of HTTP/2 do not hold it up.
func TestDrainEndsWatches(t *testing.T) {
	s := serving(t, "")
	w := s.watch(t.Context(), &api.WatchRequest{})
	s.changes(1)
	if !w.Receive() {
		t.Fatal(w.Err())
	}
	seen := w.Msg().Seq
	idle := holdfastv1connect.NewNodeClient(clear(t, s.path), "http://localhost", connect.WithGRPC())
	if _, err := idle.Status(t.Context(), &api.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() { s.server.Drain(); close(drained) }() // awaited below
	if w.Receive() {
		t.Errorf("one more event: %v", w.Msg())
	}
	if connect.CodeOf(w.Err()) != connect.CodeUnavailable || !strings.Contains(w.Err().Error(), fmt.Sprintf("after event %d", seen)) {
		t.Errorf("ends with %v", w.Err())
	}
	<-drained
	if n := s.server.http.asked(); n != 0 {
		t.Errorf("%d connections have no answer", n)
	}
}

// By curl's means a stream is a line for each message, and its end or trouble is
// the last one.
func TestWatchInLines(t *testing.T) {
	s := serving(t, "")
	s.changes(1) // after 0 is what is to come
	from, _ := s.place(t)
	s.changes(2)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://localhost/holdfast.v1.Node/Watch?after=%d&kinds=generation&kinds=endpoint", from), nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	if kind := a.Header.Get("Content-Type"); kind != "application/x-ndjson" || a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, kind)
	}
	lines := bufio.NewScanner(a.Body)
	lines.Buffer(nil, 1<<20)
	for i := range 3 {
		var e struct {
			Seq  uint64
			Kind string
		}
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Seq != from+uint64(i) || (e.Kind == "watching") != (i == 0) {
			t.Fatalf("line %d: %s", i, lines.Bytes())
		}
	}
	s.server.farewell()
	var end struct {
		Error struct{ Code, Message string }
	}
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &end) != nil || end.Error.Code != "unavailable" || lines.Scan() {
		t.Errorf("ends with %s", lines.Bytes())
	}
}
