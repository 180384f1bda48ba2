package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// identified is a configuration of that node, with identities in dir.
func identified(dir, name, certificate string) *config.Config {
	return &config.Config{Node: config.Node{Name: name}, Cluster: &config.Cluster{
		Certificate: filepath.Join(dir, certificate+".crt"), Key: filepath.Join(dir, certificate+".key"), Trust: filepath.Join(dir, "ca.crt"),
	}}
}

// Whatever is wrong with the certificate of a node is found before a peer finds it.
func TestDoctorOnTheCertificate(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, other} {
		if err := demo.Identities(d, "n1", "n3"); err != nil {
			t.Fatal(err)
		}
	}
	strange, mixed, secret, none := identified(dir, "n1", "n1"), identified(dir, "n1", "n1"), identified(dir, "n1", "n1"), identified(dir, "n1", "n1")
	strange.Cluster.Trust = filepath.Join(other, "ca.crt")
	mixed.Cluster.Key = filepath.Join(dir, "n3.key")
	secret.Cluster.Trust = filepath.Join(dir, "n1.key")
	none.Cluster.Certificate = filepath.Join(dir, "n7.crt")
	now := time.Now()
	for _, c := range []struct {
		name    string
		c       *config.Config
		at      time.Time
		verdict netadmin.Verdict
		says    string
	}{
		{"good, for a day", identified(dir, "n1", "n1"), now, netadmin.Costs, "ends in"},
		{"ended", identified(dir, "n1", "n1"), now.Add(48 * time.Hour), netadmin.Missing, "has ended"},
		{"not yet good", identified(dir, "n1", "n1"), now.Add(-48 * time.Hour), netadmin.Missing, "is not good before"},
		{"of another node", identified(dir, "n1", "n3"), now, netadmin.Missing, "n3"},
		{"of a strange authority", strange, now, netadmin.Missing, "unknown authority"},
		{"with the key of another", mixed, now, netadmin.Missing, "private key does not match"},
		{"without an authority", secret, now, netadmin.Missing, "holds no certificate"},
		{"absent", none, now, netadmin.Missing, "no such file"},
	} {
		all, mine := identity(c.c, c.at)
		if f := all[0]; f.Verdict != c.verdict || !strings.Contains(f.Says, c.says) || f.Cost == "" || f.Fix == "" {
			t.Errorf("%s: %+v, want %s with %q", c.name, all, c.verdict, c.says)
		}
		if usable := c.name != "with the key of another" && c.name != "without an authority" && c.name != "absent"; usable != (mine != nil) {
			t.Errorf("%s: can be shown: %t", c.name, mine != nil)
		}
	}
}

// A peer whose certificate is of another name, and one that does not take ours, are told apart from
// one with which all is well, and from one that is not there.
func TestDoctorOnPeers(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, other} {
		if err := demo.Identities(d, "n1", "n3", "n4"); err != nil {
			t.Fatal(err)
		}
	}
	c := identified(dir, "n1", "n1")
	_, mine := identity(c, time.Now())
	for _, x := range []struct {
		name, shows, trusts string
		verdict             netadmin.Verdict
		says                string
	}{
		{"well", filepath.Join(dir, "n3"), dir, netadmin.Good, "takes that of this node"},
		{"another", filepath.Join(dir, "n4"), dir, netadmin.Missing, "n4"},
		{"a stranger", filepath.Join(other, "n3"), dir, netadmin.Missing, "unknown authority"},
		{"takes others", filepath.Join(dir, "n3"), other, netadmin.Missing, "does not take what this node shows"},
	} {
		pair, err := tls.LoadX509KeyPair(x.shows+".crt", x.shows+".key")
		if err != nil {
			t.Fatal(err)
		}
		pem, err := os.ReadFile(filepath.Join(x.trusts, "ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		trust := x509.NewCertPool()
		trust.AppendCertsFromPEM(pem)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { // ends with the connection
			defer close(ended)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: trust, ClientAuth: tls.RequireAndVerifyClientCert})
			if s.Handshake() == nil {
				_, _ = s.Read(make([]byte, 1)) // a greeting, which does not come
			}
			_ = s.Close()
		}()
		c.Cluster.Peers = map[string]netip.AddrPort{"n1": {}, "n3": netip.MustParseAddrPort(l.Addr().String())}
		all := strangers(c, mine)
		if len(all) != 1 || all[0].Verdict != x.verdict || !strings.Contains(all[0].Says, x.says) {
			t.Errorf("%s: %+v, want %s with %q", x.name, all, x.verdict, x.says)
		}
		_ = l.Close()
		<-ended
		if all := strangers(c, mine); len(all) != 0 {
			t.Errorf("of who is not there: %+v", all)
		}
	}
}

// Nodes whose devices are not of one MTU are named, each with both figures; who has not said
// so is not called equal.
func TestDoctorOnSizes(t *testing.T) {
	for name, c := range map[string]struct {
		nodes []node.NodeStatus
		err   error
		want  map[string]netadmin.Verdict
	}{
		"nobody runs here": {nil, errors.New("no socket"), map[string]netadmin.Verdict{"MTU of the nodes": netadmin.Unknown}},
		"as it should be":  {[]node.NodeStatus{{Name: "n1", Self: true, MTU: 1500}, {Name: "n3", MTU: 1500}}, nil, map[string]netadmin.Verdict{"MTU of n3": netadmin.Good}},
		"one is smaller": {[]node.NodeStatus{{Name: "n1", MTU: 9000}, {Name: "n3", Self: true, MTU: 9000}, {Name: "n4", MTU: 1500}, {Name: "n5"}}, nil,
			map[string]netadmin.Verdict{"MTU of n1": netadmin.Good, "MTU of n4": netadmin.Costs, "MTU of n5": netadmin.Unknown}},
	} {
		all := sizes(c.nodes, c.err)
		if len(all) != len(c.want) {
			t.Errorf("%s: %+v", name, all)
		}
		for _, f := range all {
			if c.want[f.What] != f.Verdict || (f.Verdict != netadmin.Good) != (f.Cost != "") {
				t.Errorf("%s: %+v, want %s", name, f, c.want[f.What])
			}
		}
	}
}
