package config

import (
	"os"
	"strings"
	"testing"
)

// A configuration in the document is one that a reader will copy.
func TestDocumentParses(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("no configuration found")
	}
	for _, block := range blocks {
		src, _, _ := strings.Cut(block, "```")
		if _, warnings, err := Parse("docs/configuration.md", []byte(src), nil); err != nil || len(warnings) > 0 {
			t.Errorf("%s\n%v\n%v", src, err, warnings)
		}
	}
}
