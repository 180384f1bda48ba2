package lab

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// TCPSocket is a socket as the kernel lists it.
type TCPSocket struct {
	Local, Remote netip.AddrPort
	State         int // include/net/tcp_states.h
	// Received is octets nobody has read yet, or connections nobody has
	// accepted yet if the socket listens.
	Received int
}

// States of include/net/tcp_states.h.
const (
	tcpTimeWait = 6
	tcpListen   = 10
)

// TCPSockets lists the host's sockets, but those in TIME_WAIT. It is the
// kernel's own word on where a flow is.
func (h *Host) TCPSockets() ([]TCPSocket, error) {
	var all []TCPSocket
	err := h.Do(func() error {
		for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			for _, line := range lines[1:] {
				x, err := parseTCPSocket(line)
				if err != nil {
					return fmt.Errorf("lab: %s: %q: %w", file, line, err)
				}
				if x.State != tcpTimeWait {
					all = append(all, x)
				}
			}
		}
		return nil
	})
	return all, err
}

// Connected counts the host's connected sockets that f chooses, -1 if the
// kernel does not tell.
func (h *Host) Connected(f func(TCPSocket) bool) int {
	all, err := h.TCPSockets()
	if err != nil {
		return -1
	}
	n := 0
	for _, x := range all {
		if x.State != tcpListen && f(x) {
			n++
		}
	}
	return n
}

// Listens says whether a socket of the host listens at the address, and how
// many connections wait to be accepted there.
func (h *Host) Listens(at netip.AddrPort) (yes bool, waiting int) {
	all, _ := h.TCPSockets()
	for _, x := range all {
		if x.State == tcpListen && x.Local == at {
			yes, waiting = true, waiting+x.Received
		}
	}
	return yes, waiting
}

// parseTCPSocket reads a line of /proc/net/tcp or tcp6:
// sl local_address rem_address st tx_queue:rx_queue ...
func parseTCPSocket(line string) (x TCPSocket, err error) {
	f := strings.Fields(line)
	if len(f) < 5 {
		return x, io.ErrUnexpectedEOF
	}
	if x.Local, err = parseProcAddr(f[1]); err != nil {
		return x, err
	}
	if x.Remote, err = parseProcAddr(f[2]); err != nil {
		return x, err
	}
	state, err := strconv.ParseUint(f[3], 16, 8)
	if err != nil {
		return x, err
	}
	_, rx, _ := strings.Cut(f[4], ":")
	received, err := strconv.ParseUint(rx, 16, 32)
	x.State, x.Received = int(state), int(received)
	return x, err
}

// parseProcAddr reads an address as /proc/net/tcp writes it: each 32-bit word
// in the host's order, then the port.
func parseProcAddr(s string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q: %v", s, err)
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("address %q: %v", s, err)
	}
	return netip.AddrPortFrom(a, uint16(p)), nil
}

// Counters returns the host's TCP counters of /proc/net/snmp and netstat:
// OutRsts, RetransSegs, EstabResets and so on.
func (h *Host) Counters() (map[string]int64, error) {
	out := map[string]int64{}
	err := h.Do(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			lines := strings.Split(string(b), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				if len(names) == 0 || names[0] != "Tcp:" && names[0] != "TcpExt:" {
					continue
				}
				for k := 1; k < len(names) && k < len(values); k++ {
					out[names[k]], _ = strconv.ParseInt(values[k], 10, 64)
				}
			}
		}
		return nil
	})
	return out, err
}
