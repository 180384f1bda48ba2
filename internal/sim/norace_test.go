//go:build !race

package sim

const (
	seedsDefault = 400
	marchDefault = 6
)
