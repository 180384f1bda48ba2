package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const pkg = "example.org/m/a"
	line := func(action, test, output string) string {
		return `{"Action":"` + action + `","Package":"` + pkg + `","Test":"` + test + `","Output":"` + output + `"}` + "\n"
	}
	pass := line("output", "TestA", `=== RUN\n`) + line("pass", "TestA", "")
	for _, tt := range []struct {
		name    string
		in      string
		allowed string
		ok      bool
		want    string
		not     string
	}{
		{"pass", pass + line("output", "", `PASS\n`) + line("output", "", `ok  \ta\t0.1s\n`) + line("pass", "", ""), "",
			true, "ok  \ta\t0.1s\ntests: 1 passed, 0 failed, 0 skipped (0 unlisted)\n", "=== RUN"},
		{"fail shows its output", line("output", "TestB", `boom\n`) + line("fail", "TestB", "") + line("fail", "", ""), "",
			false, "boom\n", ""},
		{"skip", pass + line("output", "TestS", `no root\n`) + line("skip", "TestS", ""), "",
			false, "skip a.TestS: not listed", ""},
		{"skip shows why", pass + line("output", "TestS", `no root\n`) + line("skip", "TestS", ""), "",
			false, "no root", ""},
		{"listed skip", pass + line("skip", "TestS", ""), "a.TestS: needs a mainframe",
			true, "listed: needs a mainframe", ""},
		{"listed subtests", pass + line("skip", "TestS/x/y", ""), "a.TestS/...: needs a mainframe",
			true, "(0 unlisted)", ""},
		{"broken build", "a.go:1: syntax error\n" + line("fail", "", ""), "", false, "a.go:1: syntax error\n", ""},
		{"package fails though its tests pass", pass + line("fail", "", ""), "", false, "1 passed", ""},
		{"crash", pass + line("output", "TestC", `panic\n`) + line("fail", "", ""), "", false, "a.TestC did not end", ""},
		{"nothing ran", "", "", false, "no test ran", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allowed, err := parseAllowed(tt.allowed)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			ok, err := run(strings.NewReader(tt.in), &out, "example.org/m", allowed, true)
			if err != nil {
				t.Fatal(err)
			}
			if ok != tt.ok {
				t.Errorf("ok = %v, want %v; output:\n%s", ok, tt.ok, out.String())
			}
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("output lacks %q:\n%s", tt.want, out.String())
			}
			if tt.not != "" && strings.Contains(out.String(), tt.not) {
				t.Errorf("output has %q:\n%s", tt.not, out.String())
			}
		})
	}
}

func TestSkipsAreForgivenOnlyOutsideCI(t *testing.T) {
	in := `{"Action":"pass","Package":"m","Test":"TestA"}` + "\n" + `{"Action":"skip","Package":"m","Test":"TestS"}` + "\n"
	var out strings.Builder
	ok, err := run(strings.NewReader(in), &out, "m", nil, false)
	if err != nil || !ok {
		t.Fatalf("ok = %v, err = %v, want true: not strict", ok, err)
	}
}

func TestAllowedWantsReasons(t *testing.T) {
	if _, err := parseAllowed(allowedText); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"a.TestS", "a.TestS:", "a.TestS:  "} {
		if _, err := parseAllowed(bad); err == nil {
			t.Errorf("parseAllowed(%q) = nil error, want one", bad)
		}
	}
}
