package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// The canonical forms of what policy.go declares, as in codec.go. All of them
// came later than the objects that have them: each may be left out.

type rateSpec struct {
	Count int           `json:"count"`
	Per   time.Duration `json:"perNanos"`
	Burst int           `json:"burst"`
	Bits4 int           `json:"bits4,omitzero"` // of a source
	Bits6 int           `json:"bits6,omitzero"`
}

type hashSpec struct {
	Kind string `json:"kind"`
	Name string `json:"name,omitzero"`
	Load int    `json:"load,omitzero"`
}

type stickySpec struct {
	Kind     string        `json:"kind"`
	Name     string        `json:"name,omitzero"`
	MaxAge   time.Duration `json:"maxAgeNanos,omitzero"`
	Key      string        `json:"key,omitzero"`
	Secure   bool          `json:"secure,omitzero"`
	SameSite string        `json:"sameSite,omitzero"`
	Domain   string        `json:"domain,omitzero"`
	Path     string        `json:"path,omitzero"`
	TableMax int           `json:"tableMax,omitzero"`
	Bits4    int           `json:"bits4,omitzero"`
	Bits6    int           `json:"bits6,omitzero"`
}

type statusSpec [2]int

type checkSpec struct {
	Kind         string        `json:"kind"`
	Port         uint16        `json:"port,omitzero"`
	Interval     time.Duration `json:"intervalNanos"`
	FastInterval time.Duration `json:"fastIntervalNanos"`
	DownInterval time.Duration `json:"downIntervalNanos"`
	Timeout      time.Duration `json:"timeoutNanos"`
	Rise         int           `json:"rise"`
	Fall         int           `json:"fall"`
	Send         string        `json:"send,omitzero"`
	Expect       string        `json:"expect,omitzero"`
	Method       string        `json:"method,omitzero"`
	Path         string        `json:"path,omitzero"`
	Host         string        `json:"host,omitzero"`
	Headers      []editSpec    `json:"headers,omitempty"`
	Statuses     []statusSpec  `json:"statuses,omitempty"`
	Body         string        `json:"body,omitzero"`
	Drain        []statusSpec  `json:"drain,omitempty"`
	Agent        *agentSpec    `json:"agent,omitzero"`
}

type agentSpec struct {
	Port     uint16        `json:"port"`
	Interval time.Duration `json:"intervalNanos"`
	Send     string        `json:"send,omitzero"`
}

type ejectSpec struct {
	Consecutive int           `json:"consecutive"`
	Rate        int           `json:"rate"`
	Least       int           `json:"least"`
	Window      time.Duration `json:"windowNanos"`
	Statuses    []statusSpec  `json:"statuses,omitempty"`
	Time        time.Duration `json:"timeNanos"`
	TimeMax     time.Duration `json:"timeMaxNanos"`
	Share       int           `json:"share"`
}

type breakerSpec struct {
	Rate   int           `json:"rate"`
	Least  int           `json:"least"`
	Window time.Duration `json:"windowNanos"`
	Open   time.Duration `json:"openNanos"`
	Probes int           `json:"probes"`
}

type fallbackSpec struct {
	Backend string       `json:"backend,omitzero"`
	Respond *respondSpec `json:"respond,omitzero"`
}

// guardSpec is what a listener has against those who come too often.
type guardSpec struct {
	Allow                []netip.Prefix `json:"allow,omitempty"`
	Deny                 []netip.Prefix `json:"deny,omitempty"`
	ConnectionRate       *rateSpec      `json:"connectionRate,omitzero"`
	SourceRate           *rateSpec      `json:"sourceRate,omitzero"`
	SourceConnectionsMax int            `json:"sourceConnectionsMax,omitzero"`
	Unlogged             bool           `json:"unlogged,omitzero"`
}

// policySpec is what a backend has beside its endpoints.
type policySpec struct {
	RetryReset    bool          `json:"retryReset,omitzero"`
	RetryStatuses []statusSpec  `json:"retryStatuses,omitempty"`
	RetryBudget   int           `json:"retryBudget,omitzero"`
	Hash          *hashSpec     `json:"hash,omitzero"`
	PreferLocal   bool          `json:"preferLocal,omitzero"`
	SlowStart     time.Duration `json:"slowStartNanos,omitzero"`
	Panic         int           `json:"panic,omitzero"`
	Sticky        *stickySpec   `json:"sticky,omitzero"`
	Check         *checkSpec    `json:"check,omitzero"`
	Eject         *ejectSpec    `json:"eject,omitzero"`
	Breaker       *breakerSpec  `json:"breaker,omitzero"`
	Fallback      *fallbackSpec `json:"fallback,omitzero"`
}

func (r *Rate) spec() *rateSpec {
	if r == nil {
		return nil
	}
	return &rateSpec{Count: r.Count, Per: r.Per, Burst: r.Burst}
}

func (r *SourceRate) spec() *rateSpec {
	if r == nil {
		return nil
	}
	return &rateSpec{r.Count, r.Per, r.Burst, r.Bits4, r.Bits6}
}

// rate refuses what only a source has by not being canonical.
func (s *rateSpec) rate() *Rate {
	if s == nil {
		return nil
	}
	return &Rate{s.Count, s.Per, s.Burst}
}

func (s *rateSpec) sourceRate() *SourceRate {
	if s == nil {
		return nil
	}
	return &SourceRate{Rate{s.Count, s.Per, s.Burst}, s.Bits4, s.Bits6}
}

