package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

func (r *Rules) check() error {
	if err := first([]fieldCheck{
		{"http.trust", checkPrefixes(r.Trust)},
		{"http.via", optional(checkToken)(r.Via)},
		{"http.requestID", optional(checkRequestID)(r.RequestID)},
		{"http.limits.line", lineBound.check(uint64(r.LineMax))},
		{"http.limits.head", headBound.check(uint64(r.HeadMax))},
		{"http.limits.fields", fieldsBound.check(r.FieldsMax)},
		{"http.limits.body", bodyBound.check(r.BodyMax)},
		{"http.timeouts.header", headerTimeoutBound.check(r.HeaderTimeout)},
		{"http.timeouts.body", bodyTimeoutBound.check(r.BodyTimeout)},
		{"http.timeouts.keepalive", keepaliveTimeoutBound.check(r.KeepaliveTimeout)},
		{"http.timeouts.tunnel", tunnelTimeoutBound.check(r.TunnelTimeout)},
	}); err != nil {
		return err
	}
	if err := checkRates(r.Rate, r.SourceRate); err != nil {
		return fmt.Errorf("http.%w", err)
	}
	if r.LineMax > r.HeadMax {
		return fmt.Errorf("http.limits.line: %s is more than the head's %s", sizeText(uint64(r.LineMax)), sizeText(uint64(r.HeadMax)))
	}
	if n := len(r.Routes); n == 0 || n > routesMax+1 { // the key backend is one more
		return fmt.Errorf("routes: %d; must be 1 to %d", n, routesMax+1)
	}
	for i, route := range r.Routes {
		if err := route.check(); err != nil {
			return fmt.Errorf("routes[%d].%w", i, err)
		}
		if route.Name != "" && slices.ContainsFunc(r.Routes[:i], func(other *Route) bool { return other.Name == route.Name }) {
			return fmt.Errorf("routes[%d].name: %s: another route has it", i, route.Name)
		}
	}
	return nil
}

