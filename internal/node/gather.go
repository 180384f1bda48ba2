package node

import (
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/ledger"
	"github.com/holdfast-lb/holdfast/internal/loop"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// Promises: whatever is not 0 here is a bug of ours, or of what we rely on.
var (
	flowsLost        = metric(Counter, "flows_lost_total", "Flows that Holdfast itself broke, but for those of the next metric. Must stay 0.", "cause")
	flowsResetByMove = metric(Counter, "flows_reset_by_move_total", "Flows that a move could not keep. Must stay 0.")
)

// Traffic.
var (
	requestsTotal   = metric(Counter, "requests_total", "Requests that ended, by class of the status sent to the client; none: it came to no status. Route is the index in the listener's routes.", "listener", "route", "backend", "code")
	requestSeconds  = metric(Distribution, "request_duration_seconds", "From the first octet of a request to the last of its response.", "listener", "route", "backend")
	answerSeconds   = metric(Distribution, "answer_duration_seconds", "From a request's departure to the first octet of its response.", "backend")
	endedTotal      = metric(Counter, "exchanges_ended_total", "Exchanges of HTTP, and flows without HTTP, by why they ended.", "listener", "backend", "cause")
	flowsEnded      = ours(Counter, "flows_ended_total", "Client connections by why they ended.", "listener", "cause")
	accepted        = ours(Counter, "connections_accepted_total", "Client connections accepted.", "listener")
	refusedTotal    = ours(Counter, "connections_refused_total", "Client connections reset when they were accepted: by allow and deny lists, or by limits of their source.", "listener", "reason")
	acceptPauses    = metric(Counter, "accept_pauses_total", "How often accepting stopped for want of room or descriptors, or by a rate.")
	receivedBytes   = metric(Counter, "received_bytes_total", "Octets from clients, counted when an exchange or a flow ends.", "listener")
	sentBytes       = metric(Counter, "sent_bytes_total", "Octets to clients, counted when an exchange or a flow ends.", "listener")
	legBytes        = metric(Counter, "leg_received_bytes_total", "Octets received from clients and from backends, as they come.", "side")
	relayedBytes    = metric(Counter, "relayed_bytes_total", "Of these, octets that were passed on inside the kernel.")
	connectRetries  = metric(Counter, "connect_retries_total", "Further attempts to connect, after one had failed.")
	repeatedTotal   = metric(Counter, "requests_repeated_total", "Requests sent again, since the pooled connection was dead.")
	reusedTotal     = metric(Counter, "requests_reused_total", "Requests sent on a pooled connection.")
	ownAnswers      = metric(Counter, "own_answers_total", "Responses that Holdfast gave itself.")
	tunnelsTotal    = metric(Counter, "tunnels_total", "Upgrades and CONNECTs that were granted.")
	retriesTotal    = ours(Counter, "retries_total", "Further attempts asked of a backend: granted, or refused by the retry budget.", "backend", "result")
	trippedTotal    = ours(Counter, "breaker_refused_total", "Requests that an open circuit breaker refused.", "backend")
	rateRefused     = ours(Counter, "rate_refused_total", "What a rate refused: requests by a listener's or a route's rate, of all or of one source; connections of one source. Route is empty for the listener's own.", "listener", "route", "what")
	endpointAnswers = metric(Counter, "endpoint_requests_total", "Requests that an endpoint got, by class of the status sent to the client; none: it came to no status, or is no HTTP.", "backend", "endpoint", "code")
	endpointTries   = ours(Counter, "endpoint_attempts_total", "Attempts at an endpoint that have shown whether it works.", "backend", "endpoint")
	endpointFails   = ours(Counter, "endpoint_failures_total", "Of these, attempts that failed.", "backend", "endpoint")
)

// State.
var (
	flowsNow       = metric(Gauge, "flows", "Open client connections by what they are doing.", "listener", "state")
	flowsOld       = metric(Gauge, "flows_on_old_generation", "Flows under a listener or backend that the configuration no longer has in this version.")
	endpointUp     = metric(Gauge, "endpoint_up", "1: the endpoint serves what is new; 0: it does not.", "backend", "endpoint")
	endpointWeight = metric(Gauge, "endpoint_weight", "The endpoint's weight as it counts now: the file's or the operator's, less what slow start or an agent takes away.", "backend", "endpoint")
	endpointUse    = metric(Gauge, "endpoint_in_flight", "Connections or requests that hold a slot of the endpoint.", "backend", "endpoint")
	endpointState  = metric(Gauge, "endpoint_state", "1 for the state in which the endpoint is: ready (nobody checks it), up, checking, down, draining, ejected, quiescing, held or maintenance.", "backend", "endpoint", "state")
	endpointLate   = metric(Gauge, "endpoint_latency_seconds", "What the endpoint's answers take, as balancing sees it now: a slow one counts at once, a failure as 1 s at least, and decays by e in 3 s.", "backend", "endpoint")
	serving        = metric(Gauge, "endpoints_serving", "Endpoints of a backend that serve what is new.", "backend")
	breakerOpen    = metric(Gauge, "breaker_open", "1: the backend's circuit breaker is open; 0.5: half open.", "backend")
	queueLength    = metric(Gauge, "queue_length", "Flows and requests that wait for an endpoint with room.", "backend")
	queueWaits     = ours(Counter, "queue_waits_total", "Flows and requests that have waited for an endpoint and got one.", "backend")
	queueSeconds   = metric(Counter, "queue_wait_seconds_total", "What flows and requests have waited in all, counted when they end.", "backend")
	stickyEntries  = metric(Gauge, "sticky_entries", "Entries of a backend's sticky table.", "backend")
	stickyEvicted  = ours(Counter, "sticky_evictions_total", "Entries that left a sticky table: full, expired, or their endpoint is gone.", "backend", "reason")
	checksTotal    = metric(Counter, "checks_total", "Probes of endpoints and their agents by what they found.", "backend", "result")
	ejectionsTotal = metric(Counter, "ejections_total", "Endpoints taken out because of what clients met; spared: so many were out that this one stayed.", "backend", "reason")
	sourcesTracked = metric(Gauge, "sources_tracked", "Sources whose rate is remembered.", "listener")
	sourcesEvicted = ours(Counter, "sources_evicted_total", "Sources whose rate was forgotten for want of room.", "listener")
)

// Changes of the desired state.
var (
	generation   = metric(Gauge, "generation", "Number of the desired state in force.")
	durableUpTo  = metric(Gauge, "durable_generation", "Number of the latest desired state that is on the disk; 0: there is no journal.")
	undurable    = metric(Gauge, "journal_failing", "1: the last write of the journal failed, so what is in force is not durable.")
	driftNow     = metric(Gauge, "drift", "Of how many things the file and the desired state say different things.")
	appliesTotal = ours(Counter, "applies_total", "Changes of the desired state by what they were and what came of them: applied, unchanged or refused.", "kind", "result")
	applySeconds = ours(Distribution, "apply_duration_seconds", "How long changes took: plan, until nothing was left but to do it; effective, from the request until every loop ruled by it; durable, from the request until it was on the disk.", "phase")
	journalFails = ours(Counter, "journal_failures_total", "Writes of the journal that failed.")
	silentLoss   = ours(Counter, "apply_silent_loss_total", "By how much the kernel's counters of what is lost or reset grew in this network namespace while changes were made.", "kernel_counter")
	lateTotal    = ours(Counter, "apply_arrived_late_total", "Connections that came to a listener while it was being closed.")
	oldestSecs   = metric(Gauge, "oldest_generation_age_seconds", "How long ago the oldest object was replaced, or taken away, under which there are flows.")
	toFollow     = metric(Gauge, "flows_to_follow", "Flows that are still to adopt a change or to be ended by it, paced.")
	killedTotal  = ours(Counter, "flows_killed_total", "Flows that were ended by order.", "listener", "then")
	shedRatio    = metric(Gauge, "shed_ratio", "Which share of what is new at a backend is turned away by order.", "backend")
)

// Moves.
var (
	movesTotal    = metric(Counter, "moves_total", "Moves of flows: by reloads, between loops by order, to another process, to another host.", "distance")
	movesAborted  = ours(Counter, "moves_aborted_total", "Moves that came to nothing; moves_total has only those that moved.", "distance")
	movedFlows    = metric(Counter, "moved_flows_total", "Flows that moved.", "distance")
	movePause     = ours(Distribution, "move_pause_seconds", "How long a flow was not served while it moved.", "distance")
	moveRefused   = ours(Counter, "move_refused_total", "Flows that could not move and stayed where they were.", "distance", "reason")
	upgradesTotal = ours(Counter, "upgrades_total", "Upgrades by what came of them: done; aborted, when the old process went on and nothing was lost; failed, when flows were lost.", "result")
	movedIdleLegs = ours(Counter, "moved_idle_legs_total", "Idle connections to endpoints that went along to another process.", "distance")
	frozenFlows   = ours(Counter, "frozen_flows_total", "Flows that moved in upgrades, by what they were doing.", "kind")
	frozenBytes   = ours(Counter, "frozen_bytes_total", "Octets of the frozen forms of these.", "kind")
	residueFlows  = metric(Gauge, "residue_flows", "Flows that the successor could not hold, and that drain in a process that was replaced.", "reason")
	arrived       = metric(Counter, "flows_arrived_total", "Flows that came from other hosts.")
	left          = metric(Counter, "flows_left_total", "Flows that went to other hosts.")
)

// The cluster. The gauges of VIPs and nodes are there where the configuration names some.
var (
	vipOwned       = metric(Gauge, "vip_owned", "1: this node answers for the VIP; 0: it does not.", "vip")
	vipEpoch       = metric(Gauge, "vip_epoch", "How often the VIP's owner has changed, as far as this node knows.", "vip")
	vipLease       = metric(Gauge, "vip_lease_remaining_seconds", "How long the kernel here lets the VIP pass without renewal; 0: it does not.", "vip")
	vipSilent      = metric(Gauge, "vip_silent", "1: nobody answers here for a VIP that is this node's; status says why.", "vip")
	vipMoves       = ours(Counter, "vip_moves_total", "Moves to another host, evacuations and returns that were asked for here, by what came of them: done; aborted, when nothing was lost; failed, when flows were lost.", "result")
	vipConflicts   = ours(Counter, "vip_owner_conflicts_total", "How often another node said that it answers for a VIP for which this one answered before and after, or that two nodes had changed an owner at one time. Must stay 0.")
	nodeEvacuating = metric(Gauge, "node_evacuating", "1: the node is to be free: its servers get nothing new, and no VIP goes there.", "node")
	nodeSilence    = metric(Gauge, "node_silence_seconds", "How long ago the node answered; of one that never has since this process began, since then.", "node")
	hostResidue    = metric(Gauge, "host_residue_flows", "Flows of a VIP that is another node's now, which could not move and go on here.", "vip")
)

// Process.
var (
	buildInfo    = metric(Gauge, "build_info", "Always 1.", "release", "go")
	startedAt    = metric(Gauge, "start_time_seconds", "When this process began, in seconds since 1970.")
	loopTurns    = ours(Distribution, "loop_turn_seconds", "How long the turns of a loop were, without their waits: the sum is how long it was busy, and during a long turn nobody else is served.", "loop")
	loopFlows    = metric(Gauge, "loop_flows", "Flows of a loop.", "loop")
	buffers      = metric(Gauge, "buffers_bytes", "Octets of buffers that flows hold.")
	idleLegs     = metric(Gauge, "idle_backend_legs", "Idle connections to endpoints.")
	descriptors  = metric(Gauge, "descriptors", "Open descriptors of sockets and pipes.")
	room         = metric(Gauge, "room", "Client connections that may be open at once.")
	memoryBytes  = metric(Gauge, "memory_bytes", "Memory of the process that is resident.")
	memoryMax    = metric(Gauge, "memory_max_bytes", "node.memory: the bound; 0 is none.")
	shedding     = metric(Gauge, "shedding", "1: memory is short, and accepting pauses.")
	shedTotal    = ours(Counter, "shed_total", "What was turned away or closed by order, or since memory was short. With a backend: what `backend shed` turned away there, by what was done (reset, hold, 503). Without: idle clients closed, and how often accepting paused, for want of memory.", "backend", "action")
	logLines     = ours(Counter, "log_lines_total", "Lines of the access log that were written.")
	logDropped   = ours(Counter, "log_dropped_total", "Lines of the access log that were lost: the place was slow, full or gone.")
	scrapeMillis = metric(Gauge, "measure_seconds", "How long it took to collect what you read.")
)

func classWord(class int) string {
	if class == 0 {
		return "none"
	}
	return string(rune('0'+class)) + "xx"
}

func routeWord(route int) string {
	if route < 0 {
		return ""
	}
	return strconv.Itoa(route)
}

// owned gathers what each process counts by itself, with what its predecessors
// had counted.
func (n *Node) owned() *gathering {
	n.past.mu.Lock()
	defer n.past.mu.Unlock()
	g := newGathering()
	for _, l := range n.shared.Loops {
		name := strconv.Itoa(l.Index())
		var turned loop.Histogram
		l.Ask(func(l *loop.Loop) {
			c := l.Counters()
			turned = l.Turned()
			l.Doors(func(listener string, d *loop.Door) {
				g.add(accepted, float64(d.Accepted), listener)
				for reason, k := range d.Refused {
					g.add(refusedTotal, float64(k), listener, loop.RefusalReasons[reason])
				}
				for cause, k := range d.Ended {
					if k > 0 {
						g.add(flowsEnded, float64(k), listener, flow.Cause(cause).String())
					}
				}
			})
			g.add(shedTotal, float64(c.Shed), "", "close-idle")
		})
		g.merge(loopTurns, &turned, name)
	}
	g.add(shedTotal, float64(n.memory.pauses.Load()), "", "pause-accepting")
	g.add(logLines, float64(n.access.Lines()))
	g.add(logDropped, float64(n.access.Dropped()))
	n.totals.gather(g)
	n.upgrades.gather(g)
	n.moves.gather(g)
	g.add(vipConflicts, float64(n.marks.conflicts.Load()+n.VIPConflicts()))
	c := n.Config()
	for name, b := range c.Backends {
		book := n.shared.Ledger.Backend(name)
		s := book.Stats()
		g.add(retriesTotal, float64(s.RetriesGranted), name, "granted")
		g.add(retriesTotal, float64(s.RetriesRefused), name, "refused")
		g.add(trippedTotal, float64(s.Tripped), name)
		g.add(queueWaits, float64(s.Waits), name)
		for how, k := range book.Shedded() {
			if how := config.Drop(how); how != config.NoDrop {
				g.add(shedTotal, float64(k), name, how.String())
			}
		}
		g.add(stickyEvicted, float64(s.EvictedFull), name, "full")
		g.add(stickyEvicted, float64(s.EvictedExpired), name, "expired")
		g.add(stickyEvicted, float64(s.EvictedGone), name, "gone")
		for _, e := range b.Endpoints {
			tries, failures := book.Endpoint(e.Ref.Name).Tries()
			g.add(endpointTries, float64(tries), name, e.Name)
			g.add(endpointFails, float64(failures), name, e.Name)
		}
	}
	rates := n.shared.Ledger.Rates()
	for name, l := range c.Listeners {
		g.add(accepted, 0, name)
		g.add(flowsEnded, 0, name, flow.Finished.String())
		for _, reason := range loop.RefusalReasons {
			g.add(refusedTotal, 0, name, reason)
		}
		r := rates[name]
		g.add(rateRefused, float64(r.Requests), name, "", "requests")
		g.add(rateRefused, float64(r.SourceRequests), name, "", "source-requests")
		g.add(rateRefused, float64(r.Sources), name, "", "connections")
		g.add(sourcesEvicted, float64(r.Evicted), name)
		if l.Rules == nil {
			continue
		}
		for i, route := range l.Rules.Routes {
			if route.Rate != nil && i < len(r.Routes) {
				g.add(rateRefused, float64(r.Routes[i]), name, strconv.Itoa(i), "requests")
			}
			if route.SourceRate != nil && i < len(r.SourceRoutes) {
				g.add(rateRefused, float64(r.SourceRoutes[i]), name, strconv.Itoa(i), "source-requests")
			}
		}
	}
	n.side.gather(g, c)
	journal, _ := n.JournalState()
	g.add(journalFails, float64(journal.Failures))
	n.past.steady(g)
	for _, s := range n.past.samples {
		if s.Histogram != nil {
			g.merge(s.metric, s.Histogram, s.Values...)
		} else {
			g.add(s.metric, s.Value, s.Values...)
		}
	}
	return g
}

// Measure gives all metrics with their samples. Loops are asked through their
// mailboxes, for a little at a time; the rest happens on the caller's thread.
// What the configuration no longer has is left out, though its counts are kept.
func (n *Node) Measure() []Family {
	began := time.Now()
	n.mu.Lock()
	gen := n.gen
	n.mu.Unlock()
	c := gen.Config
	g := n.owned()
	n.gatherTotals(g)
	n.gatherSeries(g, c)
	n.gatherFlows(g, c)
	n.gatherEndpoints(g, c)
	n.upgrades.gatherResidue(g)
	n.gatherCluster(g)

	g.add(buildInfo, 1, Release, runtime.Version())
	g.add(generation, float64(n.Generation()))
	g.add(driftNow, float64(len(n.state.current().drift())))
	journal, kept := n.JournalState()
	g.add(durableUpTo, float64(journal.Durable))
	g.add(undurable, one(kept && journal.Err != nil))
	g.add(startedAt, float64(n.started.UnixMilli())/1000)
	g.add(descriptors, float64(sock.Open()))
	g.add(room, float64(n.room(c)))
	g.add(memoryBytes, float64(n.memory.resident()))
	g.add(memoryMax, float64(c.Node.MemoryMax))
	g.add(shedding, one(n.shared.Shedding.Load()))
	for _, l := range n.shared.Loops {
		name := strconv.Itoa(l.Index())
		g.add(loopFlows, float64(l.Load()), name)
		l.Ask(func(l *loop.Loop) {
			g.add(buffers, float64(l.Lent()))
			g.add(idleLegs, float64(l.Idle()))
		})
	}
	g.forget(c)
	g.add(scrapeMillis, time.Since(began).Seconds())
	return g.families
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// gatherTotals adds what goes along with an upgrade as [Totals].
func (n *Node) gatherTotals(g *gathering) {
	t := n.counts()
	g.add(flowsLost, float64(t.Lost-min(t.Lost, t.LostMoving)), "panic")
	g.add(flowsLost, float64(t.LostMoving), "move")
	g.add(flowsResetByMove, float64(t.ResetByMove))
	g.add(acceptPauses, float64(t.Paused))
	g.add(legBytes, float64(t.FromClients), flow.Client.String())
	g.add(legBytes, float64(t.FromBackends), flow.Backend.String())
	g.add(relayedBytes, float64(t.Relayed))
	g.add(connectRetries, float64(t.Retries))
	g.add(repeatedTotal, float64(t.Repeated))
	g.add(reusedTotal, float64(t.Reused))
	g.add(ownAnswers, float64(t.OwnAnswers))
	g.add(tunnelsTotal, float64(t.Tunnels))
	for _, distance := range distances {
		g.add(movesTotal, float64(t.Moves[distance]), distance)
		g.add(movedFlows, float64(t.MovedFlows[distance]), distance)
	}
	g.add(arrived, float64(t.Arrived))
	g.add(left, float64(t.Left))
}

// distances are the words for how far flows move.
var distances = []string{"config", "loop", "process", "host"}

// gatherSeries adds what was served, by listener, route, backend and endpoint.
func (n *Node) gatherSeries(g *gathering, c *config.Config) {
	// What is configured is there with 0 from the beginning, so that the first
	// one is seen as an increase.
	for name, l := range c.Listeners {
		g.add(receivedBytes, 0, name)
		g.add(sentBytes, 0, name)
		if l.Rules == nil {
			g.add(endedTotal, 0, name, l.BackendName, flow.Finished.String())
			continue
		}
		for i, r := range l.Rules.Routes {
			for _, to := range r.Backends {
				for class := 2; class <= 5; class++ {
					g.add(requestsTotal, 0, name, strconv.Itoa(i), to.Name, classWord(class))
				}
			}
		}
	}
	for name := range c.Backends {
		g.add(queueSeconds, 0, name)
	}
	for key, x := range n.series() {
		route, http := routeWord(key.Route), false
		for class, k := range x.Requests {
			if class == 0 && key.Route < 0 {
				continue // a flow without HTTP, or a request that came to no route nor status
			}
			if http = http || k > 0; k > 0 {
				g.add(requestsTotal, float64(k), key.Listener, route, key.Backend, classWord(class))
			}
		}
		if http {
			g.merge(requestSeconds, &x.Took, key.Listener, route, key.Backend)
			if key.Backend != "" {
				g.merge(answerSeconds, &x.Answer, key.Backend)
			}
		}
		for cause, k := range x.Causes {
			if k > 0 {
				g.add(endedTotal, float64(k), key.Listener, key.Backend, flow.Cause(cause).String())
			}
		}
		if key.Backend != "" {
			g.add(queueSeconds, x.Waited.Seconds(), key.Backend)
		}
		g.add(receivedBytes, float64(x.In), key.Listener)
		g.add(sentBytes, float64(x.Out), key.Listener)
		if key.Endpoint != "" {
			for class, k := range x.Requests {
				if k > 0 {
					g.add(endpointAnswers, float64(k), key.Backend, key.Endpoint, classWord(class))
				}
			}
		}
	}
}

// lookPlaces is how many places of a loop's table are looked at in one turn.
const lookPlaces = 1024

// eachFlow looks at all flows, on their loops' threads, a few in each turn. A
// flow that moves between loops meanwhile may be met twice, or not at all.
func (n *Node) eachFlow(do func(l *loop.Loop, slot uint32, f *flow.Flow)) {
	for _, l := range n.shared.Loops {
		for from, more := uint32(0), true; more; {
			l.Ask(func(l *loop.Loop) {
				from, more = l.Look(from, lookPlaces, func(i uint32, f *flow.Flow) { do(l, i, f) })
			})
		}
	}
}

func (n *Node) gatherFlows(g *gathering, c *config.Config) {
	type place struct{ listener, state string }
	count := map[place]int{}
	for name := range c.Listeners {
		count[place{name, loop.KindIdle}] = 0
	}
	olds := newOldCount(c)
	n.eachFlow(func(l *loop.Loop, i uint32, f *flow.Flow) {
		count[place{f.Listener().Ref.Name, l.Kind(i)}]++
		olds.add(f)
	})
	for p, k := range count {
		g.add(flowsNow, float64(k), p.listener, p.state)
	}
	g.add(flowsOld, float64(olds.flows))
	_, age := n.side.oldest(olds, time.Now())
	g.add(oldestSecs, age.Seconds())
	left := 0
	for _, x := range n.side.followingNow() {
		left += x.Left
	}
	g.add(toFollow, float64(left))
	for name := range c.Backends {
		g.add(shedRatio, 0, name)
	}
	for _, x := range n.shedding() {
		g.add(shedRatio, x.Percent/100, x.Backend)
	}
}

func (n *Node) gatherEndpoints(g *gathering, c *config.Config) {
	rates := n.shared.Ledger.Rates()
	for name := range c.Listeners {
		g.add(sourcesTracked, float64(rates[name].Tracked), name)
	}
	for name := range c.Backends {
		s := n.shared.Ledger.Backend(name).Stats()
		g.add(queueLength, float64(s.Waiting), name)
		g.add(serving, float64(s.Serving), name)
		g.add(stickyEntries, float64(s.Learned), name)
		g.add(breakerOpen, breakerLevel[s.Breaker], name)
	}
	for _, e := range n.EndpointStates() {
		_, name, _ := strings.Cut(e.Name, "/")
		g.add(endpointUp, one(e.Serves && e.EffectiveWeight > 0), e.Backend, name)
		g.add(endpointWeight, e.EffectiveWeight, e.Backend, name)
		g.add(endpointUse, float64(e.InFlight), e.Backend, name)
		g.add(endpointLate, e.LatencyMillis/1000, e.Backend, name)
		g.add(endpointState, 1, e.Backend, name, e.State)
	}
	health := n.HealthStats()
	for name := range c.Backends {
		k := health.Counts[name]
		g.add(checksTotal, float64(k.Passed), name, "passed")
		g.add(checksTotal, float64(k.Drained), name, "draining")
		g.add(checksTotal, float64(k.Failed), name, "failed")
		for reason, k := range k.Ejections {
			g.add(ejectionsTotal, float64(k), name, reason)
		}
		for _, reason := range []string{"consecutive", "rate", "spared"} { // so that the first is seen as one
			g.add(ejectionsTotal, 0, name, reason)
		}
	}
}

var breakerLevel = map[ledger.BreakerState]float64{ledger.Closed: 0, ledger.HalfOpen: 0.5, ledger.Open: 1}

// forget leaves out what is of objects that c has not.
func (g *gathering) forget(c *config.Config) {
	endpoints := make(map[[2]string]bool, len(c.Backends))
	for name, b := range c.Backends {
		for _, e := range b.Endpoints {
			endpoints[[2]string{name, e.Name}] = true
		}
	}
	for i := range g.families {
		f := &g.families[i]
		listener, backend, endpoint := -1, -1, -1
		for k, label := range f.Labels {
			switch label {
			case "listener":
				listener = k
			case "backend":
				backend = k
			case "endpoint":
				endpoint = k
			}
		}
		if listener < 0 && backend < 0 {
			continue
		}
		kept := f.Samples[:0]
		for _, s := range f.Samples {
			if listener >= 0 && c.Listeners[s.Values[listener]] == nil {
				continue
			}
			if backend >= 0 && s.Values[backend] != "" {
				if c.Backends[s.Values[backend]] == nil || endpoint >= 0 && !endpoints[[2]string{s.Values[backend], s.Values[endpoint]}] {
					continue
				}
			}
			kept = append(kept, s)
		}
		f.Samples = kept
	}
}

// reasonOf is what comes before the colon of a refusal: the rest names values.
func reasonOf(why string) string {
	what, _, _ := strings.Cut(why, ":")
	return what
}
