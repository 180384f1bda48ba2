package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/holdfast-lb/holdfast/internal/accesslog"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// logTag is what lines of syslog begin with.
const logTag = "holdfast"

// startLog makes the access log, and the loops' sinks, which are there whether
// anything is logged or not: a reload may begin it.
func (n *Node) startLog(loops int, place *accesslog.Place) {
	n.access = accesslog.New(loops, n.log)
	for i := range loops {
		n.shared.Sinks = append(n.shared.Sinks, n.access.Sink(i))
	}
	n.access.Set(place)
}

// logChange opens what a new configuration wants for the access log, if that is
// another place or form than before.
func logChange(old, next *config.Config) (place *accesslog.Place, changed bool, err error) {
	was, now := old.AccessLog, next.AccessLog
	if was == now || was != nil && now != nil && *was == *now {
		return nil, false, nil
	}
	place, err = accesslog.Open(now, logTag)
	return place, true, err
}

// ReopenLog opens the file of the access log anew, after somebody has renamed
// it. It returns at once; what comes of it is in the log.
func (n *Node) ReopenLog() { n.access.Reopen() }

// LogLevel changes what the node's own log tells, from debug to error, and gives
// the level that was; nil only asks.
func (n *Node) LogLevel(to *slog.Level) (slog.Level, error) {
	if n.level == nil {
		return 0, errors.New("node: the level of this log cannot be changed")
	}
	was := n.level.Level()
	if to != nil && *to != was {
		// A line of info, and in the log whatever the levels are.
		n.level.Set(min(was, *to, slog.LevelInfo))
		n.log.Info("log level changed", "from", was, "to", *to)
		n.level.Set(*to)
	}
	return was, nil
}

var _ loop.Sink = (*accesslog.Sink)(nil)

// door is a TCP listener that the admin server serves. The node opens it, so that
// a place that is taken refuses the start, and hands it to its successor, so that
// nobody is refused meanwhile.
type door struct {
	key      string  // of the listener among inherited ones
	fd       sock.FD // to hand on
	listener net.Listener
}

const (
	metricsBacklog = 16
	apiBacklog     = 128

	// What stands before the address of a door in [Options.Inherited].
	scrapeKind = "metrics "
	apiKind    = "api "
)

// openDoors opens where metrics and the API are served over TCP.
func (n *Node) openDoors(c *config.Config, inherited map[string]sock.FD) error {
	var err error
	if n.scrape, err = openDoor(scrapeKind, c.Node.Metrics, metricsBacklog, inherited); err != nil {
		return fmt.Errorf("node: metrics: %w", err)
	}
	if n.api, err = openDoor(apiKind, apiAddr(&c.Node), apiBacklog, inherited); err != nil {
		n.scrape.close()
		return fmt.Errorf("node: API: %w", err)
	}
	return nil
}

func apiAddr(n *config.Node) netip.AddrPort {
	if n.API == nil {
		return netip.AddrPort{}
	}
	return n.API.Listen
}

// openDoor opens a door at an address, if it is one.
func openDoor(kind string, at netip.AddrPort, backlog int, inherited map[string]sock.FD) (door, error) {
	if !at.IsValid() {
		return door{fd: sock.NoFD}, nil
	}
	d := door{key: kind + at.String()}
	fd, ok := inherited[d.key]
	if !ok {
		var err error
		if fd, err = sock.Listen(sock.ListenSpec{Addr: at, Backlog: backlog}); err != nil {
			return door{fd: sock.NoFD}, err
		}
	}
	d.fd = fd
	dup, err := fd.Dup()
	if err != nil {
		return d, err
	}
	// The file takes the duplicate, and the listener makes one of its own.
	file := os.NewFile(uintptr(dup.Disown()), d.key)
	d.listener, err = net.FileListener(file)
	_ = file.Close()
	if err != nil {
		d.fd.Close()
	}
	return d, err
}

func (d *door) close() {
	if d.listener != nil {
		_ = d.listener.Close()
	}
	d.fd.Close()
}

func (n *Node) closeDoors() {
	n.doors.Do(func() {
		n.scrape.close()
		n.api.close()
	})
}

// MetricsListener is where metrics are to be served over TCP; nil: nowhere. The
// node closes it at Stop.
func (n *Node) MetricsListener() net.Listener { return n.scrape.listener }

// APIListener is where the API is to be served over TCP; nil: nowhere. The node
// closes it at Stop.
func (n *Node) APIListener() net.Listener { return n.api.listener }

// StateDir is where the node keeps its journal now, and others may keep what
// belongs to it; "" is nowhere.
func (n *Node) StateDir() string {
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	return n.state.dir
}

// Left tells that a successor has been told, or is just being told, what this
// process has counted.
func (n *Node) Left() bool { return n.told.Load() }
