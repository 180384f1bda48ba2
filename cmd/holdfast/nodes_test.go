package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One file is for all nodes: check reads it as each of them, or as the one that the
// flag or the variable names, and says for whom an error is one.
func TestCheckAsEachNode(t *testing.T) {
	const source = `
node: { admin: { metrics: "${METRICS_n1:-127.0.0.1:9090}" } }
cluster: { identity: { certificate: "/etc/holdfast/${HOLDFAST_NODE}.crt", key: /k, trust: /t } }
nodes:
  n1: { address: 192.168.7.1:7443, device: eth0, sourcePorts: 20000-29999 }
  n2: { address: %s, device: eth0, sourcePorts: 30000-39999 }
vips: { shop: { address: 192.0.2.10/24, home: n1 } }
listeners: { web: { vip: "shop:443", backend: app }, own: { vip: 192.168.7.9:80, backend: app } }
backends: { app: { source: vip, endpoints: [ { address: 10.9.0.1:9000 } ] } }
`
	good, bad := fmt.Sprintf(source, "192.168.7.2:7443"), fmt.Sprintf(source, "192.168.7.9:80")
	const ok = "2 listeners, 1 backend, 1 endpoint\n"
	for _, c := range []struct {
		args, source, variable, want string
		code                         int
	}{
		{"check -", good, "", "stdin: ok on n1, n2: " + ok, 0},
		{"check - --node n2", good, "", "stdin: ok: " + ok, 0},
		{"check -", good, "HOLDFAST_NODE=n1", "stdin: ok: " + ok, 0},
		{"check - --node n7", good, "HOLDFAST_NODE=n1", `this node, "n7", is not among them`, exitRefused},
		{"check - --node a/b", good, "", `check: --node "a/b": not a name`, exitUsage},
		{"check - --node n1", bad, "", "stdin: ok: " + ok, 0},
		{"check - --node n2", bad, "", "192.168.7.9:80", exitRefused},
		{"check -", bad, "", "192.168.7.9:80", exitRefused},
	} {
		verb := holdfast(t, strings.Fields(c.args)...)
		if c.variable != "" {
			verb.Env = append(verb.Env, c.variable)
		}
		verb.Stdin = strings.NewReader(c.source)
		out, _ := verb.CombinedOutput()
		if code := verb.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.want) {
			t.Errorf("%s %s\n got %d %s\nwant %d %s", c.args, c.variable, code, out, c.code, c.want)
		}
	}
}

// The name that run is given is the node's, and its successor's, whenever the
// file is read.
func TestRunNode(t *testing.T) {
	const source = "node: { admin: { socket: \"${HOLDFAST_SOCKET}\" } }\n"
	file := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	h := begin(t, nil, "run", "--node", "n9", "-c", file)
	for _, when := range []string{"at the start", "after an upgrade"} {
		if got := h.status().Node; got != "n9" {
			t.Errorf("%s the node is %q", when, got)
		}
		h.upgraded()
	}
	h.must(0, []string{"reload"})
	if got := h.status().Node; got != "n9" {
		t.Errorf("after a reload the node is %q", got)
	}
}
