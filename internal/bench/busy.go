package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// busyOrder is the body of the method Busy: work of the kind that the
// control side does, done on purpose.
type busyOrder struct {
	Seconds         int `json:"seconds"`
	Parses          int `json:"parses"`
	ChecksPerSecond int `json:"checks_per_second"`
}

// busyPath is where Holdfast takes the order.
const busyPath = "http://unix/holdfast.v1.Node/Busy"

// busy lets quiet and busy rounds take turns. In a busy one the process also
// parses configurations and probes endpoints.
func (m *run) busy() error {
	s := m.sides[0]
	if err := m.launch(s); err != nil {
		return err
	}
	// A second at least: the order counts in seconds.
	m.measure = max(m.measure, 3*time.Second)
	var quiet, busy []loadResult
	for i := range m.roundsN {
		for j := range 2 {
			if err := m.interrupted(); err != nil {
				return err
			}
			isBusy := (i+j)%2 == 1
			r, err := m.busyRound(s, isBusy)
			if err != nil {
				return err
			}
			if isBusy {
				busy = append(busy, r)
			} else {
				quiet = append(quiet, r)
			}
		}
	}
	s.samples = append(quiet, busy...)
	m.result.Busy = compareBusy(quiet, busy)
	return nil
}

// busyRound runs the generator, with the work under way if isBusy.
func (m *run) busyRound(s *side, isBusy bool) (loadResult, error) {
	if !isBusy {
		return m.load(s, m.spec(s))
	}
	// The work begins with the warm-up and ends with the count.
	order := busyOrder{Seconds: int((warmup + m.measure + time.Second - 1) / time.Second), Parses: 1000, ChecksPerSecond: 1000}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(order.Seconds)*time.Second+10*time.Second)
	defer cancel()
	asked := make(chan error, 1)
	go func() { asked <- askBusy(ctx, filepath.Join(s.settings.Dir, "admin.sock"), order) }()
	r, err := m.load(s, m.spec(s))
	if err != nil {
		cancel()
		<-asked
		return r, err
	}
	return r, <-asked
}

// askBusy gives the order through the admin socket and returns when it has
// been carried out, or has been accepted: Holdfast may answer at either time.
func askBusy(ctx context.Context, socket string, order busyOrder) error {
	body, err := json.Marshal(order)
	if err != nil {
		return fmt.Errorf("bench: busy: %w", err)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, busyPath, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("bench: busy: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("bench: busy: %w", err)
	}
	defer func() { _ = answer.Body.Close() }() // read already
	said, _ := io.ReadAll(io.LimitReader(answer.Body, errTailBytes))
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("bench: busy: %s: %s", answer.Status, said)
	}
	return nil
}

// Busy compares the latencies of quiet and busy rounds, medians of each.
type Busy struct {
	QuietP99Micros float64 `json:"quiet_p99_us"`
	BusyP99Micros  float64 `json:"busy_p99_us"`
	P99Ratio       float64 `json:"p99_ratio"`
	QuietMaxMicros float64 `json:"quiet_max_us"`
	BusyMaxMicros  float64 `json:"busy_max_us"`
	MaxRatio       float64 `json:"max_ratio"`
}

func compareBusy(quiet, busy []loadResult) *Busy {
	p99 := func(r loadResult) float64 { return micros(r.P99) }
	most := func(r loadResult) float64 { return micros(r.Max) }
	b := &Busy{
		QuietP99Micros: medianOf(quiet, p99), BusyP99Micros: medianOf(busy, p99),
		QuietMaxMicros: medianOf(quiet, most), BusyMaxMicros: medianOf(busy, most),
	}
	b.P99Ratio = quotient(b.BusyP99Micros, b.QuietP99Micros)
	b.MaxRatio = quotient(b.BusyMaxMicros, b.QuietMaxMicros)
	return b
}
