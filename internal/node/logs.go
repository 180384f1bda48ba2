package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
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

// scrapeSide is where metrics are served over TCP. The node opens the listener,
// so that a place that is taken refuses the start, and hands it to its successor,
// so that no scrape is refused meanwhile; the admin server serves it.
type scrapeSide struct {
	key      string  // of the listener among inherited ones
	fd       sock.FD // to hand on
	listener net.Listener
}

func metricsKey(c *config.Config) string {
	if !c.Node.Metrics.IsValid() {
		return ""
	}
	return "metrics " + c.Node.Metrics.String()
}

func (n *Node) openMetrics(c *config.Config, inherited map[string]sock.FD) error {
	n.scrape = scrapeSide{key: metricsKey(c), fd: sock.NoFD}
	if n.scrape.key == "" {
		return nil
	}
	fd, ok := inherited[n.scrape.key]
	if !ok {
		var err error
		if fd, err = sock.Listen(sock.ListenSpec{Addr: c.Node.Metrics, Backlog: 16}); err != nil {
			return fmt.Errorf("node: metrics: %w", err)
		}
	}
	n.scrape.fd = fd
	dup, err := fd.Dup()
	if err != nil {
		return err
	}
	// The file takes the duplicate, and the listener makes one of its own.
	file := os.NewFile(uintptr(dup.Disown()), n.scrape.key)
	n.scrape.listener, err = net.FileListener(file)
	_ = file.Close()
	if err != nil {
		return fmt.Errorf("node: metrics: %w", err)
	}
	return nil
}

func (n *Node) closeMetrics() {
	if n.scrape.listener != nil {
		_ = n.scrape.listener.Close()
	}
	n.scrape.fd.Close()
}

// MetricsListener is where metrics are to be served over TCP; nil: nowhere. The
// node closes it at Stop.
func (n *Node) MetricsListener() net.Listener { return n.scrape.listener }

// Left tells that a successor has been told, or is just being told, what this
// process has counted.
func (n *Node) Left() bool { return n.told.Load() }
