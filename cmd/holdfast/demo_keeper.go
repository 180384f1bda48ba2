package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

// demoKeeper is a child that outlives the demo when somebody ends that by force:
// it ends the Holdfast that is left and removes its files.
type demoKeeper struct {
	in  io.Closer // its standard input, which ends when we do
	cmd *exec.Cmd
}

func startKeeper(exe, dir string) (*demoKeeper, error) {
	cmd := exec.Command(exe, "demo", "keeper", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	sock.Apart(cmd) // Ctrl-C is for us
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &demoKeeper{in, cmd}, nil
}

// end is for when nothing is left to be kept.
func (k *demoKeeper) end() {
	_ = k.in.Close()
	_ = k.cmd.Wait() // it has nothing to tell
}

// demoKeeperCommand is not for people, so not in help.
func demoKeeperCommand() *cobra.Command {
	return &cobra.Command{
		Use: "keeper DIR", Hidden: true, Args: wants(1, 1, "DIR"),
		Short: "When standard input ends, end what runs with a file in DIR, and remove it",
		RunE: func(_ *cobra.Command, args []string) error {
			_, _ = io.Copy(io.Discard, os.Stdin)
			return clearDemo(args[0])
		},
	}
}

// clearDemo removes dir, and ends what runs with the configuration there; it has
// nothing to do after a demo that has ended in order.
func clearDemo(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	file := filepath.Join(dir, "holdfast.yaml")
	for deadline := time.Now().Add(stopTime); ; time.Sleep(50 * time.Millisecond) {
		left, how := thoseWith(file), syscall.SIGTERM
		if time.Now().After(deadline) {
			how = syscall.SIGKILL
		}
		for _, p := range left {
			_ = p.Signal(how)
			_ = p.Release()
		}
		if len(left) == 0 || how == syscall.SIGKILL {
			break
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}

// thoseWith finds the processes that run with the configuration in file. Each is
// held on to before it is looked at, so that it is no other one by then.
func thoseWith(file string) (all []*os.Process) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(name)
		if bytes.Contains(line, []byte("\x00run\x00-c\x00"+file+"\x00")) {
			all = append(all, p)
		} else {
			_ = p.Release()
		}
	}
	return all
}
