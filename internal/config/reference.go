package config

import (
	"fmt"
	"strings"
)

// key is one key of the file, as a person is told of it. The parser does not
// read this table; tests hold that both have the same keys, the same bounds and
// the same defaults.
type key struct {
	// path has NAME for any name that a person gives, and [] for each item of a
	// list: "backends.NAME.endpoints[].address".
	path string
	form form // of a value; that of a section has no words
	// otherwise is the default as Show writes it; "" if there is none.
	otherwise string
	// absent is what is told in the place of a default: "any", "none".
	absent string
	// says what it is for, in a sentence or a few, in Markdown.
	says string
}

// given is what is absent of a key that must be given.
const given = "must be given"

func (k *key) required() bool { return k.absent == given }

// parent gives the section of k, and its name in there.
func (k *key) parent() (section, name string) {
	i := strings.LastIndexByte(k.path, '.')
	return k.path[:max(i, 0)], k.path[i+1:]
}

// example gives a value of the key at path, for messages.
func example(path string) string {
	for i := range keys {
		if keys[i].path == path {
			return keys[i].form.example
		}
	}
	return "..."
}

// ofKeys is the form of what has keys of its own.
var ofKeys = form{example: "{}"}

// openMap is a mapping from names that a person gives.
func openMap(says, example string, value jsonMap) form {
	return form{says: says, example: example, schema: jsonMap{"type": "object", "additionalProperties": value}}
}

var (
	anyText   = textForm("", "text")
	aToken    = textForm("a name of a field, or another token", "X-Request-ID")
	aPath     = form{says: "a path", example: "/api/", schema: matching("^/"), bad: []string{"api", "/a/../b"}}
	aHost     = form{says: "a host", example: "example.org", schema: matching(`^[^/]+$`), bad: []string{"a/b", "-"}}
	aRegex    = form{says: "an expression of RE2", example: `"/v[0-9]+/.*"`, schema: jsonMap{"type": "string"}, bad: []string{`"("`, `"a{900}b{900}"`}}
	aFile     = form{says: "an absolute path", example: "/etc/holdfast/n1.pem", schema: matching("^/"), bad: []string{"n1.pem"}}
	aSocket   = form{says: "an absolute path", example: "/run/holdfast/n1.sock", schema: matching("^/"), bad: []string{"n1.sock"}}
	aVIP      = addressForm("address and port", "10.0.0.5:80")
	aPort     = portBound.form(9000)
	aWeight   = weightBound.form(50)
	aSecret   = form{says: fmt.Sprintf("%d to %d octets", secretMin, secretMax), example: `"${STICKY_KEY:-0123456789abcdef}"`, schema: jsonMap{"type": "string"}, bad: []string{"short"}}
	aZone     = aName("fra1").because("a name")
	sent      = textForm(fmt.Sprintf("up to %d octets", checkSendMax), `"PING\r\n"`)
	texts     = jsonMap{"anyOf": []jsonMap{{"type": []string{"string", "number", "boolean"}}, {"type": "array", "minItems": 1, "items": jsonMap{"type": []string{"string", "number", "boolean"}}}}}
	pairValue = jsonMap{"anyOf": []jsonMap{
		{"type": []string{"string", "number", "boolean"}},
		{"type": "object", "additionalProperties": false, "minProperties": 1, "maxProperties": 1, "properties": jsonMap{"present": jsonMap{"const": true}, "regex": jsonMap{"type": "string"}}},
	}}
	fieldsOnce = openMap("a map from names to values", "{ X-Tier: paid }", jsonMap{"type": []string{"string", "number", "boolean"}})
	fieldLists = openMap("a map from names to values, or lists of them", "{ X-A: [ b, c ] }", texts)
	aSource    = addressForm("`vip`, an address, or `\"\"` for the kernel's choice", "vip").within([]string{"10.0.0.9", `""`}, "10.0.0.5:80", "x")
)

