package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The checks below are as those of check.go.

func (l *Listener) checkGuard() error {
	if err := first([]fieldCheck{
		{"allow", checkPrefixes(l.Allow)},
		{"deny", checkPrefixes(l.Deny)},
		{"sourceConnectionsMax", connectionsBound.check(l.SourceConnectionsMax)},
	}); err != nil {
		return err
	}
	if err := checkRates(l.ConnectionRate, l.SourceRate); err != nil {
		return err
	}
	if len(l.ProxyFrom) > 0 && (l.SourceRate != nil || l.SourceConnectionsMax > 0) {
		return errors.New("sourceRate, sourceConnectionsMax: connections come from the proxies of proxyProtocol.from")
	}
	return nil
}

func checkRates(rate *Rate, source *SourceRate) error {
	if rate != nil {
		if err := rate.check(); err != nil {
			return fmt.Errorf("rate: %w", err)
		}
	}
	if source != nil {
		if err := source.check(); err != nil {
			return fmt.Errorf("sourceRate: %w", err)
		}
	}
	return nil
}

func (b *Backend) checkPolicy() error {
	checks := []fieldCheck{
		{"retry.on", checkStatuses(b.Retry.Statuses)},
		{"retry.budget", budgetBound.check(b.Retry.Budget)},
		{"hash", b.checkHash()},
		{"slowStart", slowStartBound.check(b.SlowStart)},
		{"panic", panicBound.check(b.Panic)},
	}
	if b.Sticky != nil {
		checks = append(checks, fieldCheck{"sticky", b.Sticky.check()})
	}
	if b.Check != nil {
		checks = append(checks, fieldCheck{"check", b.Check.check()})
	}
	if b.Eject != nil {
		checks = append(checks, fieldCheck{"eject", b.Eject.check()})
	}
	if b.Breaker != nil {
		checks = append(checks, fieldCheck{"breaker", b.Breaker.check()})
	}
	if b.Fallback != nil {
		checks = append(checks, fieldCheck{"fallback", b.Fallback.check(b.Ref.Name)})
	}
	return first(checks)
}

func (b *Backend) checkHash() error {
	h := b.Hash
	if b.Balance != Maglev {
		if h != (Hash{}) {
			return errors.New("is for balance: maglev")
		}
		return nil
	}
	switch h.Kind {
	case HashHeader, HashCookie:
		if err := checkToken(h.Name); err != nil {
			return fmt.Errorf("name: %w", err)
		}
	case HashSource, HashPath:
		if h.Name != "" {
			return fmt.Errorf("name: %v has none", h.Kind)
		}
	default:
		return fmt.Errorf("%v: no such hash", h.Kind)
	}
	if h.Load != 0 {
		if err := loadBound.check(h.Load); err != nil {
			return fmt.Errorf("load: %w", err)
		}
	}
	return nil
}

func (y *Sticky) check() error {
	var rest Sticky // what another kind has
	switch y.Kind {
	case StickyCookie:
		rest = Sticky{TableMax: y.TableMax, Bits4: y.Bits4, Bits6: y.Bits6}
		if err := y.checkCookie(); err != nil {
			return err
		}
	case StickyHeader, StickySource:
		rest = *y
		rest.Kind, rest.MaxAge, rest.TableMax = 0, 0, 0
		if err := first([]fieldCheck{
			{"maxAge", entryAgeBound.check(y.MaxAge)},
			{"entries", entriesBound.check(y.TableMax)},
		}); err != nil {
			return err
		}
		var err error
		if y.Kind == StickyHeader {
			rest.Name = ""
			err = checkToken(y.Name)
		} else {
			rest.Bits4, rest.Bits6 = 0, 0
			err = checkBits(y.Bits4, y.Bits6)
		}
		if err != nil {
			return err
		}
	default:
		return fmt.Errorf("%v: no such kind", y.Kind)
	}
	if rest != (Sticky{}) {
		return fmt.Errorf("%v has what is of another kind", y.Kind)
	}
	return nil
}

func (y *Sticky) checkCookie() error {
	var domains []string
	if y.Domain != "" {
		domains = []string{y.Domain}
	}
	if y.SameSite != "" && !slices.Contains(sameSites, y.SameSite) {
		return fmt.Errorf("sameSite: %q is not one of %s", clip(y.SameSite), strings.Join(sameSites, ", "))
	}
	if y.SameSite == sameSiteNone && !y.Secure {
		return errors.New("sameSite: None is for cookies that are secure")
	}
	return first([]fieldCheck{
		{"name", checkToken(y.Name)},
		{"maxAge", cookieAgeBound.check(y.MaxAge)},
		{"key", optional(checkSecret)(y.Key)},
		{"domain", checkNormal(domains, parseCookieDomain)},
		{"path", checkCookiePath(y.Path)},
	})
}

func (c *Check) check() error {
	if err := first([]fieldCheck{
		{"interval", checkIntervalBound.check(c.Interval)},
		{"fastInterval", checkIntervalBound.check(c.FastInterval)},
		{"downInterval", checkIntervalBound.check(c.DownInterval)},
		{"timeout", checkTimeoutBound.check(c.Timeout)},
		{"rise", checkCountBound.check(c.Rise)},
		{"fall", checkCountBound.check(c.Fall)},
		{"tcp.send", checkSent(c.Send)},
		{"tcp.expect", checkSent(c.Expect)},
	}); err != nil {
		return err
	}
	if c.Kind != CheckTCP && c.Send+c.Expect != "" {
		return errors.New("send and expect are for tcp")
	}
	if a := c.Agent; a != nil {
		if err := first([]fieldCheck{
			{"agent.port", portBound.check(int(a.Port))},
			{"agent.interval", checkIntervalBound.check(a.Interval)},
			{"agent.send", checkSent(a.Send)},
		}); err != nil {
			return err
		}
	}
	if c.Kind == CheckHTTP {
		return c.checkHTTP()
	}
	if c.Method+c.Path+c.Host != "" || len(c.Headers)+len(c.Statuses)+len(c.Drain) > 0 || c.Body != nil {
		return errors.New("what is asked and wanted is for http")
	}
	switch {
	case c.Kind == CheckTCP:
	case c.Kind != CheckAgent:
		return fmt.Errorf("%v: no such kind", c.Kind)
	case c.Agent == nil:
		return errors.New("agent: there is none")
	case c.Port != 0:
		return errors.New("port: an agent has its own")
	}
	return nil
}

