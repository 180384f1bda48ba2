package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// configCommand shows what can be in a file, and what is in one.
func configCommand() *cobra.Command {
	x := &cobra.Command{
		Use:   "config",
		Short: "Show a configuration with its defaults, and all keys there are",
		Args:  wants(0, 0, "one of show, schema and reference"),
		RunE: func(*cobra.Command, []string) error {
			return &exit{exitUsage, fmt.Errorf("config: wants one of show, schema and reference")}
		},
	}
	x.AddCommand(&cobra.Command{
		Use:   "show FILE",
		Short: "Print a file as it is understood: variables replaced, every default filled in, no secrets",
		Args:  wants(1, 1, "one FILE"),
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
	source, err := os.ReadFile(name)
	if err != nil {
		return &exit{exitFailed, err}
	}
	text, warnings, err := config.Show(name, source, os.LookupEnv)
	if len(warnings) > 0 {
		fmt.Fprintln(os.Stderr, warnings)
	}
	if err != nil {
		return &exit{exitRefused, err}
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

func printText(text string) error {
	if _, err := fmt.Print(text); err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}
