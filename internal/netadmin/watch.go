package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watch hears what the kernel learns of neighbours, so that peers need not be
// looked up for each lot, and are followed when their Ethernet address changes.
type watch struct {
	file *os.File
	done chan struct{}
}

func openWatch() (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_NEIGH}); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("netadmin: watch neighbours: %w", err)
	}
	return &watch{file: os.NewFile(uintptr(fd), "neighbours"), done: make(chan struct{})}, nil
}

// neighbourNews is one message of the kernel.
type neighbourNews struct {
	addr  netip.Addr
	index int
	gone  bool // removed, or it did not answer
	mac   [6]byte
}

// listen tells of neighbours until the file is closed; lost tells that some
// may have been missed.
func (w *watch) listen(heard func(neighbourNews), lost func()) {
	defer close(w.done)
	b := make([]byte, 1<<15)
	for {
		n, err := w.file.Read(b)
		if errors.Is(err, unix.ENOBUFS) {
			lost()
			continue
		}
		if err != nil {
			return
		}
		for m := b[:n]; len(m) >= unix.NLMSG_HDRLEN; {
			l := int(binary.NativeEndian.Uint32(m))
			if l < unix.NLMSG_HDRLEN || l > len(m) {
				break
			}
			if x, ok := parseNeighbour(binary.NativeEndian.Uint16(m[4:]), m[unix.NLMSG_HDRLEN:l]); ok {
				heard(x)
			}
			m = m[min((l+3)&^3, len(m)):]
		}
	}
}

// parseNeighbour reads struct ndmsg and its attributes
// (include/uapi/linux/neighbour.h).
func parseNeighbour(kind uint16, m []byte) (n neighbourNews, ok bool) {
	if kind != unix.RTM_NEWNEIGH && kind != unix.RTM_DELNEIGH || len(m) < 12 || m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return n, false
	}
	n.index = int(int32(binary.NativeEndian.Uint32(m[4:])))
	state := binary.NativeEndian.Uint16(m[8:])
	n.gone = kind == unix.RTM_DELNEIGH || state&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0
	for m = m[12:]; len(m) >= 4; {
		l := int(binary.NativeEndian.Uint16(m))
		if l < 4 || l > len(m) {
			return n, false
		}
		switch data := m[4:l]; binary.NativeEndian.Uint16(m[2:]) {
		case unix.NDA_DST:
			n.addr, ok = netip.AddrFromSlice(data)
		case unix.NDA_LLADDR:
			if len(data) == 6 {
				n.mac = [6]byte(data)
			}
		}
		m = m[min((l+3)&^3, len(m)):]
	}
	return n, ok && (n.gone || n.mac != [6]byte{})
}

// heard brings what is known of a peer up to date.
func (a *Admin) heard(n neighbourNews) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, cached := a.hops[n.addr]
	p := a.peers[n.addr]
	if a.closed || h.tunnel || cached && h.index != n.index || !cached && (p == nil || p.index != n.index) {
		return
	}
	if n.gone {
		delete(a.hops, n.addr) // looked for by the next Divert; till then where it was
		return
	}
	if !cached {
		h = hop{index: n.index, from: p.from}
	}
	h.mac = n.mac
	a.hops[n.addr] = h
	if p == nil || p.mac == n.mac {
		return
	}
	a.cfg.Log.Info("a peer has another Ethernet address", "peer", n.addr)
	if _, err := a.peer(n.addr, h); err != nil {
		a.cfg.Log.Error("a peer's new Ethernet address is not in force", "peer", n.addr, "error", err)
		delete(a.hops, n.addr)
	}
}

// forgetHops makes everybody be looked up again.
func (a *Admin) forgetHops() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.hops)
}

// tendPeers looks once in a while whether peers are still where they were: a
// message may have been missed, or a route has changed.
func (a *Admin) tendPeers() error {
	a.mu.Lock()
	used := map[*peer]bool{}
	for _, e := range a.tuples {
		if e.peer != nil {
			used[e.peer] = true
		}
	}
	for _, v := range a.vips {
		used[v.lead], used[v.forward] = true, true
	}
	clear(a.hops)
	a.mu.Unlock()
	delete(used, nil)
	var errs []error
	for p := range used {
		h, err := a.resolve(p.addr, steerRetry/10)
		if err == nil {
			a.mu.Lock()
			if a.closed {
				err = ErrClosed
			} else {
				_, err = a.peer(p.addr, h)
			}
			a.mu.Unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// peersEvery is how often tendPeers is called.
const peersEvery = 10 * time.Second
