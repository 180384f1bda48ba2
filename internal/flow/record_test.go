package flow

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// books hold what a test world is told of exchanges.
type books struct {
	told     []string // by the step under way
	numbers  []uint32 // of all records, in order
	status   []int
	in, out  uint64 // octets of all of them
	pending  string // what the record of a flow would be that was frozen
	headless bool   // the last one was of a request whose head never came
	wrong    error  // the first record that cannot be
	piped    bool   // pipes hold octets, so a flow knows of them at another time
}

// take is a [Desk]'s Report.
func (k *books) take(r *Record) {
	k.told = append(k.told, "record "+k.describe(r))
	k.numbers = append(k.numbers, r.Number)
	k.status = append(k.status, r.Status)
	k.headless = r.Head < 0
	k.in += r.In
	k.out += r.Out
	if err := impossibleRecord(r); err != nil && k.wrong == nil {
		k.wrong = fmt.Errorf("%w: %s", err, k.told[len(k.told)-1])
	}
}

// sum takes what a flow that is removed has not told.
func (k *books) sum(now Instant, f *Flow) {
	var r Record
	if f.work != nil && f.Sum(now, &r) {
		k.take(&r)
	}
}

// promised is what a flow would tell if it ended now.
func (k *books) promised(now Instant, f *Flow) string {
	var r Record
	if !f.Sum(now, &r) {
		return "nothing"
	}
	return k.describe(&r)
}

func (k *books) lines() (out string) {
	for _, line := range k.told {
		out += "\n  " + line
	}
	return out
}

// describe writes all of a record but what a move may change.
func (k *books) describe(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%x/%d %v %v %v, %d attempts, %v", r.Flow, r.Number, r.Listener.Ref.Name, r.Protocol, r.Client, r.Attempts, r.Cause)
	if !k.piped {
		fmt.Fprintf(&b, " in %v", r.Phase)
	}
	for _, x := range []struct {
		name string
		on   bool
	}{{"stuck", r.Stuck}, {"reused", r.Reused}, {"own", r.Own}, {"tunnel", r.Tunnel}} {
		if x.on {
			b.WriteString(" " + x.name)
		}
	}
	if r.Route >= 0 {
		fmt.Fprintf(&b, ", route %d", r.Route)
	}
	if r.Backend != nil {
		fmt.Fprintf(&b, ", backend %s", r.Backend.Ref.Name)
	}
	if r.Endpoint != nil {
		fmt.Fprintf(&b, ", endpoint %s", r.Endpoint.Name)
	}
	fmt.Fprintf(&b, ", status %d of 1.%d, total %v", r.Status, r.Minor, r.Total)
	for _, x := range []struct {
		name string
		took time.Duration
	}{{"head", r.Head}, {"wait", r.Wait}, {"connect", r.Connect}, {"answer", r.Answer}} {
		if x.took >= 0 {
			fmt.Fprintf(&b, " %s %v", x.name, x.took)
		}
	}
	if !k.piped {
		fmt.Fprintf(&b, ", in %d out %d", r.In, r.Out)
	}
	if n := r.Note; n.Method != nil {
		fmt.Fprintf(&b, ", %.40q %.40q %.40q %.40q", n.Method, n.Target, n.Host, n.Agent)
	}
	return b.String()
}

// impossibleRecord tells what in a record could not be.
func impossibleRecord(r *Record) error {
	parts := time.Duration(0)
	for _, part := range []time.Duration{r.Head, r.Wait, r.Connect, r.Answer} {
		if part < -1 {
			return errors.New("a part of a negative time")
		}
		parts += max(0, part)
	}
	switch {
	case r.Listener == nil || r.Flow == 0:
		return errors.New("a record of nothing")
	case parts > r.Total:
		return errors.New("its parts are longer than it")
	case r.Cause == NotEnded || int(r.Cause) >= Causes:
		return errors.New("it ended for no reason")
	case r.In > 1<<40 || r.Out > 1<<40:
		return errors.New("more octets than there are")
	case r.Endpoint != nil && r.Backend == nil, r.Attempts > 0 && r.Endpoint == nil && r.Number > 0:
		return errors.New("an endpoint of no backend, or an attempt at none")
	case r.Number > 0 && r.Head < 0 && r.Cause == Finished:
		return errors.New("it went well without a head")
	case len(r.Note.Method) > noteMethodMax || len(r.Note.Target) > noteTargetMax || len(r.Note.Host) > noteHostMax || len(r.Note.Agent) > noteAgentMax:
		return errors.New("a note that is too long")
	}
	return nil
}
