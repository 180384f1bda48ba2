package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"
)

// rulesSpec and those below are the canonical form of [Rules], as in codec.go.
// Parts that most routes do not have are left out where they are empty.
type rulesSpec struct {
	Routes           []routeSpec    `json:"routes"`
	Trust            []netip.Prefix `json:"trust,omitempty"`
	Forwarded        string         `json:"forwarded"`
	Via              string         `json:"via"`
	RequestID        string         `json:"requestID"`
	LineMax          int            `json:"lineMax"`
	HeadMax          int            `json:"headMax"`
	FieldsMax        int            `json:"fieldsMax"`
	BodyMax          uint64         `json:"bodyMax"`
	HeaderTimeout    time.Duration  `json:"headerTimeoutNanos"`
	BodyTimeout      time.Duration  `json:"bodyTimeoutNanos"`
	KeepaliveTimeout time.Duration  `json:"keepaliveTimeoutNanos"`
	TunnelTimeout    time.Duration  `json:"tunnelTimeoutNanos"`
	Rate             *rateSpec      `json:"rate,omitzero"`
	SourceRate       *rateSpec      `json:"sourceRate,omitzero"`
}

type routeSpec struct {
	Hosts         []string       `json:"hosts,omitempty"`
	Exact         string         `json:"exact,omitzero"`
	Prefix        string         `json:"prefix,omitzero"`
	Regex         string         `json:"regex,omitzero"`
	Methods       []string       `json:"methods,omitempty"`
	Headers       []pairSpec     `json:"headers,omitempty"`
	Query         []pairSpec     `json:"query,omitempty"`
	Backends      []weightedSpec `json:"backends,omitempty"`
	Redirect      *redirectSpec  `json:"redirect,omitzero"`
	Respond       *respondSpec   `json:"respond,omitzero"`
	Rewrite       *rewriteSpec   `json:"rewrite,omitzero"`
	Request       []editSpec     `json:"request,omitempty"`
	Response      []editSpec     `json:"response,omitempty"`
	AnswerTimeout time.Duration  `json:"answerTimeoutNanos,omitzero"`
	Sources       []netip.Prefix `json:"sources,omitempty"`
	Rate          *rateSpec      `json:"rate,omitzero"`
	SourceRate    *rateSpec      `json:"sourceRate,omitzero"`
	Priority      string         `json:"priority,omitzero"` // "" is normal
	Name          string         `json:"name,omitzero"`
}

type pairSpec struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Present bool   `json:"present,omitzero"`
	Regex   string `json:"regex,omitzero"`
}

type weightedSpec struct {
	Name   string `json:"name"`
	Weight int    `json:"weight"`
}

type redirectSpec struct {
	Status int    `json:"status"`
	Scheme string `json:"scheme"`
	Host   string `json:"host"`
	Path   string `json:"path"`
}

type respondSpec struct {
	Status int    `json:"status"`
	Type   string `json:"type"`
	Body   string `json:"body"`
}

type rewriteSpec struct {
	Prefix      string `json:"prefix"`
	HasPrefix   bool   `json:"hasPrefix"`
	Regex       string `json:"regex"`
	Replacement string `json:"replacement"`
}

type editSpec struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (r *Rules) spec() *rulesSpec {
	s := &rulesSpec{
		Trust: r.Trust, Forwarded: r.Forwarded.String(), Via: r.Via, RequestID: r.RequestID,
		LineMax: r.LineMax, HeadMax: r.HeadMax, FieldsMax: r.FieldsMax, BodyMax: r.BodyMax,
		HeaderTimeout: r.HeaderTimeout, BodyTimeout: r.BodyTimeout,
		KeepaliveTimeout: r.KeepaliveTimeout, TunnelTimeout: r.TunnelTimeout,
		Rate: r.Rate.spec(), SourceRate: r.SourceRate.spec(),
		Routes: []routeSpec{},
	}
	for _, route := range r.Routes {
		s.Routes = append(s.Routes, route.spec())
	}
	return s
}

func (r *Route) spec() routeSpec {
	s := routeSpec{
		Name:  r.Name,
		Hosts: r.Match.Hosts, Exact: r.Match.Exact, Prefix: r.Match.Prefix, Regex: regexText(r.Match.Regex),
		Methods: r.Match.Methods, Headers: pairSpecs(r.Match.Headers), Query: pairSpecs(r.Match.Query),
		Redirect: (*redirectSpec)(r.Redirect), Respond: (*respondSpec)(r.Respond),
		Request: editSpecs(r.Request), Response: editSpecs(r.Response), AnswerTimeout: r.AnswerTimeout,
		Sources: r.Match.Sources, Rate: r.Rate.spec(), SourceRate: r.SourceRate.spec(), Priority: priorityText(r.Priority),
	}
	for _, share := range r.Backends {
		s.Backends = append(s.Backends, weightedSpec(share))
	}
	if w := r.Rewrite; w != nil {
		s.Rewrite = &rewriteSpec{w.Prefix, w.HasPrefix, regexText(w.Regex), w.Replacement}
	}
	return s
}

