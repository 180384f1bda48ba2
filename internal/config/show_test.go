package config

import (
	"strings"
	"testing"
)

// What Show gives means what the file means, and says so again when it is read
// again; it has no secret.
func TestShow(t *testing.T) {
	for _, file := range []string{"good.yaml", "old.yaml", "new.yaml", "http-old.yaml", "http-new.yaml"} {
		src := read(t, file)
		text, _, err := Show(file, []byte(src), lookup)
		if err != nil {
			t.Fatal(err)
		}
		if file == "good.yaml" {
			golden(t, "good-shown.yaml", text)
			if strings.Contains(text, "0123456789abcdef") {
				t.Error("a secret is shown")
			}
			if _, _, err := Parse(file, []byte(text), nil); err == nil || !strings.Contains(err.Error(), "stands for a secret") {
				t.Errorf("a file without its secrets: %v", err)
			}
			text = strings.ReplaceAll(text, secretShown, "0123456789abcdef")
		}
		again, _, err := Parse(file, []byte(text), nil)
		if err != nil {
			t.Errorf("%s:\n%v\n%s", file, err, text)
		} else if d := Diff(must(t, src), again); !d.Empty() {
			t.Errorf("%s means something else when it is shown:\n%s", file, d)
		}
		// What was a default is written out now.
		strip := strings.NewReplacer(" # default", "", "0123456789abcdef", secretShown)
		twice, _, _ := Show(file, []byte(text), nil)
		a, b := strings.Split(strip.Replace(twice), "\n"), strings.Split(strip.Replace(text), "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Errorf("%s:%d: shown twice it is %q, not %q", file, i+1, a[i], b[i])
				break
			}
		}
	}
}
