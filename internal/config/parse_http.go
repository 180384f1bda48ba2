package config

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

var (
	httpKeys         = []string{"trust", "forwarded", "via", "requestID", "limits", "timeouts", "rate", "sourceRate"}
	httpLimitsKeys   = []string{"line", "head", "fields", "body"}
	httpTimeoutsKeys = []string{"header", "body", "keepalive", "tunnel"}
	proxyKeys        = []string{"from"}
	reuseKeys        = []string{"idle", "time"}

	routeKeys = []string{"match", "name", "backend", "backends", "redirect", "respond", "rewrite", "headers", "answerTimeout",
		"rate", "sourceRate", "priority"}
	actionKeys   = []string{"backend", "backends", "redirect", "respond"}
	weightedKeys = []string{"name", "weight"}
	redirectKeys = []string{"scheme", "host", "path", "status"}
	respondKeys  = []string{"status", "type", "body"}
	rewriteKeys  = []string{"prefix", "regex", "replacement"}
	headersKeys  = []string{"request", "response"}
	editKeys     = []string{"set", "add", "remove"}
)

type (
	// use is a place that names a backend.
	use struct {
		*section
		key, name string
	}
	// routeSite is a route, or the key backend of a listener, which is one.
	routeSite struct {
		*section
		key   string // "" or that key
		route *Route
		whole bool // nothing of it was refused
	}
)

// http reads what only a listener for HTTP has.
func (l *listenerSite) http() {
	s := l.section
	if s.has("idleTimeout") {
		s.fail("idleTimeout", "is for protocol: tcp; those of http are in http.timeouts: %s", strings.Join(httpTimeoutsKeys, ", "))
	}
	l.l.Rules = s.rules()
	routes := s.list("routes")
	if len(routes) > routesMax {
		s.fail("routes", "%d routes; a listener has at most %d", len(routes), routesMax)
		routes = nil
	}
	for i, item := range routes {
		l.route(i, item)
	}
	if n := s.values["routes"]; n != nil && n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		s.fail("routes", "the list is empty; leave the key out, or write a route")
	}
	switch {
	case s.has("backend"):
		if name := s.checked("backend", "", checkName); name != "" {
			l.uses = append(l.uses, use{s, "backend", name})
			l.add(routeSite{s, "backend", &Route{Backends: []Weighted{{name, defaultShare}}, Priority: NormalPriority}, true})
		}
	case !s.has("routes") && !s.meant["routes"]:
		s.require("backend", "web, or routes")
	}
}

func (l *listenerSite) add(site routeSite) {
	l.routes = append(l.routes, site)
	l.l.Rules.Routes = append(l.l.Rules.Routes, site.route)
}

// rules reads the section http.
func (s *section) rules() *Rules {
	h := s.section("http", httpKeys...)
	r := &Rules{
		Trust:     h.prefixes("trust"),
		Forwarded: ForwardedFields(h.choice("forwarded", uint8(XForwarded), forwardedWords)),
		Via:       h.checked("via", "", checkToken),
		RequestID: h.checked("requestID", "", checkRequestID),
	}
	limits := h.section("limits", httpLimitsKeys...)
	r.HeadMax = int(limits.size("head", defaultHeadMax, headBound))
	r.LineMax = int(limits.size("line", uint64(min(defaultLineMax, r.HeadMax)), lineBound))
	if r.LineMax > r.HeadMax {
		limits.fail("line", "%s is more than limits.head, which is %s", sizeText(uint64(r.LineMax)), sizeText(uint64(r.HeadMax)))
	}
	r.FieldsMax = limits.integer("fields", defaultFieldsMax, fieldsBound)
	r.BodyMax = limits.size("body", 0, bodyBound)

	t := h.section("timeouts", httpTimeoutsKeys...)
	r.HeaderTimeout = t.duration("header", defaultHeaderTimeout, headerTimeoutBound)
	r.BodyTimeout = t.duration("body", defaultBodyTimeout, bodyTimeoutBound)
	r.KeepaliveTimeout = t.duration("keepalive", defaultKeepaliveTimeout, keepaliveTimeoutBound)
	r.TunnelTimeout = t.duration("tunnel", defaultTunnelTimeout, tunnelTimeoutBound)
	r.Rate = h.rateOf("requests")
	r.SourceRate = h.sourceRateOf("requests")
	return r
}