// optional admits "".
func optional(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

func (r *Route) check() error {
	actions := 0
	for _, there := range []bool{len(r.Backends) > 0, r.Redirect != nil, r.Respond != nil} {
		if there {
			actions++
		}
	}
	if actions != 1 {
		return fmt.Errorf("backends: does %d things instead of one", actions)
	}
	checks := []fieldCheck{
		{"name", optional(checkName)(r.Name)},
		{"match", r.Match.check()},
		{"backends", checkShares(r.Backends)},
		{"headers.request", checkAllEdits(r.Request, false)},
		{"headers.response", checkAllEdits(r.Response, true)},
	}
	if r.AnswerTimeout != 0 {
		checks = append(checks, fieldCheck{"answerTimeout", answerTimeoutBound.check(r.AnswerTimeout)})
	}
	if r.Redirect != nil {
		checks = append(checks, fieldCheck{"redirect", r.Redirect.check()})
	}
	if r.Respond != nil {
		checks = append(checks, fieldCheck{"respond", r.Respond.check()})
	}
	if r.Rewrite != nil {
		checks = append(checks, fieldCheck{"rewrite", r.Rewrite.check()})
	}
	if err := first(checks); err != nil {
		return err
	}
	if err := checkRates(r.Rate, r.SourceRate); err != nil {
		return err
	}
	if key, err := r.clash(); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// clash gives the key of r that does not go with its others, and why.
func (r *Route) clash() (key string, err error) {
	if len(r.Backends) == 0 {
		own := errors.New("is for what is passed on; this route answers by itself")
		switch {
		case r.Rewrite != nil:
			return "rewrite", own
		case len(r.Request) > 0:
			return "headers.request", own
		case len(r.Response) > 0:
			return "headers.response", own
		case r.AnswerTimeout != 0:
			return "answerTimeout", own
		}
	}
	if w := r.Rewrite; w != nil && w.HasPrefix && r.Match.Exact == "" && r.Match.Prefix == "" {
		return "rewrite.prefix", errors.New("replaces what match.path names as exact or prefix, and that names neither")
	}
	return "", nil
}

func checkShares(all []Weighted) error {
	sum := 0
	for i, share := range all {
		if err := checkName(share.Name); err != nil {
			return fmt.Errorf("%q: %w", clip(share.Name), err)
		}
		if err := weightBound.check(share.Weight); err != nil {
			return fmt.Errorf("%s: weight %w", share.Name, err)
		}
		if i > 0 && all[i-1].Name >= share.Name {
			return fmt.Errorf("%s: is there twice, or not in order", share.Name)
		}
		sum += share.Weight
	}
	if len(all) > sharesMax {
		return fmt.Errorf("%d; at most %d are taken", len(all), sharesMax)
	}
	if len(all) > 0 && sum == 0 {
		return errors.New("every weight is 0")
	}
	return nil
}

func sortShares(all []Weighted) {
	slices.SortFunc(all, func(a, b Weighted) int { return strings.Compare(a.Name, b.Name) })
}

func (m *Match) check() error {
	paths := 0
	for _, there := range []bool{m.Exact != "", m.Prefix != "", m.Regex != nil} {
		if there {
			paths++
		}
	}
	if paths > 1 {
		return errors.New("path: is matched in two ways")
	}
	for _, pairs := range []struct {
		key    string
		all    []Pair
		header bool
	}{{"header", m.Headers, true}, {"query", m.Query, false}} {
		if len(pairs.all) > pairsMax {
			return fmt.Errorf("%s: %d; at most %d are taken", pairs.key, len(pairs.all), pairsMax)
		}
		for i, p := range pairs.all {
			check := checkQueryPair
			if pairs.header {
				check = checkHeaderPair
			}
			if err := check(p); err != nil {
				return fmt.Errorf("%s: %s: %w", pairs.key, printable(p.Name), err)
			}
			if p.Present && p.Regex != nil || p.Value != "" && (p.Present || p.Regex != nil) {
				return fmt.Errorf("%s: %s is matched in two ways", pairs.key, p.Name)
			}
			if i > 0 && comparePairs(pairs.all[i-1], p, pairs.header) >= 0 {
				return fmt.Errorf("%s: %s is there twice, or not in order", pairs.key, p.Name)
			}
		}
	}
	return first([]fieldCheck{
		{"host", checkNormal(m.Hosts, parseHost)},
		{"method", checkNormal(m.Methods, parseMethod)},
		{"path", optional(checkPath)(m.Exact)},
		{"path", optional(checkPath)(m.Prefix)},
		{"source", checkPrefixes(m.Sources)},
	})
}

// checkNormal wants words in the form that parse gives them, in order and
// each once.
func checkNormal(all []string, parse func(string) (string, error)) error {
	if len(all) > wordsMax {
		return fmt.Errorf("%d; at most %d are taken", len(all), wordsMax)
	}
	for i, s := range all {
		normal, err := parse(s)
		if err == nil && normal != s {
			err = fmt.Errorf("must be %q", clip(normal))
		}
		if err != nil {
			return fmt.Errorf("%q: %w", clip(s), err)
		}
		if i > 0 && all[i-1] >= s {
			return fmt.Errorf("%q: is there twice, or not in order", clip(s))
		}
	}
	return nil
}

func (r *Redirect) check() error {
	if r.Scheme == "" && r.Host == "" && r.Path == "" {
		return errors.New("leads to where the request was")
	}
	var hosts []string
	if r.Host != "" {
		hosts = []string{r.Host}
	}
	return first([]fieldCheck{
		{"scheme", optional(checkScheme)(r.Scheme)},
		{"host", checkNormal(hosts, parseAuthority)},
		{"path", optional(checkPath)(r.Path)},
		{"status", checkRedirectStatus(r.Status)},
	})
}

func checkRedirectStatus(status int) error {
	// RFC 9110, section 15.4, without those that are no redirect by Location.
	switch status {
	case 301, 302, 303, 307, 308:
		return nil
	}
	return errors.New("must be 301, 302, 303, 307 or 308")
}

func (r *Respond) check() error {
	if err := first([]fieldCheck{
		{"status", statusBound.check(r.Status)},
		{"type", optional(checkType)(r.Type)},
		{"body", checkBody(r.Body)},
	}); err != nil {
		return err
	}
	if r.Body != "" && r.Type == "" {
		return errors.New("type: there is none of the body")
	}
	if r.Body != "" && bodiless(r.Status) {
		return fmt.Errorf("body: a response with status %d has none", r.Status)
	}
	return nil
}

// bodiless: a response of this status has no content. RFC 9110, sections
// 15.3.5, 15.3.6 and 15.4.5.
func bodiless(status int) bool { return status == 204 || status == 205 || status == 304 }

func checkBody(body string) error {
	if len(body) > respondMax {
		return fmt.Errorf("%d octets; at most %d are taken", len(body), respondMax)
	}
	return nil
}

func (w *Rewrite) check() error {
	switch {
	case w.HasPrefix == (w.Regex != nil):
		return errors.New("needs one of prefix and regex")
	case w.HasPrefix && w.Replacement != "":
		return errors.New("replacement: is for regex")
	case w.HasPrefix:
		return checkPath(w.Prefix)
	case w.Prefix != "":
		return errors.New("prefix: there is regex already")
	}
	return checkReplacement(w.Replacement, w.Regex)
}

func checkPrefixes(all []netip.Prefix) error {
	for i, p := range all {
		if err := checkPrefix(p); err != nil {
			return err
		}
		if i > 0 && comparePrefixes(all[i-1], p) >= 0 {
			return fmt.Errorf("%v: is there twice, or not in order", p)
		}
	}
	if len(all) > prefixesMax {
		return fmt.Errorf("%d; at most %d are taken", len(all), prefixesMax)
	}
	return nil
}

// editRank is the order in which fields are changed: what is removed is gone
// before anything is added.
var editRank = [...]int{RemoveField: 0, SetField: 1, AddField: 2}

func compareEdits(a, b Edit) int {
	return cmp.Or(cmp.Compare(editRank[a.Kind], editRank[b.Kind]), compareFold(a.Name, b.Name))
}

// sortEdits: names do not depend on each other, so the order of the file is
// kept only among values of one name.
func sortEdits(all []Edit) { slices.SortStableFunc(all, compareEdits) }

func checkAllEdits(all []Edit, response bool) error {
	if len(all) > editsMax {
		return fmt.Errorf("%d fields; at most %d are taken", len(all), editsMax)
	}
	for i, e := range all {
		if int(e.Kind) >= len(editWords) {
			return fmt.Errorf("%v of %q: no such edit", e.Kind, clip(e.Name))
		}
		if err := checkEdit(e, response); err != nil {
			return fmt.Errorf("%s: %w", printable(e.Name), err)
		}
		if i > 0 && compareEdits(all[i-1], e) > 0 {
			return fmt.Errorf("%s: is not in order", e.Name)
		}
	}
	return checkEdits(all)
}

// checkEdits: what edits that are in order exclude for each other.
func checkEdits(all []Edit) error {
	octets := 0
	kinds := make(map[string]EditKind)
	for _, e := range all {
		name := strings.ToLower(e.Name)
		was, there := kinds[name]
		switch {
		case there && was == RemoveField && e.Kind != RemoveField:
			return fmt.Errorf("%s is removed and comes again; %s replaces what was there", e.Name, SetField)
		case there && was == e.Kind && e.Kind != AddField:
			return fmt.Errorf("%s is there twice; names of fields are the same in upper and lower case", e.Name)
		}
		kinds[name] = e.Kind
		octets += len(e.Name) + len(e.Value) + len(": \r\n")
	}
	if octets > editOctetsMax {
		return fmt.Errorf("%d octets of fields; at most %d are taken", octets, editOctetsMax)
	}
	return nil
}

func compareFold(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }

func comparePairs(a, b Pair, header bool) int {
	if header {
		return compareFold(a.Name, b.Name)
	}
	return strings.Compare(a.Name, b.Name)
}

func samePair(a, b Pair, header bool) bool { return comparePairs(a, b, header) == 0 }

func sortPairs(all []Pair, header bool) {
	slices.SortStableFunc(all, func(a, b Pair) int { return comparePairs(a, b, header) })
}
