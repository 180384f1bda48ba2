package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
)

// question is one that a test may ask of each method, with the end that it has in
// any form of the API.
type question struct {
	ask  proto.Message
	code string // "" is an answer
	has  string // what the answer has in JSON, or what the refusal says
}

// questions has one for each method. They can be asked again and again.
var questions = map[string]question{
	"Status":    {ask: &api.StatusRequest{}, has: `"flows_reset_by_move_total":0`},
	"Flows":     {ask: &api.FlowsRequest{Listener: "raw"}, has: `{"flows":[]}`},
	"Endpoints": {ask: &api.EndpointsRequest{}, has: `"name":"app/a"`},
	"GetConfig": {ask: &api.GetConfigRequest{}, has: `"source":"\nnode:`},
	"History":   {ask: &api.HistoryRequest{Max: 1}, has: `"in_force":true`},
	"Watch":     {ask: &api.WatchRequest{StatusEvery: durationpb.New(time.Hour)}, has: `"kind":"watching"`},
	"Diff":      {ask: &api.ChangeRequest{Edits: []*api.Patch{{Object: "endpoint/app/b", Field: "weight", Value: "77"}}}, has: `"weights_changed":1`},
	"Apply":     {ask: &api.ChangeRequest{Edits: []*api.Patch{{Object: "endpoint/app/b", Field: "weight", Value: "9"}}}, has: `"edits":[`},
	"Settle":    {ask: &api.SettleRequest{Keep: true}, code: "failed_precondition", has: "no canary"},
	"SetEndpoint": {ask: &api.EndpointRequest{Backend: "app", Endpoint: "a", Do: "ready"},
		has: `"endpoint":"app/a"`},
	"Remove":    {ask: &api.RemoveRequest{Object: "endpoint/app/none"}, code: "not_found", has: "none"},
	"Shift":     {ask: &api.ShiftRequest{Backend: "app", Endpoint: "none", Over: durationpb.New(time.Minute)}, code: "not_found", has: "none"},
	"Kill":      {ask: &api.KillRequest{Filter: &api.FlowsRequest{Listener: "raw"}}, has: `"killed":0`},
	"Shed":      {ask: &api.ShedRequest{Backend: "app", Percent: 0}, has: `"backend":"app"`},
	"Rebalance": {ask: &api.RebalanceRequest{}, has: `"distance":"loop"`},
	"SetLog":    {ask: &api.LogRequest{}, has: `{"was":"INFO","is":"INFO"}`},
	"Migrate":   {ask: &api.MigrateRequest{To: "elsewhere"}, code: "failed_precondition", has: "no cluster section"},
	"Evacuate":  {ask: &api.EvacuateRequest{}, code: "failed_precondition", has: "no cluster section"},
	"Return":    {ask: &api.ReturnRequest{}, code: "failed_precondition", has: "no cluster section"},
	"Take":      {ask: &api.TakeRequest{Vip: "shop"}, code: "not_found", has: "no VIP"},
	"Upgrade":   {ask: &api.UpgradeRequest{Binary: "/nonexistent/holdfast"}, code: "failed_precondition", has: "/nonexistent/holdfast"},
	"Busy":      {ask: &api.BusyRequest{Seconds: 90}, code: "invalid_argument", has: "seconds of 1 to 60"},
}

func methodsOf() (all []protoreflect.MethodDescriptor) {
	list := api.File_holdfast_v1_holdfast_proto.Services().ByName("Node").Methods()
	for i := range list.Len() {
		all = append(all, list.Get(i))
	}
	return all
}

func jsonOf(t *testing.T, m proto.Message) string {
	t.Helper()
	b, err := wire.JSON{}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Every method answers by curl's means: plain HTTP and plain JSON.
func TestEachMethodInPlainJSON(t *testing.T) {
	s := serving(t, "")
	for _, m := range methodsOf() {
		name := string(m.Name())
		q, ok := questions[name]
		if !ok {
			t.Errorf("no question for %s", name)
			continue
		}
		status, text := s.line(name, jsonOf(t, q.ask))
		want := http.StatusOK
		switch q.code {
		case "":
		case "not_found":
			want = http.StatusNotFound
		default:
			want = http.StatusBadRequest
		}
		if status != want || !strings.Contains(text, q.has) || q.code != "" && !strings.Contains(text, `"code":"`+q.code+`"`) {
			t.Errorf("%s: %d, want %d with %s and %q: %s", name, status, want, q.has, q.code, text)
		}
		if isRead(m) {
			if status, got := s.line(name, ""); status != http.StatusOK && name != "Diff" {
				t.Errorf("GET %s: %d %s", name, status, got)
			}
		} else if status, _ := s.ask("/holdfast.v1.Node/"+name, ""); status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s, which writes: %d", name, status)
		}
	}
}

// What is short is not compressed, though the client would take it: a compressor is
// more than the answer.
func TestShortAnswersAreNotCompressed(t *testing.T) {
	s := serving(t, "")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/holdfast.v1.Node/Status", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept-Encoding", "gzip")
	a, err := s.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	if a.StatusCode != http.StatusOK || a.Header.Get("Content-Encoding") != "" {
		t.Errorf("%s, encoded as %q", a.Status, a.Header.Get("Content-Encoding"))
	}
}

