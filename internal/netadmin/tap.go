package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// A frame of the TAP device is struct virtio_net_hdr, an Ethernet header
	// and the packet. The first says what is left to do for the sender's
	// offloads (segmentation, checksum); written back with the frame, the
	// segment goes on exactly as it came.
	vnetLen  = 10 // include/uapi/linux/virtio_net.h
	etherLen = 14
	// headsMax is the most octets of a frame without any of the stream: IPv6 without
	// extensions, TCP with all options.
	headsMax = vnetLen + etherLen + 40 + 60
	// frameMax is the largest frame: segmentation offload makes packets of
	// 64 KiB at most, unless the device is told that more are welcome, and a
	// TAP device is not.
	frameMax = vnetLen + etherLen + 65536 + 64

	// tapQueue is how many frames wait in the kernel until we read them.
	tapQueue = 4096

	// drainRound bounds how many frames are read before others may have a.mu.
	drainRound = 256
)

// tap is the device on which segments wait. What a rule sends to it can be
// read from it; what is written to it arrives in this host's stack.
type tap struct {
	file  *os.File
	raw   syscall.RawConn
	fd    int // valid while file is open
	index int
	link  netlink.Link
	mac   [6]byte
	buf   []byte
}

func openTap(h *netlink.Handle, name string) (*tap, error) {
	fail := func(what string, err error) (*tap, error) {
		return nil, fmt.Errorf("netadmin: device %s: %s: %w", name, what, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fail("open /dev/net/tun", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		// Not persistent: the device goes with the process. Rules that point
		// to it then drop, which is what a crash should do to held tuples.
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		// TUN_F_CSUM, TSO4, TSO6, TSO_ECN (include/uapi/linux/if_tun.h):
		// superframes come whole, checksums unfinished.
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0x01|0x02|0x04|0x08)
	}
	if err != nil {
		unix.Close(fd)
		return fail("create TAP", err)
	}
	// Nonblocking, so that it joins the runtime's poller and Close ends Read.
	t := &tap{file: os.NewFile(uintptr(fd), name), fd: fd, buf: make([]byte, frameMax)}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return fail("poll", err)
	}
	if t.link, err = h.LinkByName(name); err != nil {
		t.file.Close()
		return fail("find", err)
	}
	t.index, t.mac = t.link.Attrs().Index, macOf(t.link.Attrs().HardwareAddr)
	return t, nil
}

// up makes the device carry segments.
func (t *tap) up(h *netlink.Handle) error {
	if err := h.LinkSetTxQLen(t.link, tapQueue); err != nil {
		return fmt.Errorf("netadmin: device %s: queue length: %w", t.file.Name(), err)
	}
	if err := h.LinkSetUp(t.link); err != nil {
		return fmt.Errorf("netadmin: device %s: up: %w", t.file.Name(), err)
	}
	// No queue above the device's own: the default one on many hosts,
	// fq_codel, drops what waits long, and here everything may.
	err := h.QdiscReplace(&netlink.GenericQdisc{QdiscType: "noqueue",
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: t.index, Parent: netlink.HANDLE_ROOT}})
	if err != nil {
		return fmt.Errorf("netadmin: device %s: qdisc noqueue: %w", t.file.Name(), err)
	}
	return nil
}

func (t *tap) close() error { return t.file.Close() }

// next reads one frame into t.buf; nil means that none waits.
func (t *tap) next() ([]byte, error) {
	for {
		n, err := unix.Read(t.fd, t.buf)
		switch {
		case err == nil:
			return t.buf[:n], nil
		case errors.Is(err, unix.EAGAIN):
			return nil, nil
		case !errors.Is(err, unix.EINTR):
			return nil, err
		}
	}
}

