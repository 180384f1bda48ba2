package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What config show prints is a file that check takes, and that is shown as it
// is; secrets are not in it, and warnings are not in its way.
func TestConfigShow(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "holdfast.yaml")
	const source = `
listeners: { web: { vip: 127.0.0.1:8080, protocol: http, backend: web } }
backends:
  web: { sticky: { cookie: { name: hf, key: "${KEY}" } }, endpoints: [ { address: 127.0.0.1:3000 } ] }
  old: { endpoints: [ { address: 127.0.0.1:3001 } ] }
`
	if err := os.WriteFile(name, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KEY", "a-secret-of-24-octets-xx")
	show := holdfast(t, "config", "show", name)
	var warned strings.Builder
	show.Stderr = &warned
	out, err := show.Output()
	if err != nil {
		t.Fatal(err, warned.String())
	}
	if !strings.Contains(warned.String(), "backends.old: used by no listener") {
		t.Errorf("warned of %q", warned.String())
	}
	text := string(out)
	for _, want := range []string{"idle: 64 # default", "key: (secret)", "vip: 127.0.0.1:8080\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "a-secret") {
		t.Errorf("a secret is shown:\n%s", text)
	}
	again := filepath.Join(dir, "again.yaml")
	if err := os.WriteFile(again, []byte(strings.Replace(text, "(secret)", `"${KEY}"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := holdfast(t, "check", again).CombinedOutput(); err != nil || !strings.Contains(string(out), ": ok: 1 listener") {
		t.Errorf("check: %v\n%s", err, out)
	}
	asJSON, err := holdfast(t, "config", "show", "--json", again).Output()
	var shown struct {
		Backends map[string]struct {
			Reuse struct{ Idle int }
		}
	}
	if err != nil || json.Unmarshal(asJSON, &shown) != nil || shown.Backends["web"].Reuse.Idle != 64 {
		t.Errorf("%v\n%s", err, asJSON)
	}
}

// A wrong file is refused with its errors and nothing else.
func TestConfigShowRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(name, []byte("nod: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	show := holdfast(t, "config", "show", name)
	out, err := show.CombinedOutput()
	if err == nil || show.ProcessState.ExitCode() != exitRefused || !strings.Contains(string(out), `:1:1: nod: unknown key; did you mean "node"?`) {
		t.Errorf("%v %d\n%s", err, show.ProcessState.ExitCode(), out)
	}
}

// Standard input is checked as a file is: all that is said comes in the order of
// the lines, and nothing is said of a change that nobody asked for.
func TestCheckStandardInput(t *testing.T) {
	for _, c := range []struct {
		args, source, want string
		code               int
	}{
		{"check -", `
backends:
  old: { endpoints: [ { address: 127.0.0.1:3001 } ] }
  web: { endpoints: [ { address: 127.0.0.1 } ] }
listeners: { web: { vip: 127.0.0.1:8080, backend: web } }
`, `stdin:3:3: warning: backends.old: used by no listener
stdin:4:34: backends.web.endpoints[0].address: "127.0.0.1": a port is missing, as in 127.0.0.1:5432
1 error, 1 warning
`, exitRefused},
		{"config show -", "nod: {}\n", `stdin:1:1: nod: unknown key; did you mean "node"?
stdin:1:1: warning: there are no listeners, so nothing is served
1 error, 1 warning
`, exitRefused},
		{"check -", "listeners: {}\n", "stdin: ok: 0 listeners, 0 backends, 0 endpoints\n", 0},
	} {
		verb := holdfast(t, strings.Fields(c.args)...)
		verb.Stdin = strings.NewReader(c.source)
		out, _ := verb.CombinedOutput()
		if code := verb.ProcessState.ExitCode(); code != c.code || string(out) != c.want {
			t.Errorf("%s %s\n got %d %s\nwant %d %s", c.args, c.source, code, out, c.code, c.want)
		}
	}
}

// The other two verbs print what an editor and a reader take.
func TestConfigSchemaAndReference(t *testing.T) {
	out, err := holdfast(t, "config", "schema").Output()
	if err != nil || !json.Valid(out) {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = holdfast(t, "config", "reference").Output()
	if err != nil || !strings.Contains(string(out), "| `node.loops` |") {
		t.Errorf("%v\n%s", err, out)
	}
}
