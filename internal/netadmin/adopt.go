package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// setUnfinished marks a table that does not hold yet what it takes over.
const setUnfinished = "unfinished"

// Adopt is Open for a process that may come after one that was killed. What
// that one has left in the kernel goes on without a gap, under new rules: who
// may speak for an address, and for how long still; what is diverted, here, led
// or forwarded; who follows. What it held is held, and
// must be dropped by somebody. What was steered is not known: Steer again.
//
// The rules take turns between two names, of Config and with an 1 appended, as
// does the device.
func Adopt(cfg Config) (*Admin, error) {
	cfg.setDefaults()
	next := cfg
	next.Table, next.HoldDevice = cfg.Table+"1", cfg.HoldDevice+"1"
	var left []heritage
	for _, name := range []string{cfg.Table, next.Table} {
		h, err := leftover(name)
		if err != nil {
			return nil, err
		}
		if h != nil {
			left = append(left, *h)
		}
	}
	if len(left) == 0 {
		return Open(cfg)
	}
	// Of two, one was about to take the other's place when it was killed as well.
	h := left[0]
	if len(left) == 2 {
		other := left[1]
		if h.unfinished || h.outlasted && !other.unfinished {
			h, other = other, h
		}
		if h.outlasted { // then the heir's leases, which came before, are those in force
			h.state.Owned, h.state.Guests = other.state.Owned, other.state.Guests
		}
	}
	if h.table == cfg.Table {
		cfg = next
	}
	cfg.unfinished = true
	a, err := Open(cfg)
	if err != nil {
		return nil, err // what is left stays
	}
	cfg.Log.Info("taking over the rules of a process that is gone", "table", h.table, "owned", len(h.state.Owned),
		"guests", len(h.state.Guests), "diverted", len(h.state.Diverted), "held", len(h.state.Held))
	if err := a.inherit(h); err != nil {
		// A peer may be gone. Better what is left of the rules than none.
		cfg.Log.Error("some of the rules could not be taken over", "error", err)
	}
	if err := a.finished(); err != nil {
		return a, err
	}
	return a, a.removeTable(h.table)
}

// finished takes the mark away that Open has set.
func (a *Admin) finished() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	a.rules.conn.DelSet(&nftables.Set{Table: a.rules.netdev, Name: setUnfinished})
	if err := a.rules.conn.Flush(); err != nil {
		return fmt.Errorf("netadmin: finish the rules: %w", err)
	}
	return nil
}

func (a *Admin) removeTable(name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	return a.removeTableLocked(name)
}

func (a *Admin) removeTableLocked(name string) error {
	for _, f := range []nftables.TableFamily{nftables.TableFamilyNetdev, nftables.TableFamilyINet} {
		a.rules.conn.DelTable(&nftables.Table{Family: f, Name: name})
		if err := a.rules.conn.Flush(); err != nil && !isNoEntry(err) {
			return fmt.Errorf("netadmin: remove nft table %s: %w", name, err)
		}
	}
	return nil
}

// leftover reads what an Admin has left in the kernel; nil is nothing.
func leftover(table string) (*heritage, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("netadmin: nft netlink: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: table}
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return nil, fmt.Errorf("netadmin: list nft tables: %w", err)
	}
	found := false
	for _, x := range tables {
		found = found || x.Name == table
	}
	if !found {
		return nil, nil
	}
	sets, err := conn.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("netadmin: list sets of %s: %w", table, err)
	}
	h := &heritage{table: table, state: &State{}, ways: map[string]string{}}
	for _, s := range sets { // they say what those of steer mean
		if s.Name == setWays {
			list, err := conn.GetSetElements(s)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("netadmin: list set %s of %s: %w", s.Name, table, err)
			}
			for _, e := range list {
				h.ways[string(e.Key)] = chainOfVerdict(e.Val)
			}
		}
	}
	for _, s := range sets {
		h.unfinished = h.unfinished || s.Name == setUnfinished
		list, err := conn.GetSetElements(s)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netadmin: list set %s of %s: %w", s.Name, table, err)
		}
		for _, e := range list {
			h.remember(s.Name, e)
		}
	}
	return h, nil
}

// remember notes what an element of a set of ours says; what it does not know
// it passes over.
func (h *heritage) remember(set string, e nftables.SetElement) {
	kind, to, _ := strings.Cut(set, "_")
	var fam int
	switch {
	case strings.HasSuffix(kind, families[0].name):
	case strings.HasSuffix(kind, families[1].name):
		fam = 1
	default:
		return
	}
	kind = kind[:len(kind)-1]
	t, tuple := tupleOfKey(e.Key, families[fam])
	addr, isAddr := netip.AddrFromSlice(e.Key)
	chain := chainOfVerdict(e.Val)
	s, only := h.state, func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	switch {
	case kind == "steer" && tuple:
		chain, known := h.ways[string(e.Val)]
		if !known {
			return
		}
		to, held := strings.CutPrefix(chain, heldPrefix)
		if held || chain == chainHold {
			s.Held = append(s.Held, t)
		}
		if peer, ok := peerOf(to); ok {
			h.state.Diverted = append(h.state.Diverted, Diversion{t, peer})
		} else if chain == "" {
			h.state.Here = append(h.state.Here, t)
		}
	case kind == "vip" && isAddr:
		s.Fenced = append(s.Fenced, only(addr))
	case (kind == "lease" || kind == "guest") && isAddr && e.Timeout == outlastFor:
		h.outlasted = true
	case kind == "lease" && isAddr && e.Expires > 0:
		s.Owned = append(s.Owned, Lease{only(addr), e.Expires})
	case kind == "guest" && isAddr && e.Expires > 0:
		s.Guests = append(s.Guests, Lease{only(addr), e.Expires})
	case kind == "lead" && isAddr:
		_, name, _ := strings.Cut(chain, "_")
		if peer, ok := peerOf(name); ok {
			s.Led = append(s.Led, Sending{addr, peer})
		}
	case kind == "forward" && isAddr:
		if peer, ok := peerOf(chain); ok {
			s.Forwarded = append(s.Forwarded, Sending{addr, peer})
		}
	case kind == "learnon" && len(e.Key) == int(families[fam].addrLen)+4:
		a, _ := netip.AddrFromSlice(e.Key[:families[fam].addrLen])
		s.Learning = append(s.Learning, netip.AddrPortFrom(a, binary.BigEndian.Uint16(e.Key[families[fam].addrLen:])))
	case kind == "learnt" && tuple:
		h.learnt = append(h.learnt, t)
	case kind == "mine" && tuple:
		h.mine = append(h.mine, t)
	case kind == "follow" && tuple:
		if peer, ok := peerOf(to); ok {
			h.followers = append(h.followers, Diversion{t, peer})
		}
	}
}

// chainOfVerdict reads NFTA_VERDICT_CHAIN out of a verdict's attributes.
func chainOfVerdict(b []byte) string {
	for len(b) >= 4 {
		l := int(binary.NativeEndian.Uint16(b))
		if l < 4 || l > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED == 2 {
			return strings.TrimRight(string(b[4:l]), "\x00")
		}
		b = b[min((l+3)&^3, len(b)):]
	}
	return ""
}
