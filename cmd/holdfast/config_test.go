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
	if err := os.WriteFile(name, []byte("nodes: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	show := holdfast(t, "config", "show", name)
	out, err := show.CombinedOutput()
	if err == nil || show.ProcessState.ExitCode() != exitRefused || !strings.Contains(string(out), `:1:1: nodes: unknown key; did you mean "node"?`) {
		t.Errorf("%v %d\n%s", err, show.ProcessState.ExitCode(), out)
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
