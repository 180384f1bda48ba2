package netadmin

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// muteEnv makes this program one that is kept and does not answer: its value is a FIFO, which it
// writes to and leaves open. muteKept says that it is the kept one.
const (
	muteEnv  = "NETADMIN_TEST_MUTE"
	muteKept = "NETADMIN_TEST_MUTE_KEPT"
)

func beMute(at string) int {
	if os.Getenv(muteKept) == "" {
		if err := Keep(muteKept+"=1", slog.New(slog.DiscardHandler)); err != nil {
			return 1
		}
		return 0
	}
	f, err := os.OpenFile(at, os.O_WRONLY, 0)
	if err != nil {
		return 1
	}
	_, _ = f.WriteString("begun")
	time.Sleep(time.Minute) // it ends at last, also when the test fails
	_ = f.Close()
	return 0
}

// Of a privileged process that does not answer none is left, neither who keeps it nor what is kept:
// it could answer later, to nobody's knowledge.
func TestSpawnLeavesNobody(t *testing.T) {
	for within := 100 * time.Millisecond; ; within *= 2 {
		dir := t.TempDir()
		at := filepath.Join(dir, "fifo")
		must(t, "mkfifo", unix.Mkfifo(at, 0o600))
		fifo, err := os.OpenFile(at, os.O_RDONLY|unix.O_NONBLOCK, 0)
		must(t, "open", err)
		t.Setenv(muteEnv, at)
		err = spawn([]string{"netadmin"}, filepath.Join(dir, "sock"), filepath.Join(dir, "log"), within)
		wantWords(t, err, "does not answer")
		must(t, "deadline", fifo.SetReadDeadline(time.Now().Add(10*time.Second)))
		said, err := io.ReadAll(fifo) // to its end, which comes with that of the last who writes
		_ = fifo.Close()
		must(t, "what is kept has not ended with who keeps it", err)
		if len(said) > 0 {
			return // it had begun in time
		}
	}
}
