package tcprepair

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must(t, "/proc/self/fd", err)
	return len(d)
}

// sysctl sets net.ipv4.name in the tests' namespace and returns its undo.
func sysctl(t testing.TB, name, v string) func() {
	t.Helper()
	path := filepath.Join("/proc/sys/net/ipv4", name)
	old, err := os.ReadFile(path)
	must(t, name, err)
	must(t, name, os.WriteFile(path, []byte(v), 0))
	return func() { must(t, name, os.WriteFile(path, old, 0)) }
}

// BenchmarkMove moves one idle connection again and again. The steps are
// timed apart: us of one call each.
func BenchmarkMove(b *testing.B) {
	for _, bm := range []struct {
		name   string
		octets int
	}{{"idle", 0}, {"recv64KiB", 64 << 10}} {
		b.Run(bm.name, func(b *testing.B) {
			c := newConn(b, families[0].ours, families[0].peers, func(fd int, our bool) {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
			})
			if bm.octets > 0 {
				wait(b, "queue", func() bool {
					c.write(false, bm.octets-c.peersWrote)
					n, _ := ioctlInt(c.ours, unix.SIOCINQ, "SIOCINQ")
					return n == bm.octets
				})
			}
			var steps [4]timer
			s := new(State)
			for b.Loop() {
				var err error
				steps[0].time(func() { err = SaveTo(s, c.ours, SaveOptions{}) })
				must(b, "Save", err)
				steps[1].time(func() { err = Discard(c.ours) })
				must(b, "Discard", err)
				steps[2].time(func() { c.ours, err = Restore(s, Options{}) })
				must(b, "Restore", err)
				steps[3].time(func() { _, err = GoLive(c.ours, s) })
				must(b, "GoLive", err)
			}
			for i, name := range []string{"save-us", "discard-us", "restore-us", "golive-us"} {
				b.ReportMetric(steps[i].sum.Seconds()*1e6/float64(b.N), name)
			}
		})
	}
}

// Whoever moves many sockets one after the other with one State allocates
// nothing, there and back and in between.
func TestNothingAllocated(t *testing.T) {
	eachFamily(t, func(t *testing.T, ours, peers netip.Addr) {
		c := newConn(t, ours, peers, nil)
		c.bothWrote()
		s, moved, wire := new(State), new(State), []byte(nil)
		if n := testing.AllocsPerRun(50, func() {
			must(t, "SaveTo", SaveTo(s, c.ours, SaveOptions{}))
			must(t, "Resume", Resume(c.ours))
			must(t, "SaveTo", SaveTo(s, c.ours, SaveOptions{}))
			must(t, "Verify", Verify(c.ours, s))
			must(t, "Discard", Discard(c.ours))
			var err error
			wire, err = s.AppendBinary(wire[:0])
			must(t, "AppendBinary", err)
			must(t, "UnmarshalBinary", moved.UnmarshalBinary(wire))
			c.ours, err = Restore(moved, Options{})
			must(t, "Restore", err)
			_, err = GoLive(c.ours, moved)
			must(t, "GoLive", err)
		}); n != 0 {
			t.Errorf("%v allocations a move", n)
		}
		c.finish(true, true)
	})
}
