package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

func rateText(r *Rate) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%v burst %d", *r, r.Burst)
}

func sourceRateText(r *SourceRate) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%s for each /%d and /%d", rateText(&r.Rate), r.Bits4, r.Bits6)
}

func onOff(on bool) string {
	if on {
		return wordOn
	}
	return wordOff
}

func addrPortText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

func retryText(b *Backend) string {
	all := []string{onConnect}
	if b.Retry.Reset {
		all = append(all, onReset)
	}
	for _, r := range b.Retry.Statuses {
		all = append(all, r.String())
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// text gives h as in "header X-User load 125%".
func (h Hash) text() string {
	text := h.Kind.String()
	if h.Name != "" {
		text += " " + h.Name
	}
	if h.Load != 0 {
		text += " load " + percentText(h.Load)
	}
	return text
}

// backendChanges gives what differs of the backends themselves, as
// fields.changes does.
func backendChanges(old, new *Backend) string {
	var all []string
	if text := backendFields.changes(old, new); text != "" {
		all = append(all, text)
	}
	all = append(all, part("sticky", old.Sticky, new.Sticky, stickyFields)...)
	if a, b := old.Sticky, new.Sticky; a != nil && b != nil && a.Key != b.Key {
		all = append(all, "sticky.cookie.key changed") // what it is, nobody is told
	}
	all = append(all, part("check", old.Check, new.Check, checkFields)...)
	if a, b := old.Check, new.Check; a != nil && b != nil {
		if headersText(a) == headersText(b) && !slices.Equal(a.Headers, b.Headers) {
			all = append(all, "check.http.headers changed")
		}
		all = append(all, part("check.agent", a.Agent, b.Agent, agentFields)...)
	}
	all = append(all, part("eject", old.Eject, new.Eject, ejectFields)...)
	all = append(all, part("breaker", old.Breaker, new.Breaker, breakerFields)...)
	all = append(all, part("fallback", old.Fallback, new.Fallback, fallbackFields)...)
	return strings.Join(all, ", ")
}

// part gives what differs in a section that may not be there.
func part[T any](key string, old, new *T, f fields[T]) []string {
	switch {
	case old == nil && new == nil:
		return nil
	case old == nil:
		return []string{"+ " + key}
	case new == nil:
		return []string{"- " + key}
	}
	return f.under(key).list(old, new)
}

// under gives f with its keys below key.
func (f fields[T]) under(key string) fields[T] {
	below := make(fields[T], len(f))
	copy(below, f)
	for i := range below {
		below[i].key = key + "." + below[i].key
	}
	return below
}

// stickyFields are all but the key, which is a secret.
var stickyFields = fields[Sticky]{
	{"by", func(y *Sticky) string { return y.Kind.String() }},
	{"name", func(y *Sticky) string { return printable(y.Name) }},
	{"maxAge", func(y *Sticky) string { return durationText(y.MaxAge) }},
	{"secure", func(y *Sticky) string { return fmt.Sprint(y.Secure) }},
	{"sameSite", func(y *Sticky) string { return printable(y.SameSite) }},
	{"domain", func(y *Sticky) string { return printable(y.Domain) }},
	{"path", func(y *Sticky) string { return printable(y.Path) }},
	{"entries", func(y *Sticky) string { return fmt.Sprint(y.TableMax) }},
	{"bits4", func(y *Sticky) string { return fmt.Sprint(y.Bits4) }},
	{"bits6", func(y *Sticky) string { return fmt.Sprint(y.Bits6) }},
}

var checkFields = fields[Check]{
	{"by", func(c *Check) string { return c.Kind.String() }},
	{"port", func(c *Check) string { return portText(c.Port) }},
	{"interval", func(c *Check) string { return durationText(c.Interval) }},
	{"fastInterval", func(c *Check) string { return durationText(c.FastInterval) }},
	{"downInterval", func(c *Check) string { return durationText(c.DownInterval) }},
	{"timeout", func(c *Check) string { return durationText(c.Timeout) }},
	{"rise", func(c *Check) string { return fmt.Sprint(c.Rise) }},
	{"fall", func(c *Check) string { return fmt.Sprint(c.Fall) }},
	{"tcp.send", func(c *Check) string { return printable(c.Send) }},
	{"tcp.expect", func(c *Check) string { return printable(c.Expect) }},
	{"http.method", func(c *Check) string { return printable(c.Method) }},
	{"http.path", func(c *Check) string { return printable(c.Path) }},
	{"http.host", func(c *Check) string { return printable(c.Host) }},
	{"http.headers", headersText},
	{"http.status", func(c *Check) string { return statusesText(c.Statuses) }},
	{"http.body", func(c *Check) string { return printable(searchText(c.Body)) }},
	{"http.drain", func(c *Check) string { return statusesText(c.Drain) }},
}

func headersText(c *Check) string {
	texts := make([]string, len(c.Headers))
	for i, e := range c.Headers {
		texts[i] = e.Name + ": " + e.Value
		if isSecretField(e.Name) {
			texts[i] = e.Name
		}
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

var agentFields = fields[Agent]{
	{"port", func(a *Agent) string { return portText(a.Port) }},
	{"interval", func(a *Agent) string { return durationText(a.Interval) }},
	{"send", func(a *Agent) string { return printable(a.Send) }},
}

var ejectFields = fields[Eject]{
	{"consecutive", func(e *Eject) string { return fmt.Sprint(e.Consecutive) }},
	{"rate", func(e *Eject) string { return percentText(e.Rate) }},
	{"least", func(e *Eject) string { return fmt.Sprint(e.Least) }},
	{"window", func(e *Eject) string { return durationText(e.Window) }},
	{"status", func(e *Eject) string { return statusesText(e.Statuses) }},
	{"time", func(e *Eject) string { return durationText(e.Time) }},
	{"timeMax", func(e *Eject) string { return durationText(e.TimeMax) }},
	{"share", func(e *Eject) string { return percentText(e.Share) }},
}

var breakerFields = fields[Breaker]{
	{"rate", func(k *Breaker) string { return percentText(k.Rate) }},
	{"least", func(k *Breaker) string { return fmt.Sprint(k.Least) }},
	{"window", func(k *Breaker) string { return durationText(k.Window) }},
	{"open", func(k *Breaker) string { return durationText(k.Open) }},
	{"probes", func(k *Breaker) string { return fmt.Sprint(k.Probes) }},
}

var fallbackFields = fields[Fallback]{
	{"backend", func(f *Fallback) string { return printable(f.Backend) }},
	{"respond", func(f *Fallback) string {
		if f.Respond == nil {
			return "none"
		}
		return fmt.Sprintf("%d %s %s", f.Respond.Status, printable(f.Respond.Type), printable(f.Respond.Body))
	}},
}

var accessLogFields = fields[AccessLog]{
	{"format", func(a *AccessLog) string { return a.Format.String() }},
	{"to", func(a *AccessLog) string { return a.To }},
}

func (c *AccessLogChange) line() string {
	switch {
	case c.Old == nil:
		return fmt.Sprintf("+ accessLog %v to %s", c.New.Format, c.New.To)
	case c.New == nil:
		return fmt.Sprintf("- accessLog %v to %s", c.Old.Format, c.Old.To)
	}
	return "~ accessLog: " + accessLogFields.changes(c.Old, c.New)
}
