package lab

import (
	"strings"
	"testing"
)

// A state that is a mixture of two is told from each of them, wherever the one
// ends and the other begins.
func TestDurableReadsOnlyWholeStates(t *testing.T) {
	l := &durableLab{}
	a, b := l.text(7, durablePort, "/s"), l.text(8, durablePort, "/s")
	for n, text := range map[int]string{7: a, 8: b} {
		if s, wrong := l.read(text); wrong != "" || s.n != n || s.t != 0 {
			t.Fatalf("state %d is read as %+v, %q", n, s, wrong)
		}
	}
	edited := strings.Replace(a, "edited: {", "edited: { connectTimeout: 1042ms,", 1)
	if s, wrong := l.read(edited); wrong != "" || s.t != 42 {
		t.Fatalf("the edit is read as %+v, %q", s, wrong)
	}
	la, lb := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	found := 0
	for i := 3; i < min(len(la), len(lb)); i++ {
		mixed := strings.Join(la[:i], "") + strings.Join(lb[i:], "")
		if mixed == a || mixed == b {
			continue
		}
		s, wrong := l.read(mixed)
		if wrong == "" {
			t.Errorf("mixed at line %d it is read as %+v", i, s)
		}
		found++
	}
	if found < 50 {
		t.Errorf("%d mixtures", found)
	}
}
