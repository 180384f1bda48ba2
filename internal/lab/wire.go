package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wire looks at what hosts send: at the bridge, where their cables end, and at
// the loopback devices of those that talk to servers of their own. One queue of
// the kernel has all that the bridge sees, so its order is beyond doubt. A filter
// lets through resets and claims of addresses (ARP and neighbour advertisements);
// the rest is not copied.
type Wire struct {
	ports map[int]*Host // by the index of the bridge's end of the cable

	files  []*os.File
	done   sync.WaitGroup
	missed atomic.Int64                 // frames that came when the queue was full
	about  atomic.Pointer[[]netip.Addr] // of which addresses resets are; nil: of all

	mu     sync.Mutex // guards all below
	claims []Claim
	resets []RST
	rsts   int // all that were counted; resets keeps the first ones
	strays int // of them
}

// Claim is a frame that says that an address is at a hardware address.
type Claim struct {
	At   time.Time
	From *Host // at whose cable it came in
	MAC  [6]byte
	Addr netip.Addr
	// Announced: nobody had asked.
	Announced bool
}

// RST is a segment with that flag.
type RST struct {
	At       time.Time
	On       string // the host whose cable or loopback device it was seen on
	Src, Dst netip.AddrPort
	// Stray: it has no ACK, so it answers a segment for which there was no connection
	// (RFC 9293, section 3.10.7.1): one that came late, most often, of one that had ended.
	// Whether a connection was lost by it, its flow knows.
	Stray bool
}

func (r RST) String() string {
	what := ""
	if r.Stray {
		what = ", a stray"
	}
	return fmt.Sprintf("%s on %s: %v to %v%s", r.At.Format("15:04:05.000000"), r.On, r.Src, r.Dst, what)
}

// rstsKept bounds the list of resets; all are counted.
const rstsKept = 200

// Offsets in an Ethernet frame.
const (
	etherType   = 12
	etherHead   = 14
	ip4Protocol = etherHead + 9
	ip4Fragment = etherHead + 6
	ip6Next     = etherHead + 6
	ip6Payload  = etherHead + 40
	tcpFlags    = 13 // of the TCP header
	rstFlag     = 4
	ackFlag     = 16
)

// wireFilter is a classic BPF program that accepts what Wire looks at.
func wireFilter() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf}
	}
	const (
		ldh, ldb   = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		ldhi, ldbi = unix.BPF_LD | unix.BPF_H | unix.BPF_IND, unix.BPF_LD | unix.BPF_B | unix.BPF_IND
		ldx        = unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH
		ldxi       = unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM
		jeq, jset  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ja, ret    = unix.BPF_JMP | unix.BPF_JA, unix.BPF_RET | unix.BPF_K
	)
	const yes, no = 18, 19 // where the program accepts, and where it does not
	to := func(at, from int) uint8 { return uint8(at - from - 1) }
	return []unix.SockFilter{
		stmt(ldh, etherType),                     // 0
		jump(jeq, unix.ETH_P_ARP, to(yes, 1), 0), // 1
		jump(jeq, unix.ETH_P_IP, 0, to(9, 2)),    // 2
		stmt(ldb, ip4Protocol),                   // 3
		jump(jeq, unix.IPPROTO_TCP, 0, to(no, 4)),
		stmt(ldh, ip4Fragment), // 5: nobody here fragments
		jump(jset, 0x1fff, to(no, 6), 0),
		stmt(ldx, etherHead),     // 7: X is the length of the IPv4 header
		stmt(ja, uint32(16-8-1)), // 8
		jump(jeq, unix.ETH_P_IPV6, 0, to(no, 9)),
		stmt(ldb, ip6Next), // 10
		jump(jeq, unix.IPPROTO_TCP, to(15, 11), 0),
		jump(jeq, unix.IPPROTO_ICMPV6, 0, to(no, 12)),
		stmt(ldb, ip6Payload), // 13
		jump(jeq, icmpAdvertisement, to(yes, 14), to(no, 14)),
		stmt(ldxi, ip6Payload-etherHead), // 15
		stmt(ldbi, etherHead+tcpFlags),   // 16: X is the length of the IP header
		jump(jset, rstFlag, to(yes, 17), to(no, 17)),
		stmt(ret, wireSnap),
		stmt(ret, 0),
	}
}

// icmpAdvertisement is a neighbour advertisement (RFC 4861, section 4.4).
const icmpAdvertisement = 136

// wireSnap is how much of a frame is copied: all heads.
const wireSnap = 128

// wireQueue is the room for frames that are not read yet, in octets, as far as the
// kernel allows it.
const wireQueue = 4 << 20