// line asks by POST, or without a body by GET, and reads the first line.
func (s *served) line(name, body string) (int, string) {
	s.t.Helper()
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, "http://localhost/holdfast.v1.Node/"+name, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	a, err := s.http.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	text, err := bufio.NewReaderSize(a.Body, 1<<20).ReadString('\n')
	if err != nil && (err != io.EOF || text == "") {
		s.t.Fatalf("%s: %v after %q", name, err, text)
	}
	return a.StatusCode, text
}

// clear is a client that speaks HTTP/2 to a unix socket.
func clear(t *testing.T, path string) *http.Client {
	t.Helper()
	x := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	x.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(x.CloseIdleConnections)
	return &http.Client{Transport: x}
}

// called asks one method with a client of any protocol and gives the answer, the
// first one of a stream.
func called(ctx context.Context, h connect.HTTPClient, base string, m protoreflect.MethodDescriptor, q proto.Message, o ...connect.ClientOption) (proto.Message, error) {
	name := string(m.Name())
	url := base + "/holdfast.v1.Node/" + name
	switch name {
	case "Status":
		return once[api.StatusRequest, api.Status](ctx, h, url, q, o...)
	case "Flows":
		return once[api.FlowsRequest, api.FlowsResponse](ctx, h, url, q, o...)
	case "Endpoints":
		return once[api.EndpointsRequest, api.EndpointsResponse](ctx, h, url, q, o...)
	case "GetConfig":
		return once[api.GetConfigRequest, api.ConfigState](ctx, h, url, q, o...)
	case "History":
		return once[api.HistoryRequest, api.HistoryResponse](ctx, h, url, q, o...)
	case "Diff", "Apply":
		return once[api.ChangeRequest, api.ChangeReport](ctx, h, url, q, o...)
	case "Settle":
		return once[api.SettleRequest, api.ChangeReport](ctx, h, url, q, o...)
	case "SetEndpoint":
		return once[api.EndpointRequest, api.EndpointReport](ctx, h, url, q, o...)
	case "Kill":
		return once[api.KillRequest, api.KillReport](ctx, h, url, q, o...)
	case "Shed":
		return once[api.ShedRequest, api.ShedReport](ctx, h, url, q, o...)
	case "Rebalance":
		return once[api.RebalanceRequest, api.Report](ctx, h, url, q, o...)
	case "SetLog":
		return once[api.LogRequest, api.LogReport](ctx, h, url, q, o...)
	case "Migrate":
		return first[api.MigrateRequest, api.Progress](ctx, h, url, q, o...)
	case "Evacuate":
		return first[api.EvacuateRequest, api.Progress](ctx, h, url, q, o...)
	case "Return":
		return first[api.ReturnRequest, api.Progress](ctx, h, url, q, o...)
	case "Take":
		return first[api.TakeRequest, api.Progress](ctx, h, url, q, o...)
	case "Busy":
		return once[api.BusyRequest, api.BusyReport](ctx, h, url, q, o...)
	case "Watch":
		return first[api.WatchRequest, api.Event](ctx, h, url, q, o...)
	case "Remove":
		return first[api.RemoveRequest, api.Progress](ctx, h, url, q, o...)
	case "Shift":
		return first[api.ShiftRequest, api.Progress](ctx, h, url, q, o...)
	case "Upgrade":
		return first[api.UpgradeRequest, api.Progress](ctx, h, url, q, o...)
	}
	return nil, fmt.Errorf("the test does not know %s", name)
}

func once[Q, A any](ctx context.Context, h connect.HTTPClient, url string, q any, o ...connect.ClientOption) (proto.Message, error) {
	r, err := connect.NewClient[Q, A](h, url, o...).CallUnary(ctx, connect.NewRequest(q.(*Q)))
	if err != nil {
		return nil, err
	}
	return any(r.Msg).(proto.Message), nil
}

func first[Q, A any](ctx context.Context, h connect.HTTPClient, url string, q any, o ...connect.ClientOption) (proto.Message, error) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	r, err := connect.NewClient[Q, A](h, url, o...).CallServerStream(ctx, connect.NewRequest(q.(*Q)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if !r.Receive() {
		return nil, r.Err()
	}
	return any(r.Msg()).(proto.Message), nil
}

// Every method answers in each protocol, and says the same.
func TestEachMethodInEachProtocol(t *testing.T) {
	s := serving(t, "")
	h := clear(t, s.path)
	for protocol, o := range map[string][]connect.ClientOption{
		"gRPC": {connect.WithGRPC()}, "gRPC with JSON": {connect.WithGRPC(), connect.WithProtoJSON()}, "gRPC-Web": {connect.WithGRPCWeb()},
		"Connect": nil, "Connect with JSON": {connect.WithProtoJSON()},
	} {
		for _, m := range methodsOf() {
			q := questions[string(m.Name())]
			a, err := called(t.Context(), h, "http://localhost", m, q.ask, o...)
			if q.code != "" {
				if connect.CodeOf(err).String() != q.code || !strings.Contains(err.Error(), q.has) {
					t.Errorf("%s, %s: %v, want %s with %q", protocol, m.Name(), err, q.code, q.has)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", protocol, m.Name(), err)
				continue
			}
			if text := jsonOf(t, a); !strings.Contains(text, q.has) {
				t.Errorf("%s, %s: %s", protocol, m.Name(), text)
			}
		}
	}
}
