package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Two tables of one name. All rules in words:
//
//	table netdev holdfast {
//	    map steer4 { saddr . sport . daddr . dport : way }          steer6 alike, and all that ends in 4
//	    map ways { way : verdict }               a number each; the kernel looks through all
//	                                             of a map that has verdicts at each change
//	    chain in0 { hook ingress device eth0 priority -500; jump fence; jump steer }
//	    chain in1 { hook ingress device lo priority -500; jump steer }
//	    chain steer {
//	        tcp: tuple map @steer4 vmap @ways
//	        tcp, daddr in @moving4: jump vip4     (lead.go)
//	        jump ranges
//	        tcp, daddr in @moving4: goto forward4 (lead.go)
//	    }
//	    set own4 { addr }
//	    chain ranges { tcp, daddr in @own4, dport FIRST-LAST: goto to_... } and so on
//	    chain hold {                             what is held
//	        tcp sent on: goto wait
//	        daddr in @moving4: jump follow4      (lead.go)
//	        jump ranges
//	        daddr in @moving4: jump forward4
//	        goto wait
//	    }
//	    chain wait { counter held; dup to hf-hold; drop }
//	    chain hold_to_... { tcp sent on: goto wait; goto to_... }
//	    chain to_... { ttl guard; ether daddr set PEER, saddr set OURS;
//	                   counter diverted; dup to eth0; drop }
//	    chains fence, leave, speak4: who may speak for an address (fence.go)
//	}
//	table inet holdfast {
//	    set guard4 { saddr . sport . daddr . dport }
//	    chain out { hook output priority raw; tcp rst, daddr . dport .
//	                saddr . sport in @guard4: counter resets; drop }
//	}
//
// Why at ingress: behind it, early demultiplexing gives a segment to its
// socket before any mark could route it elsewhere (net/ipv4/ip_input.c:
// ip_rcv_finish_core). Why also on lo: an endpoint on this host reaches a
// movable address by the loopback device, and no other hook sees it both in
// time and with the whole set of rules; it also spares marks, routing rules
// and the reordering of the local table. Why dup and drop, rather than fwd:
// they do the same (net/netfilter/nf_dup_netdev.c), and the library that
// speaks to the kernel knows only dup.
//
// Why what is held still goes where it went: a tuple is held before its flow stops at
// the other host, by up to some hundred milliseconds. Segments that come by way of this host, from its
// own endpoints or as it owns the address, have to reach that other host until it sends
// them back; then they carry its mark.
const (
	chainSteer  = "steer"
	chainRanges = "ranges"
	chainHold   = "hold"
	chainWait   = "wait"

	counterHeld     = "held"
	counterDiverted = "diverted"
	counterLooped   = "looped"
	counterResets   = "resets"

	// tuplesPerFlush bounds one transaction. A list of elements is one
	// netlink attribute, whose length has 16 bits, and all of it must fit the
	// socket's send buffer: 10,000 tuples at once are EMSGSIZE. 256 IPv6
	// tuples that go from one peer to another take some 60 KB.
	tuplesPerFlush = 256

	setWays = "ways"

	objCounter = 1 // NFT_OBJECT_COUNTER, include/uapi/linux/netfilter/nf_tables.h

	// Registers of four octets: NFT_REG32_00 is 8.
	reg0 = unix.NFT_REG32_00
)

// way is where segments go: the name of a chain, or one of these.
type way string

const (
	wayUsual way = "" // no element of a map
	wayHere  way = "here"
	wayHold  way = chainHold
)

// verdict is what the kernel's maps say for w.
func (w way) verdict() *expr.Verdict {
	if w == wayHere {
		return &expr.Verdict{Kind: expr.VerdictAccept}
	}
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: string(w)}
}

// family is what differs between IPv4 and IPv6.
type family struct {
	name               string
	proto              byte // of skb->protocol, as nft compares it: NFPROTO_*
	ethertype          uint16
	addrType           nftables.SetDatatype
	addrLen            uint32
	offSaddr, offDaddr uint32 // in the IP header
}

