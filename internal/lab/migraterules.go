package lab

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// talkPort is where nodes talk to each other.
const talkPort = 7443

// Tables at the bridge, where the cables of all hosts end.
const (
	lossTable = "loss"
	talkTable = "talk"
)

// atCables makes a table whose rules see all frames that the hosts send.
func atCables(w *World, table string, rules ...[]expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("lab: nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: table})
	for _, h := range sortedNames(w.Hosts) {
		chain := c.AddChain(&nftables.Chain{Name: h, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
			Priority: nftables.ChainPriorityRef(0), Device: w.Hosts[h].port})
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lab: table %s at the bridge: %w", table, err)
	}
	return nil
}

// countedAt is what the counters of such a table have counted.
func countedAt(w *World, table string) (frames, octets uint64, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, 0, fmt.Errorf("lab: nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: table}
	for h := range w.Hosts {
		rules, err := c.GetRules(t, &nftables.Chain{Name: h, Table: t})
		if err != nil {
			return 0, 0, fmt.Errorf("lab: table %s at the bridge: %w", table, err)
		}
		for _, rule := range rules {
			for _, e := range rule.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					frames, octets = frames+n.Packets, octets+n.Bytes
				}
			}
		}
	}
	return frames, octets, nil
}

// lose lets one in a hundred of all frames that hosts send vanish.
func (r *migrateRun) lose() error {
	r.phase("from now on one frame in a hundred is lost, whoever sends it")
	return atCables(r.world, lossTable, []expr.Any{
		&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0, 0, 0}},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})
}

// endLoss ends it and says how many frames were lost.
func (r *migrateRun) endLoss() (lost uint64, err error) {
	if lost, _, err = countedAt(r.world, lossTable); err != nil {
		return lost, err
	}
	c, err := nftables.New()
	if err != nil {
		return lost, err
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: lossTable})
	return lost, c.Flush()
}

// countTalk counts from now on what nodes say to each other, in octets of frames.
func (r *migrateRun) countTalk() error {
	port := func(offset uint32) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, talkPort)},
			&expr.Counter{},
		}
	}
	return atCables(r.world, talkTable, port(0), port(2))
}

// talked is how much they have said so far; 0 if the kernel does not tell.
func (r *migrateRun) talked() int64 {
	_, octets, _ := countedAt(r.world, talkTable)
	return int64(octets)
}
