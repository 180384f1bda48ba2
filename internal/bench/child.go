package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

// roleEnv names the environment variable that makes this program a child: the
// load generator or the backend. The variable specEnv carries its orders.
const (
	roleEnv = "HOLDFAST_BENCH_ROLE"
	specEnv = "HOLDFAST_BENCH_SPEC"
)

// Child runs the role that the environment asks for and exits; it returns at
// once in a process that has none. It must be called first in main.
func Child() {
	var err error
	switch role := os.Getenv(roleEnv); role {
	case "", "inside":
		return
	case "backend":
		var spec backendSpec
		if err = orders(&spec); err == nil {
			err = runBackend(spec)
		}
	case "load":
		var spec loadSpec
		if err = orders(&spec); err == nil {
			err = childLoad(spec)
		}
	default:
		err = fmt.Errorf("bench: role %q unknown", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// orders decodes the specification of a child and makes the process quiet:
// one thread, no collection.
func orders(spec any) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	if err := json.Unmarshal([]byte(os.Getenv(specEnv)), spec); err != nil {
		return fmt.Errorf("bench: orders: %w", err)
	}
	return nil
}

// childLoad runs a round and prints its result. An idle round prints "open"
// when all connections stand and goes on when a line arrives.
func childLoad(spec loadSpec) error {
	r, err := runLoad(spec, func() {
		fmt.Println("open")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // at the end of input, go on too
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
