package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// hostSide is what moves between hosts need: the kernel's rules, and the
// listener where peers come. Both are there only with a cluster section.
type hostSide struct {
	admin    hostAdmin
	listener net.Listener
	fd       sock.FD // of the listener, to hand on
	arrivals sync.WaitGroup

	// intake is held for reading while a batch comes in from a peer, and for
	// writing to stop that for good, when this process hands itself over.
	intake sync.RWMutex

	// guest: a predecessor still serves, and what is the whole host's, not one
	// process's, is its own to undo. The node's mu guards it.
	guest bool

	// conns guards open and closing: peers that are connected now; and who answers
	// what they ask.
	conns   sync.Mutex
	open    map[net.Conn]bool
	closing bool
	answers map[string]answerer

	outcomes outcomes
	identity identity
	ended    repeats // talks that ended early
}

// peersMax bounds the connections of peers at one time, whether they have shown
// a certificate or not.
const peersMax = 16

// arrived notes a peer's connection; false if none is taken any more.
func (h *hostSide) arrived(c net.Conn) bool {
	h.conns.Lock()
	defer h.conns.Unlock()
	if h.closing {
		return false
	}
	if h.open == nil {
		h.open = map[net.Conn]bool{}
	}
	h.open[c] = true
	return true
}

func (h *hostSide) departed(c net.Conn) {
	h.conns.Lock()
	delete(h.open, c)
	h.conns.Unlock()
}

// closePeers ends what peers are saying, so that nobody waits for them.
func (h *hostSide) closePeers() {
	h.conns.Lock()
	defer h.conns.Unlock()
	h.closing = true
	for c := range h.open {
		_ = c.Close()
	}
}

// clusterKey is the name of the cluster's listener among inherited ones.
const clusterKey = "cluster"

func (n *Node) startHost(c *config.Config, o Options) error {
	n.host.fd = sock.NoFD
	if c.Cluster == nil {
		return nil
	}
	if _, err := n.host.identity.of(c.Cluster, nil); err != nil {
		return err
	}
	if err := heeded(c.Cluster); err != nil {
		return err
	}
	if err := n.openHostAdmin(o); err != nil {
		return fmt.Errorf("node: cluster: %w", err)
	}
	n.host.guest = len(o.HostHeritage) > 0
	fd, ok := o.Inherited[clusterKey]
	if !ok {
		var err error
		if fd, err = sock.Listen(sock.ListenSpec{Addr: c.Cluster.Listen, Backlog: 16}); err != nil {
			return err
		}
	}
	n.host.fd = fd
	dup, err := fd.Dup()
	if err != nil {
		return err
	}
	// The file takes the duplicate, and the listener makes one of its own.
	file := os.NewFile(uintptr(dup.Disown()), clusterKey)
	n.host.listener, err = net.FileListener(file)
	_ = file.Close()
	if err != nil {
		return fmt.Errorf("node: cluster: %w", err)
	}
	n.answer(askOutcome, n.host.outcomes.tell)
	if err := n.startVIPs(c, o); err != nil {
		return err
	}
	n.host.arrivals.Add(1)
	go func() { // ended by stopHost
		defer n.host.arrivals.Done()
		n.welcome(n.host.listener, n.welcoming())
	}()
	return nil
}

func (n *Node) stopHost() {
	n.stopVIPs()
	if n.host.listener != nil {
		_ = n.host.listener.Close()
		n.host.closePeers()
		n.host.arrivals.Wait()
		n.host.fd.Close()
	}
	if n.host.admin != nil {
		if err := n.host.admin.Close(); err != nil {
			n.log.Error("the privileged process was not told that this one ends", "error", err)
		}
	}
}

func (n *Node) hostDescriptors() map[string]sock.FD {
	if n.host.fd < 0 {
		return nil
	}
	return map[string]sock.FD{clusterKey: n.host.fd}
}

func (n *Node) hostCounters() map[string]uint64 {
	if n.host.admin == nil {
		return nil
	}
	c, err := n.host.admin.Counters()
	if err != nil {
		return nil
	}
	return map[string]uint64{
		"held_tuples": uint64(c.HeldTuples), "held_frames": uint64(c.HeldFrames), "diverted_tuples": uint64(c.DivertTuples),
		"held_segments_total": c.HeldTotal, "replayed_segments_total": c.Replayed, "diverted_segments_total": c.Diverted,
		"dropped_segments_total": c.Dropped + c.DeviceDropped, "resets_stopped_total": c.Resets, "strays_total": c.Strays,
	}
}

// clusterTLS makes the TLS configuration between peers: both sides show a
// certificate that the cluster's own authority has signed for their name.
func clusterTLS(c *config.Cluster) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("node: cluster.identity: %w", err)
	}
	pem, err := os.ReadFile(c.Trust)
	if err != nil {
		return nil, fmt.Errorf("node: cluster.identity.trust: %w", err)
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("node: cluster.identity.trust: %s holds no certificate", c.Trust)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		RootCAs: trust, ClientCAs: trust, ClientAuth: tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
		// Flows stand still until the whole of their lot is there: a record of one
		// segment does nobody any good.
		DynamicRecordSizingDisabled: true,
	}, nil
}

// welcome serves peers that bring flows, until the listener is closed.
func (n *Node) welcome(l net.Listener, conf *tls.Config) {
	room := make(chan struct{}, peersMax)
	for {
		room <- struct{}{} // more peers wait in the kernel's queue
		conn, err := l.Accept()
		if err != nil {
			<-room
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.log.Warn("the cluster's listener", "error", err)
			time.Sleep(tickOfErrors)
			continue
		}
		if !n.host.arrived(conn) {
			_ = conn.Close()
			<-room
			continue // the listener is closed, or about to be
		}
		n.host.arrivals.Add(1)
		go func() { // ends with the connection, which times out or is closed by stopHost
			defer n.host.arrivals.Done()
			defer func() { n.host.departed(conn); <-room }()
			secure := tls.Server(conn, conf)
			n.converse(secure)
		}()
	}
}

// tickOfErrors keeps a listener that fails from spinning.
const tickOfErrors = 100 * time.Millisecond

// heeded refuses ports that the kernel would not dial from: it takes what lies within
// its own range alone (net/ipv4/inet_connection_sock.c: inet_sk_get_local_port_range),
// and of others any port, which may be a peer's.
func heeded(c *config.Cluster) error {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return fmt.Errorf("node: cluster: %w", err)
	}
	var low, high uint16
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		return fmt.Errorf("node: cluster: net.ipv4.ip_local_port_range: %w", err)
	}
	if c.SourcePortFirst < low || c.SourcePortLast > high {
		return fmt.Errorf("node: sourcePorts %d-%d of this node are not within net.ipv4.ip_local_port_range, %d-%d, so the kernel would dial from ports of others; widen it: sysctl -w net.ipv4.ip_local_port_range='%d %d'",
			c.SourcePortFirst, c.SourcePortLast, low, high, min(low, c.SourcePortFirst), max(high, c.SourcePortLast))
	}
	return nil
}
