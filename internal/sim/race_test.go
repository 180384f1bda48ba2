//go:build race

package sim

// The race detector makes a history ten times as long, and there is one
// goroutine here: a few are enough.
const (
	seedsDefault = 100
	marchDefault = 15
)
