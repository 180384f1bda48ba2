package netadmin

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What the rules say of the movable addresses, for IPv4 (with 6, IPv6):
//
//	set vip4 { addr }                   all of them, wherever they are
//	set lease4 { addr timeout ... }     this host owns them so long
//	set guest4 { addr timeout ... }     and may speak TCP from these
//	chain fence {                       what arrives by a device
//	    arp request, target in @vip4 and not in @lease4, sender not in @vip4: drop
//	    icmp6 neighbour solicitation alike
//	    daddr in @vip4: goto fence4
//	}
//	chain fence4 { daddr in @lease4: return; tcp, daddr in @guest4: return; drop }
//	chain leave {                       what leaves by it
//	    arp, sender in @vip4 and not in @lease4: drop
//	    icmp6 neighbour advertisement alike
//	    saddr in @vip4: goto leave4
//	}
//	chain leave4 { tcp sent on: return; saddr in @lease4: return; tcp, saddr in @guest4: goto speak4; drop }
//	chain speak4 { tcp rst without ack: drop; tcp syn: update @mine4 { tuple } }
//	chain leavelocal { tcp, saddr in @vip4 and not in @lease4: goto speak4 }
//
// The timeouts run in the kernel. When the process that renews them stands
// still or is gone, they end as well.
//
// A reset without ACK is what the kernel says to a segment that it has no
// socket for (RFC 9293, section 3.10.7.1). A guest hears such segments since
// flows are on their way; its sockets' own resets carry ACK.
//
// An ARP packet of the owner is let in everywhere: caches here must hear where
// the address is. What answers to it would be stopped on its way out.
//
// On the way (lead.go), for addresses that move:
//
//	set moving4 { addr }
//	map lead4, forward4 { addr : verdict }
//	set learnon4 { addr . port }, learnt4 { tuple timeout 1m }, mine4 { tuple timeout 10m }
//	chain vip4 {
//	    jump follow4
//	    syn: daddr vmap @lead4              jump to lead4_to_...
//	    syn: daddr . dport in @learnon4: update @learnt4 { tuple }
//	}
//	chain forward4 {
//	    tcp sent on: return
//	    saddr in @guest4: return
//	    tuple in @mine4: update it, return
//	    daddr vmap @forward4                goto to_...
//	}
//
// and for each host that was ever led to
//
//	set follow4_to_... { tuple timeout 10m }
//	chain lead4_to_... { tuple in @learnt4: return; update @follow4_to_... { tuple }, goto to_... }
//	chain follow4 { tuple in @follow4_to_...: update it, goto to_... }
//
// What a peer has sent on to this host is for this host, else two that send on
// to each other, as they do while an address moves, would play ball with it.
// And what this host itself dials as a guest is answered to it and not to
// the owner, so its SYN notes the tuple.
const (
	chainFence      = "fence"
	chainLeave      = "leave"
	chainLeaveLocal = "leavelocal"
	chainSpeak      = "speak"
	chainVIP        = "vip"
	chainForward    = "forward"
	chainFollow     = "follow"
	chainLead       = "lead"

	counterFenced   = "fenced"
	counterSilenced = "silenced"

	// How long a tuple that was learnt by its SYN is remembered: as long as a
	// client repeats that at most (net.ipv4.tcp_syn_retries: 63 s and more, but
	// a step of a move takes seconds).
	learntFor = time.Minute
	// How long followers, and what guests dial, are remembered without traffic.
	followFor = 10 * time.Minute
	// followMax bounds each of these sets. A SYN that has no room follows nobody.
	followMax = 1 << 18
)

// vipSet is one set for each family.
type vipSet = [2]*nftables.Set

// vipSets are the sets of the movable addresses, by family.
type vipSets struct {
	vip, lease, guest   vipSet
	moving              vipSet // of vip, those that any of what follows concerns
	lead, forward       vipSet
	learnOn, learnt, me vipSet
	// follow are the followers of each host that was led to, by its chain.
	follow map[string]vipSet
}

