package lab

import (
	"context"
	"fmt"
	"io"
	"time"
)

// vanishedIn is how long a client that has vanished may cost the balancer a
// flow.
const vanishedIn = 25 * time.Second

// vanishedPeers pulls the cable of a client: no FIN, no RST, no answer ever.
// Its flows, idle ones and ones with octets on the way, must be gone from the
// balancer and from the servers in time, and no flow of anybody else with them.
func vanishedPeers(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	o.Distances = nil
	ghosts := 50
	if o.Flows > 0 {
		ghosts = o.Flows
	}
	s, err := setScene(ctx, o, out, v, "server", []serviceSpec{
		{name: "main", vip: "10.9.0.100:443", port: 9000},
		{name: "main6", vip: "[fd09::100]:443", port: 9000},
	})
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	ghost := s.world.Host("ghost")
	from, err := s.traffic.NewEngine(ghost)
	if err != nil {
		return err
	}
	s.phase("opening %d flows that will vanish, and %d that will not", ghosts, ghosts)
	var doomed []*Flow
	for i := range ghosts {
		// Half are silent: nothing tells the balancer, it has to ask. Half
		// have octets under way, in either direction.
		k := []Kind{Silent, Bulk, Silent, BulkUp, Silent, SlowClient}[i%6]
		to := s.to("main")
		if i%4 >= 2 {
			to = s.to("main6")
		}
		f := s.traffic.NewFlow(k, to)
		doomed = append(doomed, f)
		from.Open(f)
	}
	var flows []*Flow
	for _, k := range []Kind{Silent, Exchange, SlowClient, SlowServer, ClientHalf} {
		flows = append(flows, s.open(k, ghosts/10, "main")...)
		flows = append(flows, s.open(k, ghosts/5-ghosts/10, "main6")...)
	}
	all := append(append([]*Flow(nil), doomed...), flows...)
	if err := s.traffic.AwaitEach(15*time.Second, "flows to be served", all, func(f *Flow) bool { return f.Served.Load() != 0 }); err != nil {
		v.Broken(err)
	}
	time.Sleep(2 * time.Second)
	has := s.balancerSockets(ghost)
	v.Must(has >= ghosts || s.isDirect(), "sockets of the balancer to the ghost before it vanishes", fmt.Sprint(has), fmt.Sprintf("at least %d", ghosts))
	s.phase("the ghost vanishes, with %d flows", has)
	s.traffic.Doom(doomed)
	if err := ghost.Unplug(); err != nil {
		return err
	}
	began := time.Now()
	s.strike()
	gone := s.awaitGone(ghost, len(flows), began)
	v.Must(gone <= vanishedIn, "flows of a vanished client are gone from the balancer after", gone.Round(100*time.Millisecond).String(), "at most "+vanishedIn.String())
	v.Figure("gone_seconds", gone.Seconds())

	s.phase("finishing")
	s.traffic.Finish(5*time.Second, flows)
	active := 0
	eventually(time.Second, func() bool {
		active = 0
		for _, d := range s.doors {
			active += int(d.Active.Load())
		}
		return active == 0
	})
	v.Zero("connections left at the servers", active)
	s.judgeStatus()
	s.judgeTraffic(flows)
	s.sayLogs()
	return nil
}

func (s *scene) isDirect() bool {
	_, yes := s.balancer.(Direct)
	return yes
}

// balancerSockets counts the sockets that the balancer has to a host.
func (s *scene) balancerSockets(to *Host) int {
	return s.balancer.Serving().Host.Connected(func(x TCPSocket) bool {
		return x.Remote.Addr() == to.V4 || x.Remote.Addr() == to.V6
	})
}

// awaitGone waits until the balancer has no socket to the ghost, and no more
// flows than stay, and says how long that took.
func (s *scene) awaitGone(ghost *Host, stay int, began time.Time) time.Duration {
	limit := vanishedIn + 3*time.Second // to tell late from never
	said := -1
	eventually(limit, func() bool {
		n := s.balancerSockets(ghost)
		if n != said {
			s.phase("  %4.1f s: %d sockets to the ghost", time.Since(began).Seconds(), n)
			said = n
		}
		time.Sleep(90 * time.Millisecond)
		return n == 0
	})
	took := time.Since(began)
	if st := s.mover.status(s.ctx); st != nil {
		s.v.Must(st.Flows == stay, "flows of the balancer without the ghost's", fmt.Sprint(st.Flows), fmt.Sprint(stay))
	}
	return took
}
