package netadmin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

const long = time.Minute // a lease that does not end in a test

// grace is for what has left a host in time and lies in a queue of a machine that
// is busy with other things.
const grace = 300 * time.Millisecond

func prefixOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, 24)
	}
	return netip.PrefixFrom(a, 64)
}

// fenceAll is what each node does first.
func fenceAll(t testing.TB, admins ...*Admin) {
	t.Helper()
	var ps []netip.Prefix
	for i := range vip {
		ps = append(ps, prefixOf(vip[i]), prefixOf(src[i]))
	}
	for _, a := range admins {
		must(t, "Fence", a.Fence(ps))
	}
}

// own makes a host the owner and tells everybody.
func (h *host) own(a *Admin, addr netip.Addr, lease time.Duration) {
	h.t.Helper()
	must(h.t, "Own", a.Own(prefixOf(addr), lease))
	must(h.t, "Announce", a.Announce(addr))
}

// judge listens on a host's device, as a switch would see it, for whoever
// speaks for an address: sender of ARP, source of IP, target of an
// advertisement.
type judge struct {
	t  testing.TB
	fd int
}

func (h *host) judge() *judge {
	j := &judge{t: h.t}
	h.do("packet socket", func() (err error) {
		j.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return unix.Bind(j.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
	})
	h.t.Cleanup(func() { unix.Close(j.fd) })
	return j
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// speakers returns which Ethernet addresses have spoken for addr since the last
// call, and how often.
func (j *judge) speakers(addr netip.Addr) map[string]int {
	j.t.Helper()
	out := map[string]int{}
	b := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(j.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return out
		}
		must(j.t, "read frames", err)
		f := b[:n]
		if n < 14+40 && !(n >= 14+28) {
			continue
		}
		p, speaks := f[14:], false
		switch binary.BigEndian.Uint16(f[12:]) {
		case unix.ETH_P_ARP:
			speaks = addr.Is4() && bytes.Equal(p[14:18], addr.AsSlice())
		case unix.ETH_P_IP:
			speaks = addr.Is4() && bytes.Equal(p[12:16], addr.AsSlice())
		case unix.ETH_P_IPV6:
			speaks = addr.Is6() && (bytes.Equal(p[8:24], addr.AsSlice()) ||
				p[6] == unix.IPPROTO_ICMPV6 && len(p) >= 64 && p[40] == 136 && bytes.Equal(p[48:64], addr.AsSlice()))
		}
		if speaks {
			out[net.HardwareAddr(f[6:12]).String()]++
		}
	}
}

// quiet waits until nobody has spoken for longer than an ACK is delayed.
func (j *judge) quiet(addr netip.Addr) {
	j.speakers(addr)
	for range 100 {
		time.Sleep(60 * time.Millisecond)
		if len(j.speakers(addr)) == 0 {
			return
		}
	}
}

func (h *host) mac() (s string) {
	h.do("mac", func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			s = link.Attrs().HardwareAddr.String()
		}
		return err
	})
	return s
}

// neighbour is what a host believes of an address; "" is nothing.
func (h *host) neighbour(addr netip.Addr) (s string) {
	h.do("neighbours", func() error {
		list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		for _, n := range list {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr && n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
				s = n.HardwareAddr.String()
			}
		}
		return err
	})
	return s
}

// forgetNeighbour makes the host ask again.
func (h *host) forgetNeighbour(addr netip.Addr) {
	h.t.Helper()
	h.do("forget neighbour", func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		err = netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice()})
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// believe pins a host's neighbour: as a cache that has not settled.
func (h *host) believe(addr netip.Addr, mac string) {
	h.t.Helper()
	h.do("pin neighbour", func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: hw, State: netlink.NUD_PERMANENT})
	})
}

func (h *host) has(device string, addr netip.Addr) (found bool) {
	h.t.Helper()
	h.do("addresses", func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, x := range list {
			if ip, ok := netip.AddrFromSlice(x.IP); ok && ip.Unmap() == addr {
				found = true
			}
		}
		return err
	})
	return found
}

