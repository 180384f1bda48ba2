package node

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

const (
	// examplesMax bounds the flows that are named for each reason, and examplesOctets what is
	// said of each.
	examplesMax    = 3
	examplesOctets = 160
	reasonOctets   = 200
	otherReasons   = "others"
)

// grouped takes out of a refusal what is of one flow alone, addresses and numbers, so that equal
// reasons are equal; named are the addresses, each once.
func grouped(why string) (reason string, named []string) {
	var out strings.Builder
	for len(why) > 0 {
		end := strings.IndexFunc(why, divides)
		if end == 0 {
			out.WriteByte(why[0])
			why = why[1:]
			continue
		}
		if end < 0 {
			end = len(why)
		}
		word := why[:end]
		why = why[end:]
		bare := strings.TrimRight(word, ":.")
		rest := word[len(bare):]
		switch {
		case isAddress(bare):
			out.WriteString("ADDRESS")
			if !slices.Contains(named, bare) {
				named = append(named, bare)
			}
		case isNumber(bare):
			out.WriteString("N")
		default:
			out.WriteString(bare)
		}
		out.WriteString(rest)
	}
	reason = out.String()
	return reason[:min(len(reason), reasonOctets)], named
}

// divides tells what stands between the words of a refusal. They are ASCII, so that each is an octet.
func divides(r rune) bool { return strings.ContainsRune(" ,;()-\"'>", r) }

func isAddress(s string) bool {
	if _, err := netip.ParseAddrPort(s); err == nil {
		return true
	}
	_, err := netip.ParseAddr(s)
	return err == nil
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// stayed is why one flow stays, and what it is called as an example.
type stayed struct{ reason, named string }

// refuseFlow notes why one flow stays. Of a flow that is refused in several passes the last reason
// counts.
func (r *Report) refuseFlow(id uint64, why string) {
	reason, named := grouped(why)
	text := strings.Join(append([]string{fmt.Sprintf("f-%x", id)}, named...), " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stays(id, stayed{reason, text[:min(len(text), examplesOctets)]})
}

// stays is refuseFlow. The caller holds mu.
func (r *Report) stays(id uint64, x stayed) {
	r.goes(id)
	if _, known := r.Reasons[x.reason]; !known && len(r.Reasons) >= reasonsMax {
		x.reason = otherReasons
	}
	if r.refused == nil {
		r.refused = map[uint64]stayed{}
	}
	r.refused[id] = x
	r.Refused++
	r.Reasons[x.reason]++
}

// goes forgets that a flow was refused. The caller holds mu.
func (r *Report) goes(id uint64) {
	x, was := r.refused[id]
	if !was {
		return
	}
	delete(r.refused, id)
	r.Refused--
	if r.Reasons[x.reason]--; r.Reasons[x.reason] == 0 {
		delete(r.Reasons, x.reason)
	}
}

// remain forgets refusals of flows that are not among those that stay: they have gone in a later
// pass, or have ended.
func (r *Report) remain(stay map[uint64]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.refused {
		if !stay[id] {
			r.goes(id)
		}
	}
	r.exemplify()
}

// addRefused adds the refusals of another move. The caller holds mu.
func (r *Report) addRefused(o *Report) {
	for id, x := range o.refused {
		r.stays(id, x)
	}
	if len(o.refused) == 0 { // it came from another node, which has told no more
		r.Refused += o.Refused
		for why, k := range o.Reasons {
			if _, known := r.Reasons[why]; !known && len(r.Reasons) >= reasonsMax {
				why = otherReasons
			}
			r.Reasons[why] += k
		}
		for why, text := range o.Examples {
			if r.told == nil {
				r.told = map[string]string{}
			}
			r.told[why] = text
		}
	}
	r.exemplify()
}

// exemplify names the first flows of each reason, by their numbers. The caller holds mu.
func (r *Report) exemplify() {
	r.Examples = maps.Clone(r.told)
	shown := map[string]int{}
	for _, id := range slices.Sorted(maps.Keys(r.refused)) {
		x := r.refused[id]
		if shown[x.reason]++; shown[x.reason] > examplesMax {
			continue
		}
		if r.Examples == nil {
			r.Examples = map[string]string{}
		}
		if shown[x.reason] == 1 {
			r.Examples[x.reason] = x.named
		} else {
			r.Examples[x.reason] += ", " + x.named
		}
	}
}
