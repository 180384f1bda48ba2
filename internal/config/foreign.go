package config

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Places of the file, for advice.
const (
	inTop      = ""
	inListener = "listeners.NAME"
	inRoute    = "listeners.NAME.routes[]"
	inHTTP     = "listeners.NAME.http"
	inBackend  = "backends.NAME"
	inEndpoint = "backends.NAME.endpoints[]"
)

// advice is what is said, in these places, of a key of others for which we have
// no single word.
type advice struct {
	in    []string
	says  string
	meant string // the key of ours that it stands for, so that nobody is told that it is missing
}

const (
	noTLS       = "TLS is not here yet; protocol: tcp passes it on as it is"
	noHTTP2     = "HTTP/2 is not here yet; protocol: tcp passes it on as it is"
	noUDP       = "UDP is not here yet"
	noHTTP3     = "HTTP/3 is not here yet, and neither is UDP"
	useBody     = "the bound is http.limits.body of a listener, as in http: { limits: { body: 10MiB } }"
	useTimeouts = "there are connectTimeout and answerTimeout, and those of clients are in http.timeouts of the listener"
	useEject    = "that is eject of the backend, as in eject: { consecutive: 3, time: 10s }"
	useCheck    = "that is in check of the backend, as in check: { http: { path: /healthz }, interval: 2s, rise: 2, fall: 3 }"
	useVerbs    = "weight: 0 gives an endpoint nothing new; one that is to rest for a while: holdfast endpoint maint BACKEND/ENDPOINT"
	useRoutes   = "write routes: [ { match: { path: /api/ }, backend: api }, { backend: web } ]"
	useBackend  = "write backend: NAME, and NAME with its endpoints under backends"
	useAPI      = "the API is at the socket, and over TCP only for those who show a certificate: api: { listen: 192.168.7.1:7444, certificate: /a.crt, key: /a.key, trust: /ca.crt, roles: { deploy.example.org: operate } }"
	useRespond  = "write respond: { status: 404 }, or redirect: { path: /new, status: 301 }"
)

// foreign has keys of others in the form of [folded].
var foreign = map[string][]advice{
	"defaults": {{[]string{inTop}, "there is none: a key that is left out has its default, and each section says what differs from it", ""}},
	"include":  {{[]string{inTop}, "a configuration is one file; what differs between hosts is written ${NAME}", ""}},
	"location": {{[]string{inListener, inTop}, useRoutes, "routes"}, {[]string{inRoute}, "write match: { path: /api/ }", "match"}},
	"return":   {{[]string{inRoute}, useRespond, "respond"}, {[]string{inListener}, "write routes: [ { respond: { status: 404 } } ]", "routes"}},
	"server":   {{[]string{inTop}, "what clients connect to is under listeners, what serves them under backends, as endpoints", "listeners"}},

	"proxypass":         {{[]string{inRoute, inListener}, useBackend, "backend"}},
	"clientmaxbodysize": {{[]string{inTop, inListener, inRoute, inHTTP}, useBody, ""}},
	"maxfails":          {{[]string{inBackend, inEndpoint}, useEject, ""}},
	"failtimeout":       {{[]string{inBackend, inEndpoint}, useEject, ""}},

	"timeout":          {{[]string{inBackend}, useTimeouts, ""}, {[]string{inRoute}, "write answerTimeout: 30s", ""}},
	"timeouts":         {{[]string{inBackend}, useTimeouts, ""}, {[]string{inRoute}, "write answerTimeout: 30s", ""}},
	"proxyreadtimeout": {{[]string{inListener, inRoute, inBackend}, "that is answerTimeout of a backend or a route", ""}},

	"inter":    {{[]string{inBackend, inEndpoint}, useCheck, ""}},
	"interval": {{[]string{inEndpoint}, useCheck, ""}},
	"rise":     {{[]string{inEndpoint}, useCheck, ""}},
	"fall":     {{[]string{inEndpoint}, useCheck, ""}},

	"mode":      {{[]string{inBackend}, "that is protocol of the listener that uses this backend", ""}},
	"option":    {{[]string{inBackend, inListener}, "there are no options but the keys; a check by HTTP is check: { http: { path: /healthz } } of a backend", ""}},
	"prefer":    {{[]string{inBackend}, "write preferLocal: true", ""}},
	"httpcheck": {{[]string{inBackend}, "write check: { http: { path: /healthz } }", ""}},
	"keepalive": {{[]string{inBackend}, "idle connections to endpoints are reuse, as in reuse: { idle: 64, time: 30s }", ""}},
	"port":      {{[]string{"node.admin"}, useAPI, ""}},
	"listen":    {{[]string{"node.admin"}, useAPI, ""}, {[]string{"cluster"}, "it is address of each node now, in nodes", ""}},
	"tcp":       {{[]string{"node.admin"}, useAPI, ""}},
	"grpc":      {{[]string{"node.admin"}, useAPI, ""}},
	"auth":      {{[]string{"node.admin"}, useAPI, ""}},
	"token":     {{[]string{"node.admin", "node.admin.api"}, "callers show a certificate; what each may do says node.admin.api.roles", ""}},
	"password":  {{[]string{"node.admin", "node.admin.api"}, "callers show a certificate; what each may do says node.admin.api.roles", ""}},
	"disabled":  {{[]string{inBackend, inEndpoint}, useVerbs, ""}},
	"enabled":   {{[]string{inBackend, inEndpoint}, useVerbs, ""}},
	"down":      {{[]string{inEndpoint}, useVerbs, ""}},

	// Of a cluster as it was before one file described all nodes.
	"device":      {{[]string{"cluster"}, "it is device of each node now, in nodes", ""}},
	"sourceports": {{[]string{"cluster"}, "it is sourcePorts of each node now, in nodes", ""}},
	"peers":       {{[]string{"cluster"}, "they are nodes now, the same on all of them", ""}},
}