func pairSpecs(all []Pair) (specs []pairSpec) {
	for _, p := range all {
		specs = append(specs, pairSpec{p.Name, p.Value, p.Present, regexText(p.Regex)})
	}
	return specs
}

func editSpecs(all []Edit) (specs []editSpec) {
	for _, e := range all {
		specs = append(specs, editSpec{e.Kind.String(), e.Name, e.Value})
	}
	return specs
}

func (s *rulesSpec) rules() (*Rules, error) {
	forwarded, err := fromWord(forwardedWords, s.Forwarded)
	if err != nil {
		return nil, fmt.Errorf("http.forwarded: %w", err)
	}
	r := &Rules{
		Trust: s.Trust, Forwarded: ForwardedFields(forwarded), Via: s.Via, RequestID: s.RequestID,
		LineMax: s.LineMax, HeadMax: s.HeadMax, FieldsMax: s.FieldsMax, BodyMax: s.BodyMax,
		HeaderTimeout: s.HeaderTimeout, BodyTimeout: s.BodyTimeout,
		KeepaliveTimeout: s.KeepaliveTimeout, TunnelTimeout: s.TunnelTimeout,
		Rate: s.Rate.rate(), SourceRate: s.SourceRate.sourceRate(),
	}
	for i := range s.Routes {
		route, err := s.Routes[i].route()
		if err != nil {
			return nil, fmt.Errorf("routes[%d].%w", i, err)
		}
		r.Routes = append(r.Routes, route)
	}
	return r, nil
}

func (s *routeSpec) route() (*Route, error) {
	r := &Route{
		Name:     s.Name,
		Match:    Match{Hosts: s.Hosts, Exact: s.Exact, Prefix: s.Prefix, Methods: s.Methods, Sources: s.Sources},
		Redirect: (*Redirect)(s.Redirect), Respond: (*Respond)(s.Respond), AnswerTimeout: s.AnswerTimeout,
		Rate: s.Rate.rate(), SourceRate: s.SourceRate.sourceRate(),
	}
	var err error
	if r.Priority, err = priorityOf(s.Priority); err != nil {
		return nil, fmt.Errorf("priority: %w", err)
	}
	if r.Match.Regex, err = maybeRegex(s.Regex); err != nil {
		return nil, fmt.Errorf("match.path: %w", err)
	}
	if r.Match.Headers, err = pairsOf(s.Headers); err != nil {
		return nil, fmt.Errorf("match.header: %w", err)
	}
	if r.Match.Query, err = pairsOf(s.Query); err != nil {
		return nil, fmt.Errorf("match.query: %w", err)
	}
	for _, share := range s.Backends {
		r.Backends = append(r.Backends, Weighted(share))
	}
	if w := s.Rewrite; w != nil {
		e, err := maybeRegex(w.Regex)
		if err != nil {
			return nil, fmt.Errorf("rewrite.regex: %w", err)
		}
		r.Rewrite = &Rewrite{w.Prefix, w.HasPrefix, e, w.Replacement}
	}
	if r.Request, err = editsOf(s.Request); err != nil {
		return nil, fmt.Errorf("headers.request: %w", err)
	}
	if r.Response, err = editsOf(s.Response); err != nil {
		return nil, fmt.Errorf("headers.response: %w", err)
	}
	return r, nil
}

func maybeRegex(s string) (*regexp.Regexp, error) {
	if s == "" {
		return nil, nil
	}
	return parseRegex(s)
}

func pairsOf(specs []pairSpec) (all []Pair, err error) {
	for _, s := range specs {
		p := Pair{Name: s.Name, Value: s.Value, Present: s.Present}
		if p.Regex, err = maybeRegex(s.Regex); err != nil {
			return nil, fmt.Errorf("%q: %w", clip(s.Name), err)
		}
		all = append(all, p)
	}
	return all, nil
}

func editsOf(specs []editSpec) (all []Edit, err error) {
	for _, s := range specs {
		kind, err := fromWord(editWords, s.Kind)
		if err != nil {
			return nil, err
		}
		all = append(all, Edit{EditKind(kind), s.Name, s.Value})
	}
	return all, nil
}

// seal computes what is asked of r again and again.
func (r *Rules) seal() {
	r.names = nil
	for _, route := range r.Routes {
		route.weight = 0
		for _, share := range route.Backends {
			route.weight += share.Weight
			r.names = append(r.names, share.Name)
		}
	}
	slices.Sort(r.names)
	r.names = slices.Compact(r.names)
}
