package lab

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// The report of an upgrade is found in whatever the verb writes, and what is none
// is not taken for one.
func TestReadUpgrade(t *testing.T) {
	for _, x := range []struct {
		name, out string
		flows     int // -1: an error is wanted
	}{
		{"a report alone", `{"distance":"process","flows":7,"pid":42}`, 7},
		{"steps", `{"phase":"starting"}` + "\n" + `{"phase":"flows","flows":3}` + "\n" + `{"phase":"done","done":true,"move":{"flows":9,"pid":43,"phases_ms":{"flows":1.5}}}`, 9},
		{"aborted", `{"phase":"aborted","failed":"it died","move":{"flows":0,"pid":43}}`, -1},
		{"ended before the last step", `{"phase":"flows","flows":3}`, -1},
		{"no process", `{"distance":"process","flows":7}`, -1},
		{"no JSON", `upgraded`, -1},
		{"nothing", ``, -1},
	} {
		r, err := readUpgrade([]byte(x.out))
		switch {
		case x.flows < 0 && err == nil:
			t.Errorf("%s: %+v, want an error", x.name, r)
		case x.flows >= 0 && (err != nil || r.Flows != x.flows):
			t.Errorf("%s: %+v, %v, want %d flows", x.name, r, err, x.flows)
		}
	}
}

// A scene adds its reports up, and an upgrade of whose pauses nobody tells does
// not count as one without.
func TestUpgradeSceneAddsUp(t *testing.T) {
	var x upgradeScene
	r := &upgradeReport{MoveReport: MoveReport{Flows: 10, Refused: 1, Lost: 2, Millis: 50, Pause: PauseMicros{P50: 500, P99: 900, Max: 1000}},
		Kinds: map[string]kindReport{"idle": {Flows: 10, Octets: 20, Frozen: 3000}}, Phases: map[string]float64{"starting": 30, "canary": 5, "switching": 1, "flows": 10}}
	x.note(r)
	x.note(&upgradeReport{MoveReport: MoveReport{Flows: 10, Millis: 70}, Kinds: map[string]kindReport{"idle": {Flows: 10, Frozen: 1000}}})
	if x.n != 2 || x.moved != 20 || x.refused != 1 || x.lost != 2 || x.kinds["idle"] != (kindReport{20, 20, 4000}) {
		t.Errorf("got %+v", x)
	}
	if p := x.pauses.pooled(); p.Max != 1000 || p.P50 < 490 {
		t.Errorf("pauses %+v, want those of the first report alone", p)
	}
	took, _ := x.took()
	if took.N != 1 || took.Max != 16*time.Millisecond {
		t.Errorf("hand-over of %d upgrades, longest %v, want 1 of 16 ms", took.N, took.Max)
	}
}

// The collector's trace is read as Go writes it, and nothing else is.
func TestReadCollections(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	text := "ready: 12 listeners\n" +
		"gc 1 @0.330s 0%: 0.044+2.5+0.010 ms clock, 0.088+0.12/2.0/0.63+0.020 ms cpu, 15->15->3 MB, 16 MB goal, 0 MB stacks, 0 MB globals, 4 P\n" +
		"time=x msg=\"gc 3 @1s 0%: 9+9+9 ms clock\"\n" +
		"gc 2 @0.581s 10%: 1.5+7+0.5 ms clock, 0.22+0.21/0.13/4.0+0.006 ms cpu, 31->31->12 MB, 37 MB goal, 0 MB stacks, 0 MB globals, 4 P (forced)\n"
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := readCollections(log)
	if c.stops.N != 2 || c.stops.Max != 2*time.Millisecond || c.marks.Max != 7*time.Millisecond {
		t.Errorf("%d runs, everything stood for %v, marked for %v; want 2, 2ms, 7ms", c.stops.N, c.stops.Max, c.marks.Max)
	}
}

// All ways are taken in any ten upgrades, and in the five of a short run.
func TestEveryWayOfUpgrade(t *testing.T) {
	for _, n := range []int{5, 10} {
		seen := map[upgradeWay]bool{}
		for i := range n {
			seen[wayOf(i)] = true
		}
		if len(seen) != int(upgradeWays) {
			t.Errorf("%d upgrades: %d of %d ways", n, len(seen), upgradeWays)
		}
	}
}