// keys is every key of the file, in the order of the reference.
var keys = []key{
	{"node", ofKeys, "", "", "This process."},
	{"node.name", aName("n1"), defaultNodeName, "", "The name of this node; in a cluster one of `nodes`. In a file for all nodes it is left out: `run --node`, `$HOLDFAST_NODE`, or the host's own name then says it, and `${HOLDFAST_NODE}` in the file is the same."},
	{"node.loops", loopsBound.form(4).or(loopsAuto), loopsAuto, "", "Event loops; `auto` is one for each processor."},
	{"node.connectionsMax", connectionsBound.form(100000), "0", "", "Open flows of the node; 0: bounded by the descriptors alone. At the bound new connections wait in the backlog."},
	{"node.zone", aZone, "", "none", "Where this node is, for `preferLocal` of backends."},
	{"node.dns", addressForm("an address, with the port unless that is 53", "10.0.0.2").several(`[ 10.0.0.2, "10.0.0.3:5353" ]`), "", "those of `/etc/resolv.conf`", fmt.Sprintf("Who resolves the names of endpoints, up to %d, in this order.", serversMax)},
	{"node.memory", ofKeys, "", "", ""},
	{"node.memory.max", memoryBound.form("512MiB"), "0", "", "Memory of the process: before it is reached, idle connections are closed and accepting pauses."},
	{"node.admin", ofKeys, "", "", ""},
	{"node.admin.socket", aSocket, defaultAdminSocket, "", "The unix socket at which the verbs find this node; only its owner can open it. It serves `/metrics` and a page for a browser, too."},
	{"node.admin.metrics", aVIP.because("address and port").exampled("127.0.0.1:9090"), "", "nowhere", "Where `/metrics` and the page, without addresses of clients, are served over TCP as well, to everybody who can connect."},

	{"node.admin.api", ofKeys, "", "nowhere", "Where the API is served over TCP as well, to those who show a certificate that is named here. All of its keys must be given."},
	{"node.admin.api.listen", aVIP.exampled("192.168.7.1:7444"), "", given, "Address and port."},
	{"node.admin.api.certificate", aFile, "", given, "The certificate that callers see, in PEM."},
	{"node.admin.api.key", aFile, "", given, "Its key."},
	{"node.admin.api.trust", aFile, "", given, "The authority that signed the callers' certificates."},
	{"node.admin.api.roles", openMap("a map from names to `read`, `operate` or `admin`", "{ deploy.example.org: operate }", jsonMap{"enum": anyOf(roleWords)}), "", given, "What callers may do, by the common name of their certificate or one of its alternative names (a host, `spiffe://...`, an address of mail); others may do nothing. `read` looks; `operate` changes endpoints and flows, too; `admin` may do everything."},
	{"node.state", form{says: "an absolute path, or `none`", example: "/var/lib/holdfast/n1", schema: matching("^(none|/.*)$"), bad: []string{"state", "off"}}, "", "`/var/lib/holdfast` or, of who is not root, `~/.local/state/holdfast`, and in there one for each file", "The directory in which every change is written down, so that a restart goes on with it. With `none` what is changed at run time lasts as long as the process and its successors."},
	{"node.watchFile", boolForm(), "false", "", "The file is applied as soon as it changes, as by `holdfast reload`. One that is wrong changes nothing and is reported."},

	{"accessLog", ofKeys, "", "none is written", "One line for each request, and for each flow without requests. `accessLog: {}` has the defaults."},
	{"accessLog.format", wordForm(logWords, "text"), "json", "", "One object a line, or words in one."},
	{"accessLog.to", form{says: "`stdout`, `stderr`, a file, `syslog`, or `syslog:ADDRESS:PORT`", example: "/var/log/holdfast/access.log", schema: matching("^(stdout|stderr|syslog(:.+)?|/.+)$"), bad: []string{"access.log", "stdin", "syslog:x"}}, defaultLogTo, "", "Where it is written. A file is opened again at SIGUSR1; `syslog` is the local one, with an address it is RFC 5424 over UDP. It never waits: what cannot be written is dropped and counted."},

	{"listeners", ofKeys, "", "", "A map from the listener's name to what it does."},
	{"listeners.NAME.vip", aVIP, "", given, "Where clients connect; `[::]:port`, or `:port`, takes clients of both families. Or the name of one of `vips` with a port, as in `shop:443`."},
	{"listeners.NAME.protocol", wordForm(protocolWords, "http"), "tcp", "", "`tcp` passes octets as they are; `http` is HTTP/1.1 and 1.0."},
	{"listeners.NAME.backend", aName("b"), "", "must be given, of `http` unless there are routes", "The name of a backend. Of `http`: the last route, which matches everything."},
	{"listeners.NAME.idleTimeout", idleTimeoutBound.form("5m"), "10m", "", "A flow on which nothing moved for so long is ended. Not for `http`, which has `http.timeouts`."},
	{"listeners.NAME.connectionsMax", connectionsBound.form(10000), "0", "", "Open flows of this listener; 0 is no bound. At the bound new connections wait in the backlog."},
	{"listeners.NAME.backlog", backlogBound.form(1024), "4096", "", "Connections that wait in the kernel to be accepted; the kernel clamps it to `net.core.somaxconn`."},
	{"listeners.NAME.allow", networkForm("[ 10.0.0.0/8, \"2001:db8::/32\" ]"), "", "everybody", "Who may connect; others are reset. It is the address of the connection that counts, not that of a PROXY header."},
	{"listeners.NAME.deny", networkForm("192.0.2.0/24"), "", "nobody", "Who may not, even if `allow` names it."},
	{"listeners.NAME.rate", ofKeys, "", "no bound", "How many connections are accepted; more wait in the backlog."},
	{"listeners.NAME.rate.connections", rateForm(), "", given, "A bound of the mean."},
	{"listeners.NAME.rate.burst", burstBound.form(50), "", "as many as in one period", "How many may come at once."},
	{"listeners.NAME.sourceRate", ofKeys, "", "no bound", "The same for each source; more are reset. Not with `proxyProtocol`: then all come from a few proxies."},
	{"listeners.NAME.sourceRate.connections", rateForm(), "", given, "A bound of the mean."},
	{"listeners.NAME.sourceRate.burst", burstBound.form(50), "", "as many as in one period", "How many may come at once."},
	{"listeners.NAME.sourceRate.bits4", bits4Bound.form(24), "32", "", "How much of an IPv4 address is one source."},
	{"listeners.NAME.sourceRate.bits6", bits6Bound.form(56), "64", "", "How much of an IPv6 address is one source."},
	{"listeners.NAME.sourceConnectionsMax", connectionsBound.form(100), "0", "", "Open connections of one source, as `sourceRate` names sources; more are reset; 0 is no bound. Not with `proxyProtocol`."},
	{"listeners.NAME.accessLog", wordForm([]string{wordOn, wordOff}, wordOff), wordOn, "", "`off`: what this listener serves is not logged."},
	{"listeners.NAME.keepalive", ofKeys, "", "", ""},
	{"listeners.NAME.keepalive.idle", keepaliveIdleBound.form("20s"), "10s", "", "Silence after which both legs are probed."},
	{"listeners.NAME.keepalive.interval", keepaliveIntervalBound.form("5s"), "3s", "", "Between probes."},
	{"listeners.NAME.keepalive.count", keepaliveCountBound.form(6), "4", "", "Unanswered probes after which a peer counts as vanished."},
	{"listeners.NAME.userTimeout", userTimeoutBound.form("40s").because("1ms to 24h; `0s`: the kernel's own limit, about a quarter of an hour"), "20s", "", "A peer that acknowledges nothing of what it was sent, and answers no probe, for so long has vanished. One that reads slowly, or not at all, and answers is kept."},
	{"listeners.NAME.onChange", wordForm(changeWords, "adopt"), "keep", "", "What becomes of open flows when the listener changes: they go on as they began, one of HTTP to the end of its request; they take the new timeouts and limits; they are closed."},
	{"listeners.NAME.movable", boolForm(), "false", "", "Its flows may move to another host; needs `cluster`, and a `source` of every backend it names. On one of `vips` it is `true`."},
	{"listeners.NAME.proxyProtocol", ofKeys, "", "", ""},
	{"listeners.NAME.proxyProtocol.from", networkForm(`[ 10.0.0.0/8, "2001:db8::/32" ]`), "", given, "Connections from there begin with a PROXY header, version 1 or 2, that says who the client is; one that does not is closed."},
	{"listeners.NAME.http", ofKeys, "", "", ""},
	{"listeners.NAME.http.trust", networkForm("10.0.0.0/8"), "", "nobody", "Proxies before us: their `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` are kept and added to; those of other clients are replaced. Other fields, as `X-Real-IP`, pass as they come: set or remove them by a route. After a PROXY header it is the client it names who has to be in these networks."},
	{"listeners.NAME.http.forwarded", wordForm(forwardedWords, "both"), "x-forwarded", "", "Which of these fields backends get; those that untrusted clients sent are removed in any case."},
	{"listeners.NAME.http.via", aToken.exampled("holdfast"), "", "none", "Our name in the field `Via` of requests and responses."},
	{"listeners.NAME.http.requestID", aToken, "", "none", "The name of a field that identifies a request to backends; one that a trusted proxy sent is kept. Responses do not get it."},
	{"listeners.NAME.http.rate", ofKeys, "", "no bound", "How many requests are served; more are answered with 429."},
	{"listeners.NAME.http.rate.requests", rateForm(), "", given, "A bound of the mean."},
	{"listeners.NAME.http.rate.burst", burstBound.form(50), "", "as many as in one period", "How many may come at once."},
	{"listeners.NAME.http.sourceRate", ofKeys, "", "no bound", "The same for each client, as `trust` knows it."},
	{"listeners.NAME.http.sourceRate.requests", rateForm(), "", given, "A bound of the mean."},
	{"listeners.NAME.http.sourceRate.burst", burstBound.form(50), "", "as many as in one period", "How many may come at once."},
	{"listeners.NAME.http.sourceRate.bits4", bits4Bound.form(24), "32", "", "How much of an IPv4 address is one client."},
	{"listeners.NAME.http.sourceRate.bits6", bits6Bound.form(56), "64", "", "How much of an IPv6 address is one client."},
	{"listeners.NAME.http.limits", ofKeys, "", "", ""},
	{"listeners.NAME.http.limits.line", lineBound.form("4KiB"), "8KiB", "", "A request line, not more than `head`; a longer one is answered with 414."},
	{"listeners.NAME.http.limits.head", headBound.form("8KiB"), "16KiB", "", "A head of a request or response; a larger one is answered with 431, or 502 if it is a response."},
	{"listeners.NAME.http.limits.fields", fieldsBound.form(64), "100", "", "Fields of a head."},
	{"listeners.NAME.http.limits.body", bodyBound.form("10MiB"), "0", "", "The body of a request; a larger one is answered with 413."},
	{"listeners.NAME.http.timeouts", ofKeys, "", "", ""},
	{"listeners.NAME.http.timeouts.header", headerTimeoutBound.form("5s"), "10s", "", "From the first octet of a head to its end."},
	{"listeners.NAME.http.timeouts.body", bodyTimeoutBound.form("20s"), "30s", "", "A body, of a request or a response, of which nothing moves for so long is given up. Make it longer than the silences of event streams, and than a client may pause its download."},
	{"listeners.NAME.http.timeouts.keepalive", keepaliveTimeoutBound.form("10s"), "1m", "", "Between two requests of a connection."},
	{"listeners.NAME.http.timeouts.tunnel", tunnelTimeoutBound.form("8h"), "1h", "", "Without octets after an upgrade or CONNECT."},

	{"listeners.NAME.routes", form{says: "a list", example: "[ { backend: b } ]", list: true}, "", "", fmt.Sprintf("Only for `http`: a list of up to %d.", routesMax)},
	{"listeners.NAME.routes[].name", aName("api"), "", "none", "Unique in its listener. What is changed at run time is `route/LISTENER/NAME`."},
	{"listeners.NAME.routes[].match", ofKeys, "", "everything", "What a request has to be like."},
	{"listeners.NAME.routes[].match.host", aHost.because("a host without its port").several(`[ example.org, "*.example.org" ]`), "", "any", "`*.example.org` is any name below `example.org`."},
	{"listeners.NAME.routes[].match.path", aPath, "", "any", "A prefix, the same as `path: { prefix: ... }`; or one of these:"},
	{"listeners.NAME.routes[].match.path.prefix", aPath, "", "", "`/a/` is itself and all below it, not `/a`; `/a` is `/a` and all below `/a/`, not `/ab`."},
	{"listeners.NAME.routes[].match.path.exact", aPath, "", "", "This path and no other."},
	{"listeners.NAME.routes[].match.path.regex", aRegex, "", "", "Matches from begin to end."},
	{"listeners.NAME.routes[].match.method", aToken.because("a method").several("[ GET, HEAD ]"), "", "any", "`GET` is not `get`."},
	{"listeners.NAME.routes[].match.header", openMap("a map from names of fields", "{ X-Tier: free, X-Debug: { present: true } }", pairValue), "", "", "To a text that is equal, or to `{ present: true }` (any value will do) or `{ regex: ... }`."},
	{"listeners.NAME.routes[].match.query", openMap("a map from names", `{ v: { regex: "[0-9]+" } }`, pairValue), "", "", "The same for names of the query, as they are sent: a space is `%20`."},
	{"listeners.NAME.routes[].match.source", networkForm("[ 10.0.0.0/8 ]"), "", "any", "Where the client is, as `http.trust` knows it."},
	{"listeners.NAME.routes[].backend", aName("b"), "", "", "The name of the backend that gets the request."},
	{"listeners.NAME.routes[].backends", form{says: "a list", example: "[ { name: b } ]", list: true}, "", "", fmt.Sprintf("Or a list of up to %d that share requests.", sharesMax)},
	{"listeners.NAME.routes[].backends[].name", aName("b"), "", given, "The name of a backend."},
	{"listeners.NAME.routes[].backends[].weight", aWeight, "1", "", "Its share of the sum of all."},
	{"listeners.NAME.routes[].redirect", ofKeys, "", "", "Or: the client is sent elsewhere."},
	{"listeners.NAME.routes[].redirect.scheme", wordForm([]string{"http", "https"}, "https"), "", "the one the client came by", "It came by `http`, unless `X-Forwarded-Proto` of a proxy in `trust` says `https`. If the scheme changes, the request's port is left out."},
	{"listeners.NAME.routes[].redirect.host", aHost.because("a host, with or without port").exampled(`"www.example.org:8443"`), "", "that of the request", ""},
	{"listeners.NAME.routes[].redirect.path", aPath, "", "that of the request", "The query stays."},
	{"listeners.NAME.routes[].redirect.status", statusBound.form(308).because("301, 302, 303, 307 or 308").within(nil, "300", "304", "200"), "307", "", ""},
	{"listeners.NAME.routes[].respond", ofKeys, "", "", "Or: the request is answered here. If it has a body, that is not read, and the connection ends (so with `redirect`)."},
	{"listeners.NAME.routes[].respond.status", statusBound.form(404), "", given, ""},
	{"listeners.NAME.routes[].respond.type", anyText.because("a type of media").exampled("application/json"), "", "`text/plain; charset=utf-8`", "Of a body."},
	{"listeners.NAME.routes[].respond.body", anyText.because(fmt.Sprintf("up to %s", sizeText(respondMax))), "", "none", ""},
	{"listeners.NAME.routes[].rewrite", ofKeys, "", "", "Changes the path that the backend gets: by `prefix`, or by `regex` and `replacement`."},
	{"listeners.NAME.routes[].rewrite.prefix", aPath, "", "", "Replaces what the route matched by `prefix` or `exact`, with one slash where it meets the rest; `/` takes it away."},
	{"listeners.NAME.routes[].rewrite.regex", aRegex, "", "", "A path that matches is replaced, another one stays."},
	{"listeners.NAME.routes[].rewrite.replacement", aPath, "", "must be given with `regex`", "A path with `$1` to `$9` for groups, `$0` for all and `$$` for a dollar sign."},
	{"listeners.NAME.routes[].headers", ofKeys, "", "", fmt.Sprintf("Changes of fields, up to %d each; removing comes first, then setting, then adding.", editsMax)},
	{"listeners.NAME.routes[].headers.request", ofKeys, "", "", "Of those that the backend gets; made last, after our own fields."},
	{"listeners.NAME.routes[].headers.request.set", fieldsOnce, "", "", "All fields of that name are replaced by one; values are sent as they stand."},
	{"listeners.NAME.routes[].headers.request.add", fieldLists, "", "", "They are added."},
	{"listeners.NAME.routes[].headers.request.remove", aToken.several("[ X-Debug ]"), "", "", "All fields of that name."},
	{"listeners.NAME.routes[].headers.response", ofKeys, "", "", "Of those that the client gets."},
	{"listeners.NAME.routes[].headers.response.set", fieldsOnce, "", "", "As above."},
	{"listeners.NAME.routes[].headers.response.add", fieldLists, "", "", "As above."},
	{"listeners.NAME.routes[].headers.response.remove", aToken.several("Server"), "", "", "As above."},
	{"listeners.NAME.routes[].answerTimeout", answerTimeoutBound.form("5m"), "", "the backend's", "The time until the first octet of a response."},
	{"listeners.NAME.routes[].rate", ofKeys, "", "no bound", "How many requests this route serves; more are answered with 429. Those of the listener hold as well."},
	{"listeners.NAME.routes[].rate.requests", rateForm(), "", given, "A bound of the mean."},
	{"listeners.NAME.routes[].rate.burst", burstBound.form(50), "", "as many as in one period", "How many may come at once."},
	{"listeners.NAME.routes[].sourceRate", ofKeys, "", "no bound", "The same for each client."},
	{"listeners.NAME.routes[].sourceRate.requests", rateForm(), "", given, "A bound of the mean."},
	{"listeners.NAME.routes[].sourceRate.burst", burstBound.form(50), "", "as many as in one period", "How many may come at once."},
	{"listeners.NAME.routes[].sourceRate.bits4", bits4Bound.form(24), "32", "", "How much of an IPv4 address is one client."},
	{"listeners.NAME.routes[].sourceRate.bits6", bits6Bound.form(56), "64", "", "How much of an IPv6 address is one client."},
	{"listeners.NAME.routes[].priority", wordForm(priorityWords, "high"), "normal", "", "Who of those that wait for an endpoint comes first."},

	{"backends", ofKeys, "", "", "A map from the backend's name to its endpoints and what rules them."},
	{"backends.NAME.balance", wordForm(balanceWords, "least"), "round-robin", "", "How an endpoint is chosen: `round-robin` each in turn; `least` the one with the fewest connections; `random`; `p2c` of two by chance the one that answers sooner (peak EWMA times what is under way); `maglev` by a hash, of which few change when endpoints come or go. All go by weight."},
	{"backends.NAME.hash", ofKeys, "", "", "Only with `maglev`."},
	{"backends.NAME.hash.by", wordForm(hashWords, "path").within([]string{"source", "path"}, "qqq"), "source", "", "What is hashed: the client's address, a field or a cookie of the request (without it the address), or the path."},
	{"backends.NAME.hash.name", aToken.exampled("X-User"), "", "must be given with `header` and `cookie`", "Of the field or the cookie."},
	{"backends.NAME.hash.load", percentForm(loadBound, "no bound", "125%"), "0%", "", "What one endpoint may have of its fair part; beyond it the next one is taken."},
	{"backends.NAME.preferLocal", boolForm(), "false", "", "Endpoints on this node's own host (`node`) come first, then those in its zone, while one of them has room. What is local is judged where a flow is when it asks for an endpoint."},
	{"backends.NAME.slowStart", slowStartBound.form("20s"), "0s", "", "An endpoint that comes back gets its weight little by little, in this time."},
	{"backends.NAME.panic", percentForm(panicBound, "never", "50%"), "0%", "", "With fewer endpoints up than this, health is not believed: all serve but those in maintenance or quiescing."},
	{"backends.NAME.connectTimeout", connectTimeoutBound.form("2s"), "5s", "", "For one attempt to connect to one endpoint."},
	{"backends.NAME.retry", ofKeys, "", "", ""},
	{"backends.NAME.retry.max", retryBound.form(3), "2", "", "Further endpoints that are tried."},
	{"backends.NAME.retry.on", form{
		says: "`connect`, `reset`, status codes and ranges", example: "[ connect, reset, 503 ]", list: true,
		schema: jsonMap{"anyOf": []jsonMap{{"enum": []any{onConnect, onReset}}, {"type": "integer", "minimum": answerStatusBound.min, "maximum": answerStatusBound.max}, matching("^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$")}},
		bad:    []string{"[ reset ]", "[ connect, timeout ]", "[ connect, 600 ]"},
	}, "[connect]", "", "When: an endpoint cannot be reached, which is always among them; a new connection broke before any of the response (`reset`); the response has this status, and is thrown away. What may not be repeated (RFC 9110, section 9.2.2) never is."},
	{"backends.NAME.retry.budget", percentForm(budgetBound, "no bound", "10%"), "0%", "", "Retries in relation to requests, beside ten a second that are always allowed."},
	{"backends.NAME.source", aSource, "", "the kernel chooses", "The address to dial from: `vip` is the one that the client connected to."},
	{"backends.NAME.limits", ofKeys, "", "", ""},
	{"backends.NAME.limits.connectionsPerEndpoint", connectionsBound.form(200), "0", "", "Open connections to each endpoint, over all loops; 0 is no bound."},
	{"backends.NAME.limits.queue", queueBound.form(500), "1000", "", "Flows that may wait for an endpoint, for `queueTime`; 0 is no bound. One more is closed, or answered with 503 if it is of `http`."},
	{"backends.NAME.limits.queueTime", queueTimeBound.form("2s"), "10s", "", "How long one waits at most; then the same becomes of it."},
	{"backends.NAME.proxyProtocol", wordForm(proxyWords, "v2"), "none", "", "Each connection to an endpoint begins with a PROXY header that says who the client is. It is not reused then."},
	{"backends.NAME.answerTimeout", answerTimeoutBound.form("2m"), "1m", "", "Only for `http`: until the first octet of a response; then the client gets 504."},
	{"backends.NAME.reuse", ofKeys, "", "", "Only for `http`."},
	{"backends.NAME.reuse.idle", idleBound.form(16), "64", "", "Idle connections that a loop keeps for each endpoint; 0 keeps none."},
	{"backends.NAME.reuse.time", idleTimeBound.form("5s"), "30s", "", "For how long. It has to be less than the endpoint's own time."},
	{"backends.NAME.fallback", ofKeys, "", "503, or the end of the flow", "What serves while no endpoint does; one of these:"},
	{"backends.NAME.fallback.backend", aName("spare"), "", "", "Another backend."},
	{"backends.NAME.fallback.respond", ofKeys, "", "", "Only for `http`: an answer, with `status`, `type` and `body` as in routes."},
	{"backends.NAME.fallback.respond.status", statusBound.form(503), "", given, ""},
	{"backends.NAME.fallback.respond.type", anyText.because("a type of media").exampled("text/html"), "", "`text/plain; charset=utf-8`", "Of a body."},
	{"backends.NAME.fallback.respond.body", anyText.because(fmt.Sprintf("up to %s", sizeText(respondMax))), "", "none", ""},

	{"backends.NAME.endpoints", form{says: "a list", example: "[ { address: 10.0.0.1:80 } ]", list: true}, "", given, fmt.Sprintf("1 to %d endpoints.", endpointsMax)},
	{"backends.NAME.endpoints[].address", addressForm("`10.0.0.31:5432`, `[2001:db8::1]:5432`, `app.example.org:8080` or `unix:/run/app.sock`", "app.example.org:8080").within(nil, "10.0.0.300:80", "10.0.0.1", "unix:app.sock"), "", "must be given, unless `drop` is", "A name stands for all its addresses, of which each is an endpoint; it is resolved again as its TTL says, and its last answer stays while there is no other."},
	{"backends.NAME.endpoints[].drop", wordForm(dropWords[NoDrop+1:], "hold"), "", "no", "It is no server but a sink, with a weight as others: flows are reset; or kept, and never answered; or answered with 503 (without `http`: closed)."},
	{"backends.NAME.endpoints[].name", aName("a1").like(anyText.schema), "", "its address", "Unique in its backend."},
	{"backends.NAME.endpoints[].weight", aWeight, fmt.Sprint(DefaultWeight), "", "Its share; 0 gets nothing new but what is sticky to it."},
	{"backends.NAME.endpoints[].backup", boolForm(), "false", "", "It serves while no other one does."},
	{"backends.NAME.endpoints[].zone", aZone, "", "none", "Where it is, for `preferLocal`."},
	{"backends.NAME.endpoints[].node", aName("n1"), "", "none", "The node of the cluster on whose host it runs, one of `nodes`: local, for `preferLocal`, where that node serves; out of rotation everywhere while that node is evacuated."},
	{"backends.NAME.endpoints[].connections", connectionsBound.form(20), "0", "", "In the place of `limits.connectionsPerEndpoint`, for this one; 0 is the backend's."},
	{"backends.NAME.endpoints[].check", ofKeys, "", "", ""},
	{"backends.NAME.endpoints[].check.port", aPort, "", given, "In the place of `check.port`, for this one."},

	{"backends.NAME.sticky", ofKeys, "", "each request goes where `balance` says", "A client stays with the endpoint that it had before, also while that one is quiescing: by one of `cookie`, `header` and `source`."},
	{"backends.NAME.sticky.cookie", ofKeys, "", "", "Only for `http`: a cookie that we set. We remember nothing."},
	{"backends.NAME.sticky.cookie.name", aToken.exampled("hf"), "", given, "Of the cookie."},
	{"backends.NAME.sticky.cookie.maxAge", cookieAgeBound.form("8h"), "0s", "", "How long it is good."},
	{"backends.NAME.sticky.cookie.key", aSecret, "", "it is not signed", "A secret with which it is signed, so that nobody chooses an endpoint. It has to be the same on all nodes."},
	{"backends.NAME.sticky.cookie.secure", boolForm(), "false", "", "User agents send it over TLS alone."},
	{"backends.NAME.sticky.cookie.sameSite", wordForm(sameSites, "Lax"), "", "the user agent's", "`None` needs `secure`."},
	{"backends.NAME.sticky.cookie.domain", aHost.exampled("example.org"), "", "the host of the request", "It goes to all hosts below it."},
	{"backends.NAME.sticky.cookie.path", aPath, "/", "", "It goes to all paths below it."},
	{"backends.NAME.sticky.header", ofKeys, "", "", "Only for `http`: the value of a field, which we remember."},
	{"backends.NAME.sticky.header.name", aToken.exampled("X-Session"), "", given, "Of the field."},
	{"backends.NAME.sticky.header.maxAge", entryAgeBound.form("8h"), "1h", "", "Who was not seen for so long is forgotten."},
	{"backends.NAME.sticky.header.entries", entriesBound.form(10000), "100000", "", "How many are remembered; the one not seen for longest goes."},
	{"backends.NAME.sticky.source", ofKeys, "", "", "The client's address, which we remember."},
	{"backends.NAME.sticky.source.maxAge", entryAgeBound.form("8h"), "1h", "", "As above."},
	{"backends.NAME.sticky.source.entries", entriesBound.form(10000), "100000", "", "As above."},
	{"backends.NAME.sticky.source.bits4", bits4Bound.form(24), "32", "", "How much of an IPv4 address is one client."},
	{"backends.NAME.sticky.source.bits6", bits6Bound.form(56), "64", "", "How much of an IPv6 address is one client."},

	{"backends.NAME.check", ofKeys, "", "all endpoints count as up", "Probes of endpoints. A new one serves after its first good probe. `check: {}` connects every 2s."},
	{"backends.NAME.check.tcp", ofKeys, "", "", "It can be connected to; the default."},
	{"backends.NAME.check.tcp.send", sent, "", "nothing", "Sent after the connect."},
	{"backends.NAME.check.tcp.expect", sent.exampled("+PONG"), "", "anything", "What the answer begins with."},
	{"backends.NAME.check.http", ofKeys, "", "", "It answers a request over HTTP/1.1 well."},
	{"backends.NAME.check.http.method", aToken.because("a method").exampled("HEAD"), "GET", "", ""},
	{"backends.NAME.check.http.path", aPath.because("a path, with or without a query").exampled(`"/healthz?deep=1"`), "/", "", ""},
	{"backends.NAME.check.http.host", aHost.because("a host, with or without port"), "", "the address of the endpoint", ""},
	{"backends.NAME.check.http.headers", fieldLists, "", "", "Further fields of the request."},
	{"backends.NAME.check.http.status", statusForm(), "[200-299]", "", "What is good."},
	{"backends.NAME.check.http.body", aRegex.exampled(`"ok|fine"`), "", "any", "Is found in the first 64KiB of the content."},
	{"backends.NAME.check.http.drain", statusForm().exampled("[ 404, 503 ]").within([]string{"599", "100-199"}, "99", "600", "200"), "", "none", "What means that the endpoint wants nothing new, but finishes what it has and serves those that are sticky to it."},
	{"backends.NAME.check.port", aPort, "", "that of the endpoint", "Where probes go, of all endpoints but unix sockets."},
	{"backends.NAME.check.interval", checkIntervalBound.form("5s"), "2s", "", "Between probes of an endpoint. They are spread evenly over it."},
	{"backends.NAME.check.fastInterval", checkIntervalBound.form("1s"), "500ms", "", "While it is between up and down; not more than `interval` if that is less."},
	{"backends.NAME.check.downInterval", checkIntervalBound.form("10s"), "", "`interval`", "While it is down."},
	{"backends.NAME.check.timeout", checkTimeoutBound.form("500ms"), "1s", "", "For one probe, in all."},
	{"backends.NAME.check.rise", checkCountBound.form(1), "2", "", "Good probes in a row that turn it up."},
	{"backends.NAME.check.fall", checkCountBound.form(2), "3", "", "Bad ones that turn it down."},
	{"backends.NAME.check.agent", ofKeys, "", "none", "A program beside the endpoint that says in one line how it is: `ready`, `drain`, `maint`, `down`, `up`, `stopped`, or a share of its weight as `50%`. Without `tcp` or `http` it is all that is asked."},
	{"backends.NAME.check.agent.port", aPort.exampled("9777"), "", given, ""},
	{"backends.NAME.check.agent.interval", checkIntervalBound.form("5s"), "2s", "", ""},
	{"backends.NAME.check.agent.send", sent.exampled(`"state\n"`), "", "nothing", "What it is told first."},

	{"backends.NAME.eject", form{says: "`off`, or a mapping", example: "off", schema: jsonMap{"enum": anyOf([]string{wordOff})}}, "", "on, with the defaults below", "Endpoints that fail what clients ask for are taken out for a while. A connect that fails, a connection that breaks before a response and a response that does not come in time are failures."},
	{"backends.NAME.eject.consecutive", consecutiveBound.form(3), "5", "", "So many failures in a row eject; 0: they do not."},
	{"backends.NAME.eject.rate", percentForm(failureRateBound, "it does not", "30%"), "0%", "", "So does this share of failures in a window."},
	{"backends.NAME.eject.least", leastBound.form(50), "20", "", "If there were so many attempts in it."},
	{"backends.NAME.eject.window", windowBound.form("30s"), "10s", "", ""},
	{"backends.NAME.eject.status", statusForm().exampled("[ 500-599 ]"), "[502-504]", "", "Responses that are failures, too."},
	{"backends.NAME.eject.time", ejectTimeBound.form("5s"), "10s", "", "How long the first ejection lasts; each further one twice as long,"},
	{"backends.NAME.eject.timeMax", ejectTimeBound.form("10m"), "5m", "", "but not longer than this."},
	{"backends.NAME.eject.share", percentForm(ejectShareBound, "", "30%"), "50%", "", "How many of the endpoints may be out at once."},

	{"backends.NAME.breaker", ofKeys, "", "nothing stops them", "Stops all requests to a backend that fails most of them. `breaker: {}` has the defaults."},
	{"backends.NAME.breaker.rate", percentForm(breakerRateBound, "", "60%"), "50%", "", "The share of failures in a window that opens it."},
	{"backends.NAME.breaker.least", leastBound.form(50), "20", "", "If there were so many attempts in it."},
	{"backends.NAME.breaker.window", windowBound.form("30s"), "10s", "", ""},
	{"backends.NAME.breaker.open", breakerOpenBound.form("10s"), "5s", "", "How long nothing is sent."},
	{"backends.NAME.breaker.probes", breakerProbeBound.form(5), "3", "", "Requests that are let through then, and decide."},

	{"nodes", ofKeys, "", "", "The hosts between which addresses and flows move. The same on all of them; each finds itself by `node.name`, `run --node`, `$HOLDFAST_NODE` or the host's name."},
	{"nodes.NAME.address", aVIP.because("address and port").exampled("192.168.7.1:7443"), "", given, "Where its peers reach it."},
	{"nodes.NAME.device", aDevice, "", given, "The network device of the VIPs and of the other hosts."},
	{"nodes.NAME.sourcePorts", aPortRange, "", given, "Ports from which it alone dials movable sources; no two nodes share one."},
	{"nodes.NAME.labels", openMap("a map from names to words", `{ rack: a }`, jsonMap{"type": "string"}), "", "none", "What is told of it beside its name."},
	{"vips", ofKeys, "", "", "Addresses with names, which move between nodes with all flows on them. Listeners name them: `vip: \"shop:443\"`."},
	{"vips.NAME.address", form{says: "an address with the length of its network's prefix", example: "192.0.2.10/24", schema: matching("^[0-9a-fA-F.:]+/[0-9]+$"), bad: []string{"192.0.2.10", "0.0.0.0/24"}}, "", given, "The address."},
	{"vips.NAME.home", aName("n1"), "", given, "The node that owns it when nothing else was said, and to which `holdfast return` brings it back."},
	{"vips.NAME.announce", wordForm(announceWords, "route"), "arp", "", "How the network hears of its owner: gratuitous ARP (IPv6: neighbour advertisements), or a route: the address is put on the device `hf-vips`, which a routing daemon announces."},

	{"cluster", ofKeys, "", "nothing moves to other hosts, and no privilege is needed", "Only for moves to other hosts: what is the same for all `nodes`."},
	{"cluster.identity", ofKeys, "", given, ""},
	{"cluster.identity.certificate", aFile, "", given, "This node's certificate, in PEM; it is for the node's name. `${HOLDFAST_NODE}` in the path tells the nodes apart."},
	{"cluster.identity.key", aFile, "", given, "Its key."},
	{"cluster.identity.trust", aFile, "", given, "The authority that signed the others' certificates."},
	{"cluster.lease", leaseBound.form("5s"), "3s", "", "How long the kernel lets a VIP pass that its owner does not renew: so long after it hangs, it is silent."},
	{"cluster.settle", settleBound.form("30s"), "10s", "", "How long the former owner of a VIP sends on what still comes to it."},
	{"cluster.quorum", wordForm(quorumWords, "majority"), "none", "", "`majority`: an owner that reaches no majority of the nodes, itself included, lets its leases end. It is the default of three nodes or more."},
	{"cluster.onStop", wordForm(onStopWords, "stay"), "evacuate", "", "What becomes of the VIPs of a node that is told to end: `evacuate` moves each with its flows to another node that answers, within `run --grace`; `stay` keeps them, and they are silent until the node is back or somebody says `holdfast vips take`."},
	{"cluster.tunnel", ofKeys, "", "none; all nodes are on one Ethernet", "Between nodes on different networks."},
	{"cluster.tunnel.vxlan", ofKeys, "", "", "VXLAN (RFC 7348)."},
	{"cluster.tunnel.vxlan.id", vxlanBound.form(78), "77", "", "Its network identifier."},
	{"cluster.tunnel.vxlan.port", portBound.form(4791), "4790", "", "Its port of UDP."},
	{"cluster.netadmin", aSocket.exampled("/run/holdfast/netadmin.sock"), "/run/holdfast/netadmin.sock", "", "The socket of the privileged process, `holdfast netadmin`."},
}

var (
	aDevice    = form{says: "the name of an interface", example: "eth0", schema: matching("^[^/: ]{1,15}$"), bad: []string{"a/b", "sixteen-octets-x"}}
	aPortRange = form{says: fmt.Sprintf("two ports from %d to 65535, the lower first", sourcePortMin), example: "20000-29999", schema: matching("^[0-9]+-[0-9]+$"), bad: []string{"20000", "30000-20000", "1-2000"}}
)

// exampled is a form with another example.
func (f form) exampled(example string) form {
	f.example = example
	return f
}

// within is a form with other values at its ends.
func (f form) within(good []string, bad ...string) form {
	f.good, f.bad = good, bad
	return f
}
