package config

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// An object is encoded as one line of JSON:
//
//	{"version":"1f3a5c7e90b2d4f6","object":{"kind":"listener","name":"pg",...}}
//
// The version is the first 8 octets of SHA-256 over the octets of "object".
// These are canonical: fields in the order of the specs below, no space, each
// field present. So both sides of a move, which may run different releases,
// compute the same version from the same contents.
//
// A field that a later release adds gets `omitzero` (a list `omitempty`), and
// leaving it out means what was done before: then versions made by older
// releases stay as they are. A release that does not know a field refuses the
// object.

// objectMax bounds an encoded object, in octets. A backend with the most
// endpoints has 2 MB if their names are short, and fits with the longest.
const objectMax = 16 << 20

// What these fields of a backend mean if they are not there. They are as they
// were when the fields came, whatever the defaults of the file become.
const (
	absentAnswerTimeout = 60 * time.Second
	absentIdleMax       = 64
	absentIdleTime      = 30 * time.Second
	absentWeight        = 100 // of an endpoint: all had the same
)

// unless gives nil for what is meant by leaving it out.
func unless[T comparable](absent, v T) *T {
	if v == absent {
		return nil
	}
	return &v
}

func otherwise[T any](absent T, v *T) T {
	if v == nil {
		return absent
	}
	return *v
}

type listenerSpec struct {
	Kind              string         `json:"kind"`
	Name              string         `json:"name"`
	VIP               netip.AddrPort `json:"vip"`
	VIPName           string         `json:"vipName,omitzero"`
	DualStack         bool           `json:"dualStack"`
	Backend           string         `json:"backend"`
	IdleTimeout       time.Duration  `json:"idleTimeoutNanos"`
	ConnectionsMax    int            `json:"connectionsMax"`
	Backlog           int            `json:"backlog"`
	KeepaliveIdle     time.Duration  `json:"keepaliveIdleNanos"`
	KeepaliveInterval time.Duration  `json:"keepaliveIntervalNanos"`
	KeepaliveCount    int            `json:"keepaliveCount"`
	UserTimeout       time.Duration  `json:"userTimeoutNanos"`
	OnChange          string         `json:"onChange"`
	Movable           bool           `json:"movable"`
	Protocol          string         `json:"protocol,omitzero"` // "" is tcp
	ProxyFrom         []netip.Prefix `json:"proxyFrom,omitempty"`
	Rules             *rulesSpec     `json:"rules,omitzero"`
	guardSpec
}

type backendSpec struct {
	Kind                   string         `json:"kind"`
	Name                   string         `json:"name"`
	Balance                string         `json:"balance"`
	ConnectTimeout         time.Duration  `json:"connectTimeoutNanos"`
	RetryMax               int            `json:"retryMax"`
	SourceVIP              bool           `json:"sourceVIP"`
	Source                 netip.Addr     `json:"source"`
	ConnectionsPerEndpoint int            `json:"connectionsPerEndpoint"`
	QueueMax               int            `json:"queueMax"`
	QueueTime              time.Duration  `json:"queueTimeNanos"`
	Endpoints              []endpointSpec `json:"endpoints"`
	ProxyHeader            string         `json:"proxyHeader,omitzero"` // "" is none
	AnswerTimeout          *time.Duration `json:"answerTimeoutNanos,omitzero"`
	IdleMax                *int           `json:"idleMax,omitzero"`
	IdleTime               *time.Duration `json:"idleTimeNanos,omitzero"`
	policySpec
}

type endpointSpec struct {
	Kind    string         `json:"kind"`
	Backend string         `json:"backend"`
	Name    string         `json:"name"`
	Addr    netip.AddrPort `json:"addr"`
	Unix    string         `json:"unix"`

	Host           string `json:"host,omitzero"`
	Port           uint16 `json:"port,omitzero"`
	Drop           string `json:"drop,omitzero"`
	Weight         *int   `json:"weight,omitzero"` // else absentWeight
	Backup         bool   `json:"backup,omitzero"`
	Zone           string `json:"zone,omitzero"`
	Node           string `json:"node,omitzero"`
	ConnectionsMax int    `json:"connectionsMax,omitzero"`
	CheckPort      uint16 `json:"checkPort,omitzero"`
}

