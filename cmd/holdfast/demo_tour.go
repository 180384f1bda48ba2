package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// tour is what the demo does by itself, one station after another.
func (d *demonstration) tour() []func() error {
	return []func() error{
		d.reload,
		func() error {
			return move(d, "holdfast rebalance --all", d.holdfast.client.api.Rebalance, &api.RebalanceRequest{All: true}, "rebalanced")
		},
		d.upgrade,
		d.grow,
		d.roll,
		d.hold,
		func() error {
			d.invite()
			return nil
		},
	}
}

// reload changes the file, and tells what Holdfast has made of it.
func (d *demonstration) reload() error {
	if err := d.holdfast.configure("2h"); err != nil {
		return err
	}
	var r node.ChangeReport
	if err := insist(d.holdfast, d.holdfast.client.api.Apply, &api.ChangeRequest{Reread: true}, &r); err != nil {
		return fmt.Errorf("holdfast reload: %w\n%s", err, d.holdfast.tail())
	}
	d.say("-- holdfast reload: %s; %s", strings.TrimSpace(r.Plan), changeLine(&r))
	return nil
}

// grow adds a third endpoint, which is checked first, and takes back all that was
// changed at run time by one word.
func (d *demonstration) grow() error {
	h, began := d.holdfast, time.Now()
	var now node.ConfigState
	if err := insist(h, h.client.api.GetConfig, &api.GetConfigRequest{}, &now); err != nil {
		return err
	}
	var added, back node.ChangeReport
	// Its server is that of a1: what there is to see is how it comes in.
	edit := &api.Patch{Object: "endpoint/web/a3", Value: fmt.Sprintf("{ name: a3, address: %q, weight: 20 }", h.pages[0].address)}
	if err := insist(h, h.client.api.Apply, &api.ChangeRequest{Edits: []*api.Patch{edit}, Reason: "the demo's tour"}, &added); err != nil {
		return fmt.Errorf("holdfast endpoint add: %w\n%s", err, h.tail())
	}
	if err := h.healthy("web", "a3"); err != nil {
		return err
	}
	took := time.Since(began)
	if err := insist(h, h.client.api.Apply, &api.ChangeRequest{Rollback: now.Generation, Reason: "the demo's tour"}, &back); err != nil {
		return fmt.Errorf("holdfast config rollback: %w\n%s", err, h.tail())
	}
	d.say("-- holdfast endpoint add web %s --name a3 --weight 20: checked and in rotation after %s; holdfast config rollback %d: generation %d effective on %d loops in %s, %d lost",
		h.pages[0].address, short(took), now.Generation, back.Generation, back.Loops, short(millisOf(back.EffectiveMillis)), added.Lost+back.Lost)
	return nil
}

// move asks Holdfast for a move and tells in one line what it has done.
func move[Q any](d *demonstration, command string, method func(context.Context, *Q) (*api.Report, error), q *Q, verb string) error {
	var r node.Report
	if err := insist(d.holdfast, method, q, &r); err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, d.holdfast.tail())
	}
	d.say("-- %s: %s", command, reportLine(&r, verb))
	return nil
}

