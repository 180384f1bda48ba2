// Command skips reads the events of `go test -json` and prints what plain
// go test would print, closing lines included. It adds a count, and with
// -strict it fails when a test was skipped that allowed.txt does not list with
// its reason: a test that quietly never runs holds nothing.
package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

//go:embed allowed.txt
var allowedText string

func main() {
	strict := flag.Bool("strict", false, "fail when a test was skipped that allowed.txt does not list")
	module := flag.String("module", "github.com/holdfast-lb/holdfast", "module path to cut from package names")
	flag.Parse()
	allowed, err := parseAllowed(allowedText)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ok, err := run(os.Stdin, os.Stdout, *module, allowed, *strict)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// parseAllowed reads lines "package.Test: reason". Test may end in /... for
// all its subtests.
func parseAllowed(text string) (map[string]string, error) {
	allowed := map[string]string{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, ": ")
		if !ok || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("skips: allowed.txt:%d: want \"package.Test: reason\"", n)
		}
		allowed[name] = reason
	}
	return allowed, nil
}

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

func run(in io.Reader, out io.Writer, module string, allowed map[string]string, strict bool) (ok bool, err error) {
	var passed, failed, skipped, unlisted, failedPackages int
	held := map[string][]string{} // output of tests that have not ended yet
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(out, lines.Text()) // the go command's own words, as of a broken build
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(e.Package, module), "/")
		if name == "" {
			name = "."
		}
		name += "." + e.Test
		switch {
		case e.Action == "build-output":
			fmt.Fprint(out, e.Output)
		case e.Action == "output" && e.Test == "":
			if e.Output != "PASS\n" {
				fmt.Fprint(out, e.Output)
			}
		case e.Action == "output":
			if !strings.HasPrefix(e.Output, "=== ") { // RUN, PAUSE, CONT: only with -v
				held[name] = append(held[name], e.Output)
			}
		case e.Action == "fail" && e.Test == "":
			failedPackages++
		case e.Test == "":
		case e.Action == "pass":
			passed++
			delete(held, name)
		case e.Action == "fail":
			failed++
			for _, o := range held[name] {
				fmt.Fprint(out, o)
			}
			delete(held, name)
		case e.Action == "skip":
			skipped++
			reason, listed := reasonFor(allowed, name)
			if listed {
				fmt.Fprintf(out, "skip %s: listed: %s\n", name, reason)
			} else {
				unlisted++
				fmt.Fprintf(out, "skip %s: not listed in internal/lint/skips/allowed.txt\n", name)
				for _, o := range held[name] {
					fmt.Fprint(out, "    "+o)
				}
			}
			delete(held, name)
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("skips: %w", err)
	}
	// A test binary that crashed leaves tests without an end.
	for name, output := range held {
		fmt.Fprintf(out, "%s did not end:\n", name)
		for _, o := range output {
			fmt.Fprint(out, "    "+o)
		}
	}
	fmt.Fprintf(out, "tests: %d passed, %d failed, %d skipped (%d unlisted)\n", passed, failed, skipped, unlisted)
	if passed+failed+skipped == 0 {
		fmt.Fprintln(out, "no test ran: that is a failure, too")
		return false, nil
	}
	return failed == 0 && failedPackages == 0 && (unlisted == 0 || !strict), nil
}

func reasonFor(allowed map[string]string, name string) (string, bool) {
	if r, ok := allowed[name]; ok {
		return r, true
	}
	for i := len(name) - 1; i > 0; i-- {
		if name[i] == '/' {
			if r, ok := allowed[name[:i]+"/..."]; ok {
				return r, true
			}
		}
	}
	return "", false
}
