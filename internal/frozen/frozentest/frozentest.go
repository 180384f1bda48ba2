// Package frozentest holds every machine that moves to one promise: whatever
// it is given, and wherever it is cut, put down and picked up again, it does
// what it would have done had it stayed.
//
// A machine takes part through a [Subject]: the machine together with a small
// model of the world it lives in. The world stays where it is, as a kernel
// does; only the machine moves, and only as octets.
package frozentest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// Subject is one machine in its world, with an input that it follows step by
// step. The input is the same for every Subject that one function makes.
type Subject interface {
	// Steps is how many steps the input has.
	Steps() int
	// Step gives the machine step i of the input and lets it do what it can.
	// After it the machine is at rest and has settled.
	Step(i int)
	// Scratch is the memory in which octets of the machine may lie during a
	// step. It is filled with garbage after each one.
	Scratch() []byte
	// Freeze puts the machine down; it must not be used again. A
	// [frozen.Refused] with Retry says that it cannot move just now and goes
	// on; any other error is a failure. ok is false if nothing is left to move.
	Freeze() (octets []byte, ok bool, err error)
	// Thaw makes the machine anew from octets and what the world has.
	Thaw(octets []byte) error
	// Observe describes all that can be seen of the machine from outside:
	// state, wants, output. What may differ after a move, such as a count of
	// moves, is left out.
	Observe() string
	// Verify tells what is wrong in the world now, whether moved or not: an
	// octet that is lost, doubled or out of order.
	Verify() error
}

// Cut tells whether the machine is to be moved after step i.
type Cut func(i int) bool

// Never is an unmoved run.
func Never(int) bool { return false }

// Always moves after every step.
func Always(int) bool { return true }

// At moves once, after step k.
func At(k int) Cut { return func(i int) bool { return i == k } }

// Bits moves after each step whose bit is set in mask; it repeats itself every
// 64 steps.
func Bits(mask uint64) Cut { return func(i int) bool { return mask>>(i%64)&1 != 0 } }

// singleMax bounds how many single cuts Check tries one by one: the work grows
// with the square of the input.
const singleMax = 48

// Check runs the input unmoved, then cut once after each step, then after every
// step, then with each further cut, and wants all runs to look the same.
func Check(t testing.TB, make func() Subject, more ...Cut) {
	t.Helper()
	stayed := Run(t, make(), "unmoved", Never)
	compare := func(name string, cut Cut) {
		t.Helper()
		moved := Run(t, make(), name, cut)
		for i := range stayed {
			if moved[i] != stayed[i] {
				t.Fatalf("%s, after step %d:\n%s", name, i, differ(stayed[i], moved[i]))
			}
		}
	}
	compare("moved after every step", Always)
	for k := range min(len(stayed), singleMax) {
		compare(fmt.Sprintf("moved after step %d", k), At(k))
	}
	for i, cut := range more {
		compare(fmt.Sprintf("moved by cut %d", i), cut)
	}
}

// Run lets s follow its input with the cuts of one run and returns what was
// observed after each step.
func Run(t testing.TB, s Subject, name string, cut Cut) []string {
	t.Helper()
	seen := make([]string, s.Steps())
	for i := range seen {
		s.Step(i)
		spoil(s.Scratch(), i)
		if cut(i) {
			if err := Move(s); err != nil {
				t.Fatalf("%s, move after step %d: %v\n%s", name, i, err, s.Observe())
			}
		}
		if err := s.Verify(); err != nil {
			t.Fatalf("%s, after step %d: %v\n%s", name, i, err, s.Observe())
		}
		seen[i] = s.Observe()
	}
	return seen
}

// Move puts the machine down and picks it up again. A refusal for the moment
// is no error: the machine stays.
func Move(s Subject) error {
	octets, ok, err := s.Freeze()
	if err != nil {
		var no *frozen.Refused
		if errors.As(err, &no) && no.Retry {
			return nil
		}
		return fmt.Errorf("freeze: %w", err)
	}
	if !ok {
		return nil
	}
	kept := append([]byte(nil), octets...)
	// The machine that was frozen must share nothing with its frozen form,
	// nor the thawed one: both are overwritten.
	err = s.Thaw(octets)
	spoil(octets, 1)
	spoil(s.Scratch(), 2)
	if err != nil {
		return fmt.Errorf("thaw of %d octets: %w", len(kept), err)
	}
	return nil
}

// spoil overwrites memory that nobody may rely on any more.
func spoil(b []byte, salt int) {
	for i := range b {
		b[i] = byte(0xA5 ^ i ^ salt*31)
	}
}

func differ(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var out strings.Builder
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			fmt.Fprintf(&out, "unmoved %s\n  moved %s\n", a, b)
		}
	}
	return out.String()
}