// provoke makes a host ask for an address and send a SYN and a datagram to it.
func (h *host) provoke(addr netip.Addr) {
	h.t.Helper()
	h.forgetNeighbour(addr)
	fd := h.socket(addr)
	must(h.t, "nonblock", unix.SetNonblock(fd, true))
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(addr, 9))); !errors.Is(err, unix.EINPROGRESS) {
		h.t.Fatalf("connect: %v", err)
	}
	time.Sleep(20 * time.Millisecond) // for answers to come, if any
	must(h.t, "close", unix.Close(fd))
}

// An owner that nobody renews for, and whose process stands still, falls silent
// by itself: to ARP, neighbour discovery and TCP, also of a live connection.
// The address leaves its device.
func TestLeaseEnds(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		a := l.a.open(Config{})
		fenceAll(t, a)
		j := l.client.judge()
		l.client.provoke(vip[fam])
		if got := j.speakers(vip[fam]); len(got) != 0 {
			t.Fatalf("%v speak for an address that nobody owns", got)
		}
		const lease = 2 * time.Second
		l.a.own(a, vip[fam], lease)
		s := connect(t, l.a, vip[fam], l.client, l.client.addr[fam], true)
		s.pump(20*time.Millisecond, 700)
		s.settle()
		if got := j.speakers(vip[fam]); got[l.a.mac()] == 0 || len(got) != 1 {
			t.Errorf("%v speak for the address of %v", got, l.a.mac())
		}
		// Renewal keeps it.
		for range 4 {
			must(t, "Own", a.Own(prefixOf(vip[fam]), lease))
			time.Sleep(lease / 4)
		}
		s.pump(20*time.Millisecond, 700)
		s.settle()
		must(t, "Own", a.Own(prefixOf(vip[fam]), lease))
		end := time.Now().Add(lease)
		a.vipMu.Lock() // the process does nothing any more
		time.Sleep(time.Until(end) + grace)
		j.speakers(vip[fam])
		s.write(false, 700)
		s.write(true, 700)
		l.client.provoke(vip[fam])
		if got := j.speakers(vip[fam]); len(got) != 0 {
			t.Errorf("%v speak after the lease", got)
		}
		wait(t, "the address to leave its device", func() bool { return !l.a.has("eth0", vip[fam]) })
		a.vipMu.Unlock()
		// The owner comes to and renews: the connection was never reset.
		l.a.own(a, vip[fam], long)
		s.finish(true, true)
		if c := l.a.counters(a); c.Fenced == 0 {
			t.Errorf("counters %+v", c)
		}
	})
}

// Two hosts have the address on their devices. Only the owner speaks for it,
// and the announcement of the next owner changes the caches.
func TestOneSpeaks(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		for _, h := range []*host{l.a, l.b} {
			h.do("address", func() error { return addAddr("eth0", vip[fam], true) })
		}
		j := l.server.judge()
		hosts, admins := []*host{l.a, l.b}, []*Admin{aa, ba}
		for i := range 4 {
			now, then := i%2, 1-i%2
			must(t, "Disown", admins[then].Disown(vip[fam]))
			if l.client.neighbour(vip[fam]) == "" && i > 0 {
				t.Error("the client has forgotten the address")
			}
			// A host that speaks when it must not does so here.
			hosts[then].do("address", func() error { return addAddr("eth0", vip[fam], true) })
			j.speakers(vip[fam])
			hosts[now].own(admins[now], vip[fam], long)
			if i > 0 {
				wait(t, "the client's cache to change", func() bool { return l.client.neighbour(vip[fam]) == hosts[now].mac() })
			}
			s := connect(t, hosts[now], vip[fam], l.client, l.client.addr[fam], true)
			s.pump(10*time.Millisecond, 700)
			s.finish(true, true)
			l.client.provoke(vip[fam])
			l.server.provoke(vip[fam])
			if got := j.speakers(vip[fam]); got[hosts[now].mac()] == 0 || len(got) != 1 {
				t.Errorf("round %d: %v speak for the address of %v", i, got, hosts[now].mac())
			}
		}
	})
}