var families = [2]family{
	{"4", unix.NFPROTO_IPV4, unix.ETH_P_IP, nftables.TypeIPAddr, 4, 12, 16},
	{"6", unix.NFPROTO_IPV6, unix.ETH_P_IPV6, nftables.TypeIP6Addr, 16, 8, 24},
}

// offHops is where the hop limit is: RFC 8200, section 3; time to live: RFC
// 791, section 3.1.
func (f family) offHops() uint32 {
	if f.addrLen == 4 {
		return 8
	}
	return 7
}

func familyOf(t Tuple) int { return familyOfAddr(t.Local.Addr()) }

func familyOfAddr(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// rules speaks to the kernel's nf_tables.
type rules struct {
	cfg     Config
	conn    *nftables.Conn
	netdev  *nftables.Table
	inet    *nftables.Table
	steer   [2]*nftables.Set
	ways    *nftables.Set
	numbers map[way]uint32 // what is in ways
	guard   [2]*nftables.Set
	vips    vipSets
	ranges  *nftables.Chain
	owned   [2]*nftables.Set
	own     map[netip.Addr]bool // what is in owned
	created bool
	doubt   bool // what the sets hold may be something else than is known here

	// What flush will send.
	batch              *batch
	del, add           [2][]wayOf
	guardDel, guardAdd [2][]wayOf
}

// wayOf is where the segments of a tuple go, or went.
type wayOf struct {
	t Tuple
	w way
}

func openRules(cfg Config) (*rules, error) {
	r := &rules{
		cfg:    cfg,
		netdev: &nftables.Table{Family: nftables.TableFamilyNetdev, Name: cfg.Table},
		inet:   &nftables.Table{Family: nftables.TableFamilyINet, Name: cfg.Table},
	}
	if err := r.dial(); err != nil {
		return nil, err
	}
	tables, err := r.conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("netadmin: list nft tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == cfg.Table && (t.Family == r.netdev.Family || t.Family == r.inet.Family) {
			cfg.Log.Info("removing the nft table of a predecessor", "table", t.Name)
			r.conn.DelTable(&nftables.Table{Family: t.Family, Name: t.Name})
		}
	}
	if err := r.conn.Flush(); err != nil {
		return nil, fmt.Errorf("netadmin: remove old nft tables: %w", err)
	}
	return r, nil
}

func (r *rules) dial() (err error) {
	if r.conn, err = nftables.New(nftables.AsLasting()); err != nil {
		return fmt.Errorf("netadmin: nft netlink: %w", err)
	}
	r.batch, err = openBatch()
	return err
}

