package config

import (
	"net/netip"
	"strings"
	"testing"
)

const cluster3 = `cluster: { identity: { certificate: "/etc/holdfast/${HOLDFAST_NODE}.crt", key: /k, trust: /t } }
nodes:
  n1: { address: 192.168.7.1:7443, device: eth0, sourcePorts: 20000-29999, labels: { rack: a } }
  n2: { address: 192.168.7.2:7443, device: eth1, sourcePorts: 30000-39999 }
  n3: { address: 192.168.7.3:7443, device: eth0, sourcePorts: 40000-49999 }
vips:
  shop: { address: 192.0.2.10/24, home: n1 }
  shop6: { address: "2001:db8::10/64", home: n2, announce: route }
listeners:
  web: { vip: "shop:443", backend: app }
  web6: { vip: "shop6:443", backend: app6 }
backends:
  app:
    source: vip
    preferLocal: true
    endpoints: [ { name: a1, address: 10.9.0.1:9000, node: n1 }, { name: a3, address: 10.9.0.3:9000, node: n3 } ]
  app6: { source: vip, endpoints: [ { name: a1, address: "[2001:db8::1]:9000", node: n1 } ] }
`

func as(node string) func(string) (string, bool) {
	return func(name string) (string, bool) { return node, name == NodeVariable }
}

// One file serves all nodes: each has its own part of it, and all objects come out
// the same.
func TestOneFileForAllNodes(t *testing.T) {
	var first *Config
	for i, name := range []string{"n1", "n2", "n3"} {
		c, warnings, err := Parse("f", []byte(cluster3), as(name))
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%s: %v %v", name, err, warnings)
		}
		n := c.Cluster.Nodes[name]
		if c.Node.Name != name || c.Cluster.Listen != n.Address || c.Cluster.Device != n.Device || c.Cluster.SourcePortFirst != n.SourcePortFirst ||
			c.Cluster.Certificate != "/etc/holdfast/"+name+".crt" || len(c.Cluster.Peers) != 3 || !c.Cluster.Majority {
			t.Errorf("%s: %+v", name, c.Cluster)
		}
		if i == 0 {
			first = c
			continue
		}
		for _, l := range c.SortedListeners() {
			if l.Ref != first.Listeners[l.Ref.Name].Ref {
				t.Errorf("%s: %v is another object", name, l.Ref)
			}
		}
		if c.Backends["app"].Ref != first.Backends["app"].Ref {
			t.Errorf("%s: another backend", name)
		}
	}
	web, web6 := first.Listeners["web"], first.Listeners["web6"]
	if web.VIP != netip.MustParseAddrPort("192.0.2.10:443") || web.VIPName != "shop" || !web.Movable || web6.VIP.String() != "[2001:db8::10]:443" {
		t.Errorf("%+v %+v", web, web6)
	}
	if v := first.VIPs["shop6"]; v.Announce != AnnounceRoute || v.Home != "n2" || v.Address.Bits() != 64 {
		t.Errorf("%+v", v)
	}
	o, err := DecodeObject(ListenerKind, "web", web.Encode())
	if err != nil || o.(*Listener).VIPName != "shop" || o.(*Listener).Ref != web.Ref {
		t.Errorf("%v %v", o, err)
	}
}

func TestWhatIsWrongWithNodesAndVIPs(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{`"shop:443"`, `"shpo:443"`, `listeners.web.vip: "shpo:443": no VIP "shpo"; there are: shop, shop6`},
		{`"shop:443"`, `"shop:99999"`, `listeners.web.vip: "shop:99999": `},
		{`home: n1 }`, `home: n4 }`, `vips.shop.home: no node "n4"; there are: n1, n2, n3`},
		{`30000-39999`, `29000-39999`, `nodes.n2.sourcePorts: 29000-39999 overlaps 20000-29999 of n1`},
		{`192.168.7.2:7443`, `192.168.7.1:7443`, `nodes.n2.address: 192.168.7.1:7443 is that of n1, too`},
		{`node: n3 }`, `node: n9 }`, `node: no node "n9"; there are: n1, n2, n3`},
		{`backend: app }`, `backend: app, movable: false }`, `listeners.web.movable: must be true`},
		{`key: /k, trust: /t } }`, `key: /k, trust: /t }, listen: 1.2.3.4:5 }`, `cluster.listen: unknown key; it is address of each node now, in nodes`},
		{`192.0.2.10/24`, `192.0.2.10`, `vips.shop.address: "192.0.2.10": must be an address with the length`},
		{`nodes:`, "node: { state: none }\nnodes:", `node.state: none keeps nothing, and who owns an address of vips must outlast a restart`},
		{`  n1: {`, `  n7: {`, `nodes: this node, "n1", is not among them; there are: n2, n3, n7; it is node.name, run --node, or $HOLDFAST_NODE`},
	} {
		_, _, err := Parse("f", []byte(strings.Replace(cluster3, c.old, c.new, 1)), as("n1"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.new, err, c.want)
		}
	}
}

// A VIP that moves to another address takes the listeners on it along, however the
// file is read.
func TestListenersFollowTheirVIP(t *testing.T) {
	d, _, err := Read("f", []byte(cluster3), as("n1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.Replace(cluster3, "192.0.2.10/24", "192.0.2.20/24", 1)
	next, _, err := Read("f", []byte(moved), as("n1"), d)
	if err != nil {
		t.Fatal(err)
	}
	want := netip.MustParseAddrPort("192.0.2.20:443")
	if got := next.Config().Listeners["web"].VIP; got != want {
		t.Errorf("read again: %v", got)
	}
	if plan := Diff(d.Config(), next.Config()).String(); plan != "~ vip shop: address 192.0.2.10/24 -> 192.0.2.20/24\n~ listener web: vip shop:443 (192.0.2.10) -> shop:443 (192.0.2.20)\n" {
		t.Errorf("%s", plan)
	}
	patched, err := d.Patch(Patch{Object: "vips", Field: "shop.address", Value: "192.0.2.20/24"})
	if err != nil {
		t.Fatal(err)
	}
	if got := patched.Config().Listeners["web"].VIP; got != want {
		t.Errorf("patched: %v", got)
	}
	if l := patched.Config().Listeners["web6"]; l != d.Config().Listeners["web6"] {
		t.Error("the other listener is another object")
	}
}