// Without the fence both answer: what the test above stands on.
func TestTwoSpeakWithoutFence(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		for _, h := range []*host{l.a, l.b} {
			h.do("address", func() error { return addAddr("eth0", vip[fam], true) })
		}
		j := l.client.judge()
		wait(t, "two that speak", func() bool {
			l.client.provoke(vip[fam])
			return len(j.speakers(vip[fam])) == 2
		})
	})
}

// A guest speaks TCP and nothing else, never as a neighbour, and not with a
// reset to what it has no socket for. It ends by itself.
func TestGuest(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		a := l.a.open(Config{})
		fenceAll(t, a)
		j := l.client.judge()
		l.client.believe(vip[fam], l.a.mac())
		const d = 2 * time.Second
		must(t, "Guest", a.Guest(vip[fam], d))
		if !l.a.has("lo", vip[fam]) || l.a.has("eth0", vip[fam]) {
			t.Error("a guest's address is not on lo alone")
		}
		s := connect(t, l.a, vip[fam], l.client, l.client.addr[fam], true)
		s.pump(20*time.Millisecond, 700)
		s.settle()
		j.quiet(vip[fam])
		must(t, "Guest", a.Guest(vip[fam], d))
		end := time.Now().Add(d)
		l.server.provoke(vip[fam]) // asks; nobody answers
		// An echo request must not be answered, a stray segment neither.
		stray := Tuple{Local: netip.AddrPortFrom(vip[fam], 443), Remote: netip.AddrPortFrom(l.client.addr[fam], 5555)}
		must(t, "Inject", a.Inject(l.server.segmentOf(stray)))
		wait(t, "a silenced reset", func() bool { return l.a.counters(a).Resets > 0 })
		if got := j.speakers(vip[fam]); len(got) != 0 {
			t.Errorf("%v speak", got)
		}
		s.pump(20*time.Millisecond, 700)
		s.settle()
		// A socket's own reset passes.
		other := connect(t, l.a, vip[fam], l.client, l.client.addr[fam], true)
		must(t, "linger", unix.SetsockoptLinger(other.ours, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		must(t, "close", unix.Close(other.ours))
		other.ours = -1
		wait(t, "the client to hear the reset", func() bool {
			_, err := unix.Read(other.peers, other.buf)
			return errors.Is(err, unix.ECONNRESET)
		})
		a.vipMu.Lock()
		time.Sleep(time.Until(end) + grace)
		j.speakers(vip[fam])
		s.write(false, 700)
		s.write(true, 700)
		time.Sleep(20 * time.Millisecond)
		if got := j.speakers(vip[fam]); len(got) != 0 {
			t.Errorf("%v speak after the guest's time", got)
		}
		wait(t, "the address to leave lo", func() bool { return !l.a.has("lo", vip[fam]) })
		a.vipMu.Unlock()
		must(t, "Guest", a.Guest(vip[fam], long))
		s.finish(true, true)
		must(t, "Guest", a.Guest(vip[fam], 0))
		if l.a.has("lo", vip[fam]) {
			t.Error("the address is still on lo")
		}
	})
}

