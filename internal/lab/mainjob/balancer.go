package mainjob

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// balancer is one Holdfast in front of one server, run from a file in examples.
type balancer struct {
	j        *job
	name     string // of the example, without .yaml
	vip      string
	server   string
	standing int  // flows that are open all the time
	keeps    bool // its file lets open flows keep what they began under

	socket  string
	other   string // a second configuration
	changed bool   // which of the two is in force
	process *process
	pid     int // that serves now

	flows   [whens]int     // moved
	longest [whens]float64 // pause, in microseconds by the product's own account
	doubts  []string
}

// examples are relative to the top of the module, where the lab is run.
const examples = "examples"

func (b *balancer) file() string { return filepath.Join(examples, b.name+".yaml") }

func (b *balancer) start() error {
	b.socket = filepath.Join(b.j.dir, b.name+".sock")
	s := spec{name: "holdfast-" + b.name, argv: []string{b.j.binary, "run", "--grace", "0s", "-c", b.file()},
		env: []string{"HOLDFAST_SOCKET=" + b.socket, "STATE_DIRECTORY=" + filepath.Join(b.j.dir, b.name+".state")}}
	if b.j.sabotage == lab.BlindRelay {
		s.argv, s.env = []string{"/proc/self/exe", b.vip + "=" + b.server}, []string{stageEnv + "=" + stageRelay}
	}
	text, err := os.ReadFile(b.file())
	if err != nil {
		return err
	}
	// The change that reloads make and take back.
	other := strings.Replace(string(text), "idleTimeout: 0s ", "idleTimeout: 1h ", 1)
	if b.keeps {
		other = strings.Replace(string(text), "tunnel: 24h ", "tunnel: 25h ", 1)
	}
	if other == string(text) || strings.Contains(other, "onChange: adopt") == b.keeps {
		return fmt.Errorf("main-job: %s is not what this lab knows how to change", b.file())
	}
	b.other = filepath.Join(b.j.dir, b.name+"-other.yaml")
	if err := os.WriteFile(b.other, []byte(other), 0o644); err != nil {
		return err
	}
	if b.process, err = b.j.start(s); err != nil {
		return err
	}
	b.pid = b.process.pid()
	return b.process.await(b.j.ctx, func() error {
		out, err := os.ReadFile(b.process.out.Name())
		if err == nil && !strings.Contains("\n"+string(out), "\nready: ") {
			err = errors.New("it does not say that it is")
		}
		return err
	})
}

// report is what the product says of an event.
type report struct {
	Distance   string         `json:"distance"`
	Flows      int            `json:"flows"`
	Refused    int            `json:"refused"`
	Reasons    map[string]int `json:"reasons"`
	Lost       int            `json:"lost"`
	Generation uint64         `json:"generation"`
	PID        int            `json:"pid"`
	Plan       string         `json:"plan"`
	Pause      struct {
		Max float64 `json:"max"`
	} `json:"pause_us"`
}

// event makes one, and looks at what the kernel says of it.
func (b *balancer) event(w when) error {
	if b.j.sabotage == lab.BlindRelay {
		// What knows no moves is stopped and started.
		b.process.end(time.Second)
		return b.start()
	}
	var args []string
	switch w {
	case reload:
		b.changed = !b.changed
		args = []string{"apply", b.file()}
		if b.changed {
			args[1] = b.other
		}
	case rebal:
		args = []string{"rebalance", "--all"}
	case upgrade:
		args = []string{"upgrade", "--binary", b.j.binary}
	default:
		panic("mainjob: " + w.String() + " is no event")
	}
	var said struct {
		report
		Move *report `json:"move"` // of an upgrade, in the last of its steps
	}
	if err := b.verb(&said, args...); err != nil {
		return err
	}
	r := said.report
	if said.Move != nil {
		r = *said.Move
	}
	if w == reload {
		r.Distance = w.String() // of a change it goes without saying
	}
	b.flows[w] += r.Flows
	b.longest[w] = max(b.longest[w], r.Pause.Max)
	b.doubt(w, &r)
	return nil
}

// verb runs one of the product's commands and reads its JSON.
func (b *balancer) verb(into any, args ...string) error {
	argv := append([]string{b.j.binary}, args...)
	out, err := b.j.output(spec{argv: append(argv, "--socket", b.socket, "--json")})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, b.process.tail())
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n")) // the last one is the answer
	return json.Unmarshal(lines[len(lines)-1], into)
}

// doubt compares what an event should have done with what is.
func (b *balancer) doubt(w when, r *report) {
	say := func(format string, args ...any) {
		b.doubts = append(b.doubts, b.name+": "+w.String()+": "+fmt.Sprintf(format, args...))
	}
	if r.Distance != w.String() {
		say("the report is of distance %q", r.Distance)
	}
	if r.Flows < b.standing && !(w == reload && b.keeps) {
		say("%d flows of %d", r.Flows, b.standing)
	}
	if r.Refused > 0 || r.Lost > 0 {
		say("refused %d (%v), lost %d", r.Refused, r.Reasons, r.Lost)
	}
	switch w {
	case reload:
		if r.Plan == "" {
			say("no plan")
		}
	case upgrade:
		was := b.pid
		b.pid = r.PID
		if r.PID == was || !lab.Alive(r.PID) {
			say("pid was %d, is %d, alive: %v", was, r.PID, lab.Alive(r.PID))
		}
		if n, err := lab.OpenSockets(r.PID); err != nil || n < 2*b.standing {
			say("pid %d holds %d sockets for %d flows (%v)", r.PID, n, b.standing, err)
		}
		for deadline := time.Now().Add(3 * time.Second); lab.Alive(was); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				say("pid %d still runs", was)
				return
			}
		}
		if was != b.process.pid() {
			endPID(was, time.Second) // it has ended: takes its status
		}
	}
}

// account is the product's own, at the end.
type account struct {
	Flows       int    `json:"flows"`
	Lost        uint64 `json:"flows_lost_total"`
	ResetByMove uint64 `json:"flows_reset_by_move_total"`
}

// end ends the process that serves.
func (b *balancer) end() {
	if b.process == nil {
		return
	}
	if b.pid != b.process.pid() {
		endPID(b.pid, 2*time.Second)
	}
	b.process.end(2 * time.Second)
}
