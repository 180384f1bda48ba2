package supervise

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/internal/sock"
	"github.com/holdfast-lb/holdfast/internal/supervise/supervisetest"
)

// begin gives a supervisor and its stand-in.
func begin(t *testing.T, log *slog.Logger) (*Supervisor, *supervisetest.Supervisor) {
	t.Helper()
	in := supervisetest.New(t)
	t.Setenv(notifyEnv, in.Path)
	return FromEnvironment(log), in
}

// read waits until everything that was sent has been read.
func read(t *testing.T, s *Supervisor, in *supervisetest.Supervisor) supervisetest.State {
	t.Helper()
	if err := s.barrier(); err != nil {
		t.Fatal(err)
	}
	x := in.State()
	if len(x.Strange) > 0 {
		t.Errorf("no supervisor knows %q", x.Strange)
	}
	return x
}

func listen(t *testing.T, spec string, dual bool) sock.FD {
	t.Helper()
	fd, err := sock.Listen(sock.ListenSpec{Addr: netip.MustParseAddrPort(spec), DualStack: dual, Backlog: 8})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// What is said is what sd_notify(3) and sd_pid_notify_with_fds(3) ask for, each in
// one datagram.
func TestWhatIsSaid(t *testing.T) {
	s, in := begin(t, quiet())
	before := sock.Monotonic() / 1000
	s.Reloading("a new\nprocess \xff", 1500000000)
	s.Ready(os.Getpid(), "serves")
	s.Unchanged("it stays")
	s.Stopping("ends", 2000000000)
	said := read(t, s, in).Said
	if len(said) != 4 {
		t.Fatalf("said %q", said)
	}
	lines := strings.Split(said[0], "\n")
	usec, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "MONOTONIC_USEC="), 10, 64)
	if err != nil || usec < before || usec > sock.Monotonic()/1000 {
		t.Errorf("the moment is %q, after %d", lines[1], before)
	}
	lines[1] = "MONOTONIC_USEC="
	if want := []string{"RELOADING=1", "MONOTONIC_USEC=", "EXTEND_TIMEOUT_USEC=1500000", "STATUS=a new process ?"}; !slices.Equal(lines, want) {
		t.Errorf("reloading: %q, want %q", lines, want)
	}
	ready := "READY=1\nMAINPID=" + strconv.Itoa(os.Getpid())
	if id, ok := sock.ProcessID(os.Getpid()); ok {
		ready += fmt.Sprintf("\nMAINPIDFDID=%d", id)
	}
	for i, want := range []string{ready + "\nSTATUS=serves", "READY=1\nSTATUS=it stays", "STOPPING=1\nEXTEND_TIMEOUT_USEC=2000000\nSTATUS=ends"} {
		if said[1+i] != want {
			t.Errorf("said %q, want %q", said[1+i], want)
		}
	}
}

// Two processes are told apart by their second number, and one has the same always.
func TestProcessID(t *testing.T) {
	own, ok := sock.ProcessID(os.Getpid())
	if _, err := os.Stat("/proc/sys/kernel"); err == nil && !ok {
		t.Logf("this kernel has no numbers of processes that are never used again")
		return
	}
	parent, _ := sock.ProcessID(os.Getppid())
	again, _ := sock.ProcessID(os.Getpid())
	if own != again || own == parent {
		t.Errorf("own %d and %d, parent %d", own, again, parent)
	}
}

// A listener that was closed here accepts as long as it is kept, and no longer: when
// Forget returns, a client is refused.
func TestStore(t *testing.T) {
	s, in := begin(t, quiet())
	open := sock.Open()
	a, b := listen(t, "127.0.0.1:0", false), listen(t, "[::1]:0", false)
	at := map[string]string{"a": sock.LocalAddr(a).String(), "b": sock.LocalAddr(b).String()}
	s.Store("a", a)
	s.Store("b", b)
	s.Store("a", a) // as a successor does
	if got := read(t, s, in).Kept; !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("kept: %q", got)
	}
	a.Close()
	b.Close()
	for name, addr := range at {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("%s is kept, but: %v", name, err)
		}
		_ = c.Close()
	}
	s.Forget("a")
	if c, err := net.Dial("tcp", at["a"]); err == nil {
		_ = c.Close()
		t.Error("a was given up and takes connections")
	}
	if got := in.State().Kept; !slices.Equal(got, []string{"b"}) || !slices.Equal(s.Stored(), got) {
		t.Errorf("kept: %q; as we think: %q", got, s.Stored())
	}
	s.Forget("b")
	if c, err := net.Dial("tcp", at["b"]); err == nil {
		_ = c.Close()
		t.Error("b was given up and takes connections")
	}
	if now := sock.Open(); now != open {
		t.Errorf("%d descriptors are left", now-open)
	}
}

// That the unit keeps fewer than there are is said, and once.
func TestStoreIsFull(t *testing.T) {
	t.Setenv(storeEnv, "1")
	var log bytes.Buffer
	s, _ := begin(t, slog.New(slog.NewTextHandler(&log, nil)))
	fd := listen(t, "127.0.0.1:0", false)
	defer fd.Close()
	s.Store("a", fd)
	if log.Len() != 0 {
		t.Errorf("one of one is too many: %s", &log)
	}
	s.Store("b", fd)
	s.Store("c", fd)
	if n := strings.Count(log.String(), "FileDescriptorStoreMax"); n != 1 {
		t.Errorf("said %d times: %s", n, &log)
	}
}

