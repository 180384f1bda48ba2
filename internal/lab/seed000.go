package lab

import (
	"context"
	"fmt"
	"io"
	"time"
)

// seed000 is the case that most people have: the server runs on the host that
// is evacuated. Its leg is local before the move and remote after it, and local
// again when the flow comes back.
func seed000(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	o.Distances = []string{HostMove.String()}
	n, moves := 200, 20
	if o.Short {
		n, moves = 60, 4
	}
	if o.Flows > 0 {
		n = o.Flows
	}
	if o.Moves > 0 {
		moves = o.Moves
	}
	s, err := setScene(ctx, o, out, v, "n1", []serviceSpec{
		{name: "main", vip: "10.9.0.100:443", port: 9000},
		{name: "main6", vip: "[fd09::100]:443", port: 9000},
	})
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	s.phase("opening %d flows to servers on n1 itself", n)
	var flows []*Flow
	for k, share := range map[Kind]int{Bulk: 5, BulkUp: 5, Exchange: 30, Idle: 20, ClientHalf: 7, ServerHalf: 8, SlowClient: 14, SlowServer: 11} {
		flows = append(flows, s.open(k, max(1, n*share/200), "main")...)
		flows = append(flows, s.open(k, max(1, n*share/200), "main6")...)
	}
	if err := s.traffic.AwaitEach(15*time.Second, "flows to be served", flows, func(f *Flow) bool { return f.Served.Load() != 0 }); err != nil {
		v.Broken(err)
	}
	s.mover.standing, s.mover.emptyMayMove = len(flows), true
	if s.saboteur != nil {
		s.mover.standing--
	}
	stop := s.traffic.Churn(s.clients, churnEvery, s.to("main"), s.to("main6"))
	time.Sleep(700 * time.Millisecond)
	s.phase("control interval: 3 s without events")
	s.traffic.During(Control)
	time.Sleep(3 * time.Second)

	s.phase("moves: from n1, where the servers are, and back, %d times", moves)
	broken := false
	for i := range moves {
		if i == moves/2 {
			s.strike()
		}
		if err := s.mover.Move(ctx, HostMove); err != nil {
			v.Broken(err)
			broken = true
			break
		}
	}
	s.traffic.During(Closing)
	s.phase("finishing")
	patience := 8 * time.Second
	if broken {
		patience = 2 * time.Second
	}
	if err := stop(patience); err != nil {
		v.Must(false, "short connections", err.Error(), "none left")
	}
	s.traffic.Finish(patience, flows)
	s.judgeStatus()
	s.judgeTraffic(flows)
	s.judgeStalls(s.traffic.Stalled(), []Label{HostMove})
	s.mover.Judge(v, []Label{HostMove})
	v.Must(s.mover.made[HostMove] == moves, "moves made", fmt.Sprint(s.mover.made[HostMove]), fmt.Sprint(moves))
	v.Must(s.mover.whole == moves, "moves of every flow", fmt.Sprint(s.mover.whole), fmt.Sprint(moves))
	s.sayLogs()
	return nil
}
