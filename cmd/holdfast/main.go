// Command holdfast is the load balancer that never lets go of a connection:
// the data plane itself (run), and the verbs that show and steer a running one.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
		Use:   "holdfast",
		Short: "A load balancer that never lets go of a connection",
		Long: "A load balancer that keeps its connections: over a reload, an upgrade, a move to another host.\n\n" +
			"  holdfast demo                                    all of it at work on this machine\n" +
			"  holdfast proxy 127.0.0.1:8080 127.0.0.1:3000     a proxy without a file\n" +
			"  holdfast check FILE; holdfast run -c FILE        the load balancer\n\n" +
			"Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused with nothing changed.",
		Version:       release(),
		SilenceErrors: true, // printed once, below
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	connectFlags(root)
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(runCommand(), proxyCommand(), demoCommand(), checkCommand(), configCommand(), applyCommand(), reloadCommand(), canaryCommand(),
		statusCommand(), topCommand(), eventsCommand(), flowsCommand(), endpointCommand(), backendCommand(), listenerCommand(),
		vipsCommand(), migrateCommand(), evacuateCommand(), returnCommand(), rebalanceCommand(), upgradeCommand(), logCommand(), doctorCommand(), netadminCommand(), versionCommand())
	root.AddCommand(otherWords()...)
	cobra.EnableCommandSorting = false // they stand in the order in which one needs them
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exit{exitUsage, plain(err)} })
	used, err := root.ExecuteC()
	if err == nil {
		return
	}
	code := exitUsage // what cobra itself finds wrong is usage
	var e *exit
	if errors.As(err, &e) {
		code = e.code
	}
	if text := plainText(err.Error()); text != "" {
		if code == exitUsage {
			if used.Hidden { // a word that is none has no help
				used = used.Parent()
			}
			text += "\nsee: " + used.CommandPath() + " --help"
		}
		fmt.Fprintln(os.Stderr, text)
	}
	os.Exit(code)
}

// plain says what is wrong with a flag in words that need no knowledge of Go.
func plain(err error) error {
	var value *pflag.InvalidValueError
	if !errors.As(err, &value) {
		return err
	}
	f := value.GetFlag()
	want := "what is wanted here: " + f.Usage
	switch f.Value.Type() {
	case "int":
		want = "a whole number"
	case "duration":
		want = "a duration such as 30s or 2m"
	case "bool":
		want = "true or false"
	}
	return fmt.Errorf("--%s: %q is not %s", f.Name, value.GetValue(), want)
}

// wants checks that a verb gets as many arguments as it can use; what says
// which these are.
func wants(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= least && len(args) <= most {
			return nil
		}
		got := "nothing was given"
		if len(args) > 0 {
			got = "got " + strings.Join(args, " ")
		}
		return &exit{exitUsage, fmt.Errorf("%s: wants %s; %s", c.Name(), what, got)}
	}
}

// given is the file that a verb is told either by -c or as its argument.
func given(verb, flag string, args []string) (string, error) {
	switch {
	case flag != "" && len(args) > 0:
		return "", &exit{exitUsage, fmt.Errorf("%s: two files given: %s and %s", verb, flag, args[0])}
	case flag != "":
		return flag, nil
	case len(args) > 0:
		return args[0], nil
	}
	return "", &exit{exitUsage, fmt.Errorf("%s: wants a FILE; none was given", verb)}
}

// socketEnv names the admin socket for a whole session of a shell.
const socketEnv = "HOLDFAST_SOCKET"

func socketDefault() string {
	if path := os.Getenv(socketEnv); path != "" {
		return path
	}
	return defaultSocket
}