// greeter accepts at addr and says who it is.
func (h *host) greeter(addr netip.Addr, port uint16) {
	h.t.Helper()
	ln := h.socket(addr)
	h.do("listen", func() error {
		opt, level := unix.IP_FREEBIND, unix.IPPROTO_IP
		if addr.Is6() {
			opt, level = unix.IPV6_FREEBIND, unix.IPPROTO_IPV6
		}
		if err := unix.SetsockoptInt(ln, level, opt, 1); err != nil {
			return err
		}
		if err := unix.Bind(ln, sockaddr(netip.AddrPortFrom(addr, port))); err != nil {
			return err
		}
		return unix.Listen(ln, 16)
	})
	done := make(chan struct{})
	var accepted []int
	go func() {
		defer close(done)
		for {
			fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			accepted = append(accepted, fd)
			_, _ = unix.Write(fd, []byte(h.name))
		}
	}()
	h.t.Cleanup(func() {
		_ = unix.Shutdown(ln, unix.SHUT_RDWR) // ends Accept
		<-done
		unix.Close(ln)
		for _, fd := range accepted {
			unix.Close(fd)
		}
	})
}

// dial begins a connection without waiting for it.
func (h *host) dial(addr netip.Addr, port uint16) (fd int) {
	h.t.Helper()
	fd = h.socket(addr)
	h.t.Cleanup(func() { unix.Close(fd) })
	must(h.t, "bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(h.addr[familyOfAddr(addr)], 0))))
	must(h.t, "nonblock", unix.SetNonblock(fd, true))
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(addr, port))); !errors.Is(err, unix.EINPROGRESS) {
		h.t.Fatalf("connect: %v", err)
	}
	return fd
}

// whoAnswers waits for the name.
func whoAnswers(t testing.TB, fd int) (name string) {
	t.Helper()
	b := make([]byte, 16)
	wait(t, "a greeting", func() bool {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		must(t, "read", err)
		name = string(b[:n])
		return true
	})
	// Nothing is left to be acknowledged by whoever has the address later.
	must(t, "shutdown", unix.Shutdown(fd, unix.SHUT_WR))
	wait(t, "the end to be acknowledged", func() bool {
		i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		must(t, "TCP_INFO", err)
		return tcprepair.TCPState(i.State) == tcprepair.FinWait2
	})
	return name
}

// lose drops segments of these flags that a host gets or sends, until the
// function it returns is called.
func (h *host) lose(hook *nftables.ChainHook, mask, want byte) (end func()) {
	h.t.Helper()
	c, err := nftables.New(nftables.AsLasting())
	h.do("lose", func() error {
		c, err = nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lose"})
		ch := c.AddChain(&nftables.Chain{Table: table, Name: "lose", Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(-400)})
		c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: append(append(layer4(unix.IPPROTO_TCP), flags(mask, want)...),
			&expr.Verdict{Kind: expr.VerdictDrop})})
		return c.Flush()
	})
	return func() {
		h.t.Helper()
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lose"})
		must(h.t, "lose no more", c.Flush())
		_ = c.CloseLasting()
	}
}

