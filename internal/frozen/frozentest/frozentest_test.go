package frozentest

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// adder is the smallest machine: it adds what it is told, and may forget.
type adder struct {
	input   []int
	sum     int
	forgets bool
	refuses bool
	held    []byte // refers to the scratch if it is careless
	scratch [8]byte
	careful bool
}

func (a *adder) Steps() int      { return len(a.input) }
func (a *adder) Scratch() []byte { return a.scratch[:] }
func (a *adder) Step(i int) {
	a.sum += a.input[i]
	binary.BigEndian.PutUint64(a.scratch[:], uint64(a.sum))
	a.held = a.scratch[:]
	if a.careful {
		a.held = append([]byte(nil), a.held...)
	}
}
func (a *adder) Freeze() ([]byte, bool, error) {
	if a.refuses {
		return nil, false, &frozen.Refused{What: "adder", Why: "busy", Retry: true}
	}
	return binary.BigEndian.AppendUint64(nil, uint64(a.sum)), true, nil
}
func (a *adder) Thaw(b []byte) error {
	a.sum = int(binary.BigEndian.Uint64(b))
	a.held = append([]byte(nil), b...)
	if a.forgets {
		a.sum = 0
	}
	return nil
}
func (a *adder) Observe() string { return fmt.Sprintf("sum %d", a.sum) }
func (a *adder) Verify() error {
	if got := binary.BigEndian.Uint64(a.held); got != uint64(a.sum) {
		return fmt.Errorf("holds %d, its sum is %d", got, a.sum)
	}
	return nil
}

// failing is a T that notes the failure of a test that has to fail.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Helper() {}
func (f *failing) Fatalf(format string, args ...any) {
	if f.said == "" {
		f.said = fmt.Sprintf(format, args...)
	}
	panic(f)
}

// Check must find a machine that forgets, and one that relies on the scratch;
// otherwise it proves nothing about those that pass.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name string
		make func() *adder
		want string // in the failure; "" = passes
	}{
		{"a good one", func() *adder { return &adder{careful: true} }, ""},
		{"one that refuses for now", func() *adder { return &adder{careful: true, refuses: true} }, ""},
		{"one that forgets", func() *adder { return &adder{careful: true, forgets: true} }, "moved after every step"},
		{"one that keeps scratch", func() *adder { return &adder{} }, "unmoved, after step 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &failing{TB: t}
			func() {
				defer func() {
					if r := recover(); r != nil && r != any(f) {
						panic(r)
					}
				}()
				Check(f, func() Subject {
					a := c.make()
					a.input = []int{3, 4, 5}
					return a
				}, Bits(0b101))
			}()
			if (c.want == "") != (f.said == "") || !strings.Contains(f.said, c.want) {
				t.Errorf("said %q, want %q", f.said, c.want)
			}
		})
	}
}
