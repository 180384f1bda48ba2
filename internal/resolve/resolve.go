// Package resolve keeps the addresses of names, as long as each answer is good
// for, and says when they change. It runs beside the loops, which never wait for
// a name. An answer that fails, or that is empty, takes nothing away: the last
// good one stays in force.
package resolve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bounds of how long an answer is believed, whatever its TTL says.
const (
	TTLMin = time.Second
	TTLMax = time.Hour
)

// After a failure it is asked again soon, and then less often.
const (
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// askTime bounds one attempt to ask one server.
const askTime = 2 * time.Second

// asksMax bounds the names that are asked for at once.
const asksMax = 32

// Options are what a resolver is made with.
type Options struct {
	// Servers are asked in this order; empty: those of /etc/resolv.conf. HostsFile
	// ("" is /etc/hosts) is looked at first.
	Servers   []netip.AddrPort
	HostsFile string
	// Changed is called when a name has other addresses than before, from any
	// goroutine. It must not block.
	Changed func()
	// Failed is called when a name begins to fail, or fails otherwise; nil: nobody
	// wants to know.
	Failed func(host string, err error)
}

// Answer is what is known of one name.
type Answer struct {
	Addrs []netip.Addr  `json:"addresses"`      // sorted
	Left  time.Duration `json:"left,omitempty"` // until it is asked again
	Err   string        `json:"error,omitempty"`
}

// Resolver watches names from Set on until Stop.
type Resolver struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
	places chan struct{}
	system system

	// mu guards what follows.
	mu    sync.Mutex
	names map[string]*name
}

// name is one that is watched.
type name struct {
	host   string
	end    context.CancelFunc
	asked  chan struct{} // closed once it was asked, or inherited
	once   sync.Once
	v4, v6 []netip.Addr
	due    time.Time
	err    error
}

// New makes a resolver that watches nothing.
func New(o Options) *Resolver {
	if o.HostsFile == "" {
		o.HostsFile = "/etc/hosts"
	}
	r := &Resolver{o: o, names: map[string]*name{}, places: make(chan struct{}, asksMax)}
	r.system.hosts = o.HostsFile
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Set makes hosts the names that are watched. known are answers of somebody
// else, who was asked before: what they have left stays; nil is none.
func (r *Resolver) Set(hosts []string, known map[string]Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	for _, h := range hosts {
		if r.names[h] != nil {
			continue
		}
		ctx, end := context.WithCancel(r.ctx)
		n := &name{host: h, end: end, asked: make(chan struct{}), due: time.Now()}
		if a, ok := known[h]; ok && len(a.Addrs) > 0 {
			for _, x := range a.Addrs {
				if x.Is4() {
					n.v4 = append(n.v4, x)
				} else {
					n.v6 = append(n.v6, x)
				}
			}
			n.due = n.due.Add(min(max(0, a.Left), TTLMax))
			n.once.Do(func() { close(n.asked) })
		}
		r.names[h] = n
		r.all.Add(1)
		go r.watch(ctx, n) // ended by Set or Stop
	}
	for h, n := range r.names {
		if !slices.Contains(hosts, h) {
			n.end()
			delete(r.names, h)
		}
	}
}

// Wait returns when each name was asked for once, or after d.
func (r *Resolver) Wait(d time.Duration) {
	r.mu.Lock()
	var all []*name
	for _, n := range r.names {
		all = append(all, n)
	}
	r.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	for _, n := range all {
		select {
		case <-n.asked:
		case <-t.C:
			return
		case <-r.ctx.Done():
			return
		}
	}
}

// Answers is all that is known now, by host.
func (r *Resolver) Answers() map[string]Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]Answer, len(r.names))
	for h, n := range r.names {
		a := Answer{Addrs: n.addrs(), Left: max(0, time.Until(n.due))}
		if n.err != nil {
			a.Err = n.err.Error()
		}
		out[h] = a
	}
	return out
}

// addrs are all of a name, sorted.
func (n *name) addrs() []netip.Addr {
	all := slices.Concat(n.v4, n.v6)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// Stop ends it and returns when nobody is asked any more.
func (r *Resolver) Stop() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.all.Wait()
}

// watch asks for one name whenever its answer is over.
func (r *Resolver) watch(ctx context.Context, n *name) {
	defer r.all.Done()
	retry := retryMin
	for {
		r.mu.Lock()
		wait := time.Until(n.due)
		r.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		select {
		case r.places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		a, err := r.ask(ctx, n.host)
		<-r.places
		if ctx.Err() != nil {
			return
		}
		next := retry
		if err == nil {
			next, retry = min(max(a.ttl, TTLMin), TTLMax), retryMin
		} else {
			retry = min(2*retry, retryMax)
		}
		changed := r.learn(n, a, err, next)
		n.once.Do(func() { close(n.asked) })
		if changed && r.o.Changed != nil {
			r.o.Changed()
		}
	}
}

// learn notes an answer and tells whether the addresses are others now.
func (r *Resolver) learn(n *name, a answer, err error, next time.Duration) bool {
	r.mu.Lock()
	was, failed := n.addrs(), n.err
	// A family of which nothing good is known keeps what it had.
	if a.good4 {
		n.v4 = a.v4
	}
	if a.good6 {
		n.v6 = a.v6
	}
	is := n.addrs()
	if len(is) == 0 {
		n.v4, n.v6, is = nil, nil, nil
	}
	n.err = err
	// A little less, by chance: names that were asked for together part.
	n.due = time.Now().Add(next - time.Duration(rand.Float64()*float64(next)/10))
	r.mu.Unlock()
	if err != nil && r.o.Failed != nil && (failed == nil || failed.Error() != err.Error()) {
		r.o.Failed(n.host, err)
	}
	return !slices.Equal(was, is)
}

// answer is what one round of asking has found.
type answer struct {
	v4, v6       []netip.Addr
	good4, good6 bool // what is known of the family is to be replaced
	ttl          time.Duration
}

// ask asks for both families of a name.
func (r *Resolver) ask(ctx context.Context, host string) (a answer, err error) {
	if addrs := r.system.lookup(host); len(addrs) > 0 {
		a.ttl = hostsTTL
		for _, x := range addrs {
			if x.Is4() {
				a.v4 = append(a.v4, x)
			} else {
				a.v6 = append(a.v6, x)
			}
		}
		a.good4, a.good6 = true, true
		return a, nil
	}
	servers, names := r.system.servers(host)
	if len(r.o.Servers) > 0 {
		servers, names = nil, []string{absolute(host)}
		for _, s := range r.o.Servers {
			servers = append(servers, s.String())
		}
	}
	if len(servers) == 0 {
		return a, fmt.Errorf("resolve: %s: no server is known", host)
	}
	for _, full := range names {
		four, err4 := r.family(ctx, servers, full, typeA)
		six, err6 := r.family(ctx, servers, full, typeAAAA)
		if len(four.addrs)+len(six.addrs) == 0 {
			switch {
			case err4 != nil:
				err = err4
			case err6 != nil:
				err = err6
			default:
				err = fmt.Errorf("resolve: %s: it has no address", full)
			}
			continue // the next name of the search list
		}
		// A family that failed keeps its last addresses; one that is known to have
		// none loses them.
		a = answer{v4: four.addrs, v6: six.addrs, good4: err4 == nil, good6: err6 == nil, ttl: TTLMax}
		for _, f := range []family{four, six} {
			if len(f.addrs) > 0 {
				a.ttl = min(a.ttl, f.ttl)
			}
		}
		return a, nil
	}
	return a, err
}