// create makes everything in one transaction.
func (r *rules) create(holdIndex int) error {
	c := r.conn
	c.AddTable(r.netdev)
	c.AddTable(r.inet)
	for _, n := range []string{counterHeld, counterDiverted, counterLooped, counterFenced, counterSilenced} {
		c.AddObj(&nftables.CounterObj{Table: r.netdev, Name: n})
	}
	c.AddObj(&nftables.CounterObj{Table: r.inet, Name: counterResets})
	if r.cfg.unfinished {
		if err := c.AddSet(&nftables.Set{Table: r.netdev, Name: setUnfinished, KeyType: nftables.TypeMark}, nil); err != nil {
			return fmt.Errorf("netadmin: nft set %s: %w", setUnfinished, err)
		}
	}
	// A transaction that gives a map a verdict makes the kernel look through every map with
	// verdicts, element by element, for a loop of chains (net/netfilter/nf_tables_api.c:
	// nft_table_validate); with 18,000 tuples that took a millisecond of each lot.
	r.ways = &nftables.Set{Table: r.netdev, Name: setWays, KeyType: nftables.TypeMark, IsMap: true, DataType: nftables.TypeVerdict}
	r.numbers = map[way]uint32{}
	if err := c.AddSet(r.ways, nil); err != nil {
		return fmt.Errorf("netadmin: nft set %s: %w", setWays, err)
	}
	for i, f := range families {
		key := nftables.MustConcatSetType(f.addrType, nftables.TypeInetService, f.addrType, nftables.TypeInetService)
		r.steer[i] = &nftables.Set{Table: r.netdev, Name: "steer" + f.name, KeyType: key, IsMap: true,
			DataType: nftables.TypeMark, Concatenation: true}
		r.guard[i] = &nftables.Set{Table: r.inet, Name: "guard" + f.name, KeyType: key, Concatenation: true}
		r.owned[i] = &nftables.Set{Table: r.netdev, Name: "own" + f.name, KeyType: f.addrType}
		for _, s := range []*nftables.Set{r.steer[i], r.guard[i], r.owned[i]} {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("netadmin: nft set %s: %w", s.Name, err)
			}
		}
	}

	wait := c.AddChain(&nftables.Chain{Table: r.netdev, Name: chainWait})
	c.AddRule(&nftables.Rule{Table: r.netdev, Chain: wait, Exprs: append(
		[]expr.Any{&expr.Objref{Type: objCounter, Name: counterHeld}}, dupTo(holdIndex)...)})

	if err := r.createVIPs(); err != nil {
		return err
	}

	hold := c.AddChain(&nftables.Chain{Table: r.netdev, Name: chainHold})
	steer := c.AddChain(&nftables.Chain{Table: r.netdev, Name: chainSteer})
	r.ranges = c.AddChain(&nftables.Chain{Table: r.netdev, Name: chainRanges})
	r.sentOnWaits(chainHold)
	r.dispatchVIPs(hold, expr.VerdictJump, chainFollow)
	r.rule(chainHold, verdict(expr.VerdictJump, chainRanges))
	r.dispatchVIPs(hold, expr.VerdictJump, chainForward)
	r.rule(chainHold, verdict(expr.VerdictGoto, chainWait))
	out := c.AddChain(&nftables.Chain{Table: r.inet, Name: "out", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw})
	for i, f := range families {
		c.AddRule(&nftables.Rule{Table: r.netdev, Chain: steer, Exprs: append(
			ethertypeTCP(f), append(loadKey(f, false),
				&expr.Lookup{SourceRegister: reg0, SetName: r.steer[i].Name, SetID: r.steer[i].ID,
					DestRegister: reg0, IsDestRegSet: true},
				&expr.Lookup{SourceRegister: reg0, SetName: r.ways.Name, SetID: r.ways.ID,
					DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true})...)})
		c.AddRule(&nftables.Rule{Table: r.inet, Chain: out, Exprs: append(
			[]expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{f.proto}},
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.IPPROTO_TCP}},
				&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: reg0},
				&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{4 /* RST */}, Xor: []byte{0}},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: []byte{0}},
			}, append(loadKey(f, true),
				&expr.Lookup{SourceRegister: reg0, SetName: r.guard[i].Name, SetID: r.guard[i].ID},
				&expr.Objref{Type: objCounter, Name: counterResets},
				&expr.Verdict{Kind: expr.VerdictDrop})...)})
	}
	// What no tuple of its own was found for.
	r.dispatchVIPs(steer, expr.VerdictJump, chainVIP)
	c.AddRule(&nftables.Rule{Table: r.netdev, Chain: steer,
		Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chainRanges}}})
	r.dispatchVIPs(steer, expr.VerdictGoto, chainForward)
	if err := r.number(wayHere, wayHold); err != nil {
		return err
	}
	r.hook(chainSteer)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("netadmin: create nft tables (the kernel must have nf_tables for netdev with hooks ingress and egress, since Linux 5.16, dup, dynset and verdict maps): %w", err)
	}
	r.created = true
	return nil
}

// hook makes the chains that the devices call.
func (r *rules) hook(steer string) {
	c := r.conn
	jump := func(ch *nftables.Chain, to string) {
		c.AddRule(&nftables.Rule{Table: r.netdev, Chain: ch, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: to}}})
	}
	outer := []string{r.cfg.Device}
	if r.cfg.Tunnel != nil {
		outer = append(outer, r.cfg.Tunnel.Device)
	}
	for i, d := range append(outer, r.cfg.LocalDevices...) {
		in := c.AddChain(&nftables.Chain{Table: r.netdev, Name: fmt.Sprintf("in%d", i), Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityRef(-500), Device: d})
		// Behind what others do there: what leaves is judged as it leaves.
		out := c.AddChain(&nftables.Chain{Table: r.netdev, Name: fmt.Sprintf("out%d", i), Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookEgress, Priority: nftables.ChainPriorityRef(500), Device: d})
		if i < len(outer) {
			jump(in, chainFence)
			jump(out, chainLeave)
		} else {
			jump(out, chainLeaveLocal)
		}
		jump(in, steer)
	}
}