// route reads one item of routes.
func (l *listenerSite) route(i int, n *yaml.Node) {
	before := len(l.r.problems)
	s := l.item("routes", i, n, routeKeys...)
	r := &Route{Name: s.checked("name", "", checkName)}
	l.routeName(s, r.Name)
	r.Match = s.section("match", matchKeys...).match()
	defer func() { l.add(routeSite{s, "", r, len(l.r.problems) == before}) }()
	if s.broken {
		return
	}
	l.action(s, r)
	if s.has("rewrite") {
		r.Rewrite = s.section("rewrite", rewriteKeys...).rewrite()
	}
	headers := s.section("headers", headersKeys...)
	r.Request = headers.section("request", editKeys...).edits(false)
	r.Response = headers.section("response", editKeys...).edits(true)
	if s.has("answerTimeout") {
		r.AnswerTimeout = s.duration("answerTimeout", 0, answerTimeoutBound)
	}
	r.Rate = s.rateOf("requests")
	r.SourceRate = s.sourceRateOf("requests")
	r.Priority = NormalPriority
	if s.has("priority") || len(r.Backends) > 0 {
		r.Priority = Priority(s.choice("priority", uint8(NormalPriority), priorityWords))
	}
	if len(l.r.problems) > before {
		return // what was read is not whole
	}
	if key, err := r.clash(); err != nil {
		top, _, _ := strings.Cut(key, ".")
		s.r.fail(s.at(top), s.path+"."+key, "%v", err)
	}
}

// routeName reports a name that another route of the listener has.
func (l *listenerSite) routeName(s *section, name string) {
	for i, other := range l.routes {
		if name != "" && other.route.Name == name {
			s.fail("name", "routes[%d] (line %d) has this name already", i, other.place.line)
			return
		}
	}
}

// action reads what becomes of requests: exactly one of the keys for it.
func (l *listenerSite) action(s *section, r *Route) {
	found := ""
	for _, key := range actionKeys {
		switch {
		case found == "" && (s.has(key) || s.meant[key]):
			found = key
		case s.has(key):
			s.fail(key, "there is %s already; a route does one thing", found)
		}
	}
	if found == "" {
		s.r.fail(s.place, s.path, "does nothing; give it one of %s", strings.Join(actionKeys, ", "))
	}
	if !s.has(found) {
		return
	}
	switch found {
	case "backend":
		if name := s.checked("backend", "", checkName); name != "" {
			r.Backends = []Weighted{{name, defaultShare}}
			l.uses = append(l.uses, use{s, "backend", name})
		}
	case "backends":
		l.backends(s, r)
	case "redirect":
		r.Redirect = s.section("redirect", redirectKeys...).redirect()
	case "respond":
		r.Respond = s.section("respond", respondKeys...).respond()
	}
}

// backends reads the shares of several backends.
func (l *listenerSite) backends(s *section, r *Route) {
	items := s.list("backends")
	if len(items) > sharesMax {
		s.fail("backends", "%d backends; a route has at most %d", len(items), sharesMax)
		return
	}
	sum, whole := 0, true
	for i, item := range items {
		w := s.item("backends", i, item, weightedKeys...)
		var share Weighted
		if w.require("name", "web") {
			share.Name = w.checked("name", "", checkName)
		}
		share.Weight = w.integer("weight", defaultShare, weightBound)
		sum += share.Weight
		if share.Name == "" {
			whole = false
			continue
		}
		l.uses = append(l.uses, use{w, "name", share.Name})
		if slices.ContainsFunc(r.Backends, func(other Weighted) bool { return other.Name == share.Name }) {
			w.fail("name", "backend %q is there already", share.Name)
			continue
		}
		r.Backends = append(r.Backends, share)
	}
	sortShares(r.Backends)
	switch n := s.values["backends"]; {
	case n == nil || n.Kind != yaml.SequenceNode:
	case len(items) == 0:
		s.fail("backends", "the list is empty; a route needs at least one backend")
	case sum == 0 && whole:
		s.fail("backends", "every weight is 0, so no backend gets a request")
	}
}

