package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// A file that people copy has no fault and no warning, and says how to use it.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("examples: %q %v", files, err)
	}
	comment := regexp.MustCompile(`^(#.*\n){2,}`)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if header := comment.FindString(string(source)); !strings.Contains(header, "holdfast run -c examples/"+filepath.Base(file)) {
				t.Errorf("no header that says how to run it:\n%s", header)
			}
			// Every variable has a default: it runs as it is, on each of its nodes.
			nodes := config.Undecided(source, nil)
			if len(nodes) == 0 {
				nodes = []string{""}
			}
			for _, name := range nodes {
				_, warnings, err := config.Parse(file, source, func(variable string) (string, bool) {
					return name, variable == config.NodeVariable && name != ""
				})
				if err != nil {
					t.Error(err)
				}
				for _, w := range warnings {
					t.Error(w)
				}
			}
			out, err := holdfast(t, "check", file).CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), file+": ok") {
				t.Errorf("holdfast check: %v\n%s", err, out)
			}
		})
	}
}
