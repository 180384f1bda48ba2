package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Flows that the new release cannot hold: those of one listener have a field of a
// release that is still to come (package planted). They are refused by name and drain
// in the old process, while all else moves.

// plantedBinary is where preparePrevious puts this release with its plants.
func plantedBinary(dir string) string { return filepath.Join(dir, "planted") }

const (
	strangers = 5                // flows that nobody can hold
	others    = 40               // flows that everybody can
	shortTime = 2 * time.Second  // --drain where the bound is to be seen
	longTime  = 10 * time.Minute // --drain where clients leave by themselves
)

// residue upgrades a process of this release to another binary that cannot hold some
// of its flows, and looks what becomes of them.
type residue struct {
	*scene
	what   string // the release to go to
	binary string
	tells  bool          // it shows in its status what drains elsewhere
	drain  time.Duration // its bound

	host    *Host
	process *Process
	socket  string
	plain   netip.AddrPort
	odd     netip.AddrPort
	old     int // process
	next    int
	clients []*stranger
}

// stranger is a client of the listener whose flows cannot be held.
type stranger struct{ conn net.Conn }

// says sends a line and wants it back.
func (c *stranger) says(what string) error {
	if err := c.conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	line := []byte(what + "\n")
	if _, err := c.conn.Write(line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c.conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, line) {
		return fmt.Errorf("%q came back as %q", line, got)
	}
	return nil
}

