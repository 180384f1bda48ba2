package netadmin

import (
	"net/netip"
	"testing"
	"time"
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