// createVIPs queues sets and chains.
func (r *rules) createVIPs() error {
	c, v := r.conn, &r.vips
	v.follow = map[string]vipSet{}
	for i, f := range families {
		tuple := nftables.MustConcatSetType(f.addrType, nftables.TypeInetService, f.addrType, nftables.TypeInetService)
		set := func(p *vipSet, s nftables.Set) {
			s.Table, s.Name = r.netdev, s.Name+f.name
			p[i] = &s
		}
		set(&v.vip, nftables.Set{Name: "vip", KeyType: f.addrType})
		set(&v.moving, nftables.Set{Name: "moving", KeyType: f.addrType})
		set(&v.lease, nftables.Set{Name: "lease", KeyType: f.addrType, HasTimeout: true})
		set(&v.guest, nftables.Set{Name: "guest", KeyType: f.addrType, HasTimeout: true})
		set(&v.lead, nftables.Set{Name: "lead", KeyType: f.addrType, IsMap: true, DataType: nftables.TypeVerdict})
		set(&v.forward, nftables.Set{Name: "forward", KeyType: f.addrType, IsMap: true, DataType: nftables.TypeVerdict})
		set(&v.learnOn, nftables.Set{Name: "learnon", KeyType: nftables.MustConcatSetType(f.addrType, nftables.TypeInetService),
			Concatenation: true})
		set(&v.learnt, nftables.Set{Name: "learnt", KeyType: tuple, Concatenation: true, HasTimeout: true, Timeout: learntFor,
			Dynamic: true, Size: followMax})
		set(&v.me, nftables.Set{Name: "mine", KeyType: tuple, Concatenation: true, HasTimeout: true, Timeout: followFor,
			Dynamic: true, Size: followMax})
		for _, s := range []*nftables.Set{v.vip[i], v.moving[i], v.lease[i], v.guest[i], v.lead[i], v.forward[i], v.learnOn[i], v.learnt[i], v.me[i]} {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("netadmin: nft set %s: %w", s.Name, err)
			}
		}
	}
	for _, n := range []string{chainFence, chainLeave, chainLeaveLocal} {
		c.AddChain(&nftables.Chain{Table: r.netdev, Name: n})
	}
	for i, f := range families {
		for _, n := range []string{chainSpeak, chainFence, chainLeave, chainVIP, chainForward, chainFollow} {
			c.AddChain(&nftables.Chain{Table: r.netdev, Name: n + f.name})
		}
		r.speakRules(i)
		r.fenceRules(i)
		r.leaveRules(i)
		r.vipRules(i)
		r.forwardRules(i)
	}
	return nil
}

// rule queues one rule made of parts.
func (r *rules) rule(chain string, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.netdev, Chain: &nftables.Chain{Table: r.netdev, Name: chain}, Exprs: all})
}

func (r *rules) fenceRules(i int) {
	f, v := families[i], &r.vips
	if i == 0 {
		// The request for an address that is not here. An owner's is for caches.
		r.rule(chainFence, etherType(unix.ETH_P_ARP), network(6, 2), cmpIs(expr.CmpOpEq, 0, 1),
			network(arpTarget, 4), in(v.vip[i]), notIn(v.lease[i]), network(arpSender, 4), notIn(v.vip[i]), r.fenced())
	} else {
		r.rule(chainFence, neighbour(135), transport(ndTarget, 16), in(v.vip[i]), notIn(v.lease[i]), r.fenced())
	}
	r.rule(chainFence, etherType(f.ethertype), network(f.offDaddr, f.addrLen), in(v.vip[i]), verdict(expr.VerdictGoto, chainFence+f.name))
	own := chainFence + f.name
	r.rule(own, network(f.offDaddr, f.addrLen), in(v.lease[i]), verdict(expr.VerdictReturn, ""))
	r.rule(own, layer4(unix.IPPROTO_TCP), network(f.offDaddr, f.addrLen), in(v.guest[i]), verdict(expr.VerdictReturn, ""))
	r.rule(own, r.fenced())
}

func (r *rules) leaveRules(i int) {
	f, v := families[i], &r.vips
	if i == 0 {
		r.rule(chainLeave, etherType(unix.ETH_P_ARP), network(arpSender, 4), in(v.vip[i]), notIn(v.lease[i]), r.fenced())
	} else {
		r.rule(chainLeave, neighbour(136), transport(ndTarget, 16), in(v.vip[i]), notIn(v.lease[i]), r.fenced())
	}
	saddr := network(f.offSaddr, f.addrLen)
	r.rule(chainLeave, etherType(f.ethertype), saddr, in(v.vip[i]), verdict(expr.VerdictGoto, chainLeave+f.name))
	own := chainLeave + f.name
	r.rule(own, layer4(unix.IPPROTO_TCP), sentOn(f), verdict(expr.VerdictReturn, ""))
	r.rule(own, saddr, in(v.lease[i]), verdict(expr.VerdictReturn, ""))
	r.rule(own, layer4(unix.IPPROTO_TCP), saddr, in(v.guest[i]), verdict(expr.VerdictGoto, chainSpeak+f.name))
	r.rule(own, r.fenced())
	r.rule(chainLeaveLocal, ethertypeTCP(f), saddr, in(v.vip[i]), notIn(v.lease[i]), verdict(expr.VerdictGoto, chainSpeak+f.name))
}