// Handshakes that begin before Lead are A's, those that begin after it are
// B's. The network loses SYN+ACKs, and then ACKs, so that each comes again
// after Lead.
func TestLead(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		const port = 443
		on := []netip.AddrPort{netip.AddrPortFrom(vip[fam], port)}
		for _, h := range []*host{l.a, l.b} {
			h.greeter(vip[fam], port)
		}
		l.a.own(aa, vip[fam], long)
		must(t, "Forward on b", ba.Forward(vip[fam], l.a.addr[fam]))
		must(t, "Guest on b", ba.Guest(vip[fam], long))

		synRecv := func(h *host) (n int) {
			h.do("sockets", func() error {
				list, err := netlink.SocketDiagTCP([]uint8{unix.AF_INET, unix.AF_INET6}[fam])
				for _, s := range list {
					if s.State == unix.BPF_TCP_SYN_RECV {
						n++
					}
				}
				return err
			})
			return n
		}
		// The client hears no SYN+ACK: it repeats its SYN, A its SYN+ACK.
		end := l.client.lose(nftables.ChainHookInput, synFlag|ackFlag, synFlag|ackFlag)
		before := l.client.dial(vip[fam], port)
		wait(t, "a handshake", func() bool { return synRecv(l.a) == 1 })
		must(t, "Learn", aa.Learn(on))
		learnt := l.client.dial(vip[fam], port)
		wait(t, "two handshakes", func() bool { return synRecv(l.a) == 2 })
		got, err := aa.Handshakes(vip[fam])
		must(t, "Handshakes", err)
		if len(got) != 2 {
			t.Errorf("handshakes %v", got)
		}
		must(t, "Lead", aa.Lead(vip[fam], l.b.addr[0]))
		after := l.client.dial(vip[fam], port)
		wait(t, "a handshake at B", func() bool { return synRecv(l.b) == 1 })
		if n := synRecv(l.a); n != 2 {
			t.Errorf("%d handshakes at A", n)
		}
		// All SYNs come again, by the client's timer.
		was := l.client.snmp("RetransSegs")
		wait(t, "SYNs again", func() bool { return l.client.snmp("RetransSegs") >= was+3 })
		end()
		for _, tc := range []struct {
			fd   int
			want string
		}{{before, "a"}, {learnt, "a"}, {after, "b"}} {
			if got := whoAnswers(t, tc.fd); got != tc.want {
				t.Errorf("a handshake of %s was finished by %s", tc.want, got)
			}
		}
		got, err = aa.Handshakes(vip[fam])
		must(t, "Handshakes", err)
		if len(got) != 0 {
			t.Errorf("handshakes that are finished: %v", got)
		}

		// The final ACK is lost and comes again, A's after Lead has begun anew.
		must(t, "Lead nobody", aa.Lead(vip[fam], netip.Addr{}))
		end = l.client.lose(nftables.ChainHookOutput, synFlag|ackFlag|rstFlag, ackFlag)
		unacked := l.client.dial(vip[fam], port)
		wait(t, "a handshake", func() bool { return synRecv(l.a) == 1 })
		_, err = aa.Handshakes(vip[fam])
		must(t, "Handshakes", err)
		must(t, "Lead", aa.Lead(vip[fam], l.b.addr[0]))
		late := l.client.dial(vip[fam], port)
		wait(t, "a handshake at B", func() bool { return synRecv(l.b) == 1 })
		time.Sleep(20 * time.Millisecond)
		end()
		if got := whoAnswers(t, unacked); got != "a" {
			t.Errorf("the ACK of a handshake of a went to %s", got)
		}
		if got := whoAnswers(t, late); got != "b" {
			t.Errorf("the ACK of a handshake of b went to %s", got)
		}
		// With nothing learnt each SYN is led, and a client on A's own host is,
		// and one on B's host, whose way is over A.
		must(t, "Learn nothing", aa.Learn(nil))
		for _, h := range []*host{l.client, l.a, l.b} {
			if got := whoAnswers(t, h.dial(vip[fam], port)); got != "b" {
				t.Errorf("a client on %s was led to %s", h.name, got)
			}
		}
		// Nothing new, but who follows goes on.
		must(t, "Lead nobody", aa.Lead(vip[fam], netip.Addr{}))
		if got := whoAnswers(t, l.client.dial(vip[fam], port)); got != "a" {
			t.Errorf("a client was led to %s", got)
		}
		if c := l.a.counters(aa); c.Looped != 0 {
			t.Errorf("counters %+v", c)
		}
		l.wantNoReset()
	})
}

