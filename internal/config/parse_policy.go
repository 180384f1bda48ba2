package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

var (
	hashKeys       = []string{"by", "name", "load"}
	stickyKeys     = []string{"cookie", "header", "source"}
	cookieKeys     = []string{"name", "maxAge", "key", "secure", "sameSite", "domain", "path"}
	stickyHeadKeys = []string{"name", "maxAge", "entries"}
	stickyFromKeys = []string{"maxAge", "entries", "bits4", "bits6"}
	checkKeys      = []string{"tcp", "http", "port", "interval", "fastInterval", "downInterval", "timeout", "rise", "fall", "agent"}
	checkTCPKeys   = []string{"send", "expect"}
	checkHTTPKeys  = []string{"method", "path", "host", "headers", "status", "body", "drain"}
	agentKeys      = []string{"port", "interval", "send"}
	ejectKeys      = []string{"consecutive", "rate", "least", "window", "status", "time", "timeMax", "share"}
	breakerKeys    = []string{"rate", "least", "window", "open", "probes"}
	retryKeys      = []string{"max", "on", "budget"}
	fallbackKeys   = []string{"backend", "respond"}
	ownCheckKeys   = []string{"port"} // of an endpoint
)

// What retry.on names beside status codes.
const (
	onConnect = "connect"
	onReset   = "reset"
)

// policy reads what a backend may have beside its endpoints.
func (s *backendSite) policy() {
	b := s.b
	s.retry(b)
	s.hash(b)
	b.PreferLocal = s.boolean("preferLocal", false)
	b.SlowStart = s.duration("slowStart", 0, slowStartBound)
	b.Panic = s.percent("panic", 0, panicBound, "never")
	if s.has("sticky") {
		b.Sticky = s.sticky()
	}
	if s.has("check") {
		b.Check = s.section.section("check", checkKeys...).check()
	}
	b.Eject = s.eject()
	if s.has("breaker") {
		b.Breaker = s.section.section("breaker", breakerKeys...).breaker()
	}
	if s.has("fallback") {
		s.fallback()
	}
}

func (s *section) retry(b *Backend) {
	r := s.section("retry", retryKeys...)
	b.RetryMax = r.integer("max", defaultRetryMax, retryBound)
	connects, refused := false, false
	items := r.items("on")
	for _, t := range items {
		switch t.value {
		case onConnect:
			connects = true
		case onReset:
			b.Retry.Reset = true
		default:
			if code, found := strings.CutPrefix(t.value, "http_"); found && wholeForm.MatchString(code) {
				refused = true
				s.r.fail(at(t.node), t.path, "%q: a status code is written %s", clip(t.value), clip(code))
				continue
			}
			if strings.ContainsAny(t.value, "0123456789") {
				if status, ok := r.status(t); ok {
					b.Retry.Statuses = append(b.Retry.Statuses, status)
				} else {
					refused = true
				}
				continue
			}
			refused = true
			words := []string{onConnect, onReset}
			s.r.fail(at(t.node), t.path, "%q: must be connect, reset, or a status code as in 503%s", clip(t.value), meant(t.value, words))
		}
	}
	b.Retry.Statuses = r.disjoint("on", b.Retry.Statuses)
	if len(items) > 0 && !connects && !refused && b.RetryMax > 0 {
		r.fail("on", "connect is missing, but an endpoint that cannot be reached is always left for another one; add connect, or set max: 0")
	}
	if len(items) == 0 && s.out != nil {
		r.keep("on", listNode(plainNode(onConnect)))
	}
	b.Retry.Budget = r.percent("budget", 0, budgetBound, "no bound")
}

func (s *section) hash(b *Backend) {
	if b.Balance != Maglev {
		if s.has("hash") {
			s.fail("hash", "is for balance: maglev, and this is %v", b.Balance)
		}
		return
	}
	h := s.section("hash", hashKeys...)
	b.Hash.Kind = HashKind(h.choice("by", uint8(HashSource), hashWords))
	switch b.Hash.Kind {
	case HashHeader, HashCookie:
		if h.require("name", "X-User") {
			b.Hash.Name = h.checked("name", "", checkToken)
		}
	case HashSource, HashPath:
		if h.has("name") {
			h.fail("name", "is for by: header and by: cookie, and this is %v", b.Hash.Kind)
		}
	default:
		panic(fmt.Sprintf("config: %v", b.Hash.Kind))
	}
	b.Hash.Load = h.percent("load", 0, loadBound, "no bound")
}

