package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// appetite is what a process has at a moment.
type appetite struct {
	at       time.Time
	pid      int
	rssBytes int // resident, without what it shares of its binary
	fds      int
}

// appetiteOf reads it from /proc. It fails when the process has ended.
func appetiteOf(pid int) (appetite, error) {
	a := appetite{at: time.Now(), pid: pid}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return a, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				return a, fmt.Errorf("lab: %q: %w", line, err)
			}
			a.rssBytes = kib << 10
		}
	}
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	a.fds = len(names)
	return a, err
}

func (a appetite) String() string {
	return fmt.Sprintf("%.1f MB, %d fds", megabytes(a.rssBytes), a.fds)
}

func megabytes(octets int) float64 { return float64(octets/1e5) / 10 }

// scale samples the appetite of the process that serves, which upgrades
// replace.
type scale struct {
	every time.Duration
	pid   func() int

	mu   sync.Mutex // guards runs and last
	runs []run
	last appetite
}

// run is one process's time of service.
type run struct {
	pid         int
	from, to    time.Time
	first, most appetite // most: each figure on its own
}

// weigh samples until stop is closed. Whoever calls it waits for it.
func (s *scale) weigh(stop <-chan struct{}) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		s.once()
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

func (s *scale) once() {
	a, err := appetiteOf(s.pid())
	if err != nil {
		return // between two processes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = a
	if n := len(s.runs); n == 0 || s.runs[n-1].pid != a.pid {
		s.runs = append(s.runs, run{pid: a.pid, from: a.at, first: a, most: a})
	}
	r := &s.runs[len(s.runs)-1]
	r.to = a.at
	r.most.rssBytes, r.most.fds = max(r.most.rssBytes, a.rssBytes), max(r.most.fds, a.fds)
}

// now is the last sample.
func (s *scale) now() appetite {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// all gives the runs so far.
func (s *scale) all() []run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]run(nil), s.runs...)
}

// running lists the processes of this world whose program is binary.
func running(binary string) []int {
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.TrimSuffix(to, " (deleted)") == binary {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l))); err == nil && Alive(pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
