package node

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// Shedding begins at 90 % of the bound and ends below 85 %.
func TestShort(t *testing.T) {
	for _, x := range []struct {
		was         bool
		used, bound uint64
		want        bool
	}{
		{false, 899, 1000, false}, {false, 900, 1000, true}, {true, 899, 1000, true}, {true, 850, 1000, true}, {true, 849, 1000, false},
		{false, 5000, 1000, true}, {false, 5000, 0, false}, {true, 5000, 0, false},
	} {
		if got := short(x.was, x.used, x.bound); got != x.want {
			t.Errorf("short(%v, %d, %d) is %v", x.was, x.used, x.bound, got)
		}
	}
}

// With less memory than the process has, idle clients are closed, nobody new is
// accepted, and who waits is served as soon as there is enough.
func TestMemoryBound(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	with := func(bound string) string {
		return strings.Replace(site(web, raw, server, ""), "loops: 2", "loops: 2, memory: { max: "+bound+" }", 1)
	}
	// A bound is 64 MiB at least, so the process must have more.
	ballast := make([]byte, 96<<20)
	for i := 0; i < len(ballast); i += 4096 {
		ballast[i] = 1
	}
	defer runtime.KeepAlive(ballast)
	r := start(t, with("64GiB"))
	idle := dial(t, web)
	says200(t, idle)
	r.reload(with("64MiB"))
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("an idle client was not closed")
	}
	if !r.shared.Shedding.Load() {
		t.Error("it does not shed")
	}
	late := dial(t, raw) // by the kernel
	if _, err := late.Write([]byte("GET /late HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if n := value(t, r.Measure(), "shed_total", "", "pause-accepting"); n != 1 {
		t.Errorf("accepting paused %g times", n)
	}
	if n := value(t, r.Measure(), "shed_total", "", "close-idle"); n < 1 {
		t.Errorf("%g idle clients closed", n)
	}
	time.Sleep(2 * memoryEvery) // nothing would be a proof that it is never accepted
	if n := len(r.flows(0)); n != 0 {
		t.Errorf("%d flows", n)
	}
	r.reload(with("64GiB"))
	if _, err := late.Read(make([]byte, 1)); err != nil {
		t.Errorf("who waited was not served: %v", err)
	}
	if r.shared.Shedding.Load() {
		t.Error("it still sheds")
	}
}
