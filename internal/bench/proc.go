package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// family returns pid and all its descendants, found through
// /proc/PID/task/TID/children. Threads are part of their process.
func family(pid int) []int {
	pids := []int{pid}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is sound
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, family(child)...)
			}
		}
	}
	return pids
}

// residentBytes sums the resident memory of the processes. smaps_rollup walks
// the page tables: exact, where /proc/PID/statm lags by a batch per CPU.
func residentBytes(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, fmt.Errorf("bench: memory of process %d: %w", pid, err)
		}
		n, err := parseResident(string(b))
		if err != nil {
			return 0, fmt.Errorf("bench: memory of process %d: %w", pid, err)
		}
		sum += n
	}
	return sum, nil
}

var errNoResident = errors.New("no line Rss in kB")

// parseResident finds the line "Rss: n kB" and returns octets.
func parseResident(rollup string) (int64, error) {
	for line := range strings.Lines(rollup) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Rss:" && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errNoResident
}