// ethertypeTCP lets TCP of one family pass on.
func ethertypeTCP(f family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binary.BigEndian.AppendUint16(nil, f.ethertype)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// loadKey puts the key of a tuple into consecutive registers: remote, then
// local end. Of what arrives, remote is the source; of what leaves, the
// destination.
func loadKey(f family, leaving bool) []expr.Any {
	remote, local := f.offSaddr, f.offDaddr
	remotePort, localPort := uint32(0), uint32(2)
	if leaving {
		remote, local, remotePort, localPort = local, remote, localPort, remotePort
	}
	words := f.addrLen / 4
	return []expr.Any{
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: remote, Len: f.addrLen, DestRegister: reg0},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: remotePort, Len: 2, DestRegister: reg0 + words},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: local, Len: f.addrLen, DestRegister: reg0 + words + 1},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: localPort, Len: 2, DestRegister: reg0 + 2*words + 1},
	}
}

// key is what loadKey loads for t.
func key(t Tuple) []byte { return appendKey(nil, t) }

func appendKey(k []byte, t Tuple) []byte {
	for _, end := range [2]netip.AddrPort{t.Remote, t.Local} {
		if end.Addr().Is4() {
			a := end.Addr().As4()
			k = append(k, a[:]...)
		} else {
			a := end.Addr().As16()
			k = append(k, a[:]...)
		}
		k = binary.BigEndian.AppendUint16(k, end.Port())
		k = append(k, 0, 0)
	}
	return k
}

// tupleOfKey is the inverse of key.
func tupleOfKey(k []byte, f family) (Tuple, bool) {
	n := int(f.addrLen)
	if len(k) != 2*(n+4) {
		return Tuple{}, false
	}
	end := func(b []byte) netip.AddrPort {
		a, _ := netip.AddrFromSlice(b[:n])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[n:]))
	}
	return Tuple{Remote: end(k), Local: end(k[n+4:])}, true
}

// isNoEntry: the kernel lacks what was to be removed.
func isNoEntry(err error) bool { return errors.Is(err, unix.ENOENT) }

