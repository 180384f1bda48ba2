package mainjob

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// job is one run of the lab.
type job struct {
	options
	ctx context.Context
	v   *verdict

	mu        sync.Mutex // guards processes
	processes []*process

	balancers []*balancer
	witnesses []*witness

	session    *session
	witnessSQL *psql // not through Holdfast
	bench      *process
	iperf      *process
	iperfEnd   time.Time
	lastEvent  time.Time
	open       *transaction
	messages   *channel

	origins          []*lab.Origin
	download, upload *process // of curl, through all events
	downloaded       string   // file
	transferOctets   int
	paced            *process // curl, at the server's pace
	pacedOctets      int
	visited          int      // of curl's visits; its witness alone writes it
	browser          *browser // nil: none
	reader           *reader

	doubts    []string  // about moves between hosts
	pair      *lab.Pair // of moves between hosts; else nil
	serversOn *lab.Host // nil: our own namespace

	now     atomic.Int32 // a when
	stage   atomic.Value // a string: where the run is
	stalls  stalls
	events  [whens]int
	ending  chan struct{}
	keeping sync.WaitGroup
}

// pace is how a run is laid out in time.
type pace struct {
	control time.Duration // before the first event
	gap     time.Duration // from one event to the next
	slack   time.Duration // how much longer the loads run than planned
}

func (o *options) pace() pace {
	if o.short {
		return pace{1500 * time.Millisecond, 400 * time.Millisecond, 14 * time.Second} // an upgrade watches its first flows, in five nodes, beside another lab
	}
	return pace{8 * time.Second, 2 * time.Second, 20 * time.Second}
}

// standing flows: psql and pgbench; pings, transaction, redis-cli, publisher, subscriber;
// ssh; iperf3's control connection and its stream.
func (j *job) makeBalancers() {
	for _, b := range []balancer{
		{name: "postgres", vip: postgresVIP, server: postgresServer, standing: 1 + benchClients},
		{name: "redis", vip: redisVIP, server: redisServer, standing: 5},
		{name: "ssh", vip: sshVIP, server: sshServer, standing: 1},
		{name: "iperf3", vip: iperfVIP, server: iperfServer, standing: 2},
		{name: "websocket", vip: webVIP, server: webServers[0], standing: webStanding, keeps: true},
	} {
		b.j = j
		j.balancers = append(j.balancers, &b)
	}
}

func (j *job) run() error {
	j.ending = make(chan struct{})
	defer func() {
		close(j.ending)
		j.keeping.Wait()
	}()
	j.makeBalancers()
	j.v.say("starting PostgreSQL, redis, sshd, iperf3 and web servers")
	if err := parallel(j.startPostgres, j.startRedis, j.startSSH, j.startIperf, j.startWeb); err != nil {
		return err
	}
	for _, b := range j.balancers {
		if err := b.start(); err != nil {
			return err
		}
		j.v.say("%s runs from %s, as process %d", b.process.name, b.file(), b.pid)
	}
	p := j.pace()
	planned := p.control + time.Duration(3*j.moves)*p.gap + p.slack
	if err := j.connect(planned, j.startBench, j.startIperfClient, j.startTransfers, j.startPaced); err != nil {
		return err
	}
	j.keep("curl", 0, j.curl)
	if err := j.keepBrowser(); err != nil {
		return err
	}
	if err := j.askAll(); err != nil {
		return err
	}
	j.v.say("all sessions are open; %v without events", p.control)
	select {
	case <-time.After(p.control):
	case <-j.ctx.Done():
	}
	if err := j.allEvents(p); err != nil {
		return err
	}
	j.v.say("waiting for the loads to end")
	j.stage.Store("the end of the loads")
	return j.await(j.bench, j.iperf, j.download, j.upload, j.paced)
}