// A flow that began at the taker comes back when a move is undone: its tuple
// still follows there, and stays at the giver all the same.
func TestFollowerComesBack(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		l.a.own(aa, vip[fam], long)
		must(t, "Forward on b", ba.Forward(vip[fam], l.a.addr[fam]))
		must(t, "Guest on b", ba.Guest(vip[fam], long))
		must(t, "Lead", aa.Lead(vip[fam], l.b.addr[0]))
		s := connect(t, l.b, vip[fam], l.client, l.client.addr[fam], true)
		s.pump(20*time.Millisecond, 700)
		must(t, "Lead nobody", aa.Lead(vip[fam], netip.Addr{}))
		m := &mover{t: t, stream: s}
		m.move(l.b, l.a, ba, aa, func() { s.write(false, 700) })
		s.pump(20*time.Millisecond, 700)
		must(t, "Guest ends", ba.Guest(vip[fam], 0))
		must(t, "Forget on b", ba.Forget(vip[fam]))
		must(t, "Forget", aa.Forget(vip[fam]))
		s.pump(20*time.Millisecond, 700)
		for h, a := range map[*host]*Admin{l.a: aa, l.b: ba} {
			if c := h.counters(a); c.HereTuples+c.DivertTuples != 0 || c.Looped != 0 {
				t.Errorf("%s: %+v", h.name, c)
			}
			st, err := a.State()
			must(t, "State", err)
			if a.vips[vip[fam]].moving {
				t.Errorf("%s: the rules still look at the address", h.name)
			}
			if len(st.Led)+len(st.Forwarded)+len(st.Guests)+len(st.Here) != 0 {
				t.Errorf("%s: %+v", h.name, st)
			}
			for to, set := range a.rules.vips.follow {
				if list, err := a.rules.notes(set, vip[fam]); err != nil || len(list) != 0 {
					t.Errorf("%s: %d follow to %s, %v", h.name, len(list), to, err)
				}
			}
		}
		s.finish(true, true)
		l.wantNoReset()
	})
}

// A tuple is held some time before its flow stops at the other host. Until then its segments
// reach it there, though they come by way of the host that holds: from an endpoint on that
// one, and where it owns the address and the flow comes back, diverted or led away before.
func TestHeldReachesFlow(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		v := vip[fam]
		l.a.own(aa, v, long)
		must(t, "Forward on b", ba.Forward(v, l.a.addr[fam]))
		must(t, "Guest on b", ba.Guest(v, long))
		leg := connect(t, l.a, v, l.b, l.b.addr[fam], false) // its endpoint is on B
		went := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		must(t, "Lead", aa.Lead(v, l.b.addr[0]))
		follows := connect(t, l.b, v, l.client, l.client.addr[fam], true)
		(&mover{t: t, stream: went}).move(l.a, l.b, aa, ba, nil)
		for _, x := range []struct {
			s        *stream
			from, to *host
			fa, ta   *Admin
		}{{leg, l.a, l.b, aa, ba}, {went, l.b, l.a, ba, aa}, {follows, l.b, l.a, ba, aa}} {
			must(t, "Hold", x.ta.Hold([]Tuple{x.s.tuple}))
			x.s.pump(10*time.Millisecond, 700)
			x.s.settle()
			if c := x.to.counters(x.ta); c.HeldFrames != 0 {
				t.Errorf("%v: %d frames wait for a flow that is elsewhere", x.s.tuple, c.HeldFrames)
			}
			held := x.to.counters(x.ta).HeldTotal
			(&mover{t: t, stream: x.s}).move(x.from, x.to, x.fa, x.ta, func() {
				x.s.write(false, 700)
				wait(t, "what came while it moved to be held", func() bool { return x.to.counters(x.ta).HeldTotal > held })
			})
			x.s.pump(10*time.Millisecond, 700)
			x.s.settle()
		}
		for h, a := range map[*host]*Admin{l.a: aa, l.b: ba} {
			if c := h.counters(a); c.Looped != 0 {
				t.Errorf("%s: %+v", h.name, c)
			}
		}
		for _, s := range []*stream{leg, went, follows} {
			s.finish(true, true)
		}
		l.wantNoReset()
	})
}

