package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

const configWords = "diff, history, rollback, export, set, unset, delete, revert, show, schema, reference"

// configCommand shows what can be in a file, and what is in one.
func configCommand() *cobra.Command {
	x := &cobra.Command{
		Use:   "config",
		Short: "Show, compare, change and roll back what is desired; all keys there are",
		Long: "What is desired of a running holdfast is its file and what was changed at run time. Each change is a\n" +
			"generation, kept on disk with who made it, when and why.",
		Args: wants(1, 1, configWords),
		RunE: func(_ *cobra.Command, args []string) error {
			words := strings.Split(configWords, ", ")
			return &exit{exitUsage, fmt.Errorf("config: no verb %q%s; there are: %s", args[0], meant(args[0], words), configWords)}
		},
	}
	x.AddCommand(configVerbs()...)
	x.AddCommand(&cobra.Command{
		Use:   "show FILE",
		Short: "Print a file (- is standard input) as it is understood: variables replaced, every default filled in, no secrets",
		Args:  wants(1, 1, "one FILE, or - for standard input"),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, _ := c.Flags().GetBool("json")
			return showConfig(args[0], asJSON)
		},
	}, &cobra.Command{
		Use:   "schema",
		Short: "Print a JSON Schema of the file, for completion in an editor",
		Long: "Print a JSON Schema (draft 2020-12) of the file. With\n" +
			"  holdfast config schema > holdfast.schema.json\n" +
			"and, as the first line of the configuration,\n" +
			"  # yaml-language-server: $schema=./holdfast.schema.json\n" +
			"editors complete keys and show what they mean.",
		Args: wants(0, 0, "nothing"),
		RunE: func(*cobra.Command, []string) error { return printText(config.Schema()) },
	}, &cobra.Command{
		Use:   "reference",
		Short: "Print all keys with their values, defaults and meanings, in Markdown",
		Args:  wants(0, 0, "nothing"),
		RunE:  func(*cobra.Command, []string) error { return printText(config.Reference()) },
	})
	return x
}

func showConfig(name string, asJSON bool) error {
	name, source, err := readSource(name)
	if err != nil {
		return &exit{exitFailed, err}
	}
	text, warnings, err := config.Show(name, source, node.Variable)
	if err != nil {
		return refused(warnings, err)
	}
	if len(warnings) > 0 {
		fmt.Fprintln(os.Stderr, warnings)
	}
	if !asJSON {
		return printText(text)
	}
	data, err := config.JSON(text)
	if err != nil {
		return &exit{exitFailed, err}
	}
	return printText(string(data))
}

// readSource reads a file, or standard input, which is "-", and gives the name
// for messages.
func readSource(name string) (string, []byte, error) {
	if name == "-" {
		source, err := io.ReadAll(os.Stdin)
		return "stdin", source, err
	}
	source, err := os.ReadFile(name)
	return name, source, err
}

// refused tells all that is said of a file that nobody is going to use: a line
// of the file before the next one, whether it is wrong or only doubtful.
func refused(warnings config.Warnings, err error) error {
	var bad *config.Errors
	if !errors.As(err, &bad) {
		return &exit{exitFailed, err}
	}
	numbers := count(len(bad.Problems), "error")
	if len(warnings) > 0 {
		numbers += ", " + count(len(warnings), "warning")
	}
	return &exit{exitRefused, fmt.Errorf("%s\n%s", config.Lines(warnings, err), numbers)}
}

func printText(text string) error {
	if _, err := fmt.Print(text); err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}
