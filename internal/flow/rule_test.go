package flow

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
)

func listenerAt(name string, version uint64, port uint16, p config.Protocol) *config.Listener {
	l := &config.Listener{Ref: config.Ref{Kind: config.ListenerKind, Name: name, Version: version}, VIP: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), Protocol: p}
	if p == config.HTTP {
		l.Rules = &config.Rules{}
	}
	return l
}

// What a client's next request is ruled by, and a flow that adopts a change: who has
// its VIP now, else who has its name, and neither if that speaks something else.
func TestInForce(t *testing.T) {
	was := listenerAt("a", 1, 80, config.HTTP)
	for _, c := range []struct {
		name string
		now  []*config.Listener
		want string // its name and version
	}{
		{"nothing has changed", []*config.Listener{was}, "a1"},
		{"other rules", []*config.Listener{listenerAt("a", 2, 80, config.HTTP)}, "a2"},
		{"another name", []*config.Listener{listenerAt("b", 3, 80, config.HTTP)}, "b3"},
		{"another VIP", []*config.Listener{listenerAt("a", 4, 81, config.HTTP)}, "a4"},
		{"an exchange of VIPs", []*config.Listener{listenerAt("a", 5, 81, config.HTTP), listenerAt("b", 6, 80, config.HTTP)}, "b6"},
		{"the VIP is for octets now", []*config.Listener{listenerAt("a", 7, 81, config.HTTP), listenerAt("b", 8, 80, config.TCP)}, "a7"},
		{"it speaks something else", []*config.Listener{listenerAt("a", 9, 80, config.TCP)}, ""},
		{"it is gone", []*config.Listener{listenerAt("b", 9, 81, config.HTTP)}, ""},
	} {
		d := &Desk{Config: &config.Config{Listeners: map[string]*config.Listener{}}, VIPs: map[netip.AddrPort]*config.Listener{}}
		for _, l := range c.now {
			d.Config.Listeners[l.Ref.Name], d.VIPs[l.VIP] = l, l
		}
		for what, got := range map[string]*config.Listener{"the next request": d.InForce(was), "the next but one": d.InForce(was), "who adopts": Heir(d.Config, was)} {
			name := ""
			if got != nil {
				name = fmt.Sprint(got.Ref.Name, got.Ref.Version)
			}
			if name != c.want {
				t.Errorf("%s, %s: ruled by %q, want %q", c.name, what, name, c.want)
			}
		}
	}
}

// What it costs each request to know that its listener is in force: of one listener,
// and of a thousand in turn.
func BenchmarkInForce(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := &Desk{Config: &config.Config{Listeners: map[string]*config.Listener{}}, VIPs: map[netip.AddrPort]*config.Listener{}}
			var all []*config.Listener
			for i := range n {
				l := listenerAt(fmt.Sprint("service-", i), 1, uint16(i+1), config.HTTP)
				d.Config.Listeners[l.Ref.Name], d.VIPs[l.VIP] = l, l
				all = append(all, l)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if d.InForce(all[i%n]) == nil {
					b.Fatal("nothing is in force")
				}
			}
		})
	}
}
