package sock

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// AdoptOrphans makes this process the parent of every descendant whose own
// parent ends (PR_SET_CHILD_SUBREAPER, prctl(2)): who started a process that
// replaces itself by a successor can still wait for the last one.
func AdoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("sock: prctl PR_SET_CHILD_SUBREAPER: %w", err)
	}
	return nil
}

// Apart lets cmd, once started, lead a process group of its own: Ctrl-C at the
// terminal does not reach it, whoever started it has to end it.
func Apart(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}

// IsTerminal says whether a person looks at f: it has terminal attributes,
// which a file, a pipe and /dev/null have not.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Gone tells whether p has ended.
func Gone(p *os.Process) bool { return p.Signal(syscall.Signal(0)) != nil }
