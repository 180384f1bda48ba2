package sock

import (
	"maps"
	"net/netip"
	"testing"
	"time"
)

// The counters of two files that a kernel wrote, and what of them has grown.
func TestParseLosses(t *testing.T) {
	var x, y Losses
	parseLosses([]byte("TcpExt: SyncookiesSent EmbryonicRsts ListenOverflows ListenDrops New\nTcpExt: 9 3 18446744073709551615 7 1\nIpExt: InNoRoutes\nIpExt: 8\n"), &x)
	parseLosses([]byte("Ip: Forwarding\nIp: 1\nTcp: MaxConn AttemptFails OutRsts\nTcp: -1 5 6"), &x)
	want := Losses{}
	want[lossy["EmbryonicRsts"]], want[lossy["ListenOverflows"]], want[lossy["ListenDrops"]] = 3, 1<<64-1, 7
	want[lossy["AttemptFails"]], want[lossy["OutRsts"]] = 5, 6
	if x != want {
		t.Errorf("got %v, want %v", x, want)
	}
	y = x
	y[lossy["ListenDrops"]] += 2
	y[lossy["OutRsts"]]--
	if got := y.Since(&x); !maps.Equal(got, map[string]uint64{"ListenDrops": 2}) {
		t.Errorf("grown: %v", got)
	}
}

// A reset that this test causes is counted, and reading costs no memory.
func TestReadLosses(t *testing.T) {
	r, err := OpenLosses()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var before, after Losses
	if err := r.Read(&before); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(ListenSpec{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, _, e := Dial(&DialSpec{Addr: LocalAddr(l)})
	if e != 0 {
		t.Fatal(e)
	}
	conn, _, e := Accept(l)
	for tries := 0; e == Again && tries < 1000; tries++ {
		time.Sleep(time.Millisecond)
		conn, _, e = Accept(l)
	}
	if e != 0 {
		t.Fatal(e)
	}
	conn.CloseReset()
	fd.Close()
	if err := r.Read(&after); err != nil {
		t.Fatal(err)
	}
	if after.Since(&before)["OutRsts"] == 0 {
		t.Errorf("a reset is not counted: %v", after.Since(&before))
	}
	if n := testing.AllocsPerRun(20, func() { _ = r.Read(&after) }); n != 0 {
		t.Errorf("%v allocations to read", n)
	}
}
