package flow

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen/frozentest"
)

// subject hides, from the comparison, what RST leaves open: how far octets
// got that were under way when it came.
type subject struct{ *world }

func (s subject) Observe() string {
	if s.bulk && s.rough {
		return "reset"
	}
	return s.world.Observe()
}

func checkMoves(t testing.TB, script []op, bulk bool, more ...frozentest.Cut) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Fatalf("panic: %v\nbulk %t, script %v", r, bulk, script)
		}
		if t.Failed() {
			t.Logf("bulk %t, script %v", bulk, script)
		}
	}()
	frozentest.Check(t, func() frozentest.Subject { return subject{newWorld(script, bulk)} }, more...)
}

// A flow that is moved between any two facts does what it would have done.
func FuzzFlowMoves(f *testing.F) {
	for _, code := range moveCorpus {
		f.Add([]byte(code), uint64(0b1011010))
	}
	f.Fuzz(func(t *testing.T, code []byte, cuts uint64) {
		script, bulk := compile(code)
		checkMoves(t, script, bulk, frozentest.Bits(cuts))
	})
}

// The first octet: 1 bulk, 2 connected; then one octet an op (compile).
var moveCorpus = []string{
	"\x00\x0a\x0b\x50\x05\x08\x88\x95",
	"\x02\x50\xd0\x54\xd5\x08\xb4\x88",             // both speak, the client ends first
	"\x02\x60\x60\x65\xe5\x27\x08\x64\xe4\xe4\x88", // backpressure, then FIN behind it
	"\x03\x60\x60\x60\xe7\xe4\x08\x64\xe4\xe4\x88", // bulk, FIN behind a full pipe
	"\x03\x60\x60\xe0\xe0\xe4\x09\x64",             // bulk, then RST
	"\x00\x0e\x1a\x0c\x2a\x0c\x0a\x0b",             // queued, two endpoints fail
	"\x02\x50\x07\x4d\x5d",                         // idle while blocked
	"\x02\x10\x89\x04", "\x02\x90\x90\x07\x09", "\x03\x60\x60\x60\x60\x69\xe9",
}

// Long random scripts beyond those that the fuzzer keeps.
func TestFlowMovesAnywhere(t *testing.T) {
	n := 500
	if testing.Short() {
		n = 100
	}
	for seed := range uint64(n) {
		script, bulk := randomScript(seed)
		checkMoves(t, script, bulk, frozentest.Bits(mix(seed)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func mix(x uint64) uint64 {
	z := (x ^ x>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

func randomScript(seed uint64) (script []op, bulk bool) {
	code := make([]byte, 20)
	for i := range code {
		code[i] = byte(mix(seed*1000+uint64(i)*0x9E3779B97F4A7C15) >> 40)
	}
	if seed%4 != 0 { // most come to relaying
		code[0] |= 2
	}
	script, bulk = compile(code)
	if seed%4 != 1 { // RST ends most stories early; three in four go without
		for i := range script {
			if script[i].verb == "rst" || script[i].verb == "kill" {
				script[i].verb, script[i].n = "takes", 700
			}
		}
	}
	return script, bulk
}

// Golden scripts: events, and after ---- what came of each. Every script also
// runs with a move after every step and after each single one.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(text), "----\n")
			script, bulk, err := parse(input)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for i, seen := range frozentest.Run(t, newWorld(script, bulk), "unmoved", frozentest.Never) {
				fmt.Fprintf(&got, "> %v\n%s\n", script[i], seen)
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(input+"----\n"+got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != want {
				t.Errorf("got\n%s\nwant\n%s", got.String(), want)
			}
			checkMoves(t, script, bulk)
		})
	}
}

// A backend that breaks while a pipe holds octets for it, and octets for the
// client are still due, must not cost the client these: the pipe's octets were
// laid on the broken leg, and no thaw would have such a flow.
func TestPipeOfABrokenLegMoves(t *testing.T) {
	script, _, err := parse(`
secured 0
dialed
client room 100
backend says 700
client says 5000
backend rst
client takes 100
client takes 900
`)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(script, true)
	frozentest.Run(t, w, "moved after the RST", frozentest.At(5))
	if got := len(w.legs[Client].got); got < 200 {
		t.Errorf("the client got %d octets of what the backend had said", got)
	}
}
