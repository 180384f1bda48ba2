package node

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// What came of an upgrade is told by the process that serves afterwards: in its
// status, its metrics and its events, and to who sends the request again.
func TestSuccessorTellsOfTheUpgrade(t *testing.T) {
	vip, server := free(t), echo(t)
	old := start(t, yaml(vip, server, "", ""))
	conn := dial(t, vip)
	says(t, conn, "before")
	q := UpgradeRequest{Guard: Guard{Author: anna.Author, Key: "k"}}
	r := newReport("process")
	r.Flows, r.Kinds, r.IdleLegs = 7, map[string]KindReport{"idle": {Flows: 7, Octets: 3, Frozen: 700}}, 5
	old.upgrades.now = &upgrading{q: q, began: time.Now(), r: r}
	heir, _, done, given, taken := succeed(t, old, 0, func(*Node) error { return nil }, nothing)
	if !done || given != nil || taken != nil {
		t.Fatal(done, given, taken)
	}
	says(t, conn, "after")
	u := heir.Status().LastUpgrade
	if u == nil || u.Result != "done" || u.By.Name != "anna" || u.Was != pid || u.Move.Flows != 7 || u.Move.Kinds["idle"].Frozen != 700 {
		t.Fatalf("%+v", u)
	}
	for _, want := range []struct {
		m     *Metric
		label string
		value float64
	}{{upgradesTotal, "done", 1}, {upgradesTotal, "failed", 0}, {frozenBytes, "idle", 700}, {frozenFlows, "idle", 7}, {movedIdleLegs, "process", 5}} {
		found := false
		for _, f := range heir.Measure() {
			for _, s := range f.Samples {
				if f.Metric == want.m && s.Values[0] == want.label {
					found = true
					if s.Value != want.value {
						t.Errorf("%s{%s}: %g, want %g", f.Name, want.label, s.Value, want.value)
					}
				}
			}
		}
		if !found {
			t.Errorf("no %s{%s}", want.m.Name, want.label)
		}
	}
	var steps []Progress
	if err := heir.Upgrade(t.Context(), q, func(p Progress) { steps = append(steps, p) }); err != nil || len(steps) != 1 || !steps[0].Done || steps[0].Move.Flows != 7 {
		t.Errorf("sent again: %v, %+v", err, steps)
	}
	q.Binary = "/another"
	if err := heir.Upgrade(t.Context(), q, nil); !errors.Is(err, ErrKey) {
		t.Errorf("another request under the key: %v", err)
	}
}

// An upgrade to what is no Holdfast tells its steps and why it came to nothing, and
// is kept as aborted.
func TestAbortedUpgradeIsTold(t *testing.T) {
	vip, server := free(t), echo(t)
	n := start(t, yaml(vip, server, "", ""))
	conn := dial(t, vip)
	says(t, conn, "before")
	var steps []Progress
	err := n.Upgrade(t.Context(), UpgradeRequest{Guard: anna, Binary: "/bin/false"}, func(p Progress) { steps = append(steps, p) })
	if err == nil || len(steps) < 2 || steps[0].Phase != "starting" {
		t.Fatalf("%v, %+v", err, steps)
	}
	if last := steps[len(steps)-1]; last.Phase != "aborted" || !last.Done || !strings.Contains(last.Failed, "is no Holdfast") || last.Move == nil || last.Move.Lost != 0 {
		t.Errorf("%+v", last)
	}
	s := n.Status()
	if s.Upgrading != nil || s.LastUpgrade == nil || s.LastUpgrade.Result != "aborted" || s.LastUpgrade.By.Name != "anna" {
		t.Errorf("%+v, %+v", s.Upgrading, s.LastUpgrade)
	}
	says(t, conn, "after")
	if err := n.Upgrade(t.Context(), UpgradeRequest{Guard: anna, Binary: "/nowhere"}, func(p Progress) { t.Errorf("%+v, of what was not begun", p) }); err == nil {
		t.Error("it was upgraded to nothing")
	}
}

// What drains in a replaced process is shown until nothing does.
func TestResidueIsShown(t *testing.T) {
	vip, server := free(t), echo(t)
	n := start(t, yaml(vip, server, "", ""))
	if h, _ := n.heritage(); h.PID != pid || h.Release != Release { // whom the successor says that it is of
		t.Errorf("process %d of release %q", h.PID, h.Release)
	}
	until := time.Now().Add(time.Minute)
	n.drains(ResidueStatus{PID: 9, Release: "v1", Flows: 3, Reasons: map[string]int{"leg: x": 2, "leg: y": 1}, Until: until})
	if r := n.Status().Residue; len(r) != 1 || r[0].Flows != 3 || !r[0].Until.Equal(until) {
		t.Errorf("%+v", r)
	}
	sum := func() (k float64) {
		for _, f := range n.Measure() {
			if f.Metric == residueFlows {
				for _, s := range f.Samples {
					k += s.Value
				}
			}
		}
		return k
	}
	if k := sum(); k != 3 {
		t.Errorf("%g flows", k)
	}
	n.drains(ResidueStatus{PID: 9})
	if r := n.Status().Residue; len(r) != 0 || sum() != 0 {
		t.Errorf("%+v", r)
	}
}

// A removal whose flows go to another process has not ended: the successor goes on
// with it, for who asks again under its key.
func TestRemovalGoesOnAtTheSuccessor(t *testing.T) {
	for _, object := range []string{"listener/web", "endpoint/app/a"} {
		t.Run(object, func(t *testing.T) {
			vip, server := free(t), echo(t)
			old := start(t, yaml(vip, server, "", ""))
			all := talkers(t, vip, 2)
			q := RemoveRequest{Guard: Guard{Author: anna.Author, Key: "k"}, Object: object, Drain: true, Force: true}
			if strings.HasPrefix(object, "endpoint") {
				old.asks(edited("endpoint/app/b", "", "{ name: b, address: \"127.0.0.1:1\" }"))
			}
			waits, ended := make(chan struct{}, 1000), make(chan error)
			go func() { // ends with the predecessor's part
				ended <- old.Remove(t.Context(), q, func(p Progress) {
					if p.Done {
						t.Errorf("the predecessor tells of an end: %+v", p)
					}
					waits <- struct{}{}
				})
			}()
			<-waits
			heir, _, done, given, taken := succeed(t, old, 0, func(*Node) error { return nil }, nothing)
			if !done || given != nil || taken != nil {
				t.Fatal(done, given, taken)
			}
			old.mu.Lock()
			old.successor = pid + 1
			old.mu.Unlock()
			if err := <-ended; !errors.Is(err, ErrHandedOver) {
				t.Errorf("the predecessor: %v", err)
			}
			var last Progress
			most := int64(0)
			err := heir.Remove(t.Context(), q, func(p Progress) {
				last, most = p, max(most, p.InFlight)
				for _, c := range all {
					_ = c.Close()
				}
			})
			if err != nil || !last.Done || last.Failed != "" || most != 2 {
				t.Errorf("%v, %d in flight, %+v", err, most, last)
			}
			c := heir.Config()
			if c.Listeners["web"] != nil && object == "listener/web" || c.Backends["app"].Endpoint("a") != nil && object != "listener/web" {
				t.Errorf("%s is there", object)
			}
		})
	}
}