func (s *section) redirect() *Redirect {
	r := &Redirect{
		Scheme: s.checked("scheme", "", checkScheme),
		Host:   s.normal("host", parseAuthority),
		Path:   s.checked("path", "", checkPath),
		Status: s.integer("status", defaultRedirectStatus, statusBound),
	}
	s.warnOfVariable(s.at("path"), join(s.path, "path"), "", r.Path)
	if s.has("status") {
		if err := checkRedirectStatus(r.Status); err != nil {
			s.fail("status", "%d: %v", r.Status, err)
		}
	}
	if !s.broken && !s.has("scheme") && !s.has("host") && !s.has("path") && len(s.meant) == 0 {
		s.r.fail(s.place, s.path, "leads to where the request was; give it scheme, host or path")
	}
	return r
}

func (s *section) respond() *Respond {
	r := new(Respond)
	if s.require("status", "404") {
		r.Status = s.integer("status", 0, statusBound)
	}
	r.Body = s.string("body", "")
	if r.Body != "" {
		r.Type = defaultType
	}
	r.Type = s.checked("type", r.Type, checkType)
	if err := checkBody(r.Body); err != nil {
		s.fail("body", "%v", err)
	}
	if r.Body != "" && bodiless(r.Status) {
		s.fail("body", "a response with status %d has none", r.Status)
	}
	return r
}

func (s *section) rewrite() *Rewrite {
	w := new(Rewrite)
	switch {
	case s.broken || len(s.meant) > 0:
	case s.has("prefix") && s.has("regex"):
		s.fail("regex", "there is prefix already; a path is rewritten once")
	case s.has("prefix"):
		w.Prefix, w.HasPrefix = s.checked("prefix", "", checkPath), true
		s.warnOfVariable(s.at("prefix"), join(s.path, "prefix"), "", w.Prefix)
		if s.has("replacement") {
			s.fail("replacement", "is for regex; prefix itself is what replaces")
		}
	case s.has("regex"):
		w.Regex = s.pathRegex("regex")
		if s.require("replacement", "/new/$1") && w.Regex != nil {
			if t, ok := s.scalar("replacement"); ok {
				s.noteText("replacement", t.value)
				var err error
				if w.Replacement, err = parseReplacement(t.value, w.Regex); err != nil {
					s.fail("replacement", "%q: %v", clip(t.value), err)
				}
			}
		}
	default:
		s.r.fail(s.place, s.path, "changes nothing; give it prefix, or regex and replacement")
	}
	return w
}

// edits reads changes of the fields of requests or of responses.
func (s *section) edits(response bool) []Edit {
	var all []Edit
	for _, key := range editKeys {
		kind := EditKind(slices.Index(editWords, key))
		if kind == RemoveField {
			for _, t := range s.items(key) {
				if err := checkEdit(Edit{kind, t.value, ""}, response); err != nil {
					s.r.fail(at(t.node), t.path, "%s: %v", printable(t.value), err)
				} else {
					all = append(all, Edit{kind, t.value, ""})
				}
			}
			continue
		}
		if !s.has(key) {
			continue
		}
		fields := s.open(key)
		for _, e := range fields.entries {
			values := fields.items(e.key.Value)
			if kind == SetField && len(values) > 1 {
				fields.fail(e.key.Value, "set has one value; further ones are for add")
				continue
			}
			for _, t := range values {
				edit := Edit{kind, e.key.Value, t.value}
				if err := checkEdit(edit, response); err != nil {
					s.r.fail(at(t.node), t.path, "%v", err)
				} else {
					all = append(all, edit)
					s.warnOfVariable(at(t.node), t.path, edit.Name, edit.Value)
				}
			}
		}
	}
	if len(all) > editsMax {
		s.r.fail(s.place, s.path, "%d fields; at most %d are taken", len(all), editsMax)
		return nil
	}
	sortEdits(all)
	if err := checkEdits(all); err != nil {
		s.r.fail(s.place, s.path, "%v", err)
	}
	return all
}
