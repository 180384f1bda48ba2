package main

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/netadmin"
)

const rightsFile = `
nodes:
  n1: { address: "192.168.7.1:7443", device: eth0, sourcePorts: "20000-29999" }
  n2: { address: "192.168.7.2:7443", device: eth0, sourcePorts: "30000-39999" }
cluster: { identity: { certificate: /n.crt, key: /n.key, trust: /ca.crt } }
vips:
  shop: { address: "192.0.2.10/24", home: n1 }
node: { name: n1 }
listeners:
  shop: { vip: "shop:443", backend: app }
  plain: { vip: "0.0.0.0:80", backend: other }
  literal: { vip: "192.0.2.11:25", backend: mail, movable: true }
backends:
  app: { source: vip, endpoints: [ { address: "10.0.0.1:80" } ] }
  other: { source: 10.0.0.77, endpoints: [ { address: "10.0.0.1:80" } ] }
  mail: { source: 192.0.2.12, endpoints: [ { address: "10.0.0.1:25" } ] }
`

// Of the file, what moves may be moved, what is owned owned, and nothing else.
func TestRightsOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "h.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(rightsFile)
	c, err := clusterOf(file)
	if err != nil {
		t.Fatal(err)
	}
	want := netadmin.Rights{
		Movable: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")},
		VIPs:    []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24")},
		Nodes: []netadmin.PortRange{
			{First: 20000, Last: 29999, To: netip.MustParseAddr("192.168.7.1")},
			{First: 30000, Last: 39999, To: netip.MustParseAddr("192.168.7.2")},
		},
	}
	order := func(r netadmin.Rights) netadmin.Rights {
		slices.SortFunc(r.Movable, netip.Addr.Compare)
		r.Movable = slices.DeleteFunc(slices.Compact(r.Movable), func(a netip.Addr) bool { return a == want.VIPs[0].Addr() })
		slices.SortFunc(r.Nodes, func(a, b netadmin.PortRange) int { return int(a.First) - int(b.First) })
		return r
	}
	if got := order(rightsOf(c)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// The file is read again, unless who is served may write it; one that is none changes nothing.
	log := slog.New(slog.DiscardHandler)
	again := rightsFrom(file, c, 0, log)
	write(strings.Replace(rightsFile, "192.0.2.10/24", "192.0.2.20/24", 1))
	if got := again().VIPs[0].String(); got != "192.0.2.20/24" {
		t.Errorf("after a change: %v", got)
	}
	if err := os.Chmod(filepath.Dir(file), 0o777); err != nil {
		t.Fatal(err)
	}
	once := rightsFrom(file, c, os.Geteuid()+1, log)
	write(strings.Replace(rightsFile, "192.0.2.10/24", "192.0.2.30/24", 1))
	if got := once().VIPs[0].String(); got != "192.0.2.10/24" {
		t.Errorf("who is served has made it %v", got)
	}
	write("nodes: [")
	if got := again().VIPs[0].String(); got != "192.0.2.20/24" {
		t.Errorf("of a file that is none: %v", got)
	}
}
