package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/netadmin"
)

// What of a file cannot move is said; something missing is in the exit status, a
// warning is not; and each line of --json is an object.
func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	const rest = `
listeners:
  everywhere: { vip: "0.0.0.0:8080", protocol: tcp, backend: app }
  here: { vip: "192.0.2.1:8081", protocol: tcp, backend: app }
backends:
  app: { endpoints: [ { name: a1, address: "127.0.0.1:9" } ] }
`
	cluster := `
cluster: { identity: { certificate: /n.crt, key: /n.key, trust: /ca.crt }, netadmin: "` + dir + `/none" }
nodes:
  n1: { address: "192.0.2.1:7443", device: hf-none, sourcePorts: 20000-29999 }
  n3: { address: "192.0.2.3:7443", device: hf-none, sourcePorts: 30000-39999 }
`
	loopback := cluster + `
vips: { shop: { address: 192.0.2.10/24, home: n1 } }
listeners: { web: { vip: "shop:443", protocol: tcp, backend: app } }
backends: { app: { source: vip, endpoints: [ { name: a1, address: "127.0.0.1:9" } ] } }
`
	for name, c := range map[string]struct {
		file string
		exit int
		says map[string]netadmin.Verdict // prefixes of what
	}{
		"no cluster":  {rest, 0, map[string]netadmin.Verdict{"cluster": netadmin.Costs}},
		"no device":   {cluster + rest, exitFailed, map[string]netadmin.Verdict{"device hf-none": netadmin.Missing, "listener everywhere": netadmin.Costs, "listeners": netadmin.Good}},
		"on loopback": {loopback, exitRefused, nil},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "holdfast.yaml")
			if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := holdfast(t, "doctor", "--json", "--node", "n1", "-c", file)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			code := 0
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != c.exit {
				t.Errorf("exit %d, want %d\n%s%s", code, c.exit, out, stderr.String())
			}
			found := map[string]netadmin.Verdict{}
			for line := range strings.Lines(string(out)) {
				var f netadmin.Finding
				if err := json.Unmarshal([]byte(line), &f); err != nil {
					t.Errorf("%q: %v", line, err)
				}
				found[f.What] = f.Verdict
			}
			for what, verdict := range c.says {
				if found[what] != verdict {
					t.Errorf("%s: %q, want %q\n%s%s", what, found[what], verdict, out, stderr.String())
				}
			}
			if c.says == nil && !strings.Contains(stderr.String(), "127.0.0.1") {
				t.Errorf("does not say why: %s", stderr.String())
			}
		})
	}
}