func dupTo(index int) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg0, Data: binaryutil.NativeEndian.PutUint32(uint32(index))},
		&expr.Dup{RegDev: reg0, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Hop limits that mark a diverted segment. Should two hosts divert a tuple
// to each other, nothing in Ethernet would end it; so each diversion takes
// the next mark, and behind the last one the segment is dropped. No sender
// starts near these values (they start at 64, 128 or 255, and no path is 50
// hops long), and no receiver of ours looks at them.
const (
	hopFirst = 201
	hopLast  = 199
)

// sentOnWaits has what another host has sent on wait, in a chain of held tuples.
func (r *rules) sentOnWaits(chain string) {
	for _, f := range families {
		r.rule(chain, ethertypeTCP(f), sentOn(f), verdict(expr.VerdictGoto, chainWait))
	}
}

// addPeer makes the chains of a peer, or replaces their rules.
func (r *rules) addPeer(p *peer) error {
	c := r.conn
	c.FlushChain(c.AddChain(&nftables.Chain{Table: r.netdev, Name: string(p.held())}))
	r.sentOnWaits(string(p.held()))
	ch := c.AddChain(&nftables.Chain{Table: r.netdev, Name: p.name})
	c.FlushChain(ch)
	send := c.AddChain(&nftables.Chain{Table: r.netdev, Name: p.name + "send"})
	c.FlushChain(send)
	gotoSend := &expr.Verdict{Kind: expr.VerdictGoto, Chain: send.Name}
	for _, f := range families {
		v4 := f.addrLen == 4
		match := func(hop byte) []expr.Any {
			e := ethertypeTCP(f)
			return append(e,
				&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.offHops(), Len: 1, DestRegister: reg0},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{hop}})
		}
		set := func(hop byte) []expr.Any {
			if !v4 {
				return []expr.Any{
					&expr.Immediate{Register: reg0, Data: []byte{hop}},
					&expr.Payload{OperationType: expr.PayloadWrite, Base: expr.PayloadBaseNetworkHeader, Offset: 7, Len: 1,
						SourceRegister: reg0},
				}
			}
			// The checksum is updated in units of two octets; the other one
			// is the protocol, which is known.
			return []expr.Any{
				&expr.Immediate{Register: reg0, Data: []byte{hop, unix.IPPROTO_TCP}},
				&expr.Payload{OperationType: expr.PayloadWrite, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 2,
					SourceRegister: reg0, CsumType: expr.CsumTypeInet, CsumOffset: 10},
			}
		}
		add := func(parts ...[]expr.Any) {
			var all []expr.Any
			for _, p := range parts {
				all = append(all, p...)
			}
			c.AddRule(&nftables.Rule{Table: r.netdev, Chain: ch, Exprs: all})
		}
		add(match(hopLast), []expr.Any{
			&expr.Objref{Type: objCounter, Name: counterLooped}, &expr.Verdict{Kind: expr.VerdictDrop}})
		for hop := byte(hopLast + 1); hop <= hopFirst; hop++ {
			add(match(hop), set(hop-1), []expr.Any{gotoSend})
		}
		add(ethertypeTCP(f), set(hopFirst), []expr.Any{gotoSend})
	}
	macs := append(append([]byte(nil), p.mac[:]...), p.from[:]...)
	c.AddRule(&nftables.Rule{Table: r.netdev, Chain: send, Exprs: append([]expr.Any{
		&expr.Immediate{Register: reg0, Data: macs},
		&expr.Payload{OperationType: expr.PayloadWrite, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 12, SourceRegister: reg0},
		&expr.Objref{Type: objCounter, Name: counterDiverted},
	}, dupTo(p.index)...)})
	r.rule(string(p.held()), verdict(expr.VerdictGoto, p.name))
	had := r.numbers[way(p.name)] != 0
	err := r.number(way(p.name), p.held())
	if ferr := c.Flush(); err == nil {
		err = ferr
	}
	if err != nil {
		if !had {
			delete(r.numbers, way(p.name))
			delete(r.numbers, p.held())
		}
		return fmt.Errorf("netadmin: nft chain for peer %v: %w", p.addr, err)
	}
	return nil
}

// number gives ways that have none a number, when the library flushes.
func (r *rules) number(ws ...way) error {
	for _, w := range ws {
		if r.numbers[w] != 0 {
			continue
		}
		n := uint32(len(r.numbers) + 1)
		r.numbers[w] = n
		if err := r.conn.SetAddElements(r.ways, []nftables.SetElement{{Key: numberKey(n), VerdictData: w.verdict()}}); err != nil {
			return fmt.Errorf("netadmin: encode nft elements: %w", err)
		}
	}
	return nil
}

