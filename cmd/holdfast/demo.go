package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/demo"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

const (
	// unwatched is how long the demo runs when nobody can end it by Ctrl-C.
	unwatched = 30 * time.Second
	// tourStep is the time between two stations of the tour.
	tourStep = 3 * time.Second
	// silenceMax is how long Holdfast may leave questions unanswered.
	silenceMax = 5 * time.Second
	// openTime bounds the opening of all flows, endTime their end.
	openTime = 20 * time.Second
	endTime  = 5 * time.Second
)

func demoCommand() *cobra.Command {
	var duration time.Duration
	var flows int
	var between bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Servers, Holdfast, clients and live figures on loopback",
		Long: "Starts two servers for HTTP, one for TCP, Holdfast and steady clients on loopback, checks\n" +
			"every octet at both ends, and shows live figures while it reloads, rebalances and upgrades\n" +
			"Holdfast, adds an endpoint and rolls that back, takes a server out to restart it, and holds\n" +
			"requests while another one restarts.\n" +
			"Ends by Ctrl-C; without a terminal, after 30s. A server that you end is started again.\n\n" +
			"With --hosts there are a client and two hosts on a bridge, in namespaces of their own; each host runs\n" +
			"Holdfast and a server. Key m moves the VIP with its connections to the other host and back, e evacuates\n" +
			"a host, q ends. Without a terminal it moves there and back by itself and ends. Nothing of this machine is\n" +
			"touched, and no privilege is needed where user namespaces are allowed.",
		Args: wants(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if flows < 10 || duration < 0 {
				return &exit{exitUsage, fmt.Errorf("demo: --flows is at least 10, --duration is not negative")}
			}
			asJSON, _ := c.Flags().GetBool("json")
			if between {
				return enterHosts(flows, duration, asJSON)
			}
			d := &demonstration{show: show{terminal: sock.IsTerminal(os.Stdout)}, flows: flows, duration: duration}
			if duration == 0 && !d.show.terminal {
				d.duration = unwatched
			}
			return d.run(asJSON)
		},
	}
	c.Flags().DurationVar(&duration, "duration", 0, "end by itself; 0s: by Ctrl-C")
	c.Flags().IntVar(&flows, "flows", 200, "long-lived flows of TCP; short ones and HTTP come on top")
	c.Flags().BoolVar(&between, "hosts", false, "two hosts, and a VIP that moves between them with its connections")
	c.AddCommand(demoServerCommand(), demoKeeperCommand())
	return c
}

// demonstration is one run of the demo.
type demonstration struct {
	show
	flows    int
	duration time.Duration // 0: until Ctrl-C

	began    time.Time
	traffic  *demo.Traffic // TCP
	web      *demo.Web     // HTTP
	holdfast *demoHoldfast
	status   node.Status // the last that came
	heard    time.Time   // when it came
	trouble  error       // what went wrong but for flows and octets
}

func (d *demonstration) run(asJSON bool) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// When nobody reads our output any more, writing fails and the demo ends
	// in order; by default the signal would end it at once, and leave the
	// Holdfast behind that it started.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := sock.AdoptOrphans(); err != nil {
		d.say("%v: an upgraded Holdfast is not our child; it is ended all the same", err)
	}
	var err error
	if d.traffic, err = demo.Start(); err != nil {
		return &exit{exitFailed, err}
	}
	defer d.traffic.Stop(0)
	if d.holdfast, err = startDemoHoldfast(d.traffic.Server(), d.say); err != nil {
		return &exit{exitFailed, err}
	}
	defer d.holdfast.end()
	h := d.holdfast
	d.say("Holdfast runs as process %d; every octet is checked at both ends:", h.serving())
	d.say("  http://%s  ->  web/a1 %s (process %d), web/a2 %s (process %d); %d clients",
		h.web, h.pages[0].address, h.pages[0].pid.Load(), h.pages[1].address, h.pages[1].pid.Load(), demo.WebClients)
	d.say("  tcp://%s   ->  tcp/t1 %s; %d long flows, and short ones", h.tcp, h.server, d.flows)
	d.say("  a browser shows it at http://%s; the metrics are there, too", h.page)
	d.say("  the verbs find it in another terminal after: export %s=%s", socketEnv, h.socket)
	d.web = demo.Browse(h.web)
	defer d.web.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	d.trouble = d.traffic.Open(ctx, h.tcp, d.flows)
	cancel()
	d.began = time.Now()
	d.loop(signals)
	return d.conclude(asJSON)
}

// loop shows figures and makes the tour until the end has come.
func (d *demonstration) loop(signals chan os.Signal) {
	step, end := tourStep, make(<-chan time.Time)
	if d.duration > 0 {
		step, end = min(tourStep, d.duration/14), time.After(d.duration)
	}
	tour := d.tour()
	next := time.After(step)
	passed, touring := make(chan error, 1), false
	defer func() {
		if touring { // a station ends in bounded time, and then Holdfast may
			if err := <-passed; d.trouble == nil {
				d.trouble = err
			}
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	d.heard = time.Now()
	d.before, d.beforeWeb, d.at = d.traffic.Look(), d.web.Look(), time.Now() // opening is no figure
	for d.trouble == nil && !d.unread() {
		select {
		case <-signals:
			d.say("ending ...")
			return
		case <-end:
			return
		case <-next:
			// Beside the figures: that nothing happens to them meanwhile is what
			// there is to see.
			go func(station func() error) { passed <- station() }(tour[0]) // ends with the station
			tour, touring = tour[1:], true
		case err := <-passed:
			touring = false
			if d.trouble = err; err == nil && len(tour) > 0 {
				next = time.After(step)
			}
		case <-tick.C:
			d.trouble = d.look()
		}
	}
}

// look asks Holdfast and prints the line of this second.
func (d *demonstration) look() error {
	if err := d.ask(); err != nil {
		if silent := time.Since(d.heard); silent > silenceMax {
			return fmt.Errorf("holdfast has not answered for %v: %w\n%s", silent.Round(time.Second), err, d.holdfast.tail())
		}
	}
	d.figures(d.traffic.Look(), d.web.Look(), &d.status)
	return nil
}

func (d *demonstration) ask() error {
	s, err := d.holdfast.status()
	if err != nil {
		return err
	}
	d.status, d.heard = *s, time.Now()
	return nil
}

// conclude ends the traffic, then Holdfast, and judges.
func (d *demonstration) conclude(asJSON bool) error {
	seconds := time.Since(d.began).Seconds()
	if err := d.ask(); err != nil && d.trouble == nil {
		d.trouble = err
	}
	web := d.web.Stop()
	f := d.traffic.Stop(endTime)
	if err := d.ask(); err != nil && d.trouble == nil {
		d.trouble = err
	}
	if err := d.holdfast.end(); err != nil && d.trouble == nil {
		d.trouble = err
	}
	s := summarize(seconds, d.flows, f, web, &d.status, d.trouble)
	d.summary(s, asJSON)
	if !s.OK {
		return &exit{code: exitFailed}
	}
	return nil
}
