//go:build !race

package sim

const (
	seedsDefault = 250
	marchDefault = 2
)