func (l *Listener) spec() any {
	s := listenerSpec{
		Kind: ListenerKind.String(), Name: l.Ref.Name,
		VIP: l.VIP, VIPName: l.VIPName, DualStack: l.DualStack, Backend: l.BackendName,
		IdleTimeout: l.IdleTimeout, ConnectionsMax: l.ConnectionsMax, Backlog: l.Backlog,
		KeepaliveIdle: l.KeepaliveIdle, KeepaliveInterval: l.KeepaliveInterval,
		KeepaliveCount: l.KeepaliveCount, UserTimeout: l.UserTimeout,
		OnChange: l.OnChange.String(), Movable: l.Movable,
		ProxyFrom: l.ProxyFrom, guardSpec: l.guardSpec(),
	}
	if l.Protocol != TCP {
		s.Protocol = l.Protocol.String()
	}
	if l.Rules != nil {
		s.Rules = l.Rules.spec()
	}
	return s
}

func (b *Backend) spec() any {
	s := backendSpec{
		Kind: BackendKind.String(), Name: b.Ref.Name,
		Balance: b.Balance.String(), ConnectTimeout: b.ConnectTimeout, RetryMax: b.RetryMax,
		SourceVIP: b.SourceVIP, Source: b.Source,
		ConnectionsPerEndpoint: b.ConnectionsPerEndpoint, QueueMax: b.QueueMax, QueueTime: b.QueueTime,
		Endpoints:     []endpointSpec{},
		AnswerTimeout: unless(absentAnswerTimeout, b.AnswerTimeout),
		IdleMax:       unless(absentIdleMax, b.IdleMax),
		IdleTime:      unless(absentIdleTime, b.IdleTime),
		policySpec:    b.policySpec(),
	}
	if b.ProxyHeader != NoProxyHeader {
		s.ProxyHeader = b.ProxyHeader.String()
	}
	for _, e := range b.Endpoints {
		s.Endpoints = append(s.Endpoints, e.spec().(endpointSpec))
	}
	return s
}

func (e *Endpoint) spec() any {
	s := endpointSpec{
		Kind: EndpointKind.String(), Backend: e.Backend, Name: e.Name, Addr: e.Addr, Unix: e.Unix,
		Host: e.Host, Port: e.Port, Weight: unless(absentWeight, e.Weight), Backup: e.Backup, Zone: e.Zone, Node: e.Node,
		ConnectionsMax: e.ConnectionsMax, CheckPort: e.CheckPort,
	}
	if e.Drop != NoDrop {
		s.Drop = e.Drop.String()
	}
	return s
}

// canonical gives the octets over which a version is computed.
func canonical(spec any) []byte {
	data, err := json.Marshal(spec)
	if err != nil {
		panic(fmt.Sprintf("config: %T does not encode: %v", spec, err)) // plain values only
	}
	return data
}

func version(canonical []byte) uint64 {
	sum := sha256.Sum256(canonical)
	return binary.BigEndian.Uint64(sum[:8])
}

// envelope is the outer form of an encoded object.
type envelope struct {
	Version string          `json:"version"`
	Object  json.RawMessage `json:"object"`
}

func encode(spec any) []byte {
	object := canonical(spec)
	return canonical(envelope{versionText(version(object)), object})
}

// envelopeBytes is how much longer an encoded object is than its canonical form.
const envelopeBytes = len(`{"version":"0123456789abcdef","object":}`)

func versionText(v uint64) string { return fmt.Sprintf("%016x", v) }

// Encode gives the portable form of l, for [DecodeObject].
func (l *Listener) Encode() []byte { return encode(l.spec()) }

// Encode gives the portable form of b with its endpoints, for [DecodeObject].
func (b *Backend) Encode() []byte { return encode(b.spec()) }