// upgrade has another process take over.
func (d *demonstration) upgrade() error {
	h := d.holdfast
	var first *node.Status
	var r *node.Report
	err := persist(func() (err error) {
		if first, err = h.client.status(); err == nil {
			r, err = h.client.upgraded(context.Background(), first, node.UpgradeRequest{}, func(*api.Progress) error { return nil })
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("holdfast upgrade: %w\n%s", err, h.tail())
	}
	h.know(r.PID)
	d.say("-- holdfast upgrade: %s", upgradedLine(first.PID, r))
	return nil
}

// insist asks again when the answer is a refusal or none: somebody may just be
// upgrading Holdfast from another terminal.
func insist[Q, A any, P interface {
	*A
	proto.Message
}](h *demoHoldfast, method func(context.Context, *Q) (P, error), q *Q, out any) error {
	return persist(func() error {
		_, err := ask(h.client, method, q, out)
		return err
	})
}

// persist does it again until it goes well, or has not for long.
func persist(do func() error) error {
	for deadline := time.Now().Add(silenceMax); ; time.Sleep(2 * waitPoll) {
		err := do()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// idleMax is how long what is in flight at an endpoint may take.
const idleMax = 20 * time.Second

// roll restarts a1 as one does by hand: maint --wait, restart, ready --wait.
func (d *demonstration) roll() error {
	h, began := d.holdfast, time.Now()
	quiet, err := h.endpoint("web", "a1", "maint")
	if err != nil {
		return err
	}
	for inFlight := quiet.InFlight; inFlight > 0; time.Sleep(waitPoll) {
		if inFlight, err = h.inFlight("web", "a1"); err != nil {
			return err
		}
		if time.Since(began) > idleMax {
			return fmt.Errorf("demo: %d still in flight at web/a1 after %v", inFlight, idleMax)
		}
	}
	waited := time.Since(began)
	if err = h.pages[0].restart(); err == nil {
		_, err = h.endpoint("web", "a1", "ready")
	}
	if err == nil {
		err = h.healthy("web", "a1") // else the next one to be taken out were the last
	}
	if err == nil {
		d.say("-- holdfast endpoint maint web/a1 --wait: out on all %d loops after %s, %d in flight ... 0 after %s; restarted (process %d), endpoint ready web/a1 --wait: %s in all",
			quiet.Loops, short(time.Duration(quiet.EffectiveMillis*1e6)), quiet.InFlight, short(waited), h.pages[0].pid.Load(), short(time.Since(began)))
	}
	return err
}

// hold restarts a2 while a1 is out, too: requests wait.
func (d *demonstration) hold() error {
	h := d.holdfast
	// First the hold: then requests wait for it when a1 is out, and none fails.
	held, err := h.endpoint("web", "a2", "hold")
	if err != nil {
		return err
	}
	if _, err := h.endpoint("web", "a1", "maint"); err != nil {
		return err
	}
	began := time.Now()
	if err = h.pages[1].restart(); err == nil {
		err = h.healthy("web", "a2")
	}
	if err == nil {
		_, err = h.endpoint("web", "a2", "ready")
	}
	took := time.Since(began)
	if err == nil {
		_, err = h.endpoint("web", "a1", "ready")
	}
	if err == nil {
		d.say("-- holdfast endpoint hold web/a2, while a1 is in maintenance: held on all %d loops, restarted (process %d), ready again after %s, for which requests waited",
			held.Loops, h.pages[1].pid.Load(), short(took))
	}
	return err
}

// endpoint asks for a change of one endpoint.
func (h *demoHoldfast) endpoint(backend, name, do string) (*node.EndpointReport, error) {
	var r node.EndpointReport
	if err := insist(h, h.client.api.SetEndpoint, &api.EndpointRequest{Backend: backend, Endpoint: name, Do: do}, &r); err != nil {
		return nil, fmt.Errorf("holdfast endpoint %s %s/%s: %w", do, backend, name, err)
	}
	return &r, nil
}

func (h *demoHoldfast) state(backend, name string) (*node.EndpointState, error) {
	var all endpointList
	if err := insist(h, h.client.api.Endpoints, &api.EndpointsRequest{}, &all); err != nil {
		return nil, err
	}
	for i := range all.Endpoints {
		if all.Endpoints[i].Name == backend+"/"+name {
			return &all.Endpoints[i], nil
		}
	}
	return nil, fmt.Errorf("demo: no endpoint %s/%s", backend, name)
}

func (h *demoHoldfast) inFlight(backend, name string) (int64, error) {
	e, err := h.state(backend, name)
	if err != nil {
		return 0, err
	}
	return e.InFlight, nil
}

// healthy waits until checks have found an endpoint up.
func (h *demoHoldfast) healthy(backend, name string) error {
	for deadline := time.Now().Add(startTime); ; time.Sleep(waitPoll) {
		e, err := h.state(backend, name)
		if err != nil {
			return err
		}
		if e.Health == "up" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("demo: %s/%s is %s: %s", backend, name, e.Health, e.Why)
		}
	}
}

// invite says what a person can do now, and what will be seen.
func (d *demonstration) invite() {
	h := d.holdfast
	exe := h.exe
	if wd, err := os.Getwd(); err == nil {
		if near, err := filepath.Rel(wd, exe); err == nil && !strings.HasPrefix(near, "..") {
			exe = near
			if !strings.Contains(near, "/") {
				exe = "./" + near
			}
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\ntry in a second terminal, and watch that errors and lost stay 0:\n\n  export %s=%s\n\n", socketEnv, h.socket)
	for _, c := range [][2]string{
		{exe + " top", "all of it, live; q ends"},
		{exe + " upgrade", "another process takes over every flow"},
		{exe + " endpoint maint web/a1 --wait", "an answer when nothing is in flight any more"},
		{fmt.Sprintf("kill %d", h.pages[0].pid.Load()), "restart server a1: the demo starts it again"},
		{exe + " endpoint ready web/a1 --wait", "it serves again, its check has found it up"},
		{exe + " endpoint hold 'web/*' --for 3s", "requests of all clients wait for 3 s; kill both servers meanwhile"},
		{exe + " endpoint weight web/a2 20 --over 10s", "its share falls step by step; --abort-on 'errors>1%' would take it back"},
		{exe + " config set listener/web.http.limits.body 1MiB", "a change at run time: one generation, no flow touched"},
		{exe + " config history", "who has changed what; config rollback N brings a generation back"},
		{exe + " reload", "the file as it is changes nothing; edit it first: " + h.file},
		{exe + " events -f", "what happens, as it happens"},
		{exe + " status", "where flows are, and the sum that balances: accepted = ended + open"},
		{exe + " flows --older 30s --max 10", "the oldest flows, and how often each has moved"},
		{"curl http://" + h.web + "/", "a request of your own"},
	} {
		fmt.Fprintf(&out, "  %-58s # %s\n", c[0], c[1])
	}
	d.say("%s", out.String())
}