// notYet has what Holdfast does not do, as key or as value, in the form of
// [folded].
var notYet = map[string]string{
	"tls": noTLS, "ssl": noTLS, "https": noTLS, "cert": noTLS, "certificate": noTLS, "certificates": noTLS, "sslcertificate": noTLS, "crt": noTLS, "sni": noTLS, "acme": noTLS, "verify": noTLS,
	"http2": noHTTP2, "h2": noHTTP2, "h2c": noHTTP2, "grpc": noHTTP2, "alpn": noHTTP2, "http3": noHTTP3, "h3": noHTTP3, "quic": noHTTP3, "udp": noUDP,
}

// folded gives a word of the file in lower case and without marks.
func folded(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// advise says what to write for the key name of somebody else in s; "" is that
// nothing is known of it.
func (s *section) advise(name string) advice {
	name = folded(name)
	for _, a := range foreign[name] {
		if slices.Contains(a.in, s.where) {
			return a
		}
	}
	// In other places these are words like any other, as in cluster.identity.
	if says := notYet[name]; says != "" && slices.Contains([]string{inTop, inListener, inHTTP, inBackend, inEndpoint}, s.where) {
		return advice{says: says}
	}
	return advice{}
}

// dialects are lines that a file of somebody else has, and no file of YAML.
var dialects = []struct {
	of   string
	line *regexp.Regexp
}{
	{"HAProxy", regexp.MustCompile(`^(global|defaults|(frontend|backend|listen|resolvers|userlist|peers)[ \t]+[^ \t:]+)[ \t\r]*(#.*)?$`)},
	{"nginx", regexp.MustCompile(`^[ \t]*((http|events|stream|server|upstream[ \t]+[^ \t:]+|location[ \t][^{]*)[ \t]*\{[ \t\r]*(#.*)?|(worker_processes|user|pid|include|error_log)[ \t][^;:]*;[ \t\r]*(#.*)?)$`)},
}

// dialect reports that src, which is no mapping, is a file for somebody else.
func (r *report) dialect(src []byte) bool {
	const lookedAt = 1000 // lines; such a file begins with what shows it
	n := 0
	for line := range bytes.Lines(src) {
		if n++; n > lookedAt {
			break
		}
		line = bytes.TrimRight(line, "\n")
		for _, d := range dialects {
			if d.line.Match(line) {
				r.fail(place{n, 1}, "", "this looks like a file for %s, which is not read here; write YAML with the keys %s, and begin with docs/configuration.md",
					d.of, strings.Join(rootKeys, ", "))
				return true
			}
		}
	}
	return false
}

// variableOfOthers is what others replace by something of the request, and
// groupOfOthers what they replace by a part of the path that matched. Of fields
// only names that are known count: a value may be a secret, with any sign in it,
// and what is found is shown.
var (
	variableOfOthers = regexp.MustCompile(`\$(proxy_[a-z_]+|(binary_)?remote_[a-z]+|realip_[a-z_]+|https?(_[a-z_]+)?|host(name)?|scheme|request(_[a-z]+)?|uri|document_uri|args?|arg_[a-z_]+|is_args|query_string|server_[a-z]+|cookie_[a-z_]+|ssl_[a-z_]+|upstream_[a-z_]+|connection)\b` +
		`|%\[[a-z_.]+(\([^)]*\))?[^\]]*\]|%[A-Z][A-Z_]{2,}(\([^)]*\))?%`)
	groupOfOthers = regexp.MustCompile(`\$[0-9]`)
)

// warnOfVariable warns of a text that is sent as it stands, and was hardly
// meant so. field is the name of the field it is for; "" is that it is a path.
func (s *section) warnOfVariable(p place, path, field, value string) {
	found := variableOfOthers.FindString(value)
	if found == "" && field == "" {
		found = groupOfOthers.FindString(value)
	}
	if found == "" {
		return
	}
	lower := strings.ToLower(found)
	instead := ""
	switch field = strings.ToLower(field); {
	case slices.Contains([]string{"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"}, field):
		instead = "; leave it out: X-Forwarded-For, -Proto and -Host are sent anyway (http.forwarded)"
	case strings.HasSuffix(path, "rewrite.prefix"):
		instead = "; a prefix keeps what follows it, and $1 is for regex and replacement"
	case strings.HasSuffix(path, "redirect.path"):
		instead = "; a redirect without path keeps that of the request"
	case strings.Contains(lower, "remote_addr"), strings.Contains(lower, "src"), strings.Contains(lower, "forwarded_for"):
		instead = "; the address of the client is in X-Forwarded-For, which is sent anyway"
	case field == "host", strings.Contains(lower, "host"):
		instead = "; Host is passed on as it came unless it is set"
	case strings.Contains(lower, "request_id"), strings.Contains(lower, "unique"):
		instead = "; http.requestID of the listener names a field that identifies requests"
	}
	s.r.warn(p, path, "%q is sent as it stands, for nothing of a request is put into it%s", clip(found), instead)
}

// warnOfStar warns of a path whose star is meant for anything.
func (s *section) warnOfStar(key, path string) {
	i := strings.IndexByte(path, '*')
	if i < 0 {
		return
	}
	write := "path: { regex: " + asText(strings.ReplaceAll(regexp.QuoteMeta(path), `\*`, `.*`)) + " }"
	if i == len(path)-1 && path[i-1] == '/' {
		write = "path: " + path[:i] + ", which matches all that is below"
	}
	s.r.warn(s.at(key), join(s.path, key), "%q: a star is matched as it stands; write %s", clip(path), write)
}

// asText gives s as it is written in the file, between single quotes if that
// can be.
func asText(s string) string {
	if !isPrintable(s) {
		return strconv.Quote(clip(s))
	}
	return "'" + strings.ReplaceAll(clip(s), "'", "''") + "'"
}

// warnOfPart warns of an expression for paths that is written as if it had to
// match a part of one.
func (s *section) warnOfPart(key, e string) {
	bare := e
	if strings.HasSuffix(bare, "$") && !strings.HasSuffix(bare, `\$`) {
		bare = bare[:len(bare)-1]
	}
	if !canBeginWith(e, '/') {
		s.r.warn(s.at(key), join(s.path, key), "can match no path, for a path begins with / and an expression has to match all of it; write %s", asText(".*"+bare))
		return
	}
	if strings.Contains(e, "/*") && !strings.Contains(e, `\Q`) {
		s.r.warn(s.at(key), join(s.path, key), "/* is any number of slashes in an expression; anything is /.*")
		return
	}
	// With ^ and without $ and anything that varies, it is a prefix elsewhere.
	if whole, found := strings.CutPrefix(e, "^"); found && whole != "" && regexp.QuoteMeta(whole) == whole {
		s.r.warn(s.at(key), join(s.path, key), "matches %q and nothing below it, for an expression has to match all of a path; write %s", clip(whole), asText(e+".*"))
	}
}

// noAddress says what to write for "*:8080" and "8080".
func noAddress(port string) error {
	if _, err := parsePort(port); err != nil {
		return err
	}
	return fmt.Errorf("an address is missing; all of this host are [::]:%s, or :%s, and those of IPv4 alone 0.0.0.0:%s", port, port, port)
}
