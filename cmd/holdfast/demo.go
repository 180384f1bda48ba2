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
	c := &cobra.Command{
		Use:   "demo",
		Short: "A server, Holdfast, clients and live figures on loopback",
		Long: "Starts a server, Holdfast and clients on loopback, checks every octet at both ends, and\n" +
			"shows live figures while it reloads, rebalances and upgrades Holdfast.\n" +
			"Ends by Ctrl-C; without a terminal, after 30s.",
		Args: wants(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if flows < 10 || duration < 0 {
				return &exit{exitUsage, fmt.Errorf("demo: --flows is at least 10, --duration is not negative")}
			}
			asJSON, _ := c.Flags().GetBool("json")
			d := &demonstration{show: show{terminal: sock.IsTerminal(os.Stdout)}, flows: flows, duration: duration}
			if duration == 0 && !d.show.terminal {
				d.duration = unwatched
			}
			return d.run(asJSON)
		},
	}
	c.Flags().DurationVar(&duration, "duration", 0, "end by itself; 0s: by Ctrl-C")
	c.Flags().IntVar(&flows, "flows", 200, "long-lived flows; short ones come on top")
	return c
}

// demonstration is one run of the demo.
type demonstration struct {
	show
	flows    int
	duration time.Duration // 0: until Ctrl-C

	began    time.Time
	traffic  *demo.Traffic
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
	if d.holdfast, err = startDemoHoldfast(d.traffic.Server()); err != nil {
		return &exit{exitFailed, err}
	}
	defer d.holdfast.end()
	d.say("Holdfast runs as process %d, between a server and %d long flows on loopback; every octet is checked at both ends",
		d.holdfast.pid, d.flows)
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	d.trouble = d.traffic.Open(ctx, d.holdfast.vip, d.flows)
	cancel()
	d.began = time.Now()
	d.loop(signals)
	return d.conclude(asJSON)
}

// loop shows figures and makes the tour until the end has come.
func (d *demonstration) loop(signals chan os.Signal) {
	step, end := tourStep, make(<-chan time.Time)
	if d.duration > 0 {
		step, end = min(tourStep, d.duration/6), time.After(d.duration)
	}
	tour := d.tour()
	next := time.After(step)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	d.heard = time.Now()
	d.before, d.at = d.traffic.Look(), time.Now() // opening is no figure
	for d.trouble == nil && d.failed == nil {
		select {
		case <-signals:
			d.say("ending ...")
			return
		case <-end:
			return
		case <-next:
			d.trouble = tour[0]()
			if tour = tour[1:]; len(tour) > 0 {
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
	d.figures(d.traffic.Look(), &d.status)
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
	f := d.traffic.Stop(endTime)
	if err := d.ask(); err != nil && d.trouble == nil {
		d.trouble = err
	}
	if err := d.holdfast.end(); err != nil && d.trouble == nil {
		d.trouble = err
	}
	s := summarize(seconds, d.flows, f, &d.status, d.trouble)
	d.summary(s, asJSON)
	if !s.OK {
		return &exit{code: exitFailed}
	}
	return nil
}
