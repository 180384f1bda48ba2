package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// methods is the API: each method reads its message, asks the node, and makes a
// message of the answer. What is ruled here is who may ask, and what is kept of it.
type methods struct {
	*Server
}

var _ holdfastv1connect.NodeHandler = methods{}

// compressMin is from how many octets on an answer is compressed, for who takes
// that. The state of a compressor is a megabyte: for the report of a change that was
// the most of what the change cost in memory.
const compressMin = 256 << 10

// apiHandler is all that the API serves.
func (s *Server) apiHandler() http.Handler {
	options := connect.WithHandlerOptions(
		connect.WithCodec(wire.JSON{Subtype: "json"}),
		connect.WithCodec(wire.JSON{Subtype: "json; charset=utf-8"}),
		connect.WithCodec(wire.YAML{JSON: wire.JSON{Subtype: "yaml"}}),
		connect.WithReadMaxBytes(bodyMax),
		connect.WithCompressMinBytes(compressMin),
		connect.WithRequestGate(s.admit),
	)
	mux := http.NewServeMux()
	at, served := holdfastv1connect.NewNodeHandler(methods{s}, options)
	mux.Handle(at, plain(served))
	mux.Handle(grpchealth.NewHandler(s.health, options))
	reflector := grpcreflect.NewStaticReflector(holdfastv1connect.NodeName, grpchealth.HealthV1ServiceName)
	mux.Handle(grpcreflect.NewHandlerV1(reflector, options))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector, options))
	mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(api.OpenAPI)
	})
	return mux
}

// method is the last part of a procedure's name.
func method(procedure string) string { return path.Base(procedure) }

// read fills a request of the node from its message.
func read[Q any](ctx context.Context, m proto.Message) (q Q, err error) {
	return q, failure(ctx, nil, wire.From(m, &q))
}

// guarded is read of a request that has a guard, which is g of it: who asks is
// told by the connection, the rest also by headers.
func guarded[Q any](ctx context.Context, m proto.Message, g func(*Q) *node.Guard) (q Q, err error) {
	if q, err = read[Q](ctx, m); err != nil {
		return q, err
	}
	guard := g(&q)
	guard.Name = callOf(ctx).name
	c, _ := connect.CallInfoForHandlerContext(ctx)
	h := c.RequestHeader()
	if guard.Key == "" {
		guard.Key = h.Get("Idempotency-Key")
	}
	if guard.Reason == "" {
		guard.Reason = h.Get("X-Reason")
	}
	if seen := strings.Trim(h.Get("If-Match"), `"`); guard.Expect == 0 && seen != "" {
		if guard.Expect, err = strconv.ParseUint(seen, 10, 64); err != nil {
			return q, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("admin: If-Match: %q is no generation", seen))
		}
	}
	noteGuard(m.ProtoReflect(), guard)
	return q, nil
}

// noteGuard puts what came by headers into the message: what is kept of a write is
// read from there.
func noteGuard(m protoreflect.Message, g *node.Guard) {
	fields := m.Descriptor().Fields()
	for name, value := range map[protoreflect.Name]protoreflect.Value{
		"reason": protoreflect.ValueOfString(g.Reason), "idempotency_key": protoreflect.ValueOfString(g.Key), "expected_generation": protoreflect.ValueOfUint64(g.Expect),
	} {
		if d := fields.ByName(name); d != nil {
			m.Set(d, value)
		}
	}
}

// keyless refuses a key for what cannot be done once only: it would promise that.
func keyless(ctx context.Context) error {
	c, _ := connect.CallInfoForHandlerContext(ctx)
	if c.RequestHeader().Get("Idempotency-Key") != "" {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("admin: this method takes no idempotency key"))
	}
	return nil
}

// failure gives an error its code.
func failure(ctx context.Context, n *node.Node, err error) error {
	if err == nil {
		return nil
	}
	var known *connect.Error
	if errors.As(err, &known) {
		return err
	}
	return connect.NewError(codeOf(ctx, n, err), err)
}

