package mainjob

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// The lab migrate-clients: the servers run on n1, where the VIP is at first, so that
// each leg to a server is local before a move and remote after it.

// placeOn says where the servers and the VIPs are.
func placeOn(server, vip netip.Addr) {
	at := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	postgresServer, postgresVIP = at(server, 5432), at(vip, 6432)
	redisServer, redisVIP = at(server, 6379), at(vip, 6380)
	sshServer, sshVIP = at(server, 22), at(vip, 2222)
	webServers, webVIP = []string{at(server, 9001)}, at(vip, 8080)
}

// runMoves opens the sessions and moves the VIP there and back under them.
func (j *job) runMoves() (err error) {
	j.ending = make(chan struct{})
	defer func() {
		close(j.ending)
		j.keeping.Wait()
	}()
	if j.pair, err = lab.NewPair(j.dir, j.binary); err != nil {
		return err
	}
	j.serversOn = j.pair.N1
	placeOn(j.pair.N1.V4, j.pair.VIP)
	j.v.say("starting PostgreSQL, redis, sshd and a web server on n1")
	if err := parallel(j.startPostgres, j.startRedis, j.startSSH, j.startWeb); err != nil {
		return err
	}
	j.v.say("holdfast on n1 and n3, from one file")
	if err := j.pair.Start(j.ctx,
		lab.PairService{Name: "postgres", Port: 6432, To: 5432}, lab.PairService{Name: "redis", Port: 6380, To: 6379},
		lab.PairService{Name: "ssh", Port: 2222, To: 22}, lab.PairService{Name: "web", Port: 8080, To: 9001, HTTP: true}); err != nil {
		return err
	}
	p := j.pace()
	if j.short {
		p.slack = 3 * time.Second
		j.moves = min(j.moves, shortTrips)
	}
	planned := p.control + time.Duration(2*j.moves)*(p.gap+moveTime) + p.slack
	if err := j.connect(planned, j.startBench, j.startPaced); err != nil {
		return err
	}
	if err := j.askAll(); err != nil {
		return err
	}
	j.v.say("all sessions are open; %v without moves", p.control)
	select {
	case <-time.After(p.control):
	case <-j.ctx.Done():
	}
	for round := range 2 * j.moves {
		if round == j.moves {
			j.strikeMoved()
		}
		if err := j.moved(); err != nil && j.sabotage != "" {
			j.v.must(false, "moves after the sabotage", err.Error(), "no error")
			return nil
		} else if err != nil {
			return fmt.Errorf("move %d: %w", round+1, err)
		}
		j.lastEvent = time.Now()
		select {
		case <-time.After(p.gap):
		case <-j.ctx.Done():
			return j.ctx.Err()
		}
	}
	j.v.say("waiting for the loads to end")
	j.stage.Store("the end of the loads")
	return j.await(j.bench, j.paced)
}

// shortTrips is how often a short run goes there and back.
const shortTrips = 3

// moveTime is about what a move of the VIP takes, with the time in which caches settle.
const moveTime = 1300 * time.Millisecond

// clientSessions is how many connections stand all the time: psql and pgbench; pings,
// transaction, redis-cli, publisher, subscriber; ssh; the download, a WebSocket, the members of
// a chat and the client of Go.
const clientSessions = 1 + benchClients + 5 + 1 + 2 + chatMembers + 1

// moved moves the VIP to the other host, with a query and a transaction under way, and asks
// every session before and after.
func (j *job) moved() error {
	if err := j.askAll(); err != nil {
		return err
	}
	if err := j.open.open(); err != nil {
		return err
	}
	slept := j.session.begin(slowQuery)
	j.now.Store(int32(migrate))
	j.stage.Store(fmt.Sprintf("move %d", j.events[migrate]+1))
	r, err := j.pair.Migrate(j.ctx)
	if err != nil {
		return err
	}
	j.events[migrate]++
	j.v.say("move %d, to %s: %d flows in %.1f ms, pause max %.1f ms, refused %d %v, lost %d", j.events[migrate], j.pair.Serving().Host.Name,
		r.Flows, r.Millis, r.Pause.Max/1000, r.Refused, r.Reasons, r.Lost)
	if r.Flows < clientSessions || r.Refused > 0 || r.Lost > 0 {
		j.doubts = append(j.doubts, fmt.Sprintf("move %d: %d flows of %d, refused %d (%v), lost %d", j.events[migrate], r.Flows, clientSessions, r.Refused, r.Reasons, r.Lost))
	}
	j.stage.Store(fmt.Sprintf("the sessions after move %d", j.events[migrate]))
	time.AfterFunc(afterglow, func() { j.now.CompareAndSwap(int32(migrate), int32(quiet)) })
	if got, err := slept(); err != nil || got != "slept" {
		return fmt.Errorf("psql: a query under way: %q %w", got, orUnexpected(err))
	}
	if err := j.session.grow(); err != nil {
		return err
	}
	if err := j.open.exec(); err != nil {
		return err
	}
	return j.askAll()
}

// strikeMoved is the sabotage.
func (j *job) strikeMoved() {
	if j.sabotage == lab.KillOne {
		pid := j.pair.Serving().PID
		j.v.say("sabotage: process %d on %s is killed", pid, j.pair.Serving().Host.Name)
		kill(pid)
	}
}

// judgeMoves writes what was found into the verdict.
func (j *job) judgeMoves() {
	if j.pair == nil {
		return
	}
	defer j.pair.Close()
	if j.session == nil || j.messages == nil || j.bench == nil {
		j.v.say("the nodes wrote:\n%s", j.pair.Logs())
		return // it never came to the sessions; the verdict has the reason
	}
	j.v.figure("moves", j.events[migrate])
	j.v.must(j.events[migrate] == 2*j.moves, "moves to the other host", fmt.Sprint(j.events[migrate]), fmt.Sprint(2*j.moves))
	j.v.zero("moves that did not do what they said", j.doubts)
	j.judgeWitnesses(1) // the publisher has no other end that matters
	j.judgeMessages()
	j.judgeSession()
	j.judgeStalls()
	lost, err := j.pair.Lost(j.ctx)
	j.v.must(err == nil && lost == 0, "flows lost or reset, by the nodes' own accounts", fmt.Sprintf("%d (%v)", lost, orNone(err)), "0")
	j.v.zero("resets on the wire, and claims of the VIP by who is not its owner", j.pair.Judge())
	if !j.bench.ended() { // the run is broken, and it would run on
		j.bench.end(time.Second)
	}
	j.judgeBench()
	j.judgePaced()
	if !j.v.holds() {
		j.v.say("the nodes wrote:\n%s", j.pair.Logs())
	}
}