// Without a supervisor, and with one that has gone, nothing fails and nothing waits.
func TestNobodyListens(t *testing.T) {
	for _, path := range []string{"", "vsock:2:1", "/nowhere/at/all", "@holdfast-test-nobody"} {
		t.Setenv(notifyEnv, path)
		s := FromEnvironment(quiet())
		s.Ready(os.Getpid(), "serves")
		s.Store("a", sock.NoFD)
		s.Status("still")
		if want := path != "" && path[0] != 'v'; s.Listens() != want {
			t.Errorf("%q listens: %t", path, s.Listens())
		}
	}
}

// A supervisor that stands still holds nobody up for long: hundreds of listeners are
// told of while it does, and nothing fails.
func TestNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	t.Setenv(notifyEnv, path)
	var log bytes.Buffer
	s := FromEnvironment(slog.New(slog.NewTextHandler(&log, nil)))
	for range 600 { // more than a queue holds: net.unix.max_dgram_qlen
		s.Status("still")
	}
	if n := strings.Count(log.String(), "cannot be told"); n != 1 {
		t.Errorf("said %d times: %s", n, &log)
	}
	if s.deaf.IsZero() {
		t.Error("it was waited for each time")
	}
}

// A name without a place among the files is one as well.
func TestAbstract(t *testing.T) {
	name := fmt.Sprintf("@holdfast-test-%d", os.Getpid())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	t.Setenv(notifyEnv, name)
	FromEnvironment(quiet()).Status("here")
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if err != nil || string(b[:n]) != "STATUS=here" {
		t.Errorf("read %q, %v", b[:n], err)
	}
}

// beside puts descriptors side by side, as a supervisor does, from a number on.
func beside(t *testing.T, fds ...int) (first int) {
	t.Helper()
	first = 300
	for i, fd := range fds {
		if fd < 0 {
			continue // a hole
		}
		if err := unix.Dup2(fd, first+i); err != nil {
			t.Fatal(err)
		}
	}
	return first
}

// Sockets that listen are taken with their names and places; all others are refused
// one by one, closed, and do not keep the good ones from being taken.
func TestTake(t *testing.T) {
	four, six, both := listen(t, "127.0.0.1:0", false), listen(t, "[::1]:0", false), listen(t, "[::]:0", true)
	defer four.Close()
	defer six.Close()
	defer both.Close()
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(udp) }()
	tcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(tcp) }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	open := sock.Open()
	fds := []int{int(four), int(null.Fd()), int(six), udp, tcp, int(four), -1, int(both)}
	first := beside(t, fds...)
	all, faults := take(first, len(fds), []string{"web", "null", "", "udp", "tcp"})
	for i, want := range []Listener{
		{Name: "web", At: sock.LocalAddr(four), FD: sock.FD(first)},
		{Name: "", At: sock.LocalAddr(six), FD: sock.FD(first + 2)},
		{Name: "unknown", At: sock.LocalAddr(both), Dual: true, FD: sock.FD(first + 7)},
	} {
		if i >= len(all) || all[i] != want {
			t.Fatalf("took %+v, want as %d. %+v", all, i, want)
		}
	}
	if len(all) != 3 || len(faults) != 5 {
		t.Errorf("took %d, faults %v", len(all), faults)
	}
	for i, want := range []string{"null: sock: fd", "no stream socket", "not listening", "comes twice", "descriptor 306"} {
		if i < len(faults) && !strings.Contains(faults[i].Error(), want) {
			t.Errorf("fault %d: %v, want %q", i, faults[i], want)
		}
	}
	for i := range fds {
		_, err := unix.FcntlInt(uintptr(first+i), unix.F_GETFD, 0)
		taken := slices.ContainsFunc(all, func(l Listener) bool { return l.FD == sock.FD(first+i) })
		if taken != (err == nil) {
			t.Errorf("fd %d: taken %t, %v", first+i, taken, err)
		}
	}
	for _, l := range all {
		if flags, err := unix.FcntlInt(uintptr(l.FD), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%v goes to children: %#x, %v", l.At, flags, err)
		}
		l.FD.Close()
	}
	if now := sock.Open(); now != open {
		t.Errorf("%d descriptors are left", now-open)
	}
}

// What was meant for another process is not taken, and nobody after us takes it for
// theirs.
func TestActivatedIsForOne(t *testing.T) {
	for _, c := range []struct {
		pid, fds string
		faults   int
	}{
		{"", "1", 0}, {strconv.Itoa(os.Getppid()), "1", 0},
		{strconv.Itoa(os.Getpid()), "many", 1}, {strconv.Itoa(os.Getpid()), "-1", 1}, {strconv.Itoa(os.Getpid()), "0", 0},
	} {
		t.Setenv(pidEnv, c.pid)
		t.Setenv(fdsEnv, c.fds)
		t.Setenv(namesEnv, "web")
		all, faults := Activated()
		if len(all) != 0 || len(faults) != c.faults {
			t.Errorf("pid %q, fds %q: took %v, faults %v", c.pid, c.fds, all, faults)
		}
		for _, name := range []string{pidEnv, fdsEnv, namesEnv} {
			if v, ok := os.LookupEnv(name); ok {
				t.Errorf("%s=%s is left", name, v)
			}
		}
	}
}