func codeOf(ctx context.Context, n *node.Node, err error) connect.Code {
	var bad *config.Errors
	var mistake *wire.Mistake
	switch {
	case errors.Is(err, node.ErrHandedOver):
		return connect.CodeUnavailable // nothing was done: the successor can be asked
	case errors.As(err, &bad), errors.As(err, &mistake):
		return connect.CodeInvalidArgument
	case errors.Is(err, node.ErrChanged):
		return connect.CodeAborted
	case errors.Is(err, node.ErrBusy):
		return connect.CodeResourceExhausted
	case errors.Is(err, node.ErrNone):
		return connect.CodeNotFound
	case errors.Is(err, node.ErrCanary): // until it is settled
		return connect.CodeFailedPrecondition
	case errors.Is(err, node.ErrKey):
		return connect.CodeAlreadyExists
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled) || ctx.Err() != nil:
		return connect.CodeCanceled
	case n != nil && n.Left():
		return connect.CodeUnavailable // whatever it is: the successor knows
	}
	return connect.CodeFailedPrecondition
}

// message is a pointer to a generated message.
type message[M any] interface {
	*M
	proto.Message
}

// shown answers a read.
func shown[M any, P message[M], R any](ctx context.Context, s methods, r R, err error) (P, error) {
	if err != nil {
		return nil, failure(ctx, s.node, err)
	}
	return wire.To[M, P](r), nil
}

// written does a write, answers it, and keeps it in the audit log.
func written[M any, P message[M], R any](ctx context.Context, s methods, name string, m proto.Message, do func() (R, error)) (P, error) {
	began := time.Now()
	r, err := do()
	e := entry{call: callOf(ctx), method: name, request: m}
	var p P
	if err == nil {
		p = wire.To[M, P](r)
		e.answer = p
	} else {
		e.err = failure(ctx, s.node, err)
	}
	e.took = time.Since(began)
	s.audit.note(e)
	return p, e.err
}

func (s methods) Status(ctx context.Context, _ *api.StatusRequest) (*api.Status, error) {
	return shown[api.Status](ctx, s, s.node.Status(), nil)
}

func (s methods) Flows(ctx context.Context, m *api.FlowsRequest) (*api.FlowsResponse, error) {
	q, err := read[node.FlowFilter](ctx, m)
	if err == nil {
		err = checkFilter(ctx, q)
	}
	if err != nil {
		return nil, err
	}
	all, err := s.node.Flows(q)
	return &api.FlowsResponse{Flows: wire.Each[api.FlowStatus](all)}, failure(ctx, s.node, err)
}

// checkFilter refuses what no flow, or every one, could be meant by.
func checkFilter(ctx context.Context, q node.FlowFilter) error {
	switch {
	case q.Older < 0:
		return failure(ctx, nil, &wire.Mistake{Where: "older", Why: fmt.Sprintf("%v is before it began", q.Older)})
	case q.Max < 0:
		return failure(ctx, nil, &wire.Mistake{Where: "max", Why: fmt.Sprintf("%d: want a number from 0, which is all", q.Max)})
	}
	return nil
}

func (s methods) Endpoints(context.Context, *api.EndpointsRequest) (*api.EndpointsResponse, error) {
	return &api.EndpointsResponse{Endpoints: wire.Each[api.EndpointState](s.node.EndpointStates())}, nil
}

func (s methods) GetConfig(ctx context.Context, _ *api.GetConfigRequest) (*api.ConfigState, error) {
	state := s.node.ConfigState()
	if callOf(ctx).role < config.AdminRole {
		// The text of the file has secrets; who may look only sees what it comes to.
		text, _, err := config.Show(state.File, state.Source, node.Variable)
		if err != nil {
			text = "# it cannot be shown without secrets\n"
		}
		state.Source = []byte(text)
	}
	return shown[api.ConfigState](ctx, s, state, nil)
}

func (s methods) History(_ context.Context, m *api.HistoryRequest) (*api.HistoryResponse, error) {
	if m.Max < 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("admin: max: %d: want a number from 0, which is all", m.Max))
	}
	return &api.HistoryResponse{Generations: wire.Each[api.GenerationInfo](s.node.Generations(int(min(m.Max, historyMax))))}, nil
}

// historyMax is more than any node keeps.
const historyMax = 1 << 20

func changeGuard(q *node.ChangeRequest) *node.Guard { return &q.Guard }

