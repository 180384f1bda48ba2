// Command holdfast is the load balancer that never lets go of a connection:
// the data plane itself (run), and the verbs that show and steer a running one.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// Exit codes: 0 done, 1 failed, 2 usage, 3 refused (nothing changed).
const (
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
)

// exit is an error with an exit code. A nil cause has been printed already.
type exit struct {
	code  int
	cause error
}

func (e *exit) Error() string {
	if e.cause == nil {
		return ""
	}
	return e.cause.Error()
}

func main() {
	root := &cobra.Command{
		Use:           "holdfast",
		Short:         "A load balancer that never lets go of a connection",
		SilenceErrors: true, // printed once, below
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().String("socket", defaultSocket, "admin socket of the running holdfast")
	root.PersistentFlags().Bool("json", false, "print JSON")
	root.AddCommand(runCommand(), checkCommand(), statusCommand(), flowsCommand(), reloadCommand(),
		rebalanceCommand(), upgradeCommand(), migrateCommand(), demoCommand(), versionCommand())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exit{exitUsage, fmt.Errorf("%w\nsee: %s --help", err, c.CommandPath())}
	})
	err := root.Execute()
	if err == nil {
		return
	}
	code := exitUsage // what cobra itself finds wrong is usage
	var e *exit
	if errors.As(err, &e) {
		code = e.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, text)
	}
	os.Exit(code)
}
