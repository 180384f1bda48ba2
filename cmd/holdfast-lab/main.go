// Command holdfast-lab runs the labs: Holdfast on real kernels, in network
// namespaces of its own, with traffic whose every octet is predictable. The
// last line of its standard output is one JSON object with the figures; the
// exit status is 0 only if every figure holds.
package main

import (
	"os"

	"github.com/holdfast-lb/holdfast/internal/lab"
	"github.com/holdfast-lb/holdfast/internal/lab/mainjob"
)

func main() {
	if status, mine := mainjob.Run(os.Args[1:]); mine {
		os.Exit(status)
	}
	os.Exit(lab.Main(os.Args[1:]))
}
