package probe

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/health"
)

// serverEnv makes the test binary a server, so that its own time is not counted
// as that of the probes.
const serverEnv = "PROBE_BENCH_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		benchServer()
		return
	}
	os.Exit(m.Run())
}

// benchServer answers every request on one port of 127.0.0.0/8, until its input
// ends.
func benchServer() {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	fmt.Println(port)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b := make([]byte, 512)
				_, _ = c.Read(b)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				_ = c.Close()
			}()
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTenThousandChecks probes 10,000 endpoints every 2 s by HTTP, one such
// interval for each iteration: go test -bench TenThousand -benchtime 10x. The
// first intervals, in which all are new, are reported apart.
func BenchmarkTenThousandChecks(b *testing.B) {
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), serverEnv+"=1")
	in, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = server.Wait() }()
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	port = port[:len(port)-1]

	const n, every, bucket = 10_000, 2 * time.Second, 10 * time.Millisecond
	x := httpCheck()
	x.Interval, x.Timeout = every, time.Second
	of := &config.Backend{Check: &x}
	of.Ref.Name = "web"
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	all := make([]Target, n)
	for i := range all {
		all[i] = Target{Name: fmt.Sprint("web/e", i), Network: "tcp", Address: fmt.Sprintf("127.1.%d.%d:%s", i/250, i%250+1, port), Check: &x, New: true, Every: every}
	}
	var mu sync.Mutex
	began := time.Now()
	failed := 0
	starts := make([]int32, 0, n*(b.N+3)) // in buckets since began
	e := New(func(_ *Target, r health.Result) time.Duration {
		at := time.Since(began) - r.Took
		mu.Lock()
		starts = append(starts, int32(at/bucket))
		if !r.Good {
			failed++
		}
		mu.Unlock()
		return every
	})
	e.Set(all)
	burst := func(from, to time.Duration) (mean, most float64, probes int) {
		mu.Lock()
		defer mu.Unlock()
		count := make([]int, (to-from)/bucket)
		for _, s := range starts {
			if k := int(s) - int(from/bucket); k >= 0 && k < len(count) {
				count[k]++
				probes++
			}
		}
		return float64(probes) / float64(len(count)), float64(slices.Max(count)), probes
	}
	time.Sleep(3 * every / 2)
	_, most, _ := burst(0, every)
	b.ReportMetric(most, "first-most/10ms")
	used := cpu()
	_ = e.Stats()
	from := time.Since(began)
	b.ResetTimer()
	for range b.N {
		time.Sleep(every)
	}
	b.StopTimer()
	spent, long := cpu()-used, time.Since(began)-from
	s := e.Stats()
	mean, most, probes := burst(from, from+long)
	b.ReportMetric(float64(heap()-before)/n, "octets/check")
	e.Stop()
	b.ReportMetric(100*float64(spent)/float64(long), "%cpu")
	b.ReportMetric(float64(spent.Microseconds())/float64(probes), "us/probe")
	b.ReportMetric(float64(probes)/long.Seconds(), "probes/s")
	b.ReportMetric(mean, "mean/10ms")
	b.ReportMetric(most, "most/10ms")
	b.ReportMetric(float64(s.LateMax.Microseconds())/1000, "late-max-ms")
	b.ReportMetric(float64(failed), "failed")
	b.ReportMetric(0, "ns/op")
}
