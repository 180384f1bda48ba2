package config

import (
	"fmt"
	"maps"
	"strings"
)

// crossing is what others ask of an entry: entries between which this is equal are
// one as good as the other to all the rest of the file.
type crossing struct {
	uses string

	protocol           Protocol // of a listener, as what follows
	vip                string
	movable, unlogging bool

	byKernel, httpOnly, sourceVIP bool // of a backend, as what follows
	sticky                        Sticky
	hash                          HashKind
	retries, responds, local      bool
	endpoints                     string
}

func (p *piece) crossing() crossing {
	var uses strings.Builder
	for _, u := range p.uses {
		fmt.Fprintf(&uses, "%s ", u.name)
	}
	x := crossing{uses: uses.String()}
	if l := p.listener; l != nil {
		x.protocol, x.vip, x.movable, x.unlogging = l.Protocol, l.VIP.String(), l.Movable, p.logs
	}
	b := p.backend
	if b == nil {
		return x
	}
	x.byKernel, x.httpOnly, x.sourceVIP, x.hash = p.byKernel, p.httpOnly, b.SourceVIP, b.Hash.Kind
	if b.Sticky != nil {
		x.sticky = *b.Sticky
		x.sticky.TableMax = max(x.sticky.TableMax, 1) // it is there
	}
	x.retries = b.Retry.Reset || len(b.Retry.Statuses) > 0
	x.responds, x.local = b.Fallback != nil && b.Fallback.Respond != nil, b.PreferLocal
	// Of endpoints matter the family, whether they are sockets of this host, and
	// the zone. In the order of the file they may be named in what is said.
	var endpoints strings.Builder
	for _, e := range b.Endpoints {
		fmt.Fprintf(&endpoints, "%v%v%v%s ", e.Unix != "", e.Addr.Addr().Is4(), e.Addr.Addr().Is6(), e.Zone)
	}
	x.endpoints = endpoints.String()
	return x
}

// likewise takes over what was said of was, if nothing that changed since is of
// any concern to others. It gives nil if that is not so, or not plain.
func (d *Document) likewise(chunks []chunk, was *Document) *Config {
	if len(was.chunks) != len(chunks) || len(was.warnings) > 0 {
		return nil
	}
	if !(&piece{own: own{asked: was.asked}}).holds(d.lookup) {
		return nil
	}
	var changed []*piece
	for i := range chunks {
		c, o := &chunks[i], &was.chunks[i]
		switch {
		case c.kind != o.kind || !c.lasting() && c.kind == topSection && c.text != o.text:
			return nil
		case c.piece == o.piece:
			continue
		case c.piece == nil || o.piece == nil || c.piece.name() != o.piece.name() || len(c.piece.warnings) > 0:
			return nil
		case c.entry() && c.piece.crossing() != o.piece.crossing():
			return nil
		}
		changed = append(changed, c.piece)
	}
	next := *was.config
	listeners, backends := false, false
	for _, p := range changed {
		switch name := p.name(); {
		case p.listener != nil && next.Listeners[name] != p.listener:
			if !listeners {
				next.Listeners, listeners = maps.Clone(next.Listeners), true
			}
			next.Listeners[name] = p.listener
		case p.backend != nil && next.Backends[name] != p.backend:
			if !backends {
				next.Backends, backends = maps.Clone(next.Backends), true
			}
			next.Backends[name] = p.backend
		}
	}
	return &next
}
