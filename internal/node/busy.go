package node

import (
	"fmt"
	"net"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// BusyReport tells what Busy has done.
type BusyReport struct {
	Parses int     `json:"parses"`
	Checks int     `json:"checks"`
	Failed int     `json:"checks_failed"`
	Millis float64 `json:"millis"`
}

// Busy keeps the control side at work for d: it parses and compares the
// configuration in force, and connects to endpoints as checks would, at the
// given rates. It exists to measure what that costs the loops.
func (n *Node) Busy(d time.Duration, parses, checksPerSecond int) (*BusyReport, error) {
	n.mu.Lock()
	source, current := n.source, n.gen.Config
	n.mu.Unlock()
	began := time.Now()
	r := &BusyReport{}
	failed := make(chan int, 1)
	checks := int(d.Seconds() * float64(checksPerSecond))
	go func() { failed <- n.checkAll(current, checks, d) }() // ends after d
	for i := range parses {
		// Spread over the time, as changes are.
		time.Sleep(time.Until(began.Add(d * time.Duration(i) / time.Duration(parses))))
		c, _, err := Parse(n.file, source)
		if err != nil {
			return nil, err
		}
		if p := config.Diff(current, c); !p.Empty() {
			return nil, fmt.Errorf("node: the configuration in force differs from itself: %s", p)
		}
		r.Parses++
	}
	r.Checks, r.Failed = checks, <-failed
	r.Millis = float64(time.Since(began).Microseconds()) / 1000
	return r, nil
}

// checkAll connects n times in d to the endpoints of c in turn.
func (n *Node) checkAll(c *config.Config, times int, d time.Duration) (failed int) {
	var all []*config.Endpoint
	for _, b := range c.SortedBackends() {
		all = append(all, b.Endpoints...)
	}
	began := time.Now()
	for i := range times {
		time.Sleep(time.Until(began.Add(d * time.Duration(i) / time.Duration(times))))
		e := all[i%len(all)]
		network, address := "tcp", e.Addr.String()
		if e.Unix != "" {
			network, address = "unix", e.Unix
		}
		dialer := net.Dialer{Timeout: time.Second}
		dialer.SetMultipathTCP(false)
		conn, err := dialer.Dial(network, address)
		if err != nil {
			failed++
			continue
		}
		_ = conn.Close()
	}
	return failed
}