// The configurations of the first scene are what the product reads, and the later
// ones have neither listeners nor backends of the flows that were opened first.
func TestUpgradeConfigurations(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:80")
	b := &upgradeSide{services: []Service{{Name: "was", VIP: at, To: at}, {Name: "web", VIP: netip.MustParseAddrPort("127.0.0.1:81"), To: at, HTTP: true}, {Name: "queue", VIP: netip.MustParseAddrPort("127.0.0.1:82"), To: at, Slots: 2}}}
	var versions []string
	for variant := range 3 {
		text := strings.Replace(b.config(variant, 1+variant), "SOCKET", "/tmp/s", 1)
		c, _, err := config.Parse("upgrade.yaml", []byte(text), nil)
		if err != nil {
			t.Fatalf("variant %d: %v\n%s", variant, err, text)
		}
		if has := c.Listeners["was"] != nil; has != (variant == 0) {
			t.Errorf("variant %d has the listener was: %v", variant, has)
		}
		if has := c.Backends["was"] != nil; has != (variant == 0) {
			t.Errorf("variant %d has the backend was: %v", variant, has)
		}
		if c.Node.Loops != 1+variant {
			t.Errorf("variant %d has %d loops", variant, c.Node.Loops)
		}
		versions = append(versions, fmt.Sprintf("%v %v", c.Listeners["web"].Ref, c.Listeners["queue"].Ref))
	}
	if versions[1] == versions[2] {
		t.Errorf("a reload from variant 1 to 2 changes nothing: %s", versions[1])
	}
	if q := strings.Fields(versions[1])[1]; q != strings.Fields(versions[2])[1] {
		t.Errorf("a reload replaces what those name who wait: %s, %s", versions[1], versions[2])
	}
}

// An echo flow notices a word that comes back changed, and one that never does.
func TestEchoNotices(t *testing.T) {
	for _, x := range []struct {
		name   string
		answer func(word []byte) []byte
		want   string
	}{
		{"changed", func(w []byte) []byte { w[3] ^= 1; return w }, "came back for"},
		{"cut", func(w []byte) []byte { return w[:7] }, "unexpected EOF"},
	} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := &echoFlow{fd: pair[0], key: 9}
		e := &echoSide{flows: []*echoFlow{f}}
		ended := make(chan error, 1)
		go func() { ended <- e.run(f) }()
		var word [echoWord]byte
		for range 3 { // as it should be
			if err := readFull(pair[1], word[:]); err != nil {
				t.Fatal(err)
			}
			if err := writeFull(pair[1], word[:]); err != nil {
				t.Fatal(err)
			}
		}
		if err := readFull(pair[1], word[:]); err != nil {
			t.Fatal(err)
		}
		if err := writeFull(pair[1], x.answer(bytes.Clone(word[:]))); err != nil {
			t.Fatal(err)
		}
		_ = unix.Shutdown(pair[1], unix.SHUT_WR)
		if err := <-ended; err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
		var r EchoReport
		if err := e.Look(true, &r); err != nil || r.Words != 3 || r.Delay.N != 3 || len(r.Worst) != 1 || r.Worst[0] <= 0 {
			t.Errorf("%s: %+v, %v, want 3 words", x.name, r, err)
		}
		r = EchoReport{}
		if err := e.Look(true, &r); err != nil || r.Delay.N != 0 || r.Worst[0] != 0 {
			t.Errorf("%s: looked at again: %+v, %v, want nothing new", x.name, r, err)
		}
		_ = unix.Close(pair[0])
		_ = unix.Close(pair[1])
	}
}

// Each balancer gets the service of the echo flows once, and peers a bound if
// they shall have one; the product reads what it gets.
func TestUpgradeSyntaxes(t *testing.T) {
	f := newServiceFleet(10)
	f.next(1)
	all := map[string]*syntax{
		"holdfast": holdfastSyntax(),
		"haproxy":  haproxySyntax("/tmp/stats", 100),
		"nginx":    nginxSyntax("/tmp/nginx", 100),
	}
	bounds := map[string]string{"haproxy": "hard-stop-after 10s\n", "nginx": "worker_shutdown_timeout 10s;\n"}
	for name, y := range all {
		if bounds[name] != "" {
			y = y.bounded(10 * time.Second)
		}
		for i := range f.services { // each syntax renders all of them once
			f.dirty[i] = true
		}
		text := y.withEcho().file(f)
		if n := strings.Count(text, loopbackPort(manyEchoPort)); n != 1 {
			t.Errorf("%s: the echo flows' VIP is there %d times, want 1\n%s", name, n, text)
		}
		if n := strings.Count(text, manyEchoServer); n != 1 {
			t.Errorf("%s: the echo flows' server is there %d times, want 1\n%s", name, n, text)
		}
		if b := bounds[name]; b != "" && strings.Count(text, b) != 1 {
			t.Errorf("%s: %q is not there once\n%s", name, b, text)
		}
		if name != "holdfast" {
			continue
		}
		c, _, err := config.Parse(name, []byte(strings.Replace(text, "SOCKET", "/tmp/s", 1)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Listeners["echo"] == nil || c.Backends["echo"] == nil {
			t.Error("holdfast: no service for the echo flows")
		}
	}
}

// What a process holds is counted by the kernel's word: connections to the
// services' ports, accepted ones alone.
func TestClientConnections(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	port := uint64(lis.Addr().(*net.TCPAddr).Port)
	for range 3 {
		c, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		s, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
	}
	me := []int{os.Getpid()}
	if n := clientConnections(me, port, port); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
	if n := clientConnections([]int{1 << 30}, port, port); n != 0 {
		t.Errorf("%d connections of a process that there is not", n)
	}
	if n := clientConnections(me, port+1, port+1); n != 0 {
		t.Errorf("%d connections to a port at which nobody listens", n)
	}
}