// Encode gives the portable form of e, for [DecodeObject].
func (e *Endpoint) Encode() []byte { return encode(e.spec()) }

// seal fills in the Ref of l, whose other fields are complete, and what its
// rules have computed once. It gives the octets of the canonical form.
func (l *Listener) seal(name string) int {
	if l.Rules != nil {
		l.Rules.seal()
	}
	l.Ref = Ref{Kind: ListenerKind, Name: name}
	form := canonical(l.spec())
	l.Ref.Version = version(form)
	return len(form)
}

// seal sorts and seals the endpoints of b, then fills in its Ref. It gives the
// octets of the canonical form.
func (b *Backend) seal(name string) int {
	for _, e := range b.Endpoints {
		e.seal()
	}
	return b.sealAlone(name)
}

// sealAlone is seal for endpoints that are sealed, and perhaps in use.
func (b *Backend) sealAlone(name string) int {
	slices.SortStableFunc(b.Endpoints, func(x, y *Endpoint) int { return strings.Compare(x.Name, y.Name) })
	b.Ref = Ref{Kind: BackendKind, Name: name}
	form := canonical(b.spec())
	b.Ref.Version = version(form)
	return len(form)
}

func (e *Endpoint) seal() {
	e.Ref = Ref{Kind: EndpointKind, Name: e.Backend + "/" + e.Name, Version: version(canonical(e.spec()))}
}

// cutEndpointName takes the name in an endpoint's Ref apart. Names of
// backends hold no slash; those of endpoints may.
func cutEndpointName(s string) (backend, endpoint string, ok bool) { return strings.Cut(s, "/") }

// DecodeObject makes an object of what Encode gave, perhaps in another
// process or on another host: a *Listener, *Backend or *Endpoint, as kind
// says. It trusts nothing: the object must have that kind and name, its
// version must match its contents, its octets must be canonical, and all
// bounds of the file hold for it as well.
func DecodeObject(kind Kind, name string, data []byte) (any, error) {
	object, err := decodeObject(kind, name, data)
	if err != nil {
		return nil, fmt.Errorf("config: object %v/%s: %w", kind, printable(name), err)
	}
	return object, nil
}

func decodeObject(kind Kind, name string, data []byte) (any, error) {
	if len(data) > objectMax {
		return nil, fmt.Errorf("%d octets; at most %d are taken", len(data), objectMax)
	}
	var outer envelope
	if err := decodeStrict(data, &outer); err != nil {
		return nil, err
	}
	if is := versionText(version(outer.Object)); is != outer.Version {
		return nil, fmt.Errorf("version %s does not match the contents, which have %s", printable(outer.Version), is)
	}
	var object interface {
		Encode() []byte
		check() error
		ref() Ref
	}
	var err error
	switch kind {
	case ListenerKind:
		object, err = decodeListener(outer.Object)
	case BackendKind:
		object, err = decodeBackend(outer.Object)
	case EndpointKind:
		object, err = decodeEndpoint(outer.Object)
	default:
		return nil, fmt.Errorf("no such kind")
	}
	if err != nil {
		return nil, err
	}
	if is := object.ref(); is.Name != name {
		return nil, fmt.Errorf("is named %s", printable(is.Name))
	}
	if !bytes.Equal(object.Encode(), data) {
		return nil, fmt.Errorf("not in canonical form")
	}
	if err := object.check(); err != nil {
		return nil, err
	}
	return object, nil
}

func (l *Listener) ref() Ref { return l.Ref }
func (b *Backend) ref() Ref  { return b.Ref }
func (e *Endpoint) ref() Ref { return e.Ref }

// decodeStrict refuses unknown fields and anything behind the value.
func decodeStrict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more follows the object")
	}
	return nil
}

