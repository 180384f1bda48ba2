package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/admin"
)

func logCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "log [LEVEL]",
		Short: "Show or change what the log tells: debug, info, warn or error",
		Args:  wants(0, 1, "a LEVEL at most: debug, info, warn or error"),
		RunE: func(c *cobra.Command, args []string) error {
			var q admin.LogRequest
			if len(args) > 0 {
				var level slog.Level
				if err := level.UnmarshalText([]byte(args[0])); err != nil {
					return &exit{exitUsage, fmt.Errorf("log: %q is none of debug, info, warn, error%s", args[0], meant(args[0], []string{"debug", "info", "warn", "error"}))}
				}
				q.Level = &level
			}
			var r admin.LogReport
			told, err := newClient(c).ask("/v1/log", q, &r)
			if err != nil || !told {
				return err
			}
			was, is := strings.ToLower(r.Was.String()), strings.ToLower(r.Is.String())
			if q.Level == nil {
				fmt.Println(is)
				return nil
			}
			fmt.Printf("log level %s -> %s\n", was, is)
			return nil
		},
	}
}
