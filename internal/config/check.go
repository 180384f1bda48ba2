package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// The checks below are for objects that come from elsewhere: they ask for all
// that Parse ensures of one object alone.

// first gives the first error, behind the name of the field that has it.
func first(checks []fieldCheck) error {
	for _, c := range checks {
		if c.err != nil {
			return fmt.Errorf("%s: %w", c.field, c.err)
		}
	}
	return nil
}

type fieldCheck struct {
	field string
	err   error
}

func (l *Listener) check() error {
	if err := first([]fieldCheck{
		{"name", checkName(l.Ref.Name)},
		{"vip", checkAddrPort(l.VIP, true)},
		{"proxyProtocol.from", checkPrefixes(l.ProxyFrom)},
		{"idleTimeout", idleTimeoutBound.check(l.IdleTimeout)},
		{"connectionsMax", connectionsBound.check(l.ConnectionsMax)},
		{"backlog", backlogBound.check(l.Backlog)},
		{"keepalive.idle", keepaliveIdleBound.check(l.KeepaliveIdle)},
		{"keepalive.interval", keepaliveIntervalBound.check(l.KeepaliveInterval)},
		{"keepalive.count", keepaliveCountBound.check(l.KeepaliveCount)},
		{"userTimeout", userTimeoutBound.check(l.UserTimeout)},
	}); err != nil {
		return err
	}
	if err := l.checkGuard(); err != nil {
		return err
	}
	switch {
	case l.Protocol == TCP && l.Rules != nil:
		return fmt.Errorf("routes: are not for tcp")
	case l.Protocol == TCP:
		if err := checkName(l.BackendName); err != nil {
			return fmt.Errorf("backend: %w", err)
		}
	case l.Protocol != HTTP:
		return fmt.Errorf("%v: no such protocol", l.Protocol)
	case l.Rules == nil:
		return fmt.Errorf("routes: there is none")
	case l.BackendName != "" || l.IdleTimeout != 0:
		return fmt.Errorf("backend, idleTimeout: are for tcp; http has routes and timeouts of its own")
	default:
		if err := l.Rules.check(); err != nil {
			return err
		}
	}
	if l.DualStack != isDualStack(l.VIP) {
		return fmt.Errorf("dualStack: %v does not go with the VIP %v", l.DualStack, l.VIP)
	}
	if l.Movable && l.VIP.Addr().IsUnspecified() {
		return fmt.Errorf("movable: the VIP %v is no specific address", l.VIP)
	}
	return nil
}

func (b *Backend) check() error {
	if err := first([]fieldCheck{
		{"name", checkName(b.Ref.Name)},
		{"connectTimeout", connectTimeoutBound.check(b.ConnectTimeout)},
		{"retry.max", retryBound.check(b.RetryMax)},
		{"limits.connectionsPerEndpoint", connectionsBound.check(b.ConnectionsPerEndpoint)},
		{"limits.queue", queueBound.check(b.QueueMax)},
		{"limits.queueTime", queueTimeBound.check(b.QueueTime)},
		{"answerTimeout", answerTimeoutBound.check(b.AnswerTimeout)},
		{"reuse.idle", idleBound.check(b.IdleMax)},
		{"reuse.time", idleTimeBound.check(b.IdleTime)},
	}); err != nil {
		return err
	}
	if b.ProxyHeader != NoProxyHeader && b.IdleMax > 0 {
		return fmt.Errorf("reuse.idle: %d, but proxyProtocol makes each connection one client's", b.IdleMax)
	}
	if b.Source.IsValid() {
		if b.SourceVIP {
			return fmt.Errorf("source: both the VIP and %v", b.Source)
		}
		if err := checkAddr(b.Source, false); err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}
	if err := b.checkPolicy(); err != nil {
		return err
	}
	if len(b.Endpoints) > endpointsMax {
		return fmt.Errorf("endpoints: %d; at most %d are taken", len(b.Endpoints), endpointsMax)
	}
	for i, e := range b.Endpoints {
		if e.Backend != b.Ref.Name {
			return fmt.Errorf("endpoint %q: is of backend %q", clip(e.Name), clip(e.Backend))
		}
		if i > 0 && b.Endpoints[i-1].Name == e.Name {
			return fmt.Errorf("endpoint %q: is there twice", clip(e.Name))
		}
		if err := e.check(); err != nil {
			return fmt.Errorf("endpoint %q: %w", clip(e.Name), err)
		}
		if e.CheckPort != 0 && b.Check == nil {
			return fmt.Errorf("endpoint %q: check.port: the backend has no check", clip(e.Name))
		}
		if err := checkSource(b, e); err != nil {
			return fmt.Errorf("endpoint %q: %w", clip(e.Name), err)
		}
	}
	return nil
}

