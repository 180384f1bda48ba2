package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

const (
	// renewBefore is how long before its end a certificate is worth a word.
	renewBefore = 14 * 24 * time.Hour
	// shakeTime bounds a handshake with a peer, and refusalTime how long it may take to refuse what
	// it was shown: with TLS 1.3 it says so after the handshake (RFC 8446, section 4.4.2.4).
	shakeTime   = 2 * time.Second
	refusalTime = 500 * time.Millisecond
)

// identityCost is what it costs when peers cannot know this node.
const identityCost = "no peer talks with this node: nothing moves, and VIPs stay silent where all nodes must agree"

// identity looks at the certificate by which peers know this node.
func identity(c *config.Config, now time.Time) (all []netadmin.Finding, mine *tls.Config) {
	bad := func(fix, format string, args ...any) {
		all = append(all, netadmin.Finding{What: "certificate", Verdict: netadmin.Missing, Says: fmt.Sprintf(format, args...), Cost: identityCost, Fix: fix})
	}
	k := c.Cluster
	text, err := os.ReadFile(k.Trust)
	trust := x509.NewCertPool()
	switch {
	case err != nil:
		bad("cluster.identity.trust: readable for who runs holdfast", "trust: %v", err)
		return all, nil
	case !trust.AppendCertsFromPEM(text):
		bad("cluster.identity.trust: certificates of authorities, as PEM", "trust: %s holds no certificate", k.Trust)
		return all, nil
	}
	pair, err := tls.LoadX509KeyPair(k.Certificate, k.Key)
	if err != nil {
		bad("cluster.identity: certificate and key that belong together, readable for who runs holdfast; run refuses to start without", "%v", err)
		return all, nil
	}
	leaf := pair.Leaf
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if x, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(x)
		}
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		// Its own time is judged below, so that an end is told from a strange authority.
		at := leaf.NotBefore.Add(time.Second)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: trust, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			bad("one that an authority of "+k.Trust+" has signed, for both ends of a connection; docs/operate.md makes one", "%s: %v", k.Certificate, err)
			break
		}
	}
	if err := leaf.VerifyHostname(c.Node.Name); err != nil {
		bad("one with the alternative name "+c.Node.Name+"; the common name is not looked at", "%s: %v", k.Certificate, err)
	}
	switch left := leaf.NotAfter.Sub(now); {
	case now.Before(leaf.NotBefore):
		bad("is the clock right?", "%s is not good before %s", k.Certificate, leaf.NotBefore.Format(time.DateTime))
	case left <= 0:
		bad("another one in its place; it is read anew by itself", "%s has ended %s", k.Certificate, leaf.NotAfter.Format(time.DateTime))
	case left < renewBefore:
		all = append(all, netadmin.Finding{What: "certificate", Verdict: netadmin.Costs, Says: fmt.Sprintf("%s ends in %s", k.Certificate, short(left.Round(time.Minute))),
			Cost: "from then on " + identityCost, Fix: "another one in its place; it is read anew by itself"})
	}
	if len(all) == 0 {
		all = append(all, netadmin.Finding{What: "certificate", Verdict: netadmin.Good,
			Says: fmt.Sprintf("is for %s, signed by %s, good until %s", c.Node.Name, leaf.Issuer.CommonName, leaf.NotAfter.Format(time.DateOnly))})
	}
	return all, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: trust, SessionTicketsDisabled: true}
}

// strangers asks each peer that can be reached for its certificate, and shows it ours. What cannot
// be reached was said before.
func strangers(c *config.Config, mine *tls.Config) (all []netadmin.Finding) {
	for _, name := range c.Cluster.SortedPeers() {
		if name == c.Node.Name {
			continue
		}
		f := netadmin.Finding{What: "certificate of " + name, Verdict: netadmin.Good, Says: "is for its name, and it takes that of this node"}
		reached, err := shake(c.Cluster.Peers[name], name, mine)
		if !reached {
			continue
		}
		if err != nil {
			f = netadmin.Finding{What: f.What, Verdict: netadmin.Missing, Says: err.Error(), Cost: "nothing moves to it or from it, and it agrees to no owner of a VIP",
				Fix: "certificates of both nodes for their names in nodes, signed by an authority of the trust of both; is the process there of this cluster, and the clock right?"}
		}
		all = append(all, f)
	}
	return all
}

// shake shakes hands with a peer.
func shake(at netip.AddrPort, name string, mine *tls.Config) (reached bool, err error) {
	c, err := net.DialTimeout("tcp", at.String(), shakeTime)
	if err != nil {
		return false, nil
	}
	defer func() { _ = c.Close() }()
	conf := mine.Clone()
	conf.ServerName = name
	secure := tls.Client(c, conf)
	if err := c.SetDeadline(time.Now().Add(shakeTime)); err != nil {
		return true, err
	}
	if err := secure.Handshake(); err != nil {
		return true, fmt.Errorf("at %v: %w", at, err)
	}
	if err := c.SetDeadline(time.Now().Add(refusalTime)); err != nil {
		return true, err
	}
	_, err = secure.Read(make([]byte, 1))
	if !errors.Is(err, os.ErrDeadlineExceeded) { // it waits for a greeting
		return true, fmt.Errorf("at %v: it does not take what this node shows: %w", at, cmp.Or(err, errors.New("it speaks first")))
	}
	return true, nil
}

// sizes compares what nodes say of their devices, which the one that runs here has heard.
func sizes(nodes []node.NodeStatus, err error) (all []netadmin.Finding) {
	const what = "MTU of the nodes"
	own := slices.IndexFunc(nodes, func(x node.NodeStatus) bool { return x.Self })
	if err != nil || own < 0 {
		return []netadmin.Finding{{What: what, Verdict: netadmin.Unknown, Says: "no holdfast answers here that could ask them",
			Cost: "a node with a smaller one drops full segments of clients that are sent on to it", Fix: "run doctor again when it runs, or holdfast status --json there: nodes"}}
	}
	for _, x := range nodes {
		f := netadmin.Finding{What: "MTU of " + x.Name, Verdict: netadmin.Good, Says: fmt.Sprintf("%d, as here", x.MTU)}
		switch {
		case x.Self:
			continue
		case x.MTU == 0 || nodes[own].MTU == 0:
			f = netadmin.Finding{What: f.What, Verdict: netadmin.Unknown, Says: "it has not said so", Cost: "unequal ones lose full segments of clients while flows move", Fix: "is it running, and of this release?"}
		case x.MTU != nodes[own].MTU:
			f.Verdict, f.Says = netadmin.Costs, fmt.Sprintf("%d, and %d here", x.MTU, nodes[own].MTU)
			f.Cost, f.Fix = "full segments of clients are lost on their way to the smaller one while flows move, and connections that came to the larger one repeat them after each move", "one MTU on all hosts and between them"
		}
		all = append(all, f)
	}
	return all
}
