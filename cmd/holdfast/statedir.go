package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// stateDirectory is where the node keeps its generations: what node.state says;
// else what the supervisor gives; else a place of its own for each file. It is ""
// for none, and then why says why if nobody has asked for that.
func stateDirectory(file string) (dir, why string) {
	if source, err := os.ReadFile(file); err == nil {
		// With mistakes in the file node.Start says so.
		if c, _, err := node.Parse(file, source); err == nil && c.Node.State != "" {
			if c.Node.State == config.NoState {
				return "", ""
			}
			return c.Node.State, "" // if it cannot be used, that is said, and nothing begins
		}
	}
	dir, err := defaultState(file)
	if err == nil {
		err = usable(dir)
	}
	if err != nil {
		return "", fmt.Sprintf("%v; generations are not kept over a restart: set node.state to a directory, or to none", err)
	}
	return dir, ""
}

// keepState says where the node keeps its generations.
func keepState(o *node.Options) {
	var why string
	if o.State, why = stateDirectory(o.File); why != "" {
		o.Log.Warn(why)
	}
}

// defaultState is the directory where nobody names one.
func defaultState(file string) (string, error) {
	// systemd.exec(5), StateDirectory=: several are divided by colons.
	if dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); dir != "" {
		return dir, nil
	}
	sum := sha256.Sum256([]byte(file))
	id := filepath.Base(file) + "-" + hex.EncodeToString(sum[:4])
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/holdfast", id), nil
	}
	if base := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "holdfast", id), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(home) {
		return "", errors.New("$HOME is no absolute path")
	}
	return filepath.Join(home, ".local", "state", "holdfast", id), nil
}

// usable makes dir, and tells whether files can be made there.
func usable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".try-")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