// only gives the one of keys that is there; it reports others, and none.
func (s *section) only(keys []string, none string) string {
	found := ""
	for _, key := range keys {
		switch {
		case !s.has(key):
		case found != "":
			s.fail(key, "there is %s already; choose one", found)
		default:
			found = key
		}
	}
	if found == "" && !s.broken && len(s.meant) == 0 {
		s.r.fail(s.place, s.path, "%s; give it one of %s", none, strings.Join(keys, ", "))
	}
	return found
}

func (s *backendSite) sticky() *Sticky {
	of := s.section.section("sticky", stickyKeys...)
	y := new(Sticky)
	switch of.only(stickyKeys, "does not say by what") {
	case "cookie":
		c := of.section("cookie", cookieKeys...)
		y.Kind = StickyCookie
		if c.require("name", "hf") {
			y.Name = c.checked("name", "", checkToken)
		}
		y.MaxAge = c.duration("maxAge", 0, cookieAgeBound)
		y.Key = c.secret("key")
		y.Secure = c.boolean("secure", false)
		y.SameSite = c.oneOf("sameSite", sameSites)
		if y.SameSite == sameSiteNone && !y.Secure {
			c.fail("sameSite", "user agents drop a cookie with None that is not secure; add secure: true")
		}
		y.Domain = c.normal("domain", parseCookieDomain)
		y.Path = c.checked("path", defaultCookiePath, checkCookiePath)
	case "header":
		h := of.section("header", stickyHeadKeys...)
		y.Kind = StickyHeader
		if h.require("name", "X-Session") {
			y.Name = h.checked("name", "", checkToken)
		}
		h.table(y)
	case "source":
		a := of.section("source", stickyFromKeys...)
		y.Kind = StickySource
		a.table(y)
		y.Bits4, y.Bits6 = a.bits()
	}
	return y
}

// table reads how much is remembered.
func (s *section) table(y *Sticky) {
	y.MaxAge = s.duration("maxAge", defaultEntryAge, entryAgeBound)
	y.TableMax = s.integer("entries", defaultEntries, entriesBound)
}

// secret reads a text that no message shows.
func (s *section) secret(key string) string {
	t, ok := s.scalar(key)
	if !ok {
		return ""
	}
	if err := checkSecret(t.value); err != nil {
		s.fail(key, "%v", err)
		return ""
	}
	s.noteSecret(key, t.value)
	return t.value
}

// oneOf reads one of the words as it is, or "".
func (s *section) oneOf(key string, words []string) string {
	t, ok := s.scalar(key)
	if !ok {
		return ""
	}
	if !slices.Contains(words, t.value) {
		s.fail(key, "%q: must be one of %s%s", clip(t.value), strings.Join(words, ", "), meant(t.value, words))
		return ""
	}
	s.noteText(key, t.value)
	return t.value
}

func (s *section) check() *Check {
	c := new(Check)
	switch {
	case s.has("tcp") && s.has("http"):
		s.fail("http", "there is tcp already; choose one")
	case s.has("http"):
		c.Kind = CheckHTTP
		s.section("http", checkHTTPKeys...).checkHTTP(c)
	case s.has("agent") && !s.has("tcp"):
		c.Kind = CheckAgent
		if s.has("port") {
			s.fail("port", "is for tcp or http, and this check asks an agent alone, whose port is agent.port")
		}
	default:
		t := s.section("tcp", checkTCPKeys...)
		c.Send = t.checked("send", "", checkSent)
		c.Expect = t.checked("expect", "", checkSent)
	}
	if s.has("port") {
		c.Port = uint16(s.integer("port", 0, portBound))
	}
	c.Interval = s.duration("interval", defaultCheckInterval, checkIntervalBound)
	c.FastInterval = s.duration("fastInterval", min(defaultFastInterval, c.Interval), checkIntervalBound)
	c.DownInterval = s.duration("downInterval", c.Interval, checkIntervalBound)
	c.Timeout = s.duration("timeout", defaultCheckTimeout, checkTimeoutBound)
	c.Rise = s.integer("rise", defaultRise, checkCountBound)
	c.Fall = s.integer("fall", defaultFall, checkCountBound)
	if s.has("agent") {
		a := s.section("agent", agentKeys...)
		c.Agent = &Agent{Interval: a.duration("interval", defaultAgentInterval, checkIntervalBound), Send: a.checked("send", "", checkSent)}
		if a.require("port", "9777") {
			c.Agent.Port = uint16(a.integer("port", 0, portBound))
		}
	}
	return c
}