// deliver gives a frame to this host's stack. The kernel has dealt with it
// when this returns (drivers/net/tun.c: tun_get_user).
func (t *tap) deliver(frame []byte) error {
	// The frame was for another device's address, or came from lo without
	// any; for us it is only if it is for this device's (eth_type_trans).
	copy(frame[vnetLen:], t.mac[:])
	for {
		_, err := unix.Write(t.fd, frame)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (t *tap) inject(packet []byte) error {
	if len(packet) < 20 || len(packet) > frameMax-vnetLen-etherLen {
		return fmt.Errorf("netadmin: inject: %d octets are no IP packet", len(packet))
	}
	ethertype := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		ethertype = unix.ETH_P_IPV6
	}
	f := make([]byte, vnetLen+12, vnetLen+etherLen+len(packet))
	f = binary.BigEndian.AppendUint16(f, ethertype)
	if err := t.deliver(append(f, packet...)); err != nil {
		return fmt.Errorf("netadmin: inject: %w", err)
	}
	return nil
}

// tupleOf tells whose frame this is.
func tupleOf(frame []byte) (Tuple, bool) {
	if len(frame) < vnetLen+etherLen {
		return Tuple{}, false
	}
	ip := frame[vnetLen+etherLen:]
	var src, dst netip.Addr
	switch binary.BigEndian.Uint16(frame[vnetLen+12:]) {
	case unix.ETH_P_IP:
		if len(ip) < 20 || ip[9] != unix.IPPROTO_TCP {
			return Tuple{}, false
		}
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		header := int(ip[0]&15) * 4
		if len(ip) < header {
			return Tuple{}, false
		}
		ip = ip[header:]
	case unix.ETH_P_IPV6:
		if len(ip) < 40 {
			return Tuple{}, false
		}
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		next := ip[6]
		ip = ip[40:]
		// Extension headers: hop-by-hop 0, routing 43, destination 60
		// (RFC 8200, section 4). The rules see through them, so must we.
		for next == 0 || next == 43 || next == 60 {
			if len(ip) < 8 || len(ip) < int(ip[1])*8+8 {
				return Tuple{}, false
			}
			next, ip = ip[0], ip[int(ip[1])*8+8:]
		}
		if next != unix.IPPROTO_TCP {
			return Tuple{}, false
		}
	default:
		return Tuple{}, false
	}
	if len(ip) < 4 {
		return Tuple{}, false
	}
	return Tuple{
		Local:  netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ip[2:])),
		Remote: netip.AddrPortFrom(src, binary.BigEndian.Uint16(ip)),
	}, true
}

// read files frames as they come, until the device is closed. Open starts
// it, Close waits for it.
func (a *Admin) read() {
	defer close(a.done)
	// RawConn.Read returns when the file is closed.
	_ = a.tap.raw.Read(func(uintptr) (done bool) {
		for {
			a.mu.Lock()
			more := !a.closed && a.drainSome()
			done = a.closed
			a.mu.Unlock()
			if !more {
				return done
			}
		}
	})
}

// drain files all frames that wait in the device. a.mu is held.
func (a *Admin) drain() {
	for a.drainSome() {
	}
}

// drainSome files at most drainRound frames and tells whether there may be
// more. a.mu is held.
func (a *Admin) drainSome() (more bool) {
	for range drainRound {
		frame, err := a.tap.next()
		if err != nil || frame == nil {
			return false
		}
		a.file(frame)
	}
	return true
}

// file keeps a frame for its tuple.
func (a *Admin) file(frame []byte) {
	t, ok := tupleOf(frame)
	if !ok {
		a.counters.Strays++ // the kernel's own: neighbour discovery and the like
		return
	}
	if until, ok := a.released[t]; ok && time.Now().Before(until) {
		a.send(frame)
		return
	}
	e := a.tuples[t]
	if e == nil || !e.held {
		a.counters.Strays++
		return
	}
	if a.counters.HeldFrames >= a.cfg.MaxFrames || a.counters.HeldBytes+int64(len(frame)) > a.cfg.MaxBytes {
		a.counters.Dropped++
		return
	}
	e.frames = append(e.frames, append([]byte(nil), frame...))
	a.counters.HeldFrames++
	a.counters.HeldBytes += int64(len(frame))
	a.counters.HeldTotal++
}

func (a *Admin) send(frame []byte) {
	if err := a.tap.deliver(frame); err != nil {
		a.counters.Dropped++ // no memory: TCP sends it again
		return
	}
	a.counters.Replayed++
}

// replay delivers what is held for ts, and keeps holding. Within a tuple the
// order is that of arrival. octets is more than 0 if any frame was longer than heads
// alone are. a.mu is held.
func (a *Admin) replay(ts []Tuple) (frames, octets int) {
	for _, t := range ts {
		e := a.tuples[t]
		if e == nil || !e.held {
			continue
		}
		for _, f := range e.frames {
			a.send(f)
			octets += max(0, len(f)-headsMax)
		}
		frames += len(e.frames)
		a.forget(e.frames)
		e.frames = nil
	}
	return frames, octets
}

// tidyReleased forgets those whose time is over, now and then: there may be as many as moved
// within lateFor. a.mu is held.
func (a *Admin) tidyReleased(now time.Time) {
	if now.Sub(a.tidied) < lateFor/2 {
		return
	}
	a.tidied = now
	for t, until := range a.released {
		if now.After(until) {
			delete(a.released, t)
		}
	}
}
