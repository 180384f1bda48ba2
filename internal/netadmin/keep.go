package netadmin

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// Times of who keeps the privileged process: one that has lived for keptLife begins anew at
// once; others after a time that doubles. After keptTries in a row there is no sense in it.
const (
	keptFirst = 5 * time.Millisecond
	keptMost  = time.Second
	keptLife  = 10 * time.Second
	keptBegin = time.Second // who ends so soon, the first time, could not begin
	keptTries = 60
)

// Keep runs this program with the same arguments and another variable, which is NAME=value,
// and runs it again whenever it is killed: who serves has given up the privilege to do
// so. It reads nothing from anybody, and ends with the other's own end, or its own.
func Keep(variable string, log *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("netadmin: %w", err)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	pause, told := keptFirst, false
	for tries := 0; ; tries++ {
		began := time.Now()
		cmd := exec.Command(self, os.Args[1:]...)
		cmd.Env = append(os.Environ(), variable)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("netadmin: %w", err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }() // ends with the process
		for over := false; !over; {
			select {
			case s := <-signals:
				told = true
				_ = cmd.Process.Signal(s)
			case err = <-ended:
				over = true
			}
		}
		var end *exec.ExitError
		killed, life := errors.As(err, &end) && !end.Exited(), time.Since(began)
		switch {
		case told || err == nil || !killed && tries == 0 && life < keptBegin:
			return err
		case life > keptLife:
			pause, tries = keptFirst, 0
		case tries >= keptTries:
			return fmt.Errorf("netadmin: it has ended %d times, the last time so: %w", tries, err)
		}
		log.Warn("the privileged process has ended and begins again", "pid", cmd.Process.Pid, "how", err, "after", pause)
		select {
		case <-signals:
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, keptMost)
	}
}