func (s *section) checkHTTP(c *Check) {
	c.Method = s.checked("method", defaultCheckMethod, checkToken)
	c.Path = s.checked("path", defaultCheckPath, checkProbePath)
	c.Host = s.normal("host", parseAuthority)
	if s.has("headers") {
		c.Headers = s.probeFields()
	}
	c.Statuses = s.statuses("status", defaultCheckStatuses)
	c.Drain = s.statuses("drain", nil)
	for _, d := range c.Drain {
		if overlapping(c.Statuses, d) && s.has("drain") {
			s.fail("drain", "%v is in status, too, which says that it is up", d)
		}
	}
	if t, ok := s.scalar("body"); ok {
		var err error
		if c.Body, err = parseSearch(t.value); err != nil {
			s.fail("body", "%q: %v", clip(t.value), err)
		} else if c.Method == "HEAD" {
			s.fail("body", "a response to HEAD has none")
		}
		s.noteText("body", t.value)
	}
}

// probeFields reads the fields that a probe has.
func (s *section) probeFields() []Edit {
	var all []Edit
	fields := s.open("headers")
	for _, e := range fields.entries {
		for _, t := range fields.items(e.key.Value) {
			edit := Edit{AddField, e.key.Value, t.value}
			if err := checkProbeField(edit); err != nil {
				s.r.fail(at(t.node), t.path, "%v", err)
			} else {
				all = append(all, edit)
			}
		}
	}
	if len(all) > editsMax {
		s.fail("headers", "%d fields; at most %d are taken", len(all), editsMax)
		return nil
	}
	sortEdits(all)
	if err := checkEdits(all); err != nil {
		s.fail("headers", "%v", err)
	}
	return all
}

// eject reads when endpoints are taken out, which they are unless it is off.
func (s *section) eject() *Eject {
	if t, ok := s.word("eject", wordOff); ok {
		if t {
			s.noteText("eject", wordOff)
		}
		return nil
	}
	e := s.section("eject", ejectKeys...)
	all := &Eject{
		Consecutive: e.integer("consecutive", defaultConsecutive, consecutiveBound),
		Rate:        e.percent("rate", 0, failureRateBound, ""),
		Least:       e.integer("least", defaultLeast, leastBound),
		Window:      e.duration("window", defaultWindow, windowBound),
		Statuses:    e.statuses("status", defaultEjectStatuses),
		Time:        e.duration("time", defaultEjectTime, ejectTimeBound),
	}
	all.TimeMax = e.duration("timeMax", max(defaultEjectMax, all.Time), ejectTimeBound)
	all.Share = e.percent("share", defaultEjectShare, ejectShareBound, "")
	switch {
	case all.Consecutive == 0 && all.Rate == 0:
		s.fail("eject", "with consecutive: 0 and without a rate nothing is ever ejected; say eject: off")
	case all.TimeMax < all.Time:
		e.fail("timeMax", "%s is less than time, which is %s", durationText(all.TimeMax), durationText(all.Time))
	}
	return all
}

// word says whether the value of key is a scalar, which has to be this word.
func (s *section) word(key, word string) (is, scalar bool) {
	if n := s.values[key]; n == nil || n.Kind != yaml.ScalarNode || isNull(n) {
		return false, false
	}
	t, ok := s.scalar(key)
	if ok && t.value != word {
		s.fail(key, "%q: must be %s, or a mapping", clip(t.value), word)
		return false, true
	}
	return ok, true
}

