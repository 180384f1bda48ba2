package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/node"
)

func proxyCommand() *cobra.Command {
	var protocol, save string
	grace := graceDefault
	c := &cobra.Command{
		Use:   "proxy VIP ENDPOINT...",
		Short: "Run a proxy without a file: proxy 127.0.0.1:8080 127.0.0.1:3000",
		Long: "Runs a load balancer with one listener and one backend of the endpoints that are named, as\n" +
			"  holdfast proxy 127.0.0.1:8080 127.0.0.1:3000 127.0.0.1:3001\n" +
			"VIP :8080 is every address of this machine. --save writes the file that it amounts to, to go on\n" +
			"from with holdfast run -c FILE, and runs it; then reload and upgrade take that file.",
		Args: wants(2, 100, "VIP and at least one ENDPOINT"),
		RunE: func(c *cobra.Command, args []string) error {
			socket, _ := c.Flags().GetString("socket")
			if !c.Flags().Changed("socket") && os.Getenv(socketEnv) == "" {
				// The default place wants root, and this is for everybody.
				socket = filepath.Join(os.TempDir(), fmt.Sprintf("holdfast-%d.sock", os.Getpid()))
			}
			text, err := proxyFile(args[0], args[1:], protocol, socket, save != "")
			if err != nil {
				return &exit{exitUsage, err}
			}
			dir := ""
			if save == "" {
				// A successor reads a file.
				if dir, err = os.MkdirTemp("", "holdfast-proxy-"); err != nil {
					return &exit{exitFailed, err}
				}
				defer func() {
					// A successor, if there is one, goes on with the file.
					if _, err := clientOf(socket, false).status(); err != nil {
						_ = os.RemoveAll(dir)
					}
				}()
				save = filepath.Join(dir, "holdfast.yaml")
			}
			if save, err = filepath.Abs(save); err != nil {
				return &exit{exitFailed, err}
			}
			flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL // what is there is somebody's
			f, err := os.OpenFile(save, flags, 0o644)
			if err == nil {
				_, err = f.WriteString(text)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				return &exit{exitFailed, err}
			}
			level := new(slog.LevelVar)
			level.Set(slog.LevelWarn)
			return runHere(node.Options{File: save, Level: level}, grace,
				fmt.Sprintf("%s on %s -> %s; admin %s; the file is %s", protocol, args[0], strings.Join(args[1:], ", "), socket, save))
		},
	}
	c.Flags().StringVar(&protocol, "protocol", "http", "http or tcp")
	c.Flags().StringVar(&save, "save", "", "write the configuration to this file, which must not exist")
	c.Flags().DurationVar(&grace, "grace", grace, "how long what is under way may take after SIGTERM")
	return c
}

// proxyFile is the configuration of a proxy. One that nobody keeps keeps no
// generations either.
func proxyFile(vip string, endpoints []string, protocol, socket string, kept bool) (string, error) {
	if protocol != "http" && protocol != "tcp" {
		return "", fmt.Errorf("proxy: --protocol: %q is neither http nor tcp", protocol)
	}
	host, port, err := net.SplitHostPort(vip)
	if n, err2 := strconv.ParseUint(port, 10, 16); err != nil || err2 != nil || n == 0 {
		return "", fmt.Errorf("proxy: %q: wants an address and a port, as 127.0.0.1:8080 or :8080", vip)
	}
	if host == "" {
		vip = "[::]:" + port // and IPv4
	} else if _, err := netip.ParseAddr(host); err != nil {
		return "", fmt.Errorf("proxy: %q: %q is not an address; use one of this machine, or :%s for all of them", vip, host, port)
	}
	var out strings.Builder
	state := "  state: none\n"
	if kept {
		state = ""
	}
	fmt.Fprintf(&out, "node:\n  admin: { socket: %q }\n%slisteners:\n  proxy: { vip: %q, protocol: %s, backend: servers }\nbackends:\n  servers:\n    endpoints:\n",
		socket, state, vip, protocol)
	for i, e := range endpoints {
		fmt.Fprintf(&out, "      - { name: s%d, address: %q }\n", i+1, e)
	}
	if _, _, err := node.Parse("proxy", []byte(out.String())); err != nil {
		return "", err
	}
	return out.String(), nil
}