// connect opens all sessions and starts the loads, which last for the planned time.
func (j *job) connect(planned time.Duration, loads ...func(time.Duration) error) (err error) {
	if j.session, err = j.openSession(); err != nil {
		return err
	}
	if j.witnessSQL, err = j.startPsql("psql-direct", postgresServer); err != nil {
		return err
	}
	shell, err := j.openShell()
	if err != nil {
		return err
	}
	pings, err := dialRedis("redis pings", redisVIP)
	if err != nil {
		return err
	}
	multi, err := dialRedis("redis transaction", redisVIP)
	if err != nil {
		return err
	}
	j.open = &transaction{redis: multi}
	if j.messages, err = openChannel(); err != nil {
		return err
	}
	var errs []error
	for _, start := range loads {
		errs = append(errs, start(planned))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := j.awaitBench(); err != nil {
		return err
	}
	socket, err := openTunnel()
	if err != nil {
		return err
	}
	members, err := openChat()
	if err != nil {
		return err
	}
	cli, err := j.openRedisCLI()
	if err != nil {
		return err
	}
	j.keep("redis-cli", 20*time.Millisecond, cli.identity)
	j.keep("WebSocket chat", 20*time.Millisecond, members.identity)
	j.keep("psql", 0, j.session.identity)
	j.keep("pgbench", 0, j.benchIdentity)
	j.keep("ssh", 50*time.Millisecond, shell.identity)
	j.keep("redis pings", 10*time.Millisecond, j.ping(pings))
	j.keep("redis transaction", 0, multi.identity)
	j.keep("redis messages", 20*time.Millisecond, func() (string, error) { return "", j.messages.publish() })
	j.keep("WebSocket", 20*time.Millisecond, socket.identity)
	j.reader = newReader("http://" + webVIP + "/article.txt")
	j.keep("web pages", 10*time.Millisecond, j.reader.identity)
	return nil
}

// keepBrowser makes Chromium a witness. It is too large to be installed for
// short runs, and other runs say so if it is not there.
func (j *job) keepBrowser() (err error) {
	switch {
	case j.short:
		j.v.figure("chromium", "not in short runs")
		return nil
	case program("chromium") == "":
		j.v.figure("chromium", "not installed")
		j.v.say("no browser: chromium is not installed")
		return nil
	}
	if j.browser, err = j.openBrowser(); err != nil {
		return err
	}
	j.v.say("Chromium shows its page: %+v", j.browser.last)
	j.keep("Chromium", 500*time.Millisecond, j.browser.identity)
	return nil
}

// keep makes a witness; it is asked at events, and every so often if that is
// not 0.
func (j *job) keep(name string, every time.Duration, ask func() (string, error)) {
	w := &witness{name: name, ask: ask}
	j.witnesses = append(j.witnesses, w)
	if every > 0 {
		j.keeping.Go(func() { w.keep(every, j.ending) })
	}
}

// ping measures every exchange; each tenth asks who is there.
func (j *job) ping(r *redis) func() (string, error) {
	n := 0
	return func() (string, error) {
		before, began := when(j.now.Load()), time.Now()
		err := r.expect("PONG", "PING")
		during := when(j.now.Load())
		if before != quiet {
			during = before
		}
		j.stalls.add(during, time.Since(began))
		if n++; err != nil || n%10 != 1 {
			return "", err
		}
		return r.identity()
	}
}

// awaitBench waits until pgbench has its connections, and no more.
func (j *job) awaitBench() error {
	return j.bench.await(j.ctx, func() error {
		got, err := j.witnessSQL.ask(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND xact_start IS NOT NULL
			OR application_name = 'pgbench' AND query LIKE 'END%';`)
		if err == nil && got != fmt.Sprint(benchClients) {
			err = fmt.Errorf("%s of %d connections are at work", got, benchClients)
		}
		return err
	})
}

// askAll asks every witness now.
func (j *job) askAll() error {
	var all []func() error
	for _, w := range j.witnesses {
		all = append(all, w.once)
	}
	return parallel(all...)
}

func (j *job) await(all ...*process) error {
	for _, p := range all {
		select {
		case <-p.done:
		case <-j.ctx.Done():
			return fmt.Errorf("main-job: %s has not ended: %w", p.name, j.ctx.Err())
		}
	}
	return nil
}

// endAll ends every process, the newest first: clients, Holdfast, servers.
func (j *job) endAll() {
	for _, b := range j.balancers {
		b.end()
	}
	j.mu.Lock()
	all := j.processes
	j.mu.Unlock()
	for i := len(all) - 1; i >= 0; i-- {
		if !all[i].ended() {
			all[i].end(2 * time.Second)
		}
	}
}

// strike is the sabotage.
func (j *job) strike() {
	if j.sabotage == lab.KillOne {
		b := j.balancers[0]
		j.v.say("sabotage: process %d, %s, is killed", b.pid, b.process.name)
		kill(b.pid)
	}
}