func (r *rules) speakRules(i int) {
	f, chain := families[i], chainSpeak+families[i].name
	r.rule(chain, flags(rstFlag|ackFlag, rstFlag), []expr.Any{&expr.Objref{Type: objCounter, Name: counterSilenced}}, verdict(expr.VerdictDrop, ""))
	r.rule(chain, flags(synFlag|ackFlag, synFlag), loadKey(f, true), update(r.vips.me[i], followFor))
}

func (r *rules) vipRules(i int) {
	f, v, chain := families[i], &r.vips, chainVIP+families[i].name
	syn := flags(finFlag|synFlag|rstFlag|ackFlag, synFlag)
	r.rule(chain, verdict(expr.VerdictJump, chainFollow+f.name))
	r.rule(chain, syn, network(f.offDaddr, f.addrLen), vmap(v.lead[i]))
	r.rule(chain, syn, network(f.offDaddr, f.addrLen), []expr.Any{&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2,
		DestRegister: reg0 + f.addrLen/4}}, in(v.learnOn[i]), loadKey(f, false), update(v.learnt[i], learntFor))
}

func (r *rules) forwardRules(i int) {
	f, v, chain := families[i], &r.vips, chainForward+families[i].name
	r.rule(chain, sentOn(f), verdict(expr.VerdictReturn, ""))
	// From the address to itself: another host could not answer.
	r.rule(chain, network(f.offSaddr, f.addrLen), in(v.guest[i]), verdict(expr.VerdictReturn, ""))
	r.rule(chain, loadKey(f, false), in(v.me[i]), update(v.me[i], followFor), verdict(expr.VerdictReturn, ""))
	r.rule(chain, network(f.offDaddr, f.addrLen), vmap(v.forward[i]))
}

// dispatchVIPs queues rules that go to the chain of the family, of TCP for
// addresses that move.
func (r *rules) dispatchVIPs(from *nftables.Chain, kind expr.VerdictKind, to string) {
	for i, f := range families {
		r.rule(from.Name, ethertypeTCP(f), network(f.offDaddr, f.addrLen), in(r.vips.moving[i]), verdict(kind, to+f.name))
	}
}

// fenced ends a rule: counted and dropped.
func (r *rules) fenced() []expr.Any {
	return []expr.Any{&expr.Objref{Type: objCounter, Name: counterFenced}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// Offsets of ARP for Ethernet and IPv4 (RFC 826), and in a message of neighbour
// discovery (RFC 4861, sections 4.3 and 4.4).
const (
	arpSender = 14
	arpTarget = 24
	ndTarget  = 8

	finFlag = 1
	synFlag = 2
	rstFlag = 4
	ackFlag = 16
)

func etherType(t uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binary.BigEndian.AppendUint16(nil, t)}}
}

func layer4(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{proto}}}
}

// neighbour lets a message of neighbour discovery of that type pass on.
func neighbour(kind byte) []expr.Any {
	return append(append(etherType(unix.ETH_P_IPV6), layer4(unix.IPPROTO_ICMPV6)...),
		append(transport(0, 1), cmpIs(expr.CmpOpEq, kind)...)...)
}

func network(off, n uint32) []expr.Any {
	return []expr.Any{&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n, DestRegister: reg0}}
}

func transport(off, n uint32) []expr.Any {
	return []expr.Any{&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: off, Len: n, DestRegister: reg0}}
}

func cmpIs(op expr.CmpOp, data ...byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: reg0, Data: data}}
}

// flags compares those in mask.
func flags(mask, want byte) []expr.Any {
	return append(transport(13, 1),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{want}})
}

// sentOn lets what a host has sent on pass, see hopFirst.
func sentOn(f family) []expr.Any {
	return append(network(f.offHops(), 1),
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg0, Data: []byte{hopLast}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: reg0, Data: []byte{hopFirst}})
}

func in(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID}}
}

func notIn(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID, Invert: true}}
}

