package config

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// What comes from elsewhere is held to all that a file is held to, also where
// Parse could not have made it.
func TestDecodeObjectRefusesPolicies(t *testing.T) {
	var texts []string
	for _, b := range policies() {
		texts = append(texts, string(canonical(b.spec())))
	}
	const cookie, header, source = 0, 1, 2
	for _, c := range []struct {
		of             int
		old, new, want string
	}{
		{cookie, `"retryStatuses":[[503,503]]`, `"retryStatuses":[[503,502]]`, "retry.on: 503-502: the lower status comes first"},
		{cookie, `"retryStatuses":[[503,503]]`, `"retryStatuses":[[503,504],[504,505]]`, "have a status in common"},
		{cookie, `"retryStatuses":[[503,503]]`, `"retryStatuses":[[503,503],[500,501]]`, "not in order"},
		{cookie, `"retryStatuses":[[503,503]]`, `"retryStatuses":[[503,1000]]`, "a status code is 100 to 599"},
		{cookie, `"retryStatuses":[[503,503]]`, `"retryStatuses":[]`, "canonical"},
		{cookie, `"retryBudget":10`, `"retryBudget":101`, "retry.budget: must be 0 to 100"},
		{cookie, `"balance":"maglev"`, `"balance":"least"`, "hash: is for balance: maglev"},
		{cookie, `"hash":{"kind":"header","name":"X-User","load":125}`, `"hash":{"kind":"header","load":125}`, "hash: name: not a token"},
		{cookie, `"hash":{"kind":"header","name":"X-User","load":125}`, `"hash":{"kind":"path","name":"X-User"}`, "hash: name: path has none"},
		{cookie, `"hash":{"kind":"header","name":"X-User","load":125}`, `"hash":{"kind":"source","load":100}`, "hash: load: must be 101 to 1000"},
		{cookie, `"hash":{"kind":"header","name":"X-User","load":125}`, `"hash":{"kind":"colour"}`, "hash.by: \"colour\" is not one of"},
		{cookie, `"hash":{"kind":"header","name":"X-User","load":125}`, `"hash":{"kind":"source"}`, "canonical"},
		{cookie, `"slowStartNanos":1000000000`, `"slowStartNanos":1`, "slowStart: must be"},
		{cookie, `"panic":50`, `"panic":101`, "panic: must be 0 to 100"},
		{cookie, `"sticky":{"kind":"cookie","name":"hf"`, `"sticky":{"kind":"cookie","name":"h f"`, "sticky: name: not a token"},
		{cookie, `"sticky":{"kind":"cookie"`, `"sticky":{"kind":"biscuit"`, "sticky: \"biscuit\" is not one of"},
		{cookie, `"sticky":{"kind":"cookie"`, `"sticky":{"kind":"source"`, "sticky: entries: must be"},
		{cookie, `"key":"sixteen octets, at least"`, `"key":"short"`, "sticky: key: 5 octets are too few"},
		{cookie, `"secure":true,"sameSite":"Lax"`, `"sameSite":"None"`, "sticky: sameSite: None is for cookies that are secure"},
		{cookie, `"sameSite":"Lax"`, `"sameSite":"lax"`, "sticky: sameSite: \"lax\" is not one of"},
		{cookie, `"domain":"example.org"`, `"domain":"Example.org"`, "sticky: domain"},
		{cookie, `"domain":"example.org","path":"/"`, `"domain":"example.org"`, "sticky: path: a path begins with /"},
		{cookie, `"domain":"example.org","path":"/"`, `"domain":"example.org","path":"/","tableMax":5`, "cookie has what is of another kind"},
		{cookie, `"kind":"http","port":9000`, `"kind":"icmp","port":9000`, "check: \"icmp\" is not one of"},
		{cookie, `"kind":"http","port":9000`, `"kind":"tcp","port":9000`, "check: what is asked and wanted is for http"},
		{cookie, `"intervalNanos":2000000000,"fast`, `"intervalNanos":0,"fast`, "check: interval: must be"},
		{cookie, `"fastIntervalNanos":1000000000`, `"fastIntervalNanos":-1`, "check: fastInterval: must be"},
		{cookie, `"downIntervalNanos":5000000000`, `"downIntervalNanos":-1`, "check: downInterval: must be"},
		{cookie, `"timeoutNanos":1000000000,"rise":2`, `"timeoutNanos":0,"rise":2`, "check: timeout: must be"},
		{cookie, `"rise":2`, `"rise":0`, "check: rise: must be"},
		{cookie, `"fall":3`, `"fall":101`, "check: fall: must be"},
		{cookie, `"method":"GET"`, `"method":"G T"`, "check: http.method"},
		{cookie, `"path":"/healthz?deep=1"`, `"path":"healthz"`, "check: http.path"},
		{cookie, `"path":"/healthz?deep=1"`, `"path":"/a b"`, "check: http.path"},
		{cookie, `"host":"app.example.org"`, `"host":"App.example.org"`, "check: http.host"},
		{cookie, `"headers":[{"kind":"add","name":"X-A","value":"b"}]`, `"headers":[{"kind":"set","name":"X-A","value":"b"}]`, "is not added"},
		{cookie, `"headers":[{"kind":"add","name":"X-A","value":"b"}]`, `"headers":[{"kind":"add","name":"Host","value":"b"}]`, "check: http.headers: Host"},
		{cookie, `"headers":[{"kind":"add","name":"X-A","value":"b"}]`, `"headers":[{"kind":"add","name":"TE","value":"b"}]`, "says how messages are passed on"},
		{cookie, `"statuses":[[200,299],[304,304]]`, `"statuses":[[200,404]]`, "http.drain: 404 is in http.status, too"},
		{cookie, `"statuses":[[200,299],[304,304]],`, ``, "http.status: there is none that is good"},
		{cookie, `"body":"o+k"`, `"body":"o+k("`, "check: http.body: not an expression"},
		{cookie, `"method":"GET"`, `"method":"HEAD"`, "a response to HEAD has none"},
		{cookie, `"agent":{"port":9777,"intervalNanos":1000000000`, `"agent":{"port":0,"intervalNanos":1000000000`, "check: agent.port: must be"},
		{cookie, `"agent":{"port":9777,"intervalNanos":1000000000`, `"agent":{"port":9777,"intervalNanos":1`, "check: agent.interval: must be"},
		{cookie, `"consecutive":5,"rate":30`, `"consecutive":0,"rate":0`, "eject: nothing is ever ejected"},
		{cookie, `"consecutive":5,"rate":30`, `"consecutive":-5,"rate":30`, "eject: consecutive: must be"},
		{cookie, `"consecutive":5,"rate":30`, `"consecutive":5,"rate":101`, "eject: rate: must be"},
		{cookie, `"timeMaxNanos":60000000000`, `"timeMaxNanos":5000000000`, "eject: timeMax: is less than time"},
		{cookie, `"share":50`, `"share":0`, "eject: share: must be"},
		{cookie, `"breaker":{"rate":50`, `"breaker":{"rate":0`, "breaker: rate: must be"},
		{cookie, `"openNanos":5000000000`, `"openNanos":0`, "breaker: open: must be"},
		{cookie, `"probes":3`, `"probes":0`, "breaker: probes: must be"},
		{cookie, `"fallback":{"backend":"other"}`, `"fallback":{"backend":"primary"}`, "fallback: is the backend itself"},
		{cookie, `"fallback":{"backend":"other"}`, `"fallback":{}`, "fallback: needs one of backend and respond"},
		{cookie, `"fallback":{"backend":"other"}`, `"fallback":{"backend":"a b"}`, "fallback: not a name"},
		{header, `"kind":"header","name":"X-Session"`, `"kind":"header","name":""`, "canonical"},
		{header, `"kind":"header","name":"X-Session",`, `"kind":"header",`, "sticky: not a token"},
		{header, `"tableMax":1000`, `"tableMax":1000,"bits4":5`, "header has what is of another kind"},
		{header, `"send":"PING\r\n"`, `"send":"` + strings.Repeat("a", checkSendMax+1) + `"`, "check: tcp.send: 513 octets"},
		{header, `"respond":{"status":503`, `"respond":{"status":99`, "fallback: status: must be"},
		{source, `"bits4":24`, `"bits4":33`, "sticky: bits4: must be 1 to 32"},
		{source, `"bits6":56`, `"bits6":129`, "sticky: bits6: must be 1 to 128"},
		{source, `"bits6":56`, `"bits6":56,"key":"0123456789abcdef"`, "canonical"},
		{source, `"kind":"agent"`, `"kind":"agent","port":80`, "check: port: an agent has its own"},
		{source, `,"agent":{"port":9777,"intervalNanos":1000000000,"send":"how\n"}`, ``, "check: agent: there is none"},
	} {
		text := texts[c.of]
		if !strings.Contains(text, c.old) {
			t.Fatalf("no %s in %s", c.old, text)
		}
		refused(t, BackendKind, "primary", strings.Replace(text, c.old, c.new, 1), c.want)
	}
}

