package node

import (
	"encoding/json"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

type hostSide struct{}

func (n *Node) startHost(c *config.Config, o Options) error { return nil }
func (n *Node) stopHost()                                   {}
func (n *Node) hostDescriptors() map[string]sock.FD         { return nil }
func (n *Node) hostHeritage() json.RawMessage               { return nil }
func (n *Node) hostCounters() map[string]uint64             { return nil }

// Migrate moves.
func (n *Node) Migrate(to string) (*Report, error) { return nil, nil }
