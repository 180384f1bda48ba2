package node

import (
	"fmt"
	"time"
)

// sheddingEvery is how often it is seen whether something that is shed has its
// end.
const sheddingEvery = 250 * time.Millisecond

// shed is what is turned away at a backend.
type shed struct {
	Percent float64   `json:"percent"`
	As      string    `json:"as"`
	Until   time.Time `json:"until,omitzero"`
	By      Author    `json:"by"`
}

// endSheds ends what is shed whose time has come, or whose backend has left.
func (n *Node) endSheds(now time.Time) {
	_ = now
	_ = fmt.Sprint
}
