package netadmin

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkHandshakes: with 2,000 learnt tuples; the first call after a change waits for the kernel.
func BenchmarkHandshakes(b *testing.B) {
	l := newBareLab(b)
	a := l.a.open(Config{})
	fenceAll(b, a)
	must(b, "Learn", a.Learn([]netip.AddrPort{netip.AddrPortFrom(vip[0], 443)}))
	var list []noted
	for _, t := range manyTuples(0, 2000) {
		list = append(list, noted{tuple: t})
	}
	must(b, "note", a.rules.note(a.rules.vips.learnt, list, learntFor))
	var settle, look time.Duration
	for b.Loop() {
		a.unsettled = true
		at := time.Now()
		_, err := a.Handshakes(vip[0])
		must(b, "Handshakes", err)
		settle += time.Since(at)
		at = time.Now()
		_, err = a.Handshakes(vip[0])
		must(b, "Handshakes", err)
		look += time.Since(at)
	}
	b.ReportMetric(settle.Seconds()*1e3/float64(b.N), "first-ms")
	b.ReportMetric(look.Seconds()*1e3/float64(b.N), "next-ms")
}

// BenchmarkOwn: a renewal, which each owner does for each address.
func BenchmarkOwn(b *testing.B) {
	l := newBareLab(b)
	a := l.a.open(Config{})
	fenceAll(b, a)
	for b.Loop() {
		must(b, "Own", a.Own(prefixOf(vip[0]), long))
	}
}

// BenchmarkRoundTrip: what the rules cost each segment: an octet there and back
// on a connection of a host without rules, with them, and of a fenced address.
func BenchmarkRoundTrip(b *testing.B) {
	for _, name := range []string{"none", "open", "fenced"} {
		b.Run(name, func(b *testing.B) {
			l := newBareLab(b)
			addr := l.a.addr[0]
			if name != "none" {
				a := l.a.open(Config{})
				if name == "fenced" {
					fenceAll(b, a)
					addr = vip[0]
					l.a.own(a, addr, long)
				}
			}
			s := connect(b, l.a, addr, l.client, l.client.addr[0], true)
			for _, fd := range []int{s.ours, s.peers} {
				must(b, "block", unix.SetNonblock(fd, false))
				must(b, "nodelay", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
			}
			octet := make([]byte, 1)
			for b.Loop() {
				for _, x := range [][2]int{{s.peers, s.ours}, {s.ours, s.peers}} {
					_, err := unix.Write(x[0], octet)
					must(b, "write", err)
					_, err = unix.Read(x[1], octet)
					must(b, "read", err)
				}
			}
		})
	}
}

// A lot of 16 flows begins to be held, and no more, among others.
func BenchmarkHoldAmong(b *testing.B) {
	for _, others := range []int{0, 18000} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			l := newBareLab(b)
			a := l.a.open(Config{})
			ts := manyTuples(0, others+32)
			must(b, "Hold", a.Hold(ts[32:]))
			for b.Loop() {
				must(b, "Hold", a.Hold(ts[:32]))
				must(b, "Drop", a.Drop(ts[:32]))
			}
		})
	}
}