func vmap(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID,
		DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}}
}

// update adds the key in reg0 or renews it. With a full set the rule ends here.
func update(s *nftables.Set, timeout time.Duration) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: reg0, SetName: s.Name, SetID: s.ID,
		Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: timeout}}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// fenceTo replaces the fenced addresses.
func (r *rules) fenceTo(addrs []netip.Addr) error {
	var elements [2][]nftables.SetElement
	for _, a := range addrs {
		i := familyOfAddr(a)
		elements[i] = append(elements[i], nftables.SetElement{Key: a.AsSlice()})
	}
	for i := range families {
		r.conn.FlushSet(r.vips.vip[i])
		if len(elements[i]) == 0 {
			continue
		}
		if err := r.conn.SetAddElements(r.vips.vip[i], elements[i]); err != nil {
			return fmt.Errorf("netadmin: encode nft elements: %w", err)
		}
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("netadmin: fence: %w", err)
	}
	return nil
}

// move begins or ends to look at what leads, follows and is forwarded of an
// address.
func (r *rules) move(addr netip.Addr, on bool) error {
	s, e := r.vips.moving[familyOfAddr(addr)], []nftables.SetElement{{Key: addr.AsSlice()}}
	change := r.conn.SetDeleteElements
	if on {
		change = r.conn.SetAddElements
	}
	if err := change(s, e); err != nil {
		return fmt.Errorf("netadmin: encode nft elements: %w", err)
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("netadmin: %s %v: %w", s.Name, addr, err)
	}
	return nil
}

// let renews the time of an address in a set; 0 takes it out. was tells
// whether it may be there: the kernel takes it out by itself.
func (r *rules) let(set vipSet, addr netip.Addr, d time.Duration, was bool) error {
	s := set[familyOfAddr(addr)]
	e := []nftables.SetElement{{Key: addr.AsSlice(), Timeout: d}}
	for {
		var err error
		// An element that is there keeps its time when it is added again
		// (before Linux 6.13), so it goes and comes in one transaction.
		if was {
			err = r.conn.SetDeleteElements(s, []nftables.SetElement{{Key: e[0].Key}})
		}
		if err == nil && d > 0 {
			err = r.conn.SetAddElements(s, e)
		}
		if err != nil {
			return fmt.Errorf("netadmin: encode nft elements: %w", err)
		}
		err = r.conn.Flush()
		if err == nil {
			return nil
		}
		if was && isNoEntry(err) {
			was = false // its time was up
			continue
		}
		return fmt.Errorf("netadmin: %s of %v: %w", s.Name, addr, err)
	}
}

// leadTo makes what it takes to lead to a host.
func (r *rules) leadTo(to way) error {
	if _, done := r.vips.follow[string(to)]; done {
		return nil
	}
	var sets vipSet
	for i, f := range families {
		s := &nftables.Set{Table: r.netdev, Name: chainFollow + f.name + "_" + string(to), KeyType: r.vips.learnt[i].KeyType, Concatenation: true,
			HasTimeout: true, Timeout: followFor, Dynamic: true, Size: followMax}
		if err := r.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("netadmin: nft set %s: %w", s.Name, err)
		}
		sets[i] = s
		lead := leadChain(i, to)
		r.conn.AddChain(&nftables.Chain{Table: r.netdev, Name: lead})
		r.rule(lead, loadKey(f, false), in(r.vips.learnt[i]), verdict(expr.VerdictReturn, ""))
		r.rule(lead, loadKey(f, false), update(s, followFor), verdict(expr.VerdictGoto, string(to)))
		r.rule(chainFollow+f.name, loadKey(f, false), in(s), update(s, followFor), verdict(expr.VerdictGoto, string(to)))
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("netadmin: lead: %w", err)
	}
	r.vips.follow[string(to)] = sets
	return nil
}

func leadChain(fam int, to way) string { return chainLead + families[fam].name + "_" + string(to) }

// lead sets where new handshakes with an address go; wayUsual ends it.
func (r *rules) lead(addr netip.Addr, was, now way) error {
	if now != wayUsual {
		if err := r.leadTo(now); err != nil {
			return err
		}
	}
	i := familyOfAddr(addr)
	return r.sendTo(r.vips.lead[i], addr, was, now, func(w way) *expr.Verdict {
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: leadChain(i, w)}
	})
}