func TestDecodeObjectRefusesGuardsAndEndpoints(t *testing.T) {
	l := listener()
	l.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	l.ConnectionRate = &Rate{10, time.Second, 5}
	l.SourceRate = &SourceRate{Rate{10, time.Second, 5}, 32, 64}
	l.seal("pg")
	text := string(canonical(l.spec()))
	for _, c := range []struct{ old, new, want string }{
		{`"allow":["10.0.0.0/8"]`, `"allow":["10.0.0.1/8"]`, "allow: has bits"},
		{`"allow":["10.0.0.0/8"]`, `"allow":["10.0.0.0/8"],"deny":["10.0.0.1/8"]`, "deny: has bits"},
		{`"perNanos":1000000000,"burst":5}`, `"perNanos":1000000001,"burst":5}`, "rate: a rate is for a second"},
		{`"count":10,"perNanos":1000000000,"burst":5}`, `"count":0,"perNanos":1000000000,"burst":5}`, "rate: must be"},
		{`"count":10,"perNanos":1000000000,"burst":5}`, `"count":10,"perNanos":1000000000,"burst":0}`, "rate: burst: must be"},
		{`"count":10,"perNanos":1000000000,"burst":5}`, `"count":10,"perNanos":1000000000,"burst":5,"bits4":5}`, "canonical"},
		{`"bits4":32`, `"bits4":33`, "sourceRate: bits4"},
		{`"bits4":32,"bits6":64`, `"bits4":32`, "sourceRate: bits6"},
		{`"allow":["10.0.0.0/8"]`, `"proxyFrom":["10.0.0.0/8"],"allow":["10.0.0.0/8"]`, "connections come from the proxies"},
	} {
		if !strings.Contains(text, c.old) {
			t.Fatalf("no %s in %s", c.old, text)
		}
		refused(t, ListenerKind, "pg", strings.Replace(text, c.old, c.new, 1), c.want)
	}
	const begin = `{"kind":"endpoint","backend":"primary","name":"`
	for _, c := range []struct{ name, rest, want string }{
		{"a", `","addr":"","unix":""}`, "address: not an IP address"},
		{"a", `","addr":"10.0.0.1:80","unix":"","drop":"reset"}`, "address: there are two"},
		{"a", `","addr":"","unix":"/a","drop":"reset"}`, "address: there are two"},
		{"a", `","addr":"","unix":"/a","host":"a.example.org","port":80}`, "address: there are two"},
		{"a", `","addr":"","unix":"","drop":"none"}`, "canonical"},
		{"a", `","addr":"","unix":"","drop":"tarpit"}`, "drop: \"tarpit\" is not one of"},
		{"a", `","addr":"","unix":"","host":"a.example.org"}`, "port must be"},
		{"a", `","addr":"","unix":"","host":"A.example.org","port":80}`, "must be \"a.example.org\""},
		{"a", `","addr":"","unix":"","host":"*.example.org","port":80}`, "not a name"},
		{"a", `","addr":"","unix":"","host":"10.0.0.1","port":80}`, "not a name"},
		{"a", `","addr":"10.0.0.1:80","unix":"","port":80}`, "port: is for a name"},
		{"a", `","addr":"10.0.0.1:80","unix":"","host":"a.example.org","port":80}`, "does not end with its address"},
		{"a b/10.0.0.1", `","addr":"10.0.0.1:80","unix":"","host":"a.example.org","port":80}`, "name: not a name"},
		{"a/10.0.0.1:80", `","addr":"10.0.0.1:80","unix":"","host":"a.example.org","port":80}`, "does not end with its address"},
		{"a/0.0.0.0", `","addr":"0.0.0.0:80","unix":"","host":"a.example.org","port":80}`, "specific"},
		{"a", `","addr":"10.0.0.1:80","unix":"","weight":1001}`, "weight: must be"},
		{"a", `","addr":"10.0.0.1:80","unix":"","weight":100}`, "canonical"},
		{"a", `","addr":"10.0.0.1:80","unix":"","zone":"a b"}`, "zone: not a zone"},
		{"a", `","addr":"10.0.0.1:80","unix":"","connectionsMax":-1}`, "connections: must be"},
		{"a", `","addr":"","unix":"/a","checkPort":80}`, "check.port: unix:/a has none"},
		{"a", `","addr":"","unix":"","drop":"hold","checkPort":80}`, "check.port: drop:hold has none"},
	} {
		refused(t, EndpointKind, "primary/"+c.name, begin+c.name+c.rest, c.want)
	}
	for _, c := range []struct{ name, rest string }{
		{"drop:hold", `","addr":"","unix":"","drop":"hold"}`},
		{"a.example.org:80", `","addr":"","unix":"","host":"a.example.org","port":80}`},
		{"a.example.org:80/10.0.0.1", `","addr":"10.0.0.1:80","unix":"","host":"a.example.org","port":80}`},
		{"a/10.0.0.1", `","addr":"10.0.0.1:80","unix":"","host":"a.example.org","port":80}`},
	} {
		if _, err := DecodeObject(EndpointKind, "primary/"+c.name, encode(json.RawMessage(begin+c.name+c.rest))); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	b := string(canonical(backend().spec()))
	refused(t, BackendKind, "primary", strings.Replace(b, `"name":"db1","addr":"10.0.0.31:5432","unix":""`, `"name":"db1","addr":"10.0.0.31:5432","unix":"","checkPort":80`, 1), "check.port: the backend has no check")
}
