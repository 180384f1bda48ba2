package node

import (
	"fmt"
	"net/netip"
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
// reasons are equal; named is what was taken out.
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
			named = append(named, bare)
		case isNumber(bare):
			out.WriteString("N")
			named = append(named, bare)
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

// refuseFlow notes why one flow stays.
func (r *Report) refuseFlow(id uint64, why string) {
	reason, named := grouped(why)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.Reasons[reason]; !known && len(r.Reasons) >= reasonsMax {
		reason = otherReasons
	}
	r.Refused++
	r.Reasons[reason]++
	text := strings.Join(append([]string{fmt.Sprintf("f-%x", id)}, named...), " ")
	r.example(reason, text[:min(len(text), examplesOctets)], 1)
}

// example adds flows that were refused for a reason, while there is room. The caller holds mu.
func (r *Report) example(reason, text string, flows int) {
	if r.shown[reason]+flows > examplesMax {
		return
	}
	if r.Examples == nil {
		r.Examples, r.shown = map[string]string{}, map[string]int{}
	}
	if was := r.Examples[reason]; was != "" {
		text = was + ", " + text
	}
	r.Examples[reason] = text
	r.shown[reason] += flows
}

// addReasons adds the reasons of another move, with its examples. The caller holds mu.
func (r *Report) addReasons(o *Report) {
	for why, k := range o.Reasons {
		if _, known := r.Reasons[why]; !known && len(r.Reasons) >= reasonsMax {
			why = otherReasons
		}
		r.Reasons[why] += k
	}
	for why, text := range o.Examples {
		r.example(why, text, max(1, o.shown[why]))
	}
}
