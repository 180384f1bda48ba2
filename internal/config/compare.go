package config

// SameServer tells whether e and o dial the same: what is open to the one is good
// for the other, whatever else changed.
func (e *Endpoint) SameServer(o *Endpoint) bool {
	return e == o || e.Addr == o.Addr && e.Unix == o.Unix && e.Drop == o.Drop && e.Host == o.Host && e.Port == o.Port
}

// SameServer tells whether b and o dial their endpoints alike: from the same
// source, and with the same words first.
func (b *Backend) SameServer(o *Backend) bool {
	return b == o || b.SourceVIP == o.SourceVIP && b.Source == o.Source && b.ProxyHeader == o.ProxyHeader
}

// WeightOnly tells whether nothing changed but the share of an endpoint.
func (c EndpointChange) WeightOnly() bool {
	was := *c.Old
	was.Weight = c.New.Weight
	was.Ref = c.New.Ref
	return was == *c.New
}

// Impact is what a plan does, in numbers.
type Impact struct {
	ListenersAdded, ListenersRemoved, ListenersChanged int
	BackendsAdded, BackendsRemoved                     int
	BackendsChanged                                    int // by more than their endpoints
	EndpointsAdded, EndpointsRemoved, EndpointsChanged int
	WeightsChanged                                     int // of EndpointsChanged: in nothing but weight
}

// Impact counts what p does.
func (p Plan) Impact() Impact {
	n := Impact{
		ListenersAdded: len(p.ListenersAdded), ListenersRemoved: len(p.ListenersRemoved), ListenersChanged: len(p.ListenersChanged),
		BackendsAdded: len(p.BackendsAdded), BackendsRemoved: len(p.BackendsRemoved),
		EndpointsAdded: len(p.EndpointsAdded), EndpointsRemoved: len(p.EndpointsRemoved), EndpointsChanged: len(p.EndpointsChanged),
		WeightsChanged: p.WeightOnly(),
	}
	for _, c := range p.BackendsChanged {
		if backendChanges(c.Old, c.New) != "" {
			n.BackendsChanged++
		}
	}
	return n
}

// WeightOnly counts the endpoints of which nothing changed but their share.
func (p Plan) WeightOnly() int {
	n := 0
	for _, c := range p.EndpointsChanged {
		if c.WeightOnly() {
			n++
		}
	}
	return n
}
