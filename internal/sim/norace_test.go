//go:build !race

package sim

const (
	seedsDefault = 1000
	marchDefault = 3
)