// NewWire begins to look. Loopbacks are hosts whose lo is looked at, too.
func NewWire(w *World, loopbacks ...*Host) (*Wire, error) {
	x := &Wire{ports: map[int]*Host{}}
	for _, h := range w.Hosts {
		l, err := w.nl.LinkByName(h.port)
		if err != nil {
			return nil, fmt.Errorf("lab: cable of %s: %w", h.Name, err)
		}
		x.ports[l.Attrs().Index] = h
	}
	if err := x.listen(nil, 0); err != nil {
		return nil, err
	}
	for _, h := range loopbacks {
		lo, err := h.nl.LinkByName("lo")
		if err != nil {
			return nil, err
		}
		if err := x.listen(h, lo.Attrs().Index); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// listen opens a socket in this process's namespace, or in that of a host for its
// loopback device, and reads it until Close.
func (x *Wire) listen(h *Host, index int) error {
	var fd int
	open := func() (err error) {
		// Protocol 0 takes nothing in before the filter is there.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		filter := wireFilter()
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return errors.Join(
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, wireQueue),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}),
		)
	}
	err := error(nil)
	if h == nil {
		err = open()
	} else {
		err = h.Do(open)
	}
	if err != nil {
		return fmt.Errorf("lab: packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "wire")
	x.files = append(x.files, file)
	x.done.Add(1)
	go func() {
		defer x.done.Done()
		x.read(file, h)
	}()
	return nil
}

// read takes frames until the socket is closed.
func (x *Wire) read(file *os.File, lo *Host) {
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	frame, control := make([]byte, wireSnap), make([]byte, 256)
	err = conn.Read(func(fd uintptr) bool {
		for {
			n, oob, _, from, err := unix.Recvmsg(int(fd), frame, control, unix.MSG_TRUNC)
			switch {
			case errors.Is(err, unix.EAGAIN):
				x.countMissed(int(fd))
				return false
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return true
			}
			at, index := arrivalOf(control[:oob]), 0
			if a, ok := from.(*unix.SockaddrLinklayer); ok {
				index = a.Ifindex
			}
			host := lo
			if lo == nil {
				if host = x.ports[index]; host == nil {
					continue // the bridge's own copy
				}
			}
			x.see(frame[:min(n, len(frame))], at, host, lo != nil)
		}
	})
	_ = err // the file is closed: it is over
}

// countMissed asks the kernel how many frames found no room; asking resets its count.
func (x *Wire) countMissed(fd int) {
	var st unix.TpacketStats
	size := uint32(unsafe.Sizeof(st))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS,
		uintptr(unsafe.Pointer(&st)), uintptr(unsafe.Pointer(&size)), 0)
	if errno == 0 {
		x.missed.Add(int64(st.Drops))
	}
}

// arrivalOf is when the kernel took the frame in.
func arrivalOf(oob []byte) time.Time {
	ms, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range ms {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// see notes what a frame is.
func (x *Wire) see(b []byte, at time.Time, host *Host, loopback bool) {
	if len(b) < etherHead {
		return
	}
	switch kind := binary.BigEndian.Uint16(b[etherType:]); kind {
	case unix.ETH_P_ARP:
		// RFC 826: hardware and protocol types and lengths, operation, then the sender's.
		if len(b) < etherHead+28 || loopback {
			return
		}
		sender := netip.AddrFrom4([4]byte(b[etherHead+14:]))
		target := netip.AddrFrom4([4]byte(b[etherHead+24:]))
		if sender.IsUnspecified() {
			return // a probe claims nothing
		}
		x.claim(Claim{At: at, From: host, MAC: [6]byte(b[etherHead+8:]), Addr: sender, Announced: sender == target})
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		x.seeIP(b, at, host, loopback, kind == unix.ETH_P_IPV6)
	}
}

func (x *Wire) seeIP(b []byte, at time.Time, host *Host, loopback, six bool) {
	var src, dst netip.Addr
	next, head := byte(0), 0
	if six {
		if len(b) < ip6Payload+20 {
			return
		}
		next, head = b[ip6Next], ip6Payload
		src, dst = netip.AddrFrom16([16]byte(b[etherHead+8:])), netip.AddrFrom16([16]byte(b[etherHead+24:]))
	} else {
		next, head = b[ip4Protocol], etherHead+4*int(b[etherHead]&15)
		src, dst = netip.AddrFrom4([4]byte(b[etherHead+12:])), netip.AddrFrom4([4]byte(b[etherHead+16:]))
	}
	if len(b) < head+20 {
		return
	}
	if next == unix.IPPROTO_ICMPV6 {
		// The target of the advertisement; its hardware address is the frame's source, or
		// an option that says the same.
		if !loopback && len(b) >= head+24 {
			solicited := b[head+4]&0x40 != 0
			x.claim(Claim{At: at, From: host, MAC: [6]byte(b[6:]), Addr: netip.AddrFrom16([16]byte(b[head+8:])), Announced: !solicited})
		}
		return
	}
	from, to := binary.BigEndian.Uint16(b[head:]), binary.BigEndian.Uint16(b[head+2:])
	if flags := b[head+tcpFlags]; flags&rstFlag != 0 {
		on := host.Name
		if loopback {
			on += " lo"
		}
		x.reset(RST{At: at, On: on, Src: netip.AddrPortFrom(src, from), Dst: netip.AddrPortFrom(dst, to), Stray: flags&ackFlag == 0})
	}
}

func (x *Wire) claim(c Claim) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.claims = append(x.claims, c)
}

func (x *Wire) reset(r RST) {
	if of := x.about.Load(); of != nil && !slices.Contains(*of, r.Src.Addr()) && !slices.Contains(*of, r.Dst.Addr()) {
		return // nodes that hang up on each other
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if r.Stray {
		x.strays++
	}
	if x.rsts++; len(x.resets) < rstsKept {
		x.resets = append(x.resets, r)
	}
}

// About says of which addresses resets are to be counted from now on.
func (x *Wire) About(addrs ...netip.Addr) { x.about.Store(&addrs) }

// Strays returns how many of the resets answered a segment of no connection.
func (x *Wire) Strays() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.strays
}

// Resets returns how many there were, and the first ones.
func (x *Wire) Resets() (int, []RST) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rsts, slices.Clone(x.resets)
}