func decodeListener(data []byte) (*Listener, error) {
	var s listenerSpec
	if err := decodeStrict(data, &s); err != nil {
		return nil, err
	}
	if s.Kind != ListenerKind.String() {
		return nil, fmt.Errorf("is of kind %q", clip(s.Kind))
	}
	change, err := fromWord(changeWords, s.OnChange)
	if err != nil {
		return nil, fmt.Errorf("onChange: %w", err)
	}
	protocol, err := fromWord(protocolWords, cmp.Or(s.Protocol, TCP.String()))
	if err != nil {
		return nil, fmt.Errorf("protocol: %w", err)
	}
	l := &Listener{
		VIP: s.VIP, VIPName: s.VIPName, DualStack: s.DualStack, BackendName: s.Backend,
		IdleTimeout: s.IdleTimeout, ConnectionsMax: s.ConnectionsMax, Backlog: s.Backlog,
		KeepaliveIdle: s.KeepaliveIdle, KeepaliveInterval: s.KeepaliveInterval,
		KeepaliveCount: s.KeepaliveCount, UserTimeout: s.UserTimeout,
		OnChange: Change(change), Movable: s.Movable,
		Protocol: Protocol(protocol), ProxyFrom: s.ProxyFrom,
	}
	s.guardSpec.fill(l)
	if s.Rules != nil {
		if l.Rules, err = s.Rules.rules(); err != nil {
			return nil, err
		}
	}
	l.seal(s.Name)
	return l, nil
}

func decodeBackend(data []byte) (*Backend, error) {
	var s backendSpec
	if err := decodeStrict(data, &s); err != nil {
		return nil, err
	}
	if s.Kind != BackendKind.String() {
		return nil, fmt.Errorf("is of kind %q", clip(s.Kind))
	}
	balance, err := fromWord(balanceWords, s.Balance)
	if err != nil {
		return nil, fmt.Errorf("balance: %w", err)
	}
	proxy, err := fromWord(proxyWords, cmp.Or(s.ProxyHeader, NoProxyHeader.String()))
	if err != nil {
		return nil, fmt.Errorf("proxyHeader: %w", err)
	}
	b := &Backend{
		Balance: Balance(balance), ConnectTimeout: s.ConnectTimeout, RetryMax: s.RetryMax,
		SourceVIP: s.SourceVIP, Source: s.Source,
		ConnectionsPerEndpoint: s.ConnectionsPerEndpoint, QueueMax: s.QueueMax, QueueTime: s.QueueTime,
		ProxyHeader:   ProxyHeader(proxy),
		AnswerTimeout: otherwise(absentAnswerTimeout, s.AnswerTimeout),
		IdleMax:       otherwise(absentIdleMax, s.IdleMax),
		IdleTime:      otherwise(absentIdleTime, s.IdleTime),
	}
	if err := s.policySpec.fill(b); err != nil {
		return nil, err
	}
	for _, spec := range s.Endpoints {
		if spec.Kind != EndpointKind.String() {
			return nil, fmt.Errorf("endpoint is of kind %q", clip(spec.Kind))
		}
		e, err := spec.endpoint()
		if err != nil {
			return nil, err
		}
		b.Endpoints = append(b.Endpoints, e)
	}
	b.seal(s.Name)
	return b, nil
}

func decodeEndpoint(data []byte) (*Endpoint, error) {
	var s endpointSpec
	if err := decodeStrict(data, &s); err != nil {
		return nil, err
	}
	if s.Kind != EndpointKind.String() {
		return nil, fmt.Errorf("is of kind %q", clip(s.Kind))
	}
	e, err := s.endpoint()
	if err != nil {
		return nil, err
	}
	e.seal()
	return e, nil
}

func (s *endpointSpec) endpoint() (*Endpoint, error) {
	drop, err := fromWord(dropWords, cmp.Or(s.Drop, NoDrop.String()))
	if err != nil {
		return nil, fmt.Errorf("drop: %w", err)
	}
	return &Endpoint{
		Backend: s.Backend, Name: s.Name, Addr: s.Addr, Unix: s.Unix,
		Host: s.Host, Port: s.Port, Drop: Drop(drop), Weight: otherwise(absentWeight, s.Weight),
		Backup: s.Backup, Zone: s.Zone, Node: s.Node, ConnectionsMax: s.ConnectionsMax, CheckPort: s.CheckPort,
	}, nil
}