// forward sets where all for an address goes; wayUsual ends it.
func (r *rules) forward(addr netip.Addr, was, now way) error {
	return r.sendTo(r.vips.forward[familyOfAddr(addr)], addr, was, now, way.verdict)
}

func (r *rules) sendTo(s *nftables.Set, addr netip.Addr, was, now way, verdict func(way) *expr.Verdict) error {
	if was == now {
		return nil
	}
	var err error
	if was != wayUsual {
		err = r.conn.SetDeleteElements(s, []nftables.SetElement{{Key: addr.AsSlice(), VerdictData: verdict(was)}})
	}
	if err == nil && now != wayUsual {
		err = r.conn.SetAddElements(s, []nftables.SetElement{{Key: addr.AsSlice(), VerdictData: verdict(now)}})
	}
	if err != nil {
		return fmt.Errorf("netadmin: encode nft elements: %w", err)
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("netadmin: %s %v: %w", s.Name, addr, err)
	}
	return nil
}

// learnOnTo replaces whose SYNs are learnt; none forgets what was learnt, too.
func (r *rules) learnOnTo(on []netip.AddrPort) error {
	var elements [2][]nftables.SetElement
	for _, x := range on {
		i := familyOfAddr(x.Addr())
		k := binary.BigEndian.AppendUint16(x.Addr().AsSlice(), x.Port())
		elements[i] = append(elements[i], nftables.SetElement{Key: append(k, 0, 0)})
	}
	for i := range families {
		r.conn.FlushSet(r.vips.learnOn[i])
		if len(on) == 0 {
			r.conn.FlushSet(r.vips.learnt[i])
		}
		if len(elements[i]) == 0 {
			continue
		}
		if err := r.conn.SetAddElements(r.vips.learnOn[i], elements[i]); err != nil {
			return fmt.Errorf("netadmin: encode nft elements: %w", err)
		}
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("netadmin: learn: %w", err)
	}
	return nil
}

// noted is a tuple that a rule has noted.
type noted struct {
	tuple Tuple
	left  time.Duration // until it is forgotten
}

// notes lists what rules have noted in a set of tuples, of one address or, with
// the zero one, of all.
func (r *rules) notes(set vipSet, addr netip.Addr) (out []noted, err error) {
	for i, s := range set {
		if addr.IsValid() && familyOfAddr(addr) != i {
			continue
		}
		list, err := r.conn.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("netadmin: list %s: %w", s.Name, err)
		}
		for _, e := range list {
			t, ok := tupleOfKey(e.Key, families[i])
			if !ok || addr.IsValid() && t.Local.Addr() != addr {
				continue
			}
			out = append(out, noted{tuple: t, left: e.Expires})
		}
	}
	return out, nil
}

// note adds tuples to a set that rules write as well, or renews them.
func (r *rules) note(set vipSet, list []noted, timeout time.Duration) error {
	for len(list) > 0 {
		some := list[:min(len(list), tuplesPerFlush)]
		list = list[len(some):]
		var elements [2][]nftables.SetElement
		for _, n := range some {
			i := familyOf(n.tuple)
			elements[i] = append(elements[i], nftables.SetElement{Key: key(n.tuple), Timeout: timeout})
		}
		for i, s := range set {
			if len(elements[i]) > 0 {
				if err := r.conn.SetAddElements(s, elements[i]); err != nil {
					return fmt.Errorf("netadmin: encode nft elements: %w", err)
				}
			}
		}
		if err := r.conn.Flush(); err != nil {
			return fmt.Errorf("netadmin: note tuples: %w", err)
		}
	}
	return nil
}

// forgetNotes removes the tuples of an address from a set that rules write.
func (r *rules) forgetNotes(set vipSet, addr netip.Addr) error {
	s := set[familyOfAddr(addr)]
	// One whose time is up between list and removal fails the whole
	// transaction; the next list lacks it.
	var err error
	for range 8 {
		var list []noted
		if list, err = r.notes(set, addr); err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		for at := 0; at < len(list) && err == nil; at += tuplesPerFlush {
			var elements []nftables.SetElement
			for _, n := range list[at:min(at+tuplesPerFlush, len(list))] {
				elements = append(elements, nftables.SetElement{Key: key(n.tuple)})
			}
			if err = r.conn.SetDeleteElements(s, elements); err == nil {
				err = r.conn.Flush()
			}
		}
		if err != nil && !isNoEntry(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("netadmin: forget %s of %v: %w", s.Name, addr, err)
	}
	return nil
}
