package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/vip"
)

// A VIP leaves a configuration when nothing is on it, and not while it moves, settles, or this
// process is not the only one of its node. Its home may be another at any time.
func TestVIPThatGoesAway(t *testing.T) {
	away := func(v *config.VIP) *config.VIP { return nil }
	for _, c := range []struct {
		name   string
		record vip.Record
		with   func(n *Node, v *vipSeat)
		now    func(v *config.VIP) *config.VIP
		want   string // "": it may
	}{
		{"owned", vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"}, nil, away, ""},
		{"owned elsewhere", vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n2"}, nil, away, ""},
		{"moves away", vip.Record{Epoch: 4, Stage: vip.Moving, From: "n1", Owner: "n2"}, nil, away, "it is being moved"},
		{"moves here", vip.Record{Epoch: 4, Stage: vip.Moving, From: "n2", Owner: "n1"}, nil, away, "it is being moved"},
		{"moves elsewhere", vip.Record{Epoch: 4, Stage: vip.Moving, From: "n2", Owner: "n3"}, nil, away, ""},
		{"settles", vip.Record{Epoch: 4, Stage: vip.Owned, From: "n1", Owner: "n2"}, func(_ *Node, v *vipSeat) {
			v.guest = guesthood{on: true, to: "n2", forget: time.Now().Add(time.Hour)}
		}, away, "when it has settled"},
		{"a predecessor serves", vip.Record{Epoch: 4, Stage: vip.Owned, Owner: "n1"}, func(n *Node, _ *vipSeat) { n.host.guest = true }, away, "not by an upgrade"},
		{"another address", vip.Record{Epoch: 4, Stage: vip.Moving, From: "n1", Owner: "n2"}, nil, func(v *config.VIP) *config.VIP {
			v.Address = netip.MustParsePrefix("192.0.2.101/24")
			return v
		}, "gets another address, 192.0.2.101/24"},
		{"another home", vip.Record{Epoch: 4, Stage: vip.Moving, From: "n1", Owner: "n2"}, nil, func(v *config.VIP) *config.VIP {
			v.Home = "n2"
			return v
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			recorded(t, dir, c.record)
			n, conf := vipNodeAt(t, &vipKernel{}, dir, nil)
			if c.with != nil {
				c.with(n, shopSeat(n))
			}
			was := *conf.VIPs["shop"]
			next := *conf
			next.VIPs = map[string]*config.VIP{}
			if v := c.now(&was); v != nil {
				next.VIPs["shop"] = v
			}
			err := n.mayLoseVIPs(&next)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
