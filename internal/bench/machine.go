package bench

import (
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
)

// Machine is what one has to know to read the figures of a run.
type Machine struct {
	CPU        string            `json:"cpu"`
	CPUs       int               `json:"cpus"`
	Kernel     string            `json:"kernel"`
	Congestion string            `json:"congestion"` // the TCP congestion control in force
	TimeWaits  string            `json:"time_waits"` // the most TIME-WAIT sockets that are kept
	Namespace  bool              `json:"namespace"`  // a network namespace of the run's own
	Go         string            `json:"go"`
	Load       string            `json:"load"` // load averages before the run
	Versions   map[string]string `json:"versions"`
}

// observeMachine reads what it can; what it cannot read stays empty.
func observeMachine(namespace bool) Machine {
	return Machine{
		CPU:        modelName(readString("/proc/cpuinfo")),
		CPUs:       runtime.NumCPU(),
		Kernel:     readString("/proc/sys/kernel/osrelease"),
		Congestion: readString("/proc/sys/net/ipv4/tcp_congestion_control"),
		TimeWaits:  readString("/proc/sys/net/ipv4/tcp_max_tw_buckets"),
		Namespace:  namespace,
		Go:         runtime.Version(),
		Load:       readString("/proc/loadavg"),
		Versions:   map[string]string{},
	}
}

func readString(path string) string {
	b, _ := os.ReadFile(path) // absent: empty
	return strings.TrimSpace(string(b))
}

// modelName finds the first "model name" of /proc/cpuinfo.
func modelName(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// versionPattern finds a version in what `haproxy -v` or `nginx -v` print.
var versionPattern = regexp.MustCompile(`(?:version |nginx/)(\S+)`)

// versionOf asks a program for its version; empty if it does not say.
func versionOf(program string, args ...string) string {
	out, _ := exec.Command(program, args...).CombinedOutput() // no version: empty
	if m := versionPattern.FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return ""
}