// residues does so for both releases, and tells how many successors run then. It ends before the flows of the lab do, so
// that what it opened is judged with them.
func (l *longRun) residues(planted string, port uint16) (successors int, err error) {
	echo := netip.AddrPortFrom(l.world.Host("server").V4, 9100)
	var listening net.Listener
	err = l.world.Host("server").Do(func() (err error) {
		listening, err = net.Listen("tcp4", echo.String())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = listening.Close() }()
	go echoAll(listening) // ends with the listener
	for i, x := range []residue{
		{what: "the previous release", binary: l.Previous, drain: longTime},
		{what: "this release", binary: l.Binary, drain: shortTime, tells: true},
	} {
		x.scene, x.host = l.scene, l.world.Host("n2")
		x.plain = netip.AddrPortFrom(x.host.V4, port+uint16(2*i))
		x.odd = netip.AddrPortFrom(x.host.V4, port+uint16(2*i)+1)
		x.socket = filepath.Join(l.dir, fmt.Sprintf("residue-%d.sock", i))
		flows, err := x.run(planted, fmt.Sprintf("residue-%d", i), echo)
		l.flows = append(l.flows, flows...)
		for _, c := range x.clients {
			_ = c.conn.Close()
		}
		if err != nil {
			return successors, fmt.Errorf("what %s cannot hold: %w", x.what, err)
		}
		successors++
	}
	return successors, nil
}

func echoAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { // ends with the connection
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

func (x *residue) run(planted, name string, echo netip.AddrPort) ([]*Flow, error) {
	file := filepath.Join(x.dir, name+".yaml")
	text := fmt.Sprintf(`
node: { name: %s, loops: 2, admin: { socket: %s } }
listeners:
  plain: { vip: "%v", protocol: tcp, idleTimeout: 1h, backend: main }
  odd: { vip: "%v", protocol: tcp, idleTimeout: 1h, backend: echo }
backends:
  main: { endpoints: [ { name: s1, address: "%v" } ] }
  echo: { endpoints: [ { name: s1, address: "%v" } ] }
`, name, x.socket, x.plain, x.odd, x.doors["main"].Addr, echo)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var err error
	x.process, err = x.host.Start(name, []string{"HOLDFAST_UNKNOWN=odd"}, planted, "run", "--grace", "0s", "-c", file)
	if err != nil {
		return nil, err
	}
	x.old = x.process.Pid
	ctx, cancel := context.WithTimeout(x.ctx, readyPatience)
	defer cancel()
	if err := x.process.WaitLine(ctx, "ready:"); err != nil {
		return nil, err
	}
	flows := x.openAt(Exchange, others/2)
	flows = append(flows, x.openAt(Bulk, others/4)...)
	flows = append(flows, x.openAt(ClientHalf, others-len(flows))...)
	if err := x.traffic.AwaitEach(5*time.Second, "flows to be served", flows, func(f *Flow) bool { return f.Served.Load() != 0 }); err != nil {
		return flows, err
	}
	for i := range strangers {
		if err := x.stranger(); err != nil {
			return flows, err
		}
		if err := x.clients[i].says("before"); err != nil {
			return flows, err
		}
	}
	if err := x.upgrade(planted); err != nil {
		return flows, err
	}
	x.judgeAfter(flows)
	if x.tells {
		x.judgeBound()
	} else {
		x.judgeEnd()
	}
	return flows, nil
}

// openAt opens flows through the listener that everybody can hold.
func (x *residue) openAt(k Kind, n int) (flows []*Flow) {
	for range n {
		flows = append(flows, x.traffic.NewFlow(k, x.plain))
	}
	x.scene.clients.Open(flows...)
	return flows
}

func (x *residue) stranger() error {
	return x.world.Host("client").Do(func() error {
		c, err := net.DialTimeout("tcp4", x.odd.String(), 2*time.Second)
		if err == nil {
			x.clients = append(x.clients, &stranger{c})
		}
		return err
	})
}

// residueReport is of an upgrade's report what is told of those who stay.
type residueReport struct {
	MoveReport
	Residue int `json:"residue"`
}

// upgrade makes it, and judges what is told.
func (x *residue) upgrade(planted string) error {
	out, err := x.host.Output(x.ctx, planted, "upgrade", "--binary", x.binary, "--drain", x.drain.String(), "--socket", x.socket, "--json")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, x.process.Tail(10))
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var said struct {
		Move *residueReport `json:"move"`
	}
	if err := json.Unmarshal(lines[len(lines)-1], &said); err != nil || said.Move == nil {
		return errors.Join(err, fmt.Errorf("lab: no report in %q", out))
	}
	r := said.Move
	x.next = r.PID
	x.v.Say("what %s cannot hold: %d flows moved in %.1f ms, %d refused%s, %d drain", x.what, r.Flows, r.Millis, r.Refused, reasonText(r.Reasons), r.Residue)
	must := func(ok bool, what, got, want string) { x.v.Must(ok, x.what+" cannot hold some: "+what, got, want) }
	must(r.Flows == others, "flows moved", fmt.Sprint(r.Flows), fmt.Sprint(others))
	must(r.Refused == strangers && r.Residue == strangers, "flows refused, and draining", fmt.Sprintf("%d, %d", r.Refused, r.Residue), fmt.Sprintf("%d, %d", strangers, strangers))
	must(r.Lost == 0, "flows lost", fmt.Sprint(r.Lost), "0")
	named := 0
	for why, n := range r.Reasons {
		if strings.Contains(why, "a field that this release does not know") {
			named += n
		}
	}
	must(named == strangers, "refused for a field that is not known", fmt.Sprint(named), fmt.Sprint(strangers))
	x.v.Goal(r.Millis < 1000, x.what+" cannot hold some: all else has moved", fmt.Sprintf("%.0f ms", r.Millis), "less than 1 s")
	return nil
}

// judgeAfter looks who has which sockets, and who serves.
func (x *residue) judgeAfter(flows []*Flow) {
	must := func(ok bool, what, got, want string) { x.v.Must(ok, x.what+" cannot hold some: "+what, got, want) }
	must(Alive(x.old) && Alive(x.next) && x.old != x.next, "processes", fmt.Sprintf("old %d alive %v, new %d alive %v", x.old, Alive(x.old), x.next, Alive(x.next)), "two")
	// The kernel's word on whose flows they are.
	left, _ := OpenSockets(x.old)
	there, _ := OpenSockets(x.next)
	must(left >= 2*strangers && left < 2*others, "sockets in the old process", fmt.Sprint(left), fmt.Sprintf("those of %d flows", strangers))
	must(there >= 2*others, "sockets in the new process", fmt.Sprint(there), fmt.Sprintf("those of %d flows at least", others))
	served := 0
	for _, c := range x.clients {
		if err := c.says("after"); err == nil {
			served++
		} else {
			x.v.Say("  a flow that stayed: %v", err)
		}
	}
	must(served == strangers, "flows that stayed are served", fmt.Sprint(served), fmt.Sprint(strangers))
	was := make([]uint64, len(flows))
	for i, f := range flows {
		was[i] = f.Octets()
	}
	err := x.traffic.Await(5*time.Second, "flows to go on", func() (int, int) {
		n := 0
		for i, f := range flows {
			if f.Octets() > was[i] {
				n++
			}
		}
		return n, len(flows)
	})
	must(err == nil, "flows that moved are served", fmt.Sprint(err), "all")
	// New ones, through both listeners, are the new process's.
	fresh := x.stranger()
	if fresh == nil {
		fresh = x.clients[len(x.clients)-1].says("new")
		_ = x.clients[len(x.clients)-1].conn.Close()
		x.clients = x.clients[:len(x.clients)-1]
	}
	must(fresh == nil, "a new connection where flows stayed", fmt.Sprint(fresh), "served")
}

// judgeEnd has the clients leave, and looks whether the old process does.
func (x *residue) judgeEnd() {
	for _, c := range x.clients {
		_ = c.conn.Close()
	}
	gone := eventually(leavePatience, func() bool { return !Alive(x.old) })
	x.v.Must(gone, x.what+" cannot hold some: the old process when its last flow has ended", fmt.Sprintf("alive %v", !gone), "gone")
}

// judgeBound looks whether what drains is seen at the successor, and whether it ends at
// its bound.
func (x *residue) judgeBound() {
	must := func(ok bool, what, got, want string) { x.v.Must(ok, x.what+" cannot hold some: "+what, got, want) }
	seen := -1
	eventually(shortTime, func() bool {
		out, err := x.host.Output(x.ctx, x.Binary, "status", "--socket", x.socket, "--json")
		var s struct {
			Residue []struct {
				PID   int `json:"pid"`
				Flows int `json:"flows"`
			} `json:"residue"`
		}
		if err != nil || json.Unmarshal(out, &s) != nil || len(s.Residue) != 1 || s.Residue[0].PID != x.old {
			return false
		}
		seen = s.Residue[0].Flows
		return seen == strangers
	})
	must(seen == strangers, "what drains, in the successor's status", fmt.Sprint(seen), fmt.Sprint(strangers))
	gone := eventually(shortTime+leavePatience, func() bool { return !Alive(x.old) })
	must(gone, "the old process at the bound", fmt.Sprintf("alive %v", !gone), "gone")
	ended := 0
	for _, c := range x.clients {
		if err := c.says("late"); err != nil {
			ended++
		}
	}
	must(ended == strangers, "flows that were ended at the bound", fmt.Sprint(ended), fmt.Sprint(strangers))
}