func (c *Check) checkHTTP() error {
	var hosts []string
	if c.Host != "" {
		hosts = []string{c.Host}
	}
	if err := first([]fieldCheck{
		{"http.method", checkToken(c.Method)},
		{"http.path", checkProbePath(c.Path)},
		{"http.host", checkNormal(hosts, parseAuthority)},
		{"http.headers", checkAllEdits(c.Headers, false)},
		{"http.status", checkStatuses(c.Statuses)},
		{"http.drain", checkStatuses(c.Drain)},
	}); err != nil {
		return err
	}
	for _, e := range c.Headers {
		if err := checkProbeField(e); err != nil {
			return fmt.Errorf("http.headers: %s: %w", printable(e.Name), err)
		}
	}
	if len(c.Statuses) == 0 {
		return errors.New("http.status: there is none that is good")
	}
	for _, d := range c.Drain {
		if overlapping(c.Statuses, d) {
			return fmt.Errorf("http.drain: %v is in http.status, too", d)
		}
	}
	if c.Body != nil && c.Method == "HEAD" {
		return errors.New("http.body: a response to HEAD has none")
	}
	return nil
}

func (e *Eject) check() error {
	if err := first([]fieldCheck{
		{"consecutive", consecutiveBound.check(e.Consecutive)},
		{"rate", failureRateBound.check(e.Rate)},
		{"least", leastBound.check(e.Least)},
		{"window", windowBound.check(e.Window)},
		{"status", checkStatuses(e.Statuses)},
		{"time", ejectTimeBound.check(e.Time)},
		{"timeMax", ejectTimeBound.check(e.TimeMax)},
		{"share", ejectShareBound.check(e.Share)},
	}); err != nil {
		return err
	}
	if e.Consecutive == 0 && e.Rate == 0 {
		return errors.New("nothing is ever ejected")
	}
	if e.TimeMax < e.Time {
		return errors.New("timeMax: is less than time")
	}
	return nil
}

func (k *Breaker) check() error {
	return first([]fieldCheck{
		{"rate", breakerRateBound.check(k.Rate)},
		{"least", leastBound.check(k.Least)},
		{"window", windowBound.check(k.Window)},
		{"open", breakerOpenBound.check(k.Open)},
		{"probes", breakerProbeBound.check(k.Probes)},
	})
}

func (f *Fallback) check(own string) error {
	switch {
	case (f.Backend != "") == (f.Respond != nil):
		return errors.New("needs one of backend and respond")
	case f.Respond != nil:
		return f.Respond.check()
	case f.Backend == own:
		return errors.New("is the backend itself")
	}
	return checkName(f.Backend)
}

// checkAddress wants exactly one kind of address, and a name that goes with it.
func (e *Endpoint) checkAddress() error {
	kinds := 0
	for _, there := range []bool{e.Unix != "", e.Drop != NoDrop, e.Host != "", e.Host == "" && e.Addr != (netip.AddrPort{})} {
		if there {
			kinds++
		}
	}
	if kinds > 1 {
		return errors.New("address: there are two")
	}
	var err error
	switch {
	case e.Unix != "":
		err = checkUnixPath(e.Unix)
	case e.Drop != NoDrop:
		if int(e.Drop) >= len(dropWords) {
			err = fmt.Errorf("%v: no such sink", e.Drop)
		}
	case e.Host != "":
		err = e.checkHost()
	default:
		err = checkAddrPort(e.Addr, false)
	}
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if e.Host == "" && e.Port != 0 {
		return errors.New("port: is for a name")
	}
	return nil
}

func (e *Endpoint) checkHost() error {
	if err := checkNormal([]string{e.Host}, parseHost); err != nil {
		return err
	}
	switch {
	case !isHostName(e.Host) || strings.HasPrefix(e.Host, "*"):
		return fmt.Errorf("%q: not a name", clip(e.Host))
	case e.Port == 0:
		return errors.New("port must be 1 to 65535")
	case e.Addr != (netip.AddrPort{}):
		return checkAddrPort(e.Addr, false)
	}
	return nil
}

// checkEndpointName wants a name, or the address, or for what a name has
// resolved to one of these with the address behind it.
func (e *Endpoint) checkEndpointName() error {
	if e.Name == e.Address() {
		return nil
	}
	name := e.Name
	if e.Host != "" && e.Addr.IsValid() {
		var found bool
		if name, found = strings.CutSuffix(name, "/"+addressSuffix(e.Addr, e.Port)); !found {
			return fmt.Errorf("%q does not end with its address", clip(e.Name))
		}
		if name == e.hostPort() {
			return nil
		}
	}
	return checkName(name)
}

func (e *Endpoint) checkPolicy() error {
	return first([]fieldCheck{
		{"weight", weightBound.check(e.Weight)},
		{"zone", optional(checkZone)(e.Zone)},
		{"connections", connectionsBound.check(e.ConnectionsMax)},
	})
}