func numberKey(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// queue notes that the segments of t go another way now.
func (r *rules) queue(t Tuple, was, now way) {
	if was == now {
		return
	}
	i := familyOf(t)
	if was != wayUsual {
		r.del[i] = append(r.del[i], wayOf{t, was})
	}
	if now != wayUsual {
		r.add[i] = append(r.add[i], wayOf{t, now})
	}
	// What is here answers for itself, with a reset if need be.
	guarded := func(w way) bool { return w != wayUsual && w != wayHere }
	switch {
	case guarded(was) == guarded(now):
	case guarded(now):
		r.guardAdd[i] = append(r.guardAdd[i], wayOf{t: t})
	default:
		r.guardDel[i] = append(r.guardDel[i], wayOf{t: t})
	}
}

// flush sends what was queued as one transaction, and forgets it.
func (r *rules) flush() error {
	defer func() {
		for i := range families {
			r.del[i], r.add[i] = r.del[i][:0], r.add[i][:0]
			r.guardDel[i], r.guardAdd[i] = r.guardDel[i][:0], r.guardAdd[i][:0]
		}
	}()
	b := r.batch
	b.begin()
	list := func(s *nftables.Set, add, ways bool, of []wayOf) {
		if len(of) == 0 {
			return
		}
		b.elements(s, add)
		n := uint32(0)
		for i, x := range of {
			if ways && (i == 0 || x.w != of[i-1].w) {
				n = r.numbers[x.w]
			}
			b.element(x.t, n)
		}
		b.endElements()
	}
	some := false
	for i := range families {
		some = some || len(r.del[i])+len(r.add[i])+len(r.guardAdd[i])+len(r.guardDel[i]) > 0
		list(r.steer[i], false, false, r.del[i])
		list(r.steer[i], true, true, r.add[i])
		list(r.guard[i], true, false, r.guardAdd[i])
		list(r.guard[i], false, false, r.guardDel[i])
	}
	if !some {
		return nil
	}
	if err := b.commit(); err != nil {
		r.doubt = true
		return fmt.Errorf("netadmin: change nft sets: %w", err)
	}
	return nil
}

// steerTo replaces what chain ranges says: which ports of own go to whom.
func (r *rules) steerTo(own map[netip.Addr]bool, to []steered) error {
	c := r.conn
	c.FlushChain(r.ranges)
	var elements [2][]nftables.SetElement
	for a := range own {
		i := 0
		if a.Is6() {
			i = 1
		}
		elements[i] = append(elements[i], nftables.SetElement{Key: a.AsSlice()})
	}
	for i, f := range families {
		c.FlushSet(r.owned[i])
		if len(elements[i]) == 0 {
			continue
		}
		if err := c.SetAddElements(r.owned[i], elements[i]); err != nil {
			return fmt.Errorf("netadmin: encode nft elements: %w", err)
		}
		for _, s := range to {
			// Registers are compared octet by octet, so a port in the order of
			// the network is in the order of numbers.
			c.AddRule(&nftables.Rule{Table: r.netdev, Chain: r.ranges, Exprs: append(ethertypeTCP(f),
				&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg0},
				&expr.Cmp{Op: expr.CmpOpGte, Register: reg0, Data: binary.BigEndian.AppendUint16(nil, s.first)},
				&expr.Cmp{Op: expr.CmpOpLte, Register: reg0, Data: binary.BigEndian.AppendUint16(nil, s.last)},
				&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.offDaddr, Len: f.addrLen, DestRegister: reg0},
				&expr.Lookup{SourceRegister: reg0, SetName: r.owned[i].Name, SetID: r.owned[i].ID},
				&expr.Verdict{Kind: expr.VerdictGoto, Chain: s.chain})})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("netadmin: steer ports: %w", err)
	}
	r.own = own
	return nil
}

// read adds the kernel's counters to c.
func (r *rules) read(c *Counters) error {
	for _, t := range []*nftables.Table{r.netdev, r.inet} {
		objs, err := r.conn.GetObjects(t)
		if err != nil {
			return fmt.Errorf("netadmin: read nft counters: %w", err)
		}
		for _, o := range objs {
			n, ok := o.(*nftables.CounterObj)
			if !ok {
				continue
			}
			switch n.Name {
			case counterDiverted:
				c.Diverted = n.Packets
			case counterLooped:
				c.Looped = n.Packets
			case counterResets, counterSilenced:
				c.Resets += n.Packets
			case counterFenced:
				c.Fenced = n.Packets
			}
		}
	}
	return nil
}

func (r *rules) remove() error {
	var err error
	for _, t := range []*nftables.Table{r.netdev, r.inet} {
		if r.created {
			r.conn.DelTable(t)
		}
		if ferr := r.conn.Flush(); ferr != nil && !isNoEntry(ferr) { // somebody else may have done it
			err = errors.Join(err, ferr)
		}
	}
	r.batch.close()
	if cerr := r.conn.CloseLasting(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("netadmin: remove nft tables: %w", err)
	}
	return nil
}
