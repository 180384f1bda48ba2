package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// series is one line of the metrics.
type series struct {
	labels map[string]string
	value  float64
}

// metricsOf reads the text exposition of Prometheus, in the form in which the
// node writes it: our own names without their prefix, by name.
func metricsOf(text []byte) map[string][]series {
	all := map[string][]series{}
	for line := range bytes.Lines(text) {
		name, rest, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
		if i := strings.IndexByte(string(line), '{'); i >= 0 && i < len(name) {
			// Values of labels may have blanks.
			end := bytes.LastIndexByte(line, '}')
			if end < i {
				continue
			}
			name, rest = string(line[:end+1]), strings.TrimSpace(string(line[end+1:]))
			ok = true
		}
		name, ours := strings.CutPrefix(name, "holdfast_")
		if !ok || !ours {
			continue
		}
		value, err := strconv.ParseFloat(rest, 64)
		if err != nil {
			continue
		}
		name, labels, _ := strings.Cut(name, "{")
		all[name] = append(all[name], series{labelsOf(strings.TrimSuffix(labels, "}")), value})
	}
	return all
}

func labelsOf(text string) map[string]string {
	all := map[string]string{}
	for text != "" {
		name, rest, ok := strings.Cut(text, `="`)
		if !ok {
			return all
		}
		var value strings.Builder
		i := 0
		for ; i < len(rest) && rest[i] != '"'; i++ {
			if rest[i] == '\\' && i+1 < len(rest) {
				if i++; rest[i] == 'n' {
					value.WriteByte('\n')
					continue
				}
			}
			value.WriteByte(rest[i])
		}
		all[name] = value.String()
		text = strings.TrimPrefix(rest[min(len(rest), i+1):], ",")
	}
	return all
}

// scrape asks for the metrics.
func (c *client) scrape() (map[string][]series, error) {
	answer, err := c.http.Get(c.base + "/metrics")
	if err != nil {
		return nil, &exit{exitFailed, c.silent(err)}
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("metrics: %s", answer.Status)
	}
	if err != nil {
		return nil, &exit{exitFailed, err}
	}
	return metricsOf(b), nil
}

// counts are sums of metrics that only grow, for one listener, backend or
// endpoint.
type counts struct {
	requests, refused, errors float64 // refused 4xx, errors 5xx and none
	in, out                   float64
	buckets                   map[float64]float64 // of durations, by upper bound in seconds
}

func (c *counts) code(code string, n float64) {
	c.requests += n
	switch code {
	case "4xx":
		c.refused += n
	case "5xx":
		c.errors += n
	}
}

// countsOf sums the metrics up by listener ("listener"), by backend and by
// endpoint ("backend/endpoint").
func countsOf(m map[string][]series) (listeners, backends, endpoints map[string]*counts) {
	listeners, backends, endpoints = map[string]*counts{}, map[string]*counts{}, map[string]*counts{}
	of := func(m map[string]*counts, name string) *counts {
		c := m[name]
		if c == nil {
			c = &counts{buckets: map[float64]float64{}}
			m[name] = c
		}
		return c
	}
	for _, s := range m["requests_total"] {
		of(listeners, s.labels["listener"]).code(s.labels["code"], s.value)
		if name := s.labels["backend"]; name != "" {
			of(backends, name).code(s.labels["code"], s.value)
		}
	}
	for _, s := range m["endpoint_requests_total"] {
		of(endpoints, s.labels["backend"]+"/"+s.labels["endpoint"]).code(s.labels["code"], s.value)
	}
	for _, s := range m["received_bytes_total"] {
		of(listeners, s.labels["listener"]).in += s.value
	}
	for _, s := range m["sent_bytes_total"] {
		of(listeners, s.labels["listener"]).out += s.value
	}
	for _, s := range m["request_duration_seconds_bucket"] {
		bound, err := strconv.ParseFloat(s.labels["le"], 64)
		if err != nil {
			continue
		}
		of(listeners, s.labels["listener"]).buckets[bound] += s.value
		if name := s.labels["backend"]; name != "" {
			of(backends, name).buckets[bound] += s.value
		}
	}
	return listeners, backends, endpoints
}

// rate is what happened in a second.
type rate struct {
	requests, refused, errors float64
	in, out                   float64
	p99                       time.Duration // 0: unknown
}

// ratesOf compares two looks, so many seconds apart.
func ratesOf(before, now map[string]*counts, seconds float64) map[string]rate {
	all := map[string]rate{}
	for name, n := range now {
		b := before[name]
		if b == nil {
			b = &counts{}
		}
		per := func(b, n float64) float64 { return max(0, n-b) / seconds }
		all[name] = rate{
			per(b.requests, n.requests), per(b.refused, n.refused), per(b.errors, n.errors), per(b.in, n.in), per(b.out, n.out),
			quantile(0.99, b.buckets, n.buckets),
		}
	}
	return all
}

// quantile is the upper bound of the bucket in which the q-th part lies of what
// came to n since b. Buckets are cumulative.
func quantile(q float64, b, n map[float64]float64) time.Duration {
	var bounds []float64
	for bound := range n {
		bounds = append(bounds, bound)
	}
	slices.SortFunc(bounds, cmp.Compare[float64])
	if len(bounds) == 0 {
		return 0
	}
	last := bounds[len(bounds)-1]
	all := n[last] - b[last]
	for i, bound := range bounds {
		if all > 0 && n[bound]-b[bound] >= q*all {
			if math.IsInf(bound, 1) && i > 0 {
				bound = bounds[i-1] // more than that
			}
			if math.IsInf(bound, 1) {
				return 0
			}
			return time.Duration(bound * 1e9)
		}
	}
	return 0
}

func quantileText(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return short(d)
}

func perSecond(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 10:
		return fmt.Sprintf("%.1f", n)
	}
	return thousands(int(n + 0.5))
}
