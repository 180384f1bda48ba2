package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// marchOther is another address of the client, which the taker has no route to.
var marchOther = netip.MustParseAddr("10.9.0.29")

// tailOctets fit into what a kernel queues for a socket at once, and not into the window of
// a client with so little room.
const (
	tailOctets = 24 << 10
	tailRoom   = 2 << 10
)

// tails waits for its client's end, says so much and ends.
func tails(c net.Conn) {
	_, _ = io.Copy(io.Discard, c)
	_, _ = c.Write(tailText())
}

func tailText() []byte {
	b := make([]byte, tailOctets)
	for i := range b {
		b[i] = byte(i*31) ^ byte(i>>8)
	}
	return b
}

// refused is a move of which the taker refuses some flows: they go on at the giver, and so does
// what its kernel still has to send of a flow that has ended.
func (r *migrateMarch) refused() error {
	const stays = 10
	n3 := r.world.Host("n3")
	route := &netlink.Route{Dst: &net.IPNet{IP: marchOther.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_BLACKHOLE}
	if err := n3.nl.RouteAdd(route); err != nil {
		return fmt.Errorf("lab: no route from n3 to %v: %w", marchOther, err)
	}
	if err := errors.Join(r.openFlows(marchFlows-stays, r.world.Host("client").V4), r.openFlows(stays, marchOther)); err != nil {
		return err
	}
	tail, err := r.openTail()
	if err != nil {
		return err
	}
	defer func() { _ = tail.Close() }()
	began := time.Now()
	moved, err := r.b.migrate(r.ctx, r.vip, "n1", "n3")
	if err != nil {
		return err
	}
	r.v.Must(moved.Flows == marchFlows-stays, "flows that the taker took", fmt.Sprint(moved.Flows), fmt.Sprint(marchFlows-stays))
	r.v.Must(moved.Residue == stays && r.residue() == stays, "flows that it refused: in the report, and in the giver's status",
		fmt.Sprintf("%d, %d", moved.Residue, r.residue()), fmt.Sprintf("%d, %d", stays, stays))
	alive := r.alive()
	r.v.Must(alive == marchFlows, "flows that live behind that move", fmt.Sprintf("%d, %v", alive, r.lastErr), fmt.Sprint(marchFlows))
	time.Sleep(marchSettle + marchLease/2) // as long as neighbours may take
	alive = r.alive()
	r.v.Must(alive == marchFlows, "flows that live when neighbours know the new owner", fmt.Sprint(alive), fmt.Sprint(marchFlows))
	_ = tail.SetReadDeadline(time.Now().Add(8 * time.Second))
	got, err := io.ReadAll(tail)
	r.v.Must(err == nil && bytes.Equal(got, tailText()), "octets of a flow that had ended at the giver before", fmt.Sprintf("%d, %v", len(got), err), fmt.Sprint(tailOctets))
	_ = tail.Close()
	r.v.Must(r.residue() == stays, "flows that are still at the giver", fmt.Sprint(r.residue()), fmt.Sprint(stays))
	for _, f := range r.flows[marchFlows-stays:] {
		f.end()
	}
	settled := eventually(8*time.Second, func() bool {
		s, err := r.b.statusOf(r.ctx, "n1")
		return err == nil && len(s.HostResidue) == 0 && s.VIPs[0].State == "elsewhere"
	})
	r.v.Must(settled, "the giver has nothing of the address when they have ended", fmt.Sprint(settled), "true")
	r.flows = r.flows[:marchFlows-stays]
	alive = r.alive()
	r.v.Must(alive == len(r.flows), "flows that live when those have ended", fmt.Sprint(alive), fmt.Sprint(len(r.flows)))
	r.phase("   refused: %d of %d flows, for %v; all were served where they were", moved.Residue, marchFlows, moved.Reasons)
	r.steps++
	if err := r.judge(began, ""); err != nil {
		return err
	}
	return n3.nl.RouteDel(route)
}

// residue is how many flows n1 says it still has of a VIP that has gone.
func (r *migrateMarch) residue() (n int) {
	s, err := r.b.statusOf(r.ctx, "n1")
	if err != nil {
		return -1
	}
	for _, x := range s.HostResidue {
		n += x.Flows
	}
	return n
}

// openTail opens a connection whose flow ends at n1 while most of what it was told is in
// n1's kernel: its client reads nothing.
func (r *migrateMarch) openTail() (*net.TCPConn, error) {
	var c *net.TCPConn
	err := r.world.Host("client").Do(func() error {
		d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, tailRoom) })
			return errors.Join(err, cerr)
		}}
		x, err := d.Dial("tcp", netip.AddrPortFrom(r.vip.addr, 444).String())
		if err == nil {
			c = x.(*net.TCPConn)
			err = c.CloseWrite()
		}
		return err
	})
	if err != nil {
		return c, err
	}
	// The kernel's socket is in LAST_ACK: both ends are shut, and the client lacks octets.
	var left []TCPSocket
	ended := eventually(5*time.Second, func() bool {
		left = nil
		all, err := r.world.Host("n1").TCPSockets()
		for _, x := range all {
			if x.Local == netip.AddrPortFrom(r.vip.addr, 444) && x.Remote == netip.MustParseAddrPort(c.LocalAddr().String()) {
				left = append(left, x)
			}
		}
		return err == nil && len(left) == 1 && left[0].State == tcpLastAck
	})
	if !ended {
		return c, fmt.Errorf("lab: a flow has not ended: %v", left)
	}
	return c, nil
}

// tcpLastAck is LAST_ACK in /proc/net/tcp.
const tcpLastAck = 9

func (r *migrateMarch) diskOf(node string) string { return filepath.Join(r.dir, node+".state") }

// fillDisk leaves no room where a node keeps its records.
func (r *migrateMarch) fillDisk(node string) error {
	f, err := os.Create(filepath.Join(r.diskOf(node), "full"))
	if err != nil {
		return err
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	_ = f.Close()
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return err
}

func (r *migrateMarch) freeDisk(node string) error {
	return os.Remove(filepath.Join(r.diskOf(node), "full"))
}

// mute makes all vanish that a node sends, deafen all that is sent to it.
func (r *migrateMarch) mute(node string) error { return r.cut(node, nftables.ChainHookIngress) }

func (r *migrateMarch) deafen(node string) error { return r.cut(node, nftables.ChainHookEgress) }

const cutTable = "cut"

func (r *migrateMarch) cut(node string, way *nftables.ChainHook) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("lab: nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: cutTable})
	chain := c.AddChain(&nftables.Chain{Name: node, Table: t, Type: nftables.ChainTypeFilter, Hooknum: way,
		Priority: nftables.ChainPriorityRef(0), Device: r.world.Host(node).port})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lab: cut %s: %w", node, err)
	}
	return nil
}

func (r *migrateMarch) uncut(string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("lab: nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: cutTable})
	return c.Flush()
}
