package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

var rulesFields = fields[Rules]{
	{"http.trust", func(r *Rules) string { return prefixesText(r.Trust) }},
	{"http.forwarded", func(r *Rules) string { return r.Forwarded.String() }},
	{"http.via", func(r *Rules) string { return printable(r.Via) }},
	{"http.requestID", func(r *Rules) string { return printable(r.RequestID) }},
	{"http.limits.line", func(r *Rules) string { return sizeText(uint64(r.LineMax)) }},
	{"http.limits.head", func(r *Rules) string { return sizeText(uint64(r.HeadMax)) }},
	{"http.limits.fields", func(r *Rules) string { return fmt.Sprint(r.FieldsMax) }},
	{"http.limits.body", func(r *Rules) string { return sizeText(r.BodyMax) }},
	{"http.timeouts.header", func(r *Rules) string { return durationText(r.HeaderTimeout) }},
	{"http.timeouts.body", func(r *Rules) string { return durationText(r.BodyTimeout) }},
	{"http.timeouts.keepalive", func(r *Rules) string { return durationText(r.KeepaliveTimeout) }},
	{"http.timeouts.tunnel", func(r *Rules) string { return durationText(r.TunnelTimeout) }},
	{"http.rate", func(r *Rules) string { return rateText(r.Rate) }},
	{"http.sourceRate", func(r *Rules) string { return sourceRateText(r.SourceRate) }},
}

// listenerChanges gives what differs, as fields.changes does.
func listenerChanges(old, new *Listener) string {
	all := []string{}
	if text := listenerFields.changes(old, new); text != "" {
		all = append(all, text)
	}
	was, is := old.Rules, new.Rules
	if was != nil && is != nil { // else the protocol says it all
		if text := rulesFields.changes(was, is); text != "" {
			all = append(all, text)
		}
		all = append(all, routeChanges(was.Routes, is.Routes)...)
	}
	return strings.Join(all, ", ")
}

// routeChanges names routes by their numbers in the old or the new list.
// Those that are equal at both ends of the lists are passed over, so one that
// comes between others is one change.
func routeChanges(old, new []*Route) (all []string) {
	first := 0
	for len(old) > 0 && len(new) > 0 && routeText(old[0]) == routeText(new[0]) {
		old, new = old[1:], new[1:]
		first++
	}
	for len(old) > 0 && len(new) > 0 && routeText(old[len(old)-1]) == routeText(new[len(new)-1]) {
		old, new = old[:len(old)-1], new[:len(new)-1]
	}
	for i := range max(len(old), len(new)) {
		switch {
		case i >= len(old):
			all = append(all, fmt.Sprintf("+ routes[%d] %s", first+i, clipRoute(new[i])))
		case i >= len(new):
			all = append(all, fmt.Sprintf("- routes[%d] %s", first+i, clipRoute(old[i])))
		case routeText(old[i]) != routeText(new[i]):
			all = append(all, fmt.Sprintf("routes[%d] %s -> %s", first+i, clipRoute(old[i]), clipRoute(new[i])))
		}
	}
	return all
}

// routeText gives all of a route, in one line.
func routeText(r *Route) string { return specText(r.spec()) }

func specText(spec any) string {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false) // it is for people
	if err := e.Encode(spec); err != nil {
		panic(fmt.Sprintf("config: %T does not encode: %v", spec, err)) // plain values only
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// clipRoute bounds what a person has to read.
func clipRoute(r *Route) string {
	const octetsMax = 400
	spec := r.spec()
	for _, edits := range [][]editSpec{spec.Request, spec.Response} {
		for i := range edits {
			if isSecretField(edits[i].Name) && edits[i].Value != "" {
				edits[i].Value = secretShown
			}
		}
	}
	text := specText(spec)
	if len(text) <= octetsMax {
		return text
	}
	return strings.ToValidUTF8(text[:octetsMax], "") + "..."
}

func prefixesText(all []netip.Prefix) string {
	texts := make([]string, len(all))
	for i, p := range all {
		texts[i] = p.String()
	}
	return "[" + strings.Join(texts, ", ") + "]"
}