func (s methods) Diff(ctx context.Context, m *api.ChangeRequest) (*api.ChangeReport, error) {
	q, err := guarded(ctx, m, changeGuard)
	if err != nil {
		return nil, err
	}
	q.DryRun = true
	r, err := s.node.Change(ctx, q)
	return shown[api.ChangeReport](ctx, s, r, err)
}

func (s methods) Apply(ctx context.Context, m *api.ChangeRequest) (*api.ChangeReport, error) {
	return written[api.ChangeReport](ctx, s, "Apply", m, func() (*node.ChangeReport, error) {
		q, err := guarded(ctx, m, changeGuard)
		if err != nil {
			return nil, err
		}
		return s.node.Change(ctx, q)
	})
}

func (s methods) Settle(ctx context.Context, m *api.SettleRequest) (*api.ChangeReport, error) {
	return written[api.ChangeReport](ctx, s, "Settle", m, func() (*node.ChangeReport, error) {
		q, err := guarded(ctx, m, func(q *node.SettleRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return nil, err
		}
		return s.node.Settle(ctx, q)
	})
}

func (s methods) SetEndpoint(ctx context.Context, m *api.EndpointRequest) (*api.EndpointReport, error) {
	return written[api.EndpointReport](ctx, s, "SetEndpoint", m, func() (*node.EndpointReport, error) {
		q, err := guarded(ctx, m, func(q *node.EndpointRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return nil, err
		}
		return s.node.SetEndpoint(q)
	})
}

func (s methods) Kill(ctx context.Context, m *api.KillRequest) (*api.KillReport, error) {
	return written[api.KillReport](ctx, s, "Kill", m, func() (*node.KillReport, error) {
		q, err := guarded(ctx, m, func(q *node.KillRequest) *node.Guard { return &q.Guard })
		if err == nil {
			err = checkFilter(ctx, q.Filter)
		}
		if err != nil {
			return nil, err
		}
		return s.node.Kill(ctx, q)
	})
}

func (s methods) Shed(ctx context.Context, m *api.ShedRequest) (*api.ShedReport, error) {
	return written[api.ShedReport](ctx, s, "Shed", m, func() (*node.ShedReport, error) {
		q, err := guarded(ctx, m, func(q *node.ShedRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return nil, err
		}
		return s.node.Shed(q)
	})
}

func (s methods) Rebalance(ctx context.Context, m *api.RebalanceRequest) (*api.Report, error) {
	return written[api.Report](ctx, s, "Rebalance", m, func() (*node.Report, error) {
		if err := keyless(ctx); err != nil {
			return nil, err
		}
		return s.node.Rebalance(m.All)
	})
}

// logReport is the answer of SetLog.
type logReport struct {
	Was slog.Level `json:"was"`
	Is  slog.Level `json:"is"`
}

func (s methods) SetLog(ctx context.Context, m *api.LogRequest) (*api.LogReport, error) {
	return written[api.LogReport](ctx, s, "SetLog", m, func() (r logReport, err error) {
		if err := keyless(ctx); err != nil {
			return r, err
		}
		if m.Level == "" {
			r.Was, err = s.node.LogLevel(nil)
			r.Is = r.Was
			return r, err
		}
		if err := r.Is.UnmarshalText([]byte(m.Level)); err != nil {
			return r, &wire.Mistake{Where: "level", Why: fmt.Sprintf("%q is none: want DEBUG, INFO, WARN or ERROR", m.Level)}
		}
		r.Was, err = s.node.LogLevel(&r.Is)
		return r, err
	})
}

func (s methods) Busy(ctx context.Context, m *api.BusyRequest) (*api.BusyReport, error) {
	return written[api.BusyReport](ctx, s, "Busy", m, func() (*node.BusyReport, error) {
		if err := keyless(ctx); err != nil {
			return nil, err
		}
		const most = 100000
		if m.Seconds < 1 || m.Seconds > 60 || m.Parses < 0 || m.Parses > most || m.ChecksPerSecond < 0 || m.ChecksPerSecond > most {
			return nil, &wire.Mistake{Why: fmt.Sprintf("want seconds of 1 to 60, parses and checks_per_second of 0 to %d", most)}
		}
		return s.node.Busy(time.Duration(m.Seconds)*time.Second, int(m.Parses), int(m.ChecksPerSecond))
	})
}
