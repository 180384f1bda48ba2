package netadmin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const sysctlRoot = "/proc/sys/"

// sysctl is one value that Open changed.
type sysctl struct{ path, was, now string }

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + path)
	if err != nil {
		return "", fmt.Errorf("netadmin: sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(path, v string) error {
	if err := os.WriteFile(sysctlRoot+path, []byte(v), 0); err != nil {
		return fmt.Errorf("netadmin: sysctl %s=%s: %w", path, v, err)
	}
	return nil
}

func existsSysctl(path string) bool {
	_, err := os.Stat(sysctlRoot + path)
	return err == nil
}

func listSysctl(path string) ([]string, error) {
	d, err := os.ReadDir(filepath.Join(sysctlRoot, path))
	if err != nil {
		return nil, fmt.Errorf("netadmin: sysctl: %w", err)
	}
	var names []string
	for _, e := range d {
		names = append(names, e.Name())
	}
	return names, nil
}

// setSysctl changes one value, says so, and remembers it for Close.
func (a *Admin) setSysctl(path string, f func(was string) (now string)) error {
	was, err := readSysctl(path)
	if err != nil {
		return err
	}
	now := f(was)
	if now == was {
		return nil
	}
	if err := writeSysctl(path, now); err != nil {
		return err
	}
	a.sysctls = append(a.sysctls, sysctl{path, was, now})
	// The TAP device is ours; what it says concerns nobody else.
	if !strings.Contains(path, "/"+a.cfg.HoldDevice+"/") {
		a.cfg.Log.Info("sysctl changed", "name", strings.ReplaceAll(path, "/", "."), "was", was, "now", now)
	}
	return nil
}

// restoreSysctls undoes setSysctl, last first, unless somebody else has
// changed the value meanwhile. Devices that are gone need nothing.
func (a *Admin) restoreSysctls() error {
	var errs []error
	for i := len(a.sysctls) - 1; i >= 0; i-- {
		s := a.sysctls[i]
		if v, err := readSysctl(s.path); errors.Is(err, os.ErrNotExist) || err == nil && v != s.now {
			continue
		}
		errs = append(errs, writeSysctl(s.path, s.was))
	}
	a.sysctls = nil
	return errors.Join(errs...)
}

// Changed returns the sysctls that Open changed, as "name: was -> now".
func (a *Admin) Changed() []string {
	var out []string
	for _, s := range a.sysctls {
		out = append(out, strings.ReplaceAll(s.path, "/", ".")+": "+s.was+" -> "+s.now)
	}
	return out
}
