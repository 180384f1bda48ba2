package config

import (
	"maps"
	"slices"
)

// Plan is the difference between two configs: what has to be done to come
// from the old to the new. All slices are in order of names. Diff makes it.
type Plan struct {
	Node      *NodeChange      // nil: unchanged
	Cluster   *ClusterChange   // nil: unchanged
	AccessLog *AccessLogChange // nil: unchanged
	VIPs      []VIPChange

	BackendsAdded   []*Backend
	BackendsRemoved []*Backend
	// BackendsChanged has each backend whose version changed, be it by its
	// policy or by its endpoints.
	BackendsChanged []BackendChange

	// Endpoints of added and of removed backends are here, too.
	EndpointsAdded   []*Endpoint
	EndpointsRemoved []*Endpoint
	EndpointsChanged []EndpointChange // same name, another version

	ListenersAdded   []*Listener
	ListenersRemoved []*Listener
	ListenersChanged []ListenerChange
}

// NodeChange is a node section that changed.
type NodeChange struct{ Old, New Node }

// ClusterChange is a cluster section that came (Old is nil), went (New is
// nil) or changed.
type ClusterChange struct{ Old, New *Cluster }

// VIPChange is a VIP that came (Old is nil), went (New is nil) or changed.
type VIPChange struct{ Old, New *VIP }

// AccessLogChange is an access log that came (Old is nil), went (New is nil) or
// changed.
type AccessLogChange struct{ Old, New *AccessLog }

// ListenerChange is a listener of the same name in another version.
type ListenerChange struct{ Old, New *Listener }

// BackendChange is a backend of the same name in another version.
type BackendChange struct{ Old, New *Backend }

// EndpointChange is an endpoint of the same name in another version.
type EndpointChange struct{ Old, New *Endpoint }

// Diff compares two configs. Either may be nil, which is a config without any
// object; the node section is then not compared.
func Diff(old, new *Config) Plan {
	var p Plan
	if old != nil && new != nil && nodeFields.changes(&old.Node, &new.Node) != "" {
		p.Node = &NodeChange{old.Node, new.Node}
	}
	if old == nil {
		old = &Config{}
	}
	if new == nil {
		new = &Config{}
	}
	p.diffCluster(old.Cluster, new.Cluster)
	for _, name := range names(old.VIPs, new.VIPs) {
		if v, w := old.VIPs[name], new.VIPs[name]; v == nil || w == nil || *v != *w {
			p.VIPs = append(p.VIPs, VIPChange{v, w})
		}
	}
	if a, b := old.AccessLog, new.AccessLog; (a == nil) != (b == nil) || a != nil && *a != *b {
		p.AccessLog = &AccessLogChange{a, b}
	}
	for _, name := range unlike(old.Backends, new.Backends) {
		p.diffBackend(old.Backends[name], new.Backends[name])
	}
	for _, name := range unlike(old.Listeners, new.Listeners) {
		switch was, is := old.Listeners[name], new.Listeners[name]; {
		case was == nil:
			p.ListenersAdded = append(p.ListenersAdded, is)
		case is == nil:
			p.ListenersRemoved = append(p.ListenersRemoved, was)
		case was.Ref != is.Ref:
			p.ListenersChanged = append(p.ListenersChanged, ListenerChange{was, is})
		}
	}
	return p
}

func (p *Plan) diffCluster(old, new *Cluster) {
	switch {
	case old == nil && new == nil:
	case old == nil, new == nil, !old.equal(new):
		p.Cluster = &ClusterChange{old, new}
	}
}

// diffBackend compares two versions of one backend; one of them may be nil.
func (p *Plan) diffBackend(old, new *Backend) {
	switch {
	case old == nil:
		p.BackendsAdded = append(p.BackendsAdded, new)
		old = &Backend{}
	case new == nil:
		p.BackendsRemoved = append(p.BackendsRemoved, old)
		new = &Backend{}
	case old.Ref == new.Ref:
		return
	default:
		p.BackendsChanged = append(p.BackendsChanged, BackendChange{old, new})
	}
	was, is := old.Endpoints, new.Endpoints // sorted by name
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(was) == 0 || len(is) > 0 && is[0].Name < was[0].Name:
			p.EndpointsAdded = append(p.EndpointsAdded, is[0])
			is = is[1:]
		case len(is) == 0 || was[0].Name < is[0].Name:
			p.EndpointsRemoved = append(p.EndpointsRemoved, was[0])
			was = was[1:]
		default:
			if was[0] != is[0] && was[0].Ref != is[0].Ref {
				p.EndpointsChanged = append(p.EndpointsChanged, EndpointChange{was[0], is[0]})
			}
			was, is = was[1:], is[1:]
		}
	}
}

// unlike gives the keys under which the maps have not the same pointer, in order:
// a few of thousands, most often.
func unlike[T any](a, b map[string]*T) []string {
	var all []string
	both := 0
	for name, x := range b {
		y, known := a[name]
		if known {
			both++
		}
		if x != y {
			all = append(all, name)
		}
	}
	if both < len(a) {
		for name := range a {
			if _, known := b[name]; !known {
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	return all
}

// names gives the keys of both maps, each once, in order.
func names[T any](a, b map[string]T) []string {
	all := slices.Collect(maps.Keys(a))
	for name := range b {
		if _, both := a[name]; !both {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// Empty says that there is nothing to do.
func (p Plan) Empty() bool {
	return p.Node == nil && p.Cluster == nil && p.AccessLog == nil &&
		len(p.VIPs) == 0 &&
		len(p.BackendsAdded)+len(p.BackendsRemoved)+len(p.BackendsChanged) == 0 &&
		len(p.EndpointsAdded)+len(p.EndpointsRemoved)+len(p.EndpointsChanged) == 0 &&
		len(p.ListenersAdded)+len(p.ListenersRemoved)+len(p.ListenersChanged) == 0
}
