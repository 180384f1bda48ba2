package node

import (
	"errors"
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
	current := n.gen.Config
	n.mu.Unlock()
	source := n.state.current().doc.Source()
	began := time.Now()
	r := &BusyReport{}
	failed := make(chan int, 1)
	checks := int(d.Seconds() * float64(checksPerSecond))
	var all []*config.Endpoint
	for _, b := range current.SortedBackends() {
		all = append(all, b.Endpoints...)
	}
	if checks > 0 && len(all) == 0 {
		return nil, errors.New("node: the configuration has no endpoint to check")
	}
	go func() { failed <- checkAll(all, checks, d) }() // ends after d
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
	r.Millis = millis(time.Since(began))
	return r, nil
}

// checkAll connects a number of times in d to all endpoints in turn.
func checkAll(all []*config.Endpoint, times int, d time.Duration) (failed int) {
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
