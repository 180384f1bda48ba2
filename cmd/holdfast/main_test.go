package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// asHoldfast in the environment makes the test binary the program itself, so
// that tests run commands as people do, and under the race detector.
const asHoldfast = "HOLDFAST_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if scene := os.Getenv(sceneEnv); scene != "" {
		os.Exit(playScene(scene))
	}
	if os.Getenv(asHoldfast) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// holdfast is a command with these arguments, not yet started.
func holdfast(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), asHoldfast+"=1", quickEnd)
	return cmd
}

// quickEnd spares each process a second: so long the race detector sleeps at the
// end of one, to see more of other threads, which a command has not. What it
// finds before is told, and fails the process, as ever.
var quickEnd = "GORACE=" + strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0")
