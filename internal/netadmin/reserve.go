package netadmin

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A leg that has moved away leaves no socket here, so the kernel holds its
// port for free. If it gave it to a new connection to the same endpoint, that
// one's answers would be diverted, and the leg could not come back. Reserved
// ports are passed over when the kernel chooses one (net/ipv4/inet_hashtables.c:
// __inet_hash_connect); binding to one by its number still works, as the
// restoring of a socket does.
const reservedPorts = "net/ipv4/ip_local_reserved_ports"

// reserveMax is how much the kernel takes of one write, in octets: less than a
// page (kernel/sysctl.c: proc_do_large_bitmap).
const reserveMax = 4000

// reserve is the reservation of the ports of diverted tuples. Adding to it is
// done at once, since a port must be reserved before its socket goes; taking
// away costs a write of all and is left to tend.
type reserve struct {
	// file is opened early, for the namespace is that of the thread that
	// opens it.
	file  *os.File
	was   string // before us
	ports map[uint16]bool
	stale bool // there are ports that no diverted tuple has any more
	said  bool // that it does not work
}

// reserve adds the local ports of ts. a.mu is held.
func (a *Admin) reserve(ts []Tuple) {
	var list []string
	for _, t := range ts {
		if p := t.Local.Port(); !a.reserved.ports[p] {
			list = append(list, strconv.Itoa(int(p)))
			a.reserved.ports[p] = true
		}
	}
	// What is written behind the beginning is added to what is there.
	a.sayReserve(a.reserved.write(list, true))
}

// unreserve makes the reservation what it should be. a.mu is held.
func (a *Admin) unreserve() {
	if !a.reserved.stale {
		return
	}
	a.reserved.stale = false
	ports := map[uint16]bool{}
	for t, e := range a.tuples {
		if e.peer != nil {
			ports[t.Local.Port()] = true
		}
	}
	if len(ports) == len(a.reserved.ports) { // it is never too small
		return
	}
	a.reserved.ports = ports
	list := strings.FieldsFunc(a.reserved.was, func(r rune) bool { return r == ',' })
	for p := range ports {
		list = append(list, strconv.Itoa(int(p)))
	}
	slices.Sort(list)
	a.sayReserve(a.reserved.write(list, false))
}

// giveBack makes the reservation what it was before us.
func (a *Admin) giveBack() error {
	if a.reserved.file == nil {
		return nil
	}
	defer func() { _ = a.reserved.file.Close() }()
	if len(a.reserved.ports) == 0 && !a.reserved.stale {
		return nil
	}
	return a.reserved.write(strings.FieldsFunc(a.reserved.was, func(r rune) bool { return r == ',' }), false)
}

// sayReserve: without a reservation moves work but for the ports that are
// taken twice.
func (a *Admin) sayReserve(err error) {
	if err != nil && !a.reserved.said {
		a.reserved.said = true
		a.cfg.Log.Warn("ports of flows that have moved away cannot be reserved", "error", err)
	}
}

func (r *reserve) open() (err error) {
	if r.was, err = readSysctl(reservedPorts); err != nil {
		return err
	}
	r.file, err = os.OpenFile(sysctlRoot+reservedPorts, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("netadmin: sysctl: %w", err)
	}
	return nil
}

// write sets ports and ranges of ports, added to those that are
// reserved or in their place.
func (r *reserve) write(list []string, add bool) error {
	if add && len(list) == 0 {
		return nil
	}
	at := int64(0)
	if add {
		at = 1
	}
	for first := true; first || len(list) > 0; first = false {
		var b []byte
		for len(list) > 0 && len(b)+len(list[0]) < reserveMax {
			b = append(append(b, list[0]...), ',')
			list = list[1:]
		}
		if len(b) > 0 {
			b = b[:len(b)-1]
		}
		if _, err := r.file.WriteAt(append(b, '\n'), at); err != nil {
			return fmt.Errorf("netadmin: sysctl %s: %w", reservedPorts, err)
		}
		at = 1
	}
	return nil
}
