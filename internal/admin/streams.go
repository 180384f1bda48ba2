package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// statusLeast is the shortest time between two looks at everything for one
// watcher: each look asks all loops.
const statusLeast = 200 * time.Millisecond

// Watch sends events until the client has enough or this process is done. A
// client that does not read holds up nobody: events go on without it, and it is
// told how many it has missed.
func (s methods) Watch(ctx context.Context, m *api.WatchRequest, out *connect.ServerStream[api.Event]) error {
	every := m.StatusEvery.AsDuration()
	if every != 0 && every < statusLeast {
		return failure(ctx, nil, &wire.Mistake{Where: "status_every", Why: fmt.Sprintf("%v: want %v at least", every, statusLeast)})
	}
	w, err := s.node.Watch(m.After)
	if err != nil {
		return failure(ctx, s.node, err)
	}
	defer w.Close()
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	defer context.AfterFunc(s.ending, leave)()

	at, last := w.Place()
	if err := out.Send(wire.To[api.Event](&node.Event{
		Seq: at, At: time.Now(), Kind: "watching", Generation: s.node.Generation(),
		Text: fmt.Sprintf("watching from event %d on", at+1), Fields: map[string]string{"last": strconv.FormatUint(last, 10)},
	})); err != nil {
		return err
	}
	var due time.Time // of the next status
	for {
		if every > 0 && !time.Now().Before(due) {
			due = time.Now().Add(every)
			at, _ = w.Place()
			e := wire.To[api.Event](&node.Event{Seq: at, At: time.Now(), Kind: "status", Generation: s.node.Generation()})
			e.Status = wire.To[api.Status](s.node.Status())
			if err := out.Send(e); err != nil {
				return err
			}
		}
		e, err := s.nextEvent(ctx, w, every, due)
		switch {
		case err == nil:
			if len(m.Kinds) > 0 && e.Kind != "missed" && !slices.Contains(m.Kinds, e.Kind) {
				continue
			}
			if err := out.Send(wire.To[api.Event](&e)); err != nil {
				return err
			}
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded): // time for a status
		case s.ending.Err() != nil:
			at, _ = w.Place()
			return connect.NewError(connect.CodeUnavailable,
				fmt.Errorf("admin: this process ends or has handed over; watch again after event %d", at))
		default:
			return failure(ctx, s.node, err)
		}
	}
}

// nextEvent waits for an event, until due if there is an every.
func (s methods) nextEvent(ctx context.Context, w *node.Watcher, every time.Duration, due time.Time) (node.Event, error) {
	if every > 0 {
		var enough context.CancelFunc
		ctx, enough = context.WithDeadline(ctx, due)
		defer enough()
	}
	return w.Next(ctx)
}

// follow does a write that tells of its progress. It ends with this process: the
// successor goes on with it for who asks again.
func (s methods) follow(ctx context.Context, name string, m *entry, out *connect.ServerStream[api.Progress], do func(ctx context.Context, tell func(node.Progress)) error) error {
	began := time.Now()
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	defer context.AfterFunc(s.ending, leave)()
	var mu sync.Mutex // out is for one at a time; what is told may come from anywhere
	var last *api.Progress
	err := do(ctx, func(p node.Progress) {
		mu.Lock()
		defer mu.Unlock()
		last = wire.To[api.Progress](&p)
		_ = out.Send(last) // a client that went away ended ctx, and what that means is the method's
	})
	if err != nil && s.ending.Err() != nil {
		err = connect.NewError(connect.CodeUnavailable, fmt.Errorf("admin: this process ends or has handed over: %w", err))
	}
	mu.Lock()
	defer mu.Unlock()
	e := *m
	e.call, e.method, e.err, e.took = callOf(ctx), name, failure(ctx, s.node, err), time.Since(began)
	if last != nil {
		e.answer = last
	}
	s.audit.note(e)
	return e.err
}

func (s methods) Remove(ctx context.Context, m *api.RemoveRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Remove", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.RemoveRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		return s.node.Remove(ctx, q, tell)
	})
}

func (s methods) Shift(ctx context.Context, m *api.ShiftRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Shift", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.ShiftRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		return s.node.Shift(ctx, q, tell)
	})
}

func (s methods) Upgrade(ctx context.Context, m *api.UpgradeRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Upgrade", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.UpgradeRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		if err = s.node.Upgrade(ctx, q, tell); err == nil && s.node.Left() { // else it was made by a predecessor
			callOf(ctx).after = func() { s.leave.Do(func() { close(s.Left) }) }
		}
		return err
	})
}

func (s methods) Migrate(ctx context.Context, m *api.MigrateRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Migrate", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.MigrateRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		return s.node.Relocate(ctx, q, tell)
	})
}

func (s methods) Evacuate(ctx context.Context, m *api.EvacuateRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Evacuate", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.EvacuateRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		return s.node.Evacuate(ctx, q, tell)
	})
}

func (s methods) Return(ctx context.Context, m *api.ReturnRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Return", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.ReturnRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		return s.node.Return(ctx, q, tell)
	})
}

func (s methods) Take(ctx context.Context, m *api.TakeRequest, out *connect.ServerStream[api.Progress]) error {
	return s.follow(ctx, "Take", &entry{request: m}, out, func(ctx context.Context, tell func(node.Progress)) error {
		q, err := guarded(ctx, m, func(q *node.TakeRequest) *node.Guard { return &q.Guard })
		if err != nil {
			return err
		}
		return s.node.Take(ctx, q, tell)
	})
}
