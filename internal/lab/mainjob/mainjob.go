// Package mainjob is the lab of the same name: the main job on real input.
// PostgreSQL, redis, sshd and iperf3 as Debian ships them run behind Holdfast,
// each behind one of the files in examples, and their clients keep sessions
// open while the configuration is reloaded, flows are moved between loops and
// the binary is upgraded, again and again.
//
// Clients like psql and redis-cli connect again when they have to, and say
// nothing. So what is compared is not that they go on but who answers: the
// pid of the backend, the transaction, the identity of the client, the shell.
//
// It stands apart from package lab because its world is another one: servers
// that change their user need more than the one user of an unprivileged
// namespace. It runs as root, in namespaces of its own, and leaves nothing.
package mainjob

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// Name is what -lab calls this lab.
const Name = "main-job"

var sabotages = []string{lab.KillOne, lab.BlindRelay}

// ClientsName is the lab in which the same clients keep their sessions while the
// balancer moves to another host and back.
const ClientsName = "migrate-clients"

// options are those of the command line.
type options struct {
	lab      string
	short    bool
	sabotage string
	moves    int
	binary   string

	began time.Time
	dir   string // of this run
}

// Environment of the program when it runs itself again.
const (
	stageEnv  = "HOLDFAST_MAIN_JOB"
	dirEnv    = "HOLDFAST_MAIN_JOB_DIR"
	beganEnv  = "HOLDFAST_MAIN_JOB_BEGAN"
	binaryEnv = "HOLDFAST_MAIN_JOB_BINARY"

	stageWorld = "world" // inside the namespaces
	stageRelay = "relay" // the relay of a sabotage
)

// The most that a run may take, building included.
const (
	shortLimit = 43 * time.Second
	fullLimit  = 15 * time.Minute
)

// Run runs the lab if args ask for it, and gives the exit status: 0 if every
// figure holds, 1 if not, 2 for a wrong argument. mine says whether they did.
func Run(args []string) (status int, mine bool) {
	if os.Getenv(stageEnv) == stageRelay {
		_, _ = fmt.Fprintln(os.Stderr, lab.BlindMain(args, os.Stdout)) // it ends by an error only
		return 1, true
	}
	if !asked(args) {
		return 0, false
	}
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0, true
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 2, true
	}
	if os.Getenv(stageEnv) == stageWorld {
		return inside(o), true
	}
	v := newVerdict(o)
	status, err = outside(o)
	if err != nil { // it came to no verdict of its own
		v.broken(err)
		v.conclude()
		return 1, true
	}
	return status, true
}

// asked looks for -lab with the name of one of ours.
func asked(args []string) bool {
	for i, a := range args {
		a = strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		for _, name := range []string{Name, ClientsName} {
			if a == "lab="+name || a == "lab" && i+1 < len(args) && args[i+1] == name {
				return true
			}
		}
	}
	return false
}

func parse(args []string) (options, error) {
	o := options{began: time.Now()}
	f := flag.NewFlagSet("holdfast-lab -lab "+Name, flag.ContinueOnError)
	f.StringVar(&o.lab, "lab", Name, "this lab, or "+ClientsName)
	f.BoolVar(&o.short, "short", false, "end within 45 s")
	f.StringVar(&o.sabotage, "sabotage", "", "break the run, to see whether the lab notices: "+strings.Join(sabotages, ", "))
	f.IntVar(&o.moves, "moves", 10, "how many `events` of each kind")
	f.StringVar(&o.binary, "binary", "", "`path` of the product; empty: build ./cmd/holdfast")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.sabotage != "" && !slices.Contains(sabotages, o.sabotage) {
		return o, fmt.Errorf("main-job: sabotage %q: one of %s", o.sabotage, strings.Join(sabotages, ", "))
	}
	if o.moves < 1 {
		return o, fmt.Errorf("main-job: moves %d: at least 1", o.moves)
	}
	return o, nil
}

// outside builds the product and enters the namespaces.
func outside(o options) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("main-job: needs root, for PostgreSQL and sshd run as users of their own; as any user, run -lab four-distances")
	}
	if missing := missingPrograms(); len(missing) > 0 {
		return 1, fmt.Errorf("main-job: not installed: %s; run make deps", strings.Join(missing, ", "))
	}
	dir, err := os.MkdirTemp("", "holdfast-main-job-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as another user
		return 1, err
	}
	if o.binary == "" {
		o.binary = filepath.Join(dir, "holdfast")
		build := exec.Command("go", "build", "-o", o.binary, "./cmd/holdfast")
		if msg, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("main-job: build ./cmd/holdfast: %w\n%s", err, msg)
		}
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return 1, err
	}
	return enter(dirEnv+"="+dir, binaryEnv+"="+binary, beganEnv+"="+o.began.Format(time.RFC3339Nano))
}

// inside runs the lab and judges what there is when time is over.
func inside(o options) int {
	o.dir, o.binary = os.Getenv(dirEnv), os.Getenv(binaryEnv)
	if t, err := time.Parse(time.RFC3339Nano, os.Getenv(beganEnv)); err == nil {
		o.began = t
	}
	// What we start is to find its own environment only.
	for _, name := range []string{stageEnv, dirEnv, binaryEnv, beganEnv} {
		_ = os.Unsetenv(name)
	}
	v := newVerdict(o)
	limit := fullLimit
	if o.short {
		limit = shortLimit
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Until(o.began.Add(limit)))
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := settle(); err != nil {
		v.broken(err)
	} else {
		j := &job{options: o, ctx: ctx, v: v}
		j.stage.Store("the beginning")
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer j.endAll()
			run, judge := j.run, j.judge
			if o.lab == ClientsName {
				run, judge = j.runMoves, j.judgeMoves
			}
			if err := run(); err != nil {
				v.broken(err)
			}
			j.stage.Store("judging")
			judge()
		}()
		select {
		case <-done:
		case <-ctx.Done():
			v.broken(fmt.Errorf("ended from outside or out of time after %v, at %s", time.Since(o.began).Round(time.Second), j.stage.Load()))
		}
	}
	if v.conclude() {
		return 0
	}
	return 1
}
