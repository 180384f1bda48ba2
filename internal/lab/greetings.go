package lab

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// greetTable counts at the bridge what nodes accept of each other: they talk all the
// time, and the kernel counts those connections with those of clients.
const greetTable = "greetings"

// countGreetings begins to count SYN-ACKs from the port at which nodes talk.
func countGreetings(w *World) error {
	const synAck = 0x12 // of the octet at [tcpFlags]
	return atCables(w, greetTable, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, talkPort)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{synAck}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{synAck}},
		&expr.Counter{},
	})
}

// greeted is how many connections of other nodes h has accepted.
func greeted(h *Host) (int64, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: greetTable}
	rules, err := c.GetRules(t, &nftables.Chain{Name: h.Name, Table: t})
	if err != nil {
		return 0, err
	}
	all := int64(0)
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			if n, ok := e.(*expr.Counter); ok {
				all += int64(n.Packets)
			}
		}
	}
	return all, nil
}

// accepted is how many connections the kernel of h has accepted of others than nodes.
// Both counts are of one instant: between them no node has come.
func accepted(h *Host) (int64, error) {
	for {
		before, err := greeted(h)
		if err != nil {
			return 0, err
		}
		// A handshake that has begun is over, or the kernel does not count it yet.
		time.Sleep(5 * time.Millisecond)
		c, err := h.Counters()
		if err != nil {
			return 0, err
		}
		after, err := greeted(h)
		if err != nil {
			return 0, err
		}
		if before == after {
			return c["PassiveOpens"] - after, nil
		}
	}
}