// checkSource: what the source of b excludes for its endpoint e.
func checkSource(b *Backend, e *Endpoint) error {
	switch {
	case !b.SourceVIP && !b.Source.IsValid(), e.Drop != NoDrop, e.named():
		return nil
	case e.Unix != "":
		return fmt.Errorf("a unix socket is dialled without a source address, but the backend has source %s", sourceText(b))
	case b.Source.IsValid() && b.Source.Is4() != e.Addr.Addr().Is4():
		return fmt.Errorf("%v is %s, but the source %v is %s",
			e.Addr.Addr(), family(e.Addr.Addr()), b.Source, family(b.Source))
	}
	return nil
}

func (e *Endpoint) check() error {
	if err := checkName(e.Backend); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	if err := e.checkAddress(); err != nil {
		return err
	}
	if err := e.checkEndpointName(); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if e.CheckPort != 0 && (e.Unix != "" || e.Drop != NoDrop) {
		return fmt.Errorf("check.port: %s has none", e.Address())
	}
	return e.checkPolicy()
}

// checkAddrPort wants a port, and an address as checkAddr does.
func checkAddrPort(a netip.AddrPort, wildcard bool) error {
	if a.Addr().IsValid() && a.Port() == 0 {
		return fmt.Errorf("port must be 1 to 65535")
	}
	return checkAddr(a.Addr(), wildcard)
}

// checkAddr wants a unicast address that needs no further word to be used;
// wildcard admits 0.0.0.0 and [::].
func checkAddr(a netip.Addr, wildcard bool) error {
	switch {
	case !a.IsValid():
		return fmt.Errorf("not an IP address")
	case a.Zone() != "":
		return fmt.Errorf("an address with a zone (%q) is not supported", clip(a.Zone()))
	case a.Is4In6():
		return fmt.Errorf("an IPv4 address written as IPv6; write %v", a.Unmap())
	case a.IsUnspecified() && !wildcard:
		return fmt.Errorf("%v is no specific address", a)
	case a.IsMulticast():
		return fmt.Errorf("%v is a multicast address", a)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v is the broadcast address", a)
	case a.Is6() && a.IsLinkLocalUnicast():
		return fmt.Errorf("%v is link-local, which needs a zone, and zones are not supported", a)
	}
	return nil
}

// checkUnixPath wants what bind(2) and connect(2) take.
func checkUnixPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("the path of a socket must be absolute")
	case !isPrintable(path):
		return fmt.Errorf("the path of a socket cannot hold control characters")
	case len(path) > unixPathMax:
		return fmt.Errorf("the path of a socket has at most %d octets, this one has %d", unixPathMax, len(path))
	}
	return nil
}

func isDualStack(vip netip.AddrPort) bool { return vip.Addr() == netip.IPv6Unspecified() }

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// checkDevice wants a name that the kernel takes for a network interface.
func checkDevice(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > deviceMax || strings.ContainsAny(name, "/: ") || !isPrintable(name) {
		return fmt.Errorf("not the name of a network interface: 1 to %d octets without space, slash or colon", deviceMax)
	}
	return nil
}