func (s *section) breaker() *Breaker {
	return &Breaker{
		Rate:   s.percent("rate", defaultBreakerRate, breakerRateBound, ""),
		Least:  s.integer("least", defaultLeast, leastBound),
		Window: s.duration("window", defaultWindow, windowBound),
		Open:   s.duration("open", defaultBreakerOpen, breakerOpenBound),
		Probes: s.integer("probes", defaultProbes, breakerProbeBound),
	}
}

func (s *backendSite) fallback() {
	f := s.section.section("fallback", fallbackKeys...)
	s.b.Fallback = new(Fallback)
	switch f.only(fallbackKeys, "does not say what serves") {
	case "backend":
		if name := f.checked("backend", "", checkName); name != "" {
			s.b.Fallback.Backend = name
			s.uses = append(s.uses, use{f, "backend", name})
		}
	case "respond":
		s.b.Fallback.Respond = f.section("respond", respondKeys...).respond()
	}
}

// guard reads who may come, and how often.
func (s *section) guard(l *Listener) {
	l.Allow = s.prefixes("allow")
	l.Deny = s.prefixes("deny")
	l.ConnectionRate = s.rateOf("connections")
	l.SourceRate = s.sourceRateOf("connections")
	l.SourceConnectionsMax = s.integer("sourceConnectionsMax", 0, connectionsBound)
	if s.has("accessLog") || s.r.logging {
		if n := s.values["accessLog"]; n != nil && n.Kind == yaml.MappingNode {
			s.fail("accessLog", "must be on or off; what is written, and where, says accessLog at the top level, for all listeners")
			return
		}
		l.Unlogged = s.choice("accessLog", 0, []string{wordOn, wordOff}) == 1
	}
}

// validateGuard reports what cannot be known when a connection is accepted.
func (s *section) validateGuard(l *Listener) {
	if len(l.ProxyFrom) == 0 {
		return
	}
	for _, key := range []string{"sourceRate", "sourceConnectionsMax"} {
		if there := l.SourceRate != nil; key == "sourceRate" && there || key != "sourceRate" && l.SourceConnectionsMax > 0 {
			s.fail(key, "connections come from the proxies of proxyProtocol.from, so it would bound these and not clients"+
				"; http.sourceRate bounds the requests of clients")
		}
	}
}

func (r *reader) accessLog(s *section) *AccessLog {
	return &AccessLog{
		Format: LogFormat(s.choice("format", uint8(LogJSON), logWords)),
		To:     s.checked("to", defaultLogTo, checkLogTo),
	}
}

// servers reads who resolves names: addresses, with the port 53 unless it is
// said.
func (s *section) servers(key string) []netip.AddrPort {
	items := s.items(key)
	if len(items) > serversMax {
		s.fail(key, "%d of them; at most %d are taken", len(items), serversMax)
		return nil
	}
	var all []netip.AddrPort
	for _, t := range items {
		a, err := parseServer(t.value)
		switch {
		case err != nil:
			s.r.fail(at(t.node), t.path, "%q: %v", clip(t.value), err)
		case slices.Contains(all, a):
			s.r.fail(at(t.node), t.path, "%q is there already", clip(t.value))
		default:
			all = append(all, a)
		}
	}
	return all
}

func parseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, defaultDNSPort), checkAddr(a, false)
	}
	if !strings.Contains(s, ":") {
		return netip.AddrPort{}, notAddr(s)
	}
	return parseAddrPort(s, false)
}

// parseSearch compiles an expression that is looked for in a text.
func parseSearch(s string) (*regexp.Regexp, error) {
	if _, err := parseRegex(s); err != nil {
		return nil, err
	}
	e, err := regexp.Compile(s)
	if err != nil {
		return nil, regexError(err)
	}
	return e, nil
}

func searchText(e *regexp.Regexp) string {
	if e == nil {
		return ""
	}
	return e.String()
}

func portText(n uint16) string { return strconv.Itoa(int(n)) }