// The whole order: a live flow goes to B, the address follows. Clients whose
// caches have not settled, and endpoints on A itself, reach B by A; a flow
// that stays on A goes on, its segments come from B.
func TestForward(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		aa, ba := l.a.open(Config{}), l.b.open(Config{})
		fenceAll(t, aa, ba)
		const port = 443
		v := vip[fam]
		for _, h := range []*host{l.a, l.b} {
			h.greeter(v, port)
		}
		l.a.own(aa, v, long)
		goes := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		leg := connect(t, l.a, v, l.a, l.a.addr[fam], false) // an endpoint on A
		residue := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		residueLeg := connect(t, l.a, v, l.a, l.a.addr[fam], false)
		all := []*stream{goes, leg, residue, residueLeg}
		pump := func() {
			t.Helper()
			for _, s := range all {
				s.pump(10*time.Millisecond, 1000)
			}
		}
		pump()
		must(t, "Forward on b", ba.Forward(v, l.a.addr[fam]))
		must(t, "Guest on b", ba.Guest(v, long))
		// An endpoint on B still reaches A by B's lo, and B dials its own.
		if got := whoAnswers(t, l.b.dial(v, port)); got != "a" {
			t.Errorf("a client on b reached %s", got)
		}
		dialled := connect(t, l.b, v, l.b, l.b.addr[fam], false)
		all = append(all, dialled)
		pump()
		must(t, "Lead", aa.Lead(v, l.b.addr[0]))
		for _, s := range []*stream{goes, leg} {
			(&mover{t: t, stream: s}).move(l.a, l.b, aa, ba, func() { s.write(false, 700) })
		}
		pump()

		must(t, "Here", aa.Here([]Tuple{residue.tuple, residueLeg.tuple}))
		must(t, "Forward", aa.Forward(v, l.b.addr[0]))
		must(t, "Guest", aa.Guest(v, long))
		must(t, "Disown", aa.Disown(v))
		pump() // nobody owns it, and all goes on: caches still say A
		must(t, "Divert the residue", ba.Divert([]Tuple{residue.tuple, residueLeg.tuple}, l.a.addr[fam]))
		must(t, "Forward on b ends", ba.Forward(v, netip.Addr{}))
		must(t, "Own", ba.Own(prefixOf(v), long))
		must(t, "Guest on b ends", ba.Guest(v, 0))
		pump()
		// Caches that have not heard of it.
		l.client.believe(v, l.a.mac())
		pump()
		for _, h := range []*host{l.client, l.a, l.b} {
			if got := whoAnswers(t, h.dial(v, port)); got != "b" {
				t.Errorf("a client on %s reached %s", h.name, got)
			}
		}
		l.client.forgetNeighbour(v)
		must(t, "Announce", ba.Announce(v))
		pump()
		if got := l.client.neighbour(v); got != l.b.mac() {
			t.Errorf("the client believes that the address is at %s", got)
		}
		for _, s := range []*stream{residue, residueLeg} {
			s.finish(true, true)
		}
		must(t, "Forget", aa.Forget(v))
		must(t, "Guest ends", aa.Guest(v, 0))
		all = []*stream{goes, leg, dialled}
		pump()
		for _, s := range all {
			s.finish(true, true)
		}
		if l.a.has("lo", v) || l.a.has("eth0", v) {
			t.Error("A still has the address")
		}
		for h, a := range map[*host]*Admin{l.a: aa, l.b: ba} {
			if c := h.counters(a); c.Looped != 0 || c.Dropped != 0 {
				t.Errorf("%s: %+v", h.name, c)
			}
		}
		l.wantNoReset()
	})
}

