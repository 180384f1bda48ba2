package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
)

func logCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "log [LEVEL]",
		Short: "Show or change what the log tells: debug, info, warn or error",
		Args:  wants(0, 1, "a LEVEL at most: debug, info, warn or error"),
		RunE: asking(func(c *client, args []string) error {
			q := &api.LogRequest{}
			if len(args) > 0 {
				var level slog.Level
				if err := level.UnmarshalText([]byte(args[0])); err != nil {
					return &exit{exitUsage, fmt.Errorf("log: %q is none of debug, info, warn, error%s", args[0], meant(args[0], []string{"debug", "info", "warn", "error"}))}
				}
				q.Level = level.String()
			}
			var r logLevels
			told, err := ask(c, c.api.SetLog, q, &r)
			if err != nil || !told {
				return err
			}
			was, is := strings.ToLower(r.Was), strings.ToLower(r.Is)
			if q.Level == "" {
				fmt.Println(is)
				return nil
			}
			fmt.Printf("log level %s -> %s\n", was, is)
			return nil
		}),
	}
}

// logLevels is the answer of the method SetLog.
type logLevels struct {
	Was string `json:"was"`
	Is  string `json:"is"`
}
