// Package supervise speaks to whoever started this process and keeps it alive, in
// the protocol of systemd's sd_notify(3): what state the process is in, which
// process is the main one after an upgrade, and listening sockets that are kept
// while there is none. Without a supervisor all of it does nothing.
//
// It knows nothing of flows. Which listener is kept under which name its caller
// says.
package supervise

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-lb/holdfast/internal/sock"
)

const (
	notifyEnv = "NOTIFY_SOCKET"
	storeEnv  = "FDSTORE" // how many descriptors the unit may keep: systemd 254
)

// statusMax bounds a line of status, in octets.
const statusMax = 512

// How long one datagram may wait for a supervisor that is busy; and when one has waited
// in vain, how long the next ones may, and for how long that is so: there may be
// thousands.
const (
	sendMillis = 1000
	deafMillis = 1
	deafTime   = 5 * time.Second
)

// barrierTime bounds how long is waited until the supervisor has read what it was
// sent.
const barrierTime = time.Second

// Supervisor is who started this process. Its methods may be called by several
// goroutines; what one of them sends arrives in its order.
type Supervisor struct {
	path string // of its socket; "": there is none
	log  *slog.Logger
	room int // for descriptors; 0: it is not known

	mu     sync.Mutex      // guards what follows, and the order of datagrams
	stored map[string]bool // by name: the supervisor was given these
	full   bool            // that it cannot keep all was said
	failed bool            // that it does not listen was said
	deaf   time.Time       // until then it is not waited for
}

// FromEnvironment gives the supervisor that the environment names. The variable
// stays: a successor has the same one.
func FromEnvironment(log *slog.Logger) *Supervisor {
	s := &Supervisor{path: os.Getenv(notifyEnv), log: log, stored: map[string]bool{}}
	if s.path != "" && s.path[0] != '/' && s.path[0] != '@' { // vsock: and what may come
		log.Warn("the supervisor's socket is of a kind that is not known; it is told nothing", "socket", s.path)
		s.path = ""
	}
	s.room, _ = strconv.Atoi(os.Getenv(storeEnv))
	return s
}

// Listens tells whether there is anybody to speak to.
func (s *Supervisor) Listens() bool { return s.path != "" }

// Ready says that the process pid, which may be a successor, serves from now on.
// It ends what Reloading began.
func (s *Supervisor) Ready(pid int, status string) {
	s.say("READY=1", mainPID(pid), "STATUS="+line(status))
}

// MainPID says that pid is the main process, whoever has been.
func (s *Supervisor) MainPID(pid int) { s.say(mainPID(pid)) }

// mainPID names a process by its number, and by that which no later process has
// again, where the kernel has one (systemd 257).
func mainPID(pid int) string {
	text := "MAINPID=" + strconv.Itoa(pid)
	if id, ok := sock.ProcessID(pid); ok {
		text += "\nMAINPIDFDID=" + strconv.FormatUint(id, 10)
	}
	return text
}

// Reloading says that a change of the whole process has begun, until Ready. The
// supervisor compares the moment with that of its signal. most is how long it may
// take.
func (s *Supervisor) Reloading(status string, most time.Duration) {
	s.say("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", sock.Monotonic()/int64(time.Microsecond)),
		extend(most), "STATUS="+line(status))
}

// Unchanged ends what Reloading began: nothing has come of it.
func (s *Supervisor) Unchanged(status string) { s.say("READY=1", "STATUS="+line(status)) }

// Status says in words what the process does.
func (s *Supervisor) Status(status string) { s.say("STATUS=" + line(status)) }

// Stopping says that the process ends, and may take as long as most.
func (s *Supervisor) Stopping(status string, most time.Duration) {
	s.say("STOPPING=1", extend(most), "STATUS="+line(status))
}

func extend(d time.Duration) string {
	return fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds())
}

// Store has the supervisor keep a listening socket: while no process is there,
// connections wait in its queue. The descriptor stays the caller's. A name holds no
// colon (sd_pid_notify_with_fds(3)). Storing the same socket again changes nothing.
func (s *Supervisor) Store(name string, fd sock.FD) {
	if !s.Listens() {
		return
	}
	s.mu.Lock()
	s.stored[name] = true
	full := s.room > 0 && len(s.stored) > s.room && !s.full
	s.full = s.full || full
	s.send([]string{"FDSTORE=1", "FDNAME=" + name}, fd)
	s.mu.Unlock()
	if full {
		s.log.Warn("the unit keeps fewer sockets than there are listeners: some do not outlive a crash; raise FileDescriptorStoreMax", "max", s.room)
	}
}

// Forget has the supervisor give up sockets of these names, and returns when it has,
// or after a second: until then a listener is open though we have closed it, and
// clients would wait in its queue for nobody.
func (s *Supervisor) Forget(names ...string) {
	if !s.Listens() || len(names) == 0 {
		return
	}
	s.mu.Lock()
	for _, name := range names {
		delete(s.stored, name)
		s.send([]string{"FDSTOREREMOVE=1", "FDNAME=" + name})
	}
	s.mu.Unlock()
	if err := s.barrier(); err != nil {
		s.log.Warn("the supervisor has not said that it gave up what listens no more", "listeners", len(names), "error", err)
	}
}

// Stored are the names of what the supervisor keeps, as far as this process knows.
func (s *Supervisor) Stored() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.stored {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// barrier waits until the supervisor has read all that was sent: it then closes the
// descriptor that comes last (sd_notify_barrier(3), systemd 246).
func (s *Supervisor) barrier() error {
	r, w, err := sock.Pipe(0)
	if err != nil {
		return err
	}
	defer r.Close()
	s.mu.Lock()
	s.send([]string{"BARRIER=1"}, w)
	s.mu.Unlock()
	w.Close()
	p, err := sock.NewPoller()
	if err != nil {
		return err
	}
	defer p.Close()
	if e := p.WatchLevel(r, 0); e != 0 {
		return fmt.Errorf("supervise: watch: %w", e)
	}
	var ev [1]sock.PollEvent
	for end := time.Now().Add(barrierTime); ; {
		left := time.Until(end)
		if left <= 0 {
			return errors.New("supervise: no answer")
		}
		if p.Wait(ev[:], int(left/time.Millisecond)+1) > 0 {
			return nil
		}
	}
}

func (s *Supervisor) say(lines ...string) {
	if !s.Listens() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send(lines)
}

// send sends one datagram. That nobody listens is said once: flows do not depend on
// it. The caller holds mu.
func (s *Supervisor) send(lines []string, fds ...sock.FD) {
	millis := sendMillis
	if time.Now().Before(s.deaf) {
		millis = deafMillis
	}
	err := sock.Notify(s.path, []byte(strings.Join(lines, "\n")), millis, fds...)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.deaf = time.Now().Add(deafTime)
	}
	if err != nil && !s.failed {
		s.failed = true
		s.log.Warn("the supervisor cannot be told what becomes of this process", "error", err)
	}
}

// line makes a text one line of valid UTF-8 that is not too long.
func line(text string) string {
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "?")
	if len(text) > statusMax {
		text = strings.ToValidUTF8(text[:statusMax], "")
	}
	return text
}