// What is no longer named by Fence leaves the host.
func TestFenceReplaces(t *testing.T) {
	l := newBareLab(t)
	a := l.a.open(Config{})
	if err := a.Own(prefixOf(vip[0]), long); err == nil {
		t.Error("an address that is not fenced was owned")
	}
	fenceAll(t, a)
	for i := range vip {
		must(t, "Own", a.Own(prefixOf(vip[i]), long))
		must(t, "Guest", a.Guest(src[i], long))
	}
	must(t, "Forward", a.Forward(vip[0], l.b.addr[0]))
	st, err := a.State()
	must(t, "State", err)
	if len(st.Fenced) != 4 || len(st.Owned) != 2 || len(st.Guests) != 2 || fmt.Sprint(st.Forwarded) != fmt.Sprintf("[{%v %v}]", vip[0], l.b.addr[0]) {
		t.Errorf("%+v", st)
	}
	must(t, "Fence", a.Fence([]netip.Prefix{prefixOf(vip[1])}))
	if st, err = a.State(); err != nil || len(st.Fenced) != 1 || len(st.Owned) != 1 || len(st.Guests)+len(st.Forwarded) != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	for i := range vip {
		if l.a.has("eth0", vip[i]) != (i == 1) || l.a.has("lo", src[i]) {
			t.Errorf("family %d: addresses are left or gone", i)
		}
	}
	for _, p := range []string{"0.0.0.0/0", "127.0.0.1/8", "224.0.0.1/4"} {
		if err := a.Fence([]netip.Prefix{netip.MustParsePrefix(p)}); err == nil {
			t.Errorf("%s was fenced", p)
		}
	}
	l.a.do("Close", a.Close)
	if l.a.has("eth0", vip[1]) {
		t.Error("the address is left after Close")
	}
}

// An address that a routing daemon announces is on a device of its own, which
// shows when it is owned, and neighbours are not told.
func TestRouted(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam int) {
		l := newBareLab(t)
		a := l.a.open(Config{})
		v := netip.MustParseAddr([]string{"192.0.2.10", "2001:db8::10"}[fam])
		p := netip.PrefixFrom(v, v.BitLen())
		must(t, "Fence", a.Fence([]netip.Prefix{p}))
		must(t, "Routed", a.Routed([]netip.Addr{v}))
		j := l.client.judge()
		must(t, "Own", a.Own(p, long))
		must(t, "Announce", a.Announce(v))
		if !l.a.has(DefaultVIPDevice, v) || l.a.has("eth0", v) {
			t.Error("the address is not on the device of routed ones alone")
		}
		l.client.do("route", func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: l.a.addr[fam].AsSlice(),
				Dst: &net.IPNet{IP: v.AsSlice(), Mask: net.CIDRMask(p.Bits(), v.BitLen())}})
		})
		s := connect(t, l.a, v, l.client, l.client.addr[fam], true)
		s.pump(20*time.Millisecond, 700)
		s.finish(true, true)
		must(t, "Disown", a.Disown(v))
		j.speakers(v)
		if l.a.has(DefaultVIPDevice, v) {
			t.Error("the address is left")
		}
		l.wantNoReset()
	})
}

// The network of an IPv6 address that no other address of the host is in.
func TestOwnOtherNetwork(t *testing.T) {
	l := newBareLab(t)
	a := l.a.open(Config{})
	p := netip.MustParsePrefix("fd00:77::10/64")
	client := netip.MustParseAddr("fd00:77::13")
	l.client.do("address", func() error { return addAddr("eth0", client, false) })
	must(t, "Fence", a.Fence([]netip.Prefix{p}))
	for range 2 {
		l.a.own(a, p.Addr(), long)
		s := connect(t, l.a, p.Addr(), l.client, client, true)
		s.pump(20*time.Millisecond, 700)
		s.finish(true, true)
		must(t, "Disown", a.Disown(p.Addr()))
	}
	l.wantNoReset()
}

// An address that leaves takes no other along that is in its network.
func TestDisownOneOfTwo(t *testing.T) {
	l := newBareLab(t)
	a := l.a.open(Config{})
	one, two := netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("192.0.2.11/24")
	must(t, "Fence", a.Fence([]netip.Prefix{one, two}))
	must(t, "Own", a.Own(one, long))
	must(t, "Own", a.Own(two, long))
	must(t, "Disown", a.Disown(one.Addr()))
	if l.a.has("eth0", one.Addr()) || !l.a.has("eth0", two.Addr()) {
		t.Error("the wrong addresses are left")
	}
}
