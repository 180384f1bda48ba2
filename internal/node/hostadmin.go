package node

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
)

// names of the kernel's rules: a process and its successor both have rules for
// a moment, so they take turns.
var names = [2]struct{ table, device string }{{"holdfast", "holdfast0"}, {"holdfast1", "holdfast1"}}

// openAdmin prepares this host for moves. With the heritage of a predecessor
// what that one diverts is diverted on; without, all leftovers are removed.
func openAdmin(c *config.Cluster, heritage json.RawMessage, log *slog.Logger) (*netadmin.Admin, error) {
	mine, other := names[0], names[1]
	var h *netadmin.Heritage
	if len(heritage) > 0 {
		h = new(netadmin.Heritage)
		if err := json.Unmarshal(heritage, h); err != nil {
			return nil, fmt.Errorf("heritage: %w", err)
		}
		if h.Table == mine.table {
			mine = other
		}
	} else {
		// Opening removes what is there under the name; so does closing.
		old, err := netadmin.Open(netadmin.Config{Device: c.Device, Table: other.table, HoldDevice: other.device, Log: log})
		if err != nil {
			return nil, err
		}
		if err := old.Close(); err != nil {
			return nil, err
		}
	}
	a, err := netadmin.Open(netadmin.Config{Device: c.Device, Table: mine.table, HoldDevice: mine.device, Log: log})
	if err != nil {
		return nil, err
	}
	if h != nil {
		if err := a.Inherit(*h); err != nil {
			_ = a.Leave()
			return nil, err
		}
	}
	return a, nil
}

// hostHeritage is what the successor's openAdmin needs.
func (n *Node) hostHeritage() json.RawMessage {
	if n.host.admin == nil {
		return nil
	}
	b, err := json.Marshal(n.host.admin.Heritage())
	if err != nil { // plain names and addresses cannot fail
		panic(err)
	}
	return b
}

// closeAdmin ends the rules, unless a successor goes on with them.
func (n *Node) closeAdmin() {
	n.mu.Lock()
	handed := n.successor != 0
	n.mu.Unlock()
	err := error(nil)
	if handed {
		err = n.host.admin.Leave()
	} else {
		err = n.host.admin.Close()
	}
	if err != nil {
		n.log.Error("rules of the kernel could not be removed", "error", err)
	}
}
