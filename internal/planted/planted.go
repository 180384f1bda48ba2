//go:build !planted

// Package planted holds the bugs that are put into the code on purpose, to see
// that the tests find them: a test that has never failed proves little. A site
// is one line, `if planted.Bug(7) { ... }`; without the build tag planted the
// compiler removes it. docs/planted-bugs.md lists them, and what it took to
// find each.
package planted

import "fmt"

// Bug tells whether bug n is there: never, in this build.
func Bug(int) bool { return false }

// Zero forgets *p if bug n is there.
func Zero[T any](int, *T) {}

// Cut loses the last octet of *p if bug n is there.
func Cut(int, *[]byte) {}

// Unknown gives octets of a field that no release knows, for flows of some listener: never,
// in this build.
func Unknown(string) []byte { return nil }

// Marching counts the calls by which one side of an upgrade speaks to the other.
type Marching struct{}

// March begins to count the calls of one side: never, in this build.
func March(string) *Marching { return nil }

// Call is told of each call before it is made.
func (*Marching) Call(string, fmt.Stringer) error { return nil }

// End gives back what a march holds.
func (*Marching) End() {}
