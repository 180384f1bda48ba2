package node

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

// Reasons that differ in what is of one flow alone are one reason, with the first flows named;
// others stay apart, and a report stays small whatever is refused.
func TestReasonsAreGrouped(t *testing.T) {
	r := newReport("host")
	for i := range 500 {
		r.refuseFlow(uint64(0xa0+i), fmt.Sprintf("socket: 10.9.0.100:443-10.9.0.9:%d was not prepared", 10000+i))
		r.refuseFlow(uint64(0xa00+i), fmt.Sprintf("socket: tcprepair: bind [2001:db8::%x]:443: cannot assign requested address", i+1))
	}
	r.refuseFlow(1, "leg: 70000 octets unsent, the limit is 65536")
	want := map[string]int{
		"socket: ADDRESS-ADDRESS was not prepared":                         500,
		"socket: tcprepair: bind ADDRESS: cannot assign requested address": 500,
		"leg: N octets unsent, the limit is N":                             1,
	}
	if !maps.Equal(r.Reasons, want) || r.Refused != 1001 {
		t.Errorf("%d refused: %v\nwant %v", r.Refused, r.Reasons, want)
	}
	const example = "f-a0 10.9.0.100:443 10.9.0.9:10000, f-a1 10.9.0.100:443 10.9.0.9:10001, f-a2 10.9.0.100:443 10.9.0.9:10002"
	r.exemplify()
	if got := r.Examples["socket: ADDRESS-ADDRESS was not prepared"]; got != example {
		t.Errorf("examples are %q", got)
	}

	all := newReport("host")
	all.add(r)
	all.add(r) // another pass refuses the same flows
	r.refused = nil
	all.add(r) // the report of another node, as it comes by JSON
	if got := all.Examples["socket: ADDRESS-ADDRESS was not prepared"]; !strings.HasPrefix(got, example) || all.Reasons["leg: N octets unsent, the limit is N"] != 2 || all.Refused != 2002 {
		t.Errorf("of two moves: %d refused: %v, examples %q", all.Refused, all.Reasons, got)
	}

	for i := range 5000 {
		all.refuseFlow(uint64(1<<20+i), "strange: "+strings.Repeat("x", i))
	}
	all.exemplify()
	octets := 0
	for why, text := range all.Examples {
		octets += len(why) + len(text)
	}
	if len(all.Reasons) > reasonsMax+1 || all.Refused != 7002 || octets > 1<<16 {
		t.Errorf("%d reasons, %d refused, %d octets of examples", len(all.Reasons), all.Refused, octets)
	}
}

// A flow that was refused in one pass and went in the next, or has ended, does not stay; one that is
// refused for another reason then is counted once.
func TestRefusedOnceMore(t *testing.T) {
	r, again := newReport("host"), newReport("host")
	for id := range uint64(4) {
		r.refuseFlow(id, "socket: busy")
	}
	again.refuseFlow(1, "socket: busy")
	again.refuseFlow(2, "leg: gone")
	r.add(again)
	r.remain(map[uint64]bool{1: true, 2: true})
	if want := map[string]int{"socket: busy": 1, "leg: gone": 1}; r.Refused != 2 || !maps.Equal(r.Reasons, want) || r.Examples["leg: gone"] != "f-2" {
		t.Errorf("%d refused: %v, examples %v; want %v", r.Refused, r.Reasons, r.Examples, want)
	}
}
