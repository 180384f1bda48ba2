package lab

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestTenures proves that the judge of claims sees a host that answers where another
// one should: at the wrong time, in between, and when nothing moves any more.
func TestTenures(t *testing.T) {
	n1, n3, other := [6]byte{1}, [6]byte{3}, [6]byte{9}
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	claims := func(of ...any) (all []Claim) {
		for i := 0; i < len(of); i += 2 {
			all = append(all, Claim{At: at(of[i].(int)), MAC: of[i+1].([6]byte)})
		}
		return all
	}
	window := [][2]time.Time{{at(100), at(200)}}
	for name, c := range map[string]struct {
		claims []Claim
		wrong  int
	}{
		"as it should be":     {claims(10, n1, 20, n1, 150, n1, 155, n3, 300, n3), 0},
		"both":                {claims(10, n1, 155, n3, 160, n1, 165, n3), 2},
		"too early":           {claims(10, n1, 90, n3, 300, n3), 1},
		"too late":            {claims(10, n1, 210, n3, 300, n3), 1},
		"somebody else":       {claims(10, n1, 20, other, 30, n1, 155, n3), 1},
		"somebody else later": {claims(10, n1, 155, n3, 300, other), 1},
		"nobody came":         {claims(10, n1, 20, n1), 1},
		"the wrong one first": {claims(10, n3, 155, n3), 1},
	} {
		wrong, silences := judgeTenures(c.claims, [][6]byte{n1, n3}, window)
		if len(wrong) != c.wrong {
			t.Errorf("%s: %q, want %d", name, wrong, c.wrong)
		}
		if c.wrong == 0 && (len(silences) != 1 || silences[0] != 5*time.Millisecond) {
			t.Errorf("%s: silences %v", name, silences)
		}
	}
}

// TestWireReads proves that frames as hosts send them are understood: questions and
// answers, and resets of both families.
func TestWireReads(t *testing.T) {
	h := &Host{Name: "n1", V4: netip.MustParseAddr("10.9.0.11"), V6: netip.MustParseAddr("fd09::11"), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	x := &Wire{}
	see := func(b []byte) { x.see(b, time.Unix(1, 0), h, false) }
	see(arpFrame(2, h.MAC, vip4, h.MAC, h.V4)) // an answer
	see(arpFrame(1, h.MAC, vip4, h.MAC, vip4)) // gratuitous
	see(arpFrame(1, h.MAC, netip.IPv4Unspecified(), h.MAC, vip4))
	if c := x.Claims(vip4); len(c) != 2 || c[0].Announced || !c[1].Announced || c[0].MAC != [6]byte(h.MAC) {
		t.Errorf("claims %+v", c)
	}
	advertisement := question(h, vip6)
	advertisement[ip6Payload] = icmpAdvertisement
	see(advertisement)
	if c := x.Claims(vip6); len(c) != 1 || !c[0].Announced {
		t.Errorf("claims %+v", c)
	}
	four := make([]byte, etherHead+20+20)
	four[etherType], four[etherHead], four[ip4Protocol] = 8, 0x45, 6
	copy(four[etherHead+12:], vip4.AsSlice())
	four[etherHead+20+1], four[etherHead+20+tcpFlags] = 80, rstFlag
	see(four)
	four[etherHead+20+tcpFlags] = 16
	see(four)
	six := make([]byte, ip6Payload+20)
	six[etherType], six[etherType+1], six[ip6Next] = 0x86, 0xdd, 6
	six[ip6Payload+3], six[ip6Payload+tcpFlags] = 99, rstFlag|16
	see(six)
	if n, all := x.Resets(); n != 2 || all[0].Src != netip.AddrPortFrom(vip4, 80) || all[1].Dst.Port() != 99 {
		t.Errorf("%d resets: %v", n, all)
	}
}

// TestWireFilter proves that the program that chooses frames in the kernel agrees with
// what is read of them, by walking through it.
func TestWireFilter(t *testing.T) {
	h := &Host{V4: netip.MustParseAddr("10.9.0.11"), V6: netip.MustParseAddr("fd09::11"), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	tcp := func(six bool, flags byte, from, to uint16) []byte {
		b, head := make([]byte, 74), etherHead+24
		if six {
			head = ip6Payload
			b[etherType], b[etherType+1], b[ip6Next] = 0x86, 0xdd, 6
		} else {
			b[etherType], b[etherHead], b[ip4Protocol] = 8, 0x46, 6 // with an option of IPv4
		}
		b[head], b[head+1], b[head+2], b[head+3] = byte(from>>8), byte(from), byte(to>>8), byte(to)
		b[head+tcpFlags] = flags
		return b
	}
	solicitation := question(h, vip6)
	advertisement := question(h, vip6)
	advertisement[ip6Payload] = icmpAdvertisement
	fragment := tcp(false, rstFlag, 1, 2)
	fragment[ip4Fragment+1] = 9
	for name, c := range map[string]struct {
		frame []byte
		taken bool
	}{
		"arp": {question(h, vip4), true}, "solicitation": {solicitation, false}, "advertisement": {advertisement, true},
		"segment": {tcp(false, 16, 80, 5000), false}, "segment 6": {tcp(true, 16, 80, 5000), false},
		"reset": {tcp(false, rstFlag, 80, 5000), true}, "reset 6": {tcp(true, rstFlag|16, 80, 5000), true},
		"fragment": {fragment, false},
	} {
		if got := runFilter(t, c.frame) != 0; got != c.taken {
			t.Errorf("%s: taken %v, want %v", name, got, c.taken)
		}
	}
}

// runFilter does what net/core/filter.c does with the instructions that wireFilter uses.
func runFilter(t *testing.T, b []byte) uint32 {
	t.Helper()
	prog := wireFilter()
	var a, x uint32
	for pc := 0; pc < len(prog); pc++ {
		at := int(prog[pc].K)
		switch in := prog[pc]; in.Code {
		case 0x28, 0x48: // ldh [k], ldh [x+k]
			if in.Code == 0x48 {
				at += int(x)
			}
			a = uint32(b[at])<<8 | uint32(b[at+1])
		case 0x30, 0x50: // ldb [k], ldb [x+k]
			if in.Code == 0x50 {
				at += int(x)
			}
			a = uint32(b[at])
		case 0xb1: // ldxb 4*([k]&0xf)
			x = 4 * uint32(b[at]&15)
		case 0x01: // ldx #k
			x = in.K
		case 0x05: // ja
			pc += at
		case 0x15, 0x45: // jeq, jset
			if in.Code == 0x15 && a == in.K || in.Code == 0x45 && a&in.K != 0 {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		case 0x06:
			return in.K
		default:
			t.Fatalf("instruction %d: %#x", pc, in.Code)
		}
	}
	t.Fatal("the program has no end")
	return 0
}