// Claims returns those of an address, in their order.
func (x *Wire) Claims(of netip.Addr) (all []Claim) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.claims {
		if c.Addr == of {
			all = append(all, c)
		}
	}
	// The timestamps are the kernel's, and one socket's queue is in its order.
	slices.SortStableFunc(all, func(a, b Claim) int { return a.At.Compare(b.At) })
	return all
}

// Missed is how many frames the judge could not look at.
func (x *Wire) Missed() int64 { return x.missed.Load() }

// Close ends it.
func (x *Wire) Close() {
	for _, f := range x.files {
		_ = f.Close()
	}
	x.done.Wait()
}

// Asker is a station that asks who has addresses, again and again, so that whoever
// would answer for one does. Its questions reach all hosts; the answers reach no
// client, so no client learns from them.
type Asker struct {
	stop chan struct{}
	done chan struct{}
	Sent atomic.Int64
}

// Ask begins to ask from a host for addresses, all of them each period.
func Ask(from *Host, every time.Duration, addrs ...netip.Addr) (*Asker, error) {
	var fd int
	err := from.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: packet socket: %w", err)
	}
	l, err := from.nl.LinkByName("eth0")
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	a := &Asker{stop: make(chan struct{}), done: make(chan struct{})}
	to := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}
	var frames [][]byte
	for _, x := range addrs {
		frames = append(frames, question(from, x))
	}
	go func() {
		defer close(a.done)
		defer func() { _ = unix.Close(fd) }()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-a.stop:
				return
			case <-tick.C:
			}
			for _, f := range frames {
				if unix.Sendto(fd, f, 0, to) == nil {
					a.Sent.Add(1)
				}
			}
		}
	}()
	return a, nil
}

// Close ends the questions.
func (a *Asker) Close() {
	close(a.stop)
	<-a.done
}

// question is the frame of a host that asks who has an address.
func question(from *Host, a netip.Addr) []byte {
	if a.Is4() {
		return arpFrame(1, from.MAC, from.V4, net.HardwareAddr{0, 0, 0, 0, 0, 0}, a)
	}
	// A neighbour solicitation, RFC 4861, section 4.3, to the solicited-node address.
	t := a.As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, t[:]...)
	body = append(append(body, 1, 1), from.MAC...)
	src, dst := from.V6.As16(), group.As16()
	binary.BigEndian.PutUint16(body[2:], icmpSum(src, dst, body))
	b := append([]byte{0x33, 0x33, 0xff, t[13], t[14], t[15]}, from.MAC...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	return append(append(append(b, src[:]...), dst[:]...), body...)
}

// arpFrame is an ARP frame, RFC 826.
func arpFrame(op uint16, mac net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, mac...), sender.AsSlice()...)
	return append(append(b, targetMAC...), target.AsSlice()...)
}

// icmpSum is the checksum of RFC 4443, section 2.3.
func icmpSum(src, dst [16]byte, body []byte) uint16 {
	sum := uint32(len(body)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{src[:], dst[:], body} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