func (l *Listener) guardSpec() guardSpec {
	return guardSpec{
		Allow: l.Allow, Deny: l.Deny, ConnectionRate: l.ConnectionRate.spec(), SourceRate: l.SourceRate.spec(),
		SourceConnectionsMax: l.SourceConnectionsMax, Unlogged: l.Unlogged,
	}
}

func (s *guardSpec) fill(l *Listener) {
	l.Allow, l.Deny = s.Allow, s.Deny
	l.ConnectionRate, l.SourceRate = s.ConnectionRate.rate(), s.SourceRate.sourceRate()
	l.SourceConnectionsMax, l.Unlogged = s.SourceConnectionsMax, s.Unlogged
}

func statusSpecs(all []StatusRange) (specs []statusSpec) {
	for _, r := range all {
		specs = append(specs, statusSpec{r.First, r.Last})
	}
	return specs
}

func statusesOf(specs []statusSpec) (all []StatusRange) {
	for _, s := range specs {
		all = append(all, StatusRange{s[0], s[1]})
	}
	return all
}

func (b *Backend) policySpec() policySpec {
	s := policySpec{
		RetryReset: b.Retry.Reset, RetryStatuses: statusSpecs(b.Retry.Statuses), RetryBudget: b.Retry.Budget,
		PreferLocal: b.PreferLocal, SlowStart: b.SlowStart, Panic: b.Panic,
		Check: b.Check.spec(), Breaker: (*breakerSpec)(b.Breaker),
	}
	if b.Hash != (Hash{}) {
		s.Hash = &hashSpec{b.Hash.Kind.String(), b.Hash.Name, b.Hash.Load}
	}
	if y := b.Sticky; y != nil {
		s.Sticky = &stickySpec{y.Kind.String(), y.Name, y.MaxAge, y.Key, y.Secure, y.SameSite, y.Domain, y.Path, y.TableMax, y.Bits4, y.Bits6}
	}
	if e := b.Eject; e != nil {
		s.Eject = &ejectSpec{e.Consecutive, e.Rate, e.Least, e.Window, statusSpecs(e.Statuses), e.Time, e.TimeMax, e.Share}
	}
	if f := b.Fallback; f != nil {
		s.Fallback = &fallbackSpec{f.Backend, (*respondSpec)(f.Respond)}
	}
	return s
}

func (s *policySpec) fill(b *Backend) error {
	b.Retry = Retry{s.RetryReset, statusesOf(s.RetryStatuses), s.RetryBudget}
	b.PreferLocal, b.SlowStart, b.Panic = s.PreferLocal, s.SlowStart, s.Panic
	b.Breaker = (*Breaker)(s.Breaker)
	if h := s.Hash; h != nil {
		kind, err := fromWord(hashWords, h.Kind)
		if err != nil {
			return fmt.Errorf("hash.by: %w", err)
		}
		b.Hash = Hash{HashKind(kind), h.Name, h.Load}
	}
	if y := s.Sticky; y != nil {
		kind, err := fromWord(stickyWords, y.Kind)
		if err != nil {
			return fmt.Errorf("sticky: %w", err)
		}
		b.Sticky = &Sticky{StickyKind(kind), y.Name, y.MaxAge, y.Key, y.Secure, y.SameSite, y.Domain, y.Path, y.TableMax, y.Bits4, y.Bits6}
	}
	if e := s.Eject; e != nil {
		b.Eject = &Eject{e.Consecutive, e.Rate, e.Least, e.Window, statusesOf(e.Statuses), e.Time, e.TimeMax, e.Share}
	}
	if f := s.Fallback; f != nil {
		b.Fallback = &Fallback{f.Backend, (*Respond)(f.Respond)}
	}
	var err error
	if b.Check, err = s.Check.check(); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return nil
}

func (c *Check) spec() *checkSpec {
	if c == nil {
		return nil
	}
	return &checkSpec{
		Kind: c.Kind.String(), Port: c.Port,
		Interval: c.Interval, FastInterval: c.FastInterval, DownInterval: c.DownInterval,
		Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall, Send: c.Send, Expect: c.Expect,
		Method: c.Method, Path: c.Path, Host: c.Host, Headers: editSpecs(c.Headers),
		Statuses: statusSpecs(c.Statuses), Body: searchText(c.Body), Drain: statusSpecs(c.Drain),
		Agent: (*agentSpec)(c.Agent),
	}
}

func (s *checkSpec) check() (*Check, error) {
	if s == nil {
		return nil, nil
	}
	kind, err := fromWord(checkWords, s.Kind)
	if err != nil {
		return nil, err
	}
	c := &Check{
		Kind: CheckKind(kind), Port: s.Port,
		Interval: s.Interval, FastInterval: s.FastInterval, DownInterval: s.DownInterval,
		Timeout: s.Timeout, Rise: s.Rise, Fall: s.Fall, Send: s.Send, Expect: s.Expect,
		Method: s.Method, Path: s.Path, Host: s.Host,
		Statuses: statusesOf(s.Statuses), Drain: statusesOf(s.Drain),
		Agent: (*Agent)(s.Agent),
	}
	if c.Headers, err = editsOf(s.Headers); err != nil {
		return nil, fmt.Errorf("http.headers: %w", err)
	}
	if s.Body != "" {
		if c.Body, err = parseSearch(s.Body); err != nil {
			return nil, fmt.Errorf("http.body: %w", err)
		}
	}
	return c, nil
}

// priorityText is "" for what a route without one has.
func priorityText(p Priority) string {
	if p == NormalPriority {
		return ""
	}
	return p.String()
}

func priorityOf(s string) (Priority, error) {
	p, err := fromWord(priorityWords, cmp.Or(s, NormalPriority.String()))
	return Priority(p), err
}
