package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// authority signs certificates for a test.
type authority struct {
	t      *testing.T
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	pool   *x509.CertPool
	file   string // of its certificate
	server struct{ cert, key string }
	serial int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), pool: x509.NewCertPool()}
	var der []byte
	a.key, der = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	a.file = a.write("ca.crt", "CERTIFICATE", der)
	a.renew()
	return a
}

// renew makes another certificate for the node, in the place of the last.
func (a *authority) renew() {
	a.t.Helper()
	key, der := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "node"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.server.cert, a.server.key = a.write("node.crt", "CERTIFICATE", der), a.write("node.key", "PRIVATE KEY", secret)
}

// sign makes a certificate; the first one is its own.
func (a *authority) sign(c *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.serial++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	by, with := a.cert, a.key
	if by == nil {
		by, with = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, with)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, der
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// client is a certificate with a common name and others.
func (a *authority) client(name string, others ...string) tls.Certificate {
	a.t.Helper()
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, other := range others {
		if u, err := url.Parse(other); err == nil && u.Scheme != "" {
			c.URIs = append(c.URIs, u)
		} else {
			c.DNSNames = append(c.DNSNames, other)
		}
	}
	key, der := a.sign(c)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// What the schema says of roles is what rules.
func TestEachMethodHasItsRole(t *testing.T) {
	schema, err := os.ReadFile("../../api/holdfast/v1/holdfast.proto")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	comment := ""
	for line := range strings.Lines(string(schema)) {
		line = strings.TrimSpace(line)
		if m := regexp.MustCompile(`^rpc (\w+)\(`).FindStringSubmatch(line); m != nil {
			if r := regexp.MustCompile(`Role (\w+)`).FindStringSubmatch(comment); r != nil {
				said[m[1]] = r[1]
			}
		}
		if strings.HasPrefix(line, "//") {
			comment += line + " "
		} else {
			comment = ""
		}
	}
	for _, m := range methodsOf() {
		role, ok := roles["/holdfast.v1.Node/"+string(m.Name())]
		if !ok || said[string(m.Name())] != role.String() {
			t.Errorf("%s: role %s, known %t; the schema says %q", m.Name(), role, ok, said[string(m.Name())])
		}
		if least := config.OperateRole; !isRead(m) && role < least {
			t.Errorf("%s writes and is for role %s", m.Name(), role)
		}
	}
}

// Over TCP nobody may more than their certificate's role, and nobody comes in
// without one; all of it by the same methods.
func TestRolesOverTCP(t *testing.T) {
	a := newAuthority(t, "ours")
	addr := port(t)
	log := new(spool)
	s := servingAs(t, fmt.Sprintf(`, admin: { api: { listen: %q, certificate: %q, key: %q, trust: %q,
  roles: { "spiffe://example.org/viewer": read, ops.example.org: operate, deploy: admin } } }`, addr, a.server.cert, a.server.key, a.file),
		func(o *node.Options) { o.Log = slog.New(slog.NewTextHandler(log, nil)) })
	refused := 0
	nobody := newAuthority(t, "theirs")
	for _, who := range []struct {
		cert tls.Certificate
		role string
	}{
		{a.client("viewer", "spiffe://example.org/viewer"), "read"}, {a.client("x", "ops.example.org"), "operate"}, {a.client("deploy"), "admin"},
		{a.client("stranger", "stranger.example.org"), ""},
	} {
		h := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{who.cert}}}}
		for _, m := range methodsOf() {
			q := questions[string(m.Name())]
			_, err := called(t.Context(), h, "https://"+addr, m, q.ask, connect.WithGRPC())
			denied := err != nil && connect.CodeOf(err) == connect.CodePermissionDenied
			if want := who.role == "" || rank(who.role) < roles["/holdfast.v1.Node/"+string(m.Name())]; denied != want {
				t.Errorf("role %q, %s: %v, want it to be denied: %t", who.role, m.Name(), err, want)
			}
			if denied && roles["/holdfast.v1.Node/"+string(m.Name())] > config.ReadRole {
				refused++
			}
		}
		r, err := h.Get("https://" + addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		if r.StatusCode != http.StatusNotFound || r.ProtoMajor != 2 {
			t.Errorf("status %d over %s", r.StatusCode, r.Proto)
		}
		_, err = grpcreflect.NewClient(h, "https://"+addr, connect.WithGRPC()).NewStream(t.Context()).ListServices()
		if denied := err != nil; denied != (who.role != "admin") {
			t.Errorf("role %q: reflection: %v", who.role, err)
		} else if denied {
			refused++
		}
		h.CloseIdleConnections()
	}
	// Whoever tried to do more than they may is known.
	if n := strings.Count(log.String(), "result=permission_denied"); n != refused || !strings.Contains(log.String(), "who=ops.example.org") {
		t.Errorf("%d lines for %d refusals", n, refused)
	}
	for what, certs := range map[string][]tls.Certificate{"none": nil, "of another authority": {nobody.client("deploy")}} {
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pool, Certificates: certs}}}
		if _, err := called(t.Context(), h, "https://"+addr, methodsOf()[0], &api.StatusRequest{}); err == nil || connect.CodeOf(err) != connect.CodeUnavailable && !strings.Contains(err.Error(), "tls") {
			t.Errorf("certificate %s: %v", what, err)
		}
	}
	if c, err := net.Dial("tcp", addr); err == nil { // in the clear
		_, _ = io.WriteString(c, "GET /holdfast.v1.Node/Status HTTP/1.1\r\nHost: x\r\n\r\n")
		text, _ := io.ReadAll(c)
		_ = c.Close()
		if strings.Contains(string(text), "200") || strings.Contains(string(text), "generation") {
			t.Errorf("%s", text)
		}
	}
	// Who has written what stands in the history by the certificate's name.
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{a.client("deploy")}}}}
	apply := &api.ChangeRequest{Edits: []*api.Patch{{Object: "endpoint/app/b", Field: "weight", Value: "55"}}, Reason: "more room"}
	if _, err := once[api.ChangeRequest, api.ChangeReport](t.Context(), h, "https://"+addr+holdfastv1connect.NodeApplyProcedure, apply); err != nil {
		t.Fatal(err)
	}
	if by := s.Generations(1)[0].By; by != (node.Author{Name: "deploy", Reason: "more room"}) {
		t.Errorf("%+v", by)
	}
	// Who may only look sees no secret.
	key := "a key of sixteen octets or more"
	if _, err := s.Change(t.Context(), node.ChangeRequest{Edits: []config.Patch{{Object: "backend/shop", Value: fmt.Sprintf("{ sticky: { cookie: { name: c, key: %q } }, endpoints: [ { address: 127.0.0.1:9 } ] }", key)}}}); err != nil {
		t.Fatal(err)
	}
	viewer := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{a.client("viewer", "spiffe://example.org/viewer")}}}}
	for who, h := range map[string]*http.Client{"read": viewer, "admin": h} {
		c, err := once[api.GetConfigRequest, api.ConfigState](t.Context(), h, "https://"+addr+holdfastv1connect.NodeGetConfigProcedure, &api.GetConfigRequest{})
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(c)
		if told := strings.Contains(text, key); told != (who == "admin") || !strings.Contains(text, "sticky") {
			t.Errorf("role %s: %s", who, text)
		}
		past, err := once[api.HistoryRequest, api.HistoryResponse](t.Context(), h, "https://"+addr+holdfastv1connect.NodeHistoryProcedure, &api.HistoryRequest{})
		if err != nil || strings.Contains(fmt.Sprint(past), key) {
			t.Errorf("role %s: %v, %s", who, err, past)
		}
	}
	// A role that is taken away is gone at the next request, on a connection that
	// is open, too.
	if _, err := s.Change(t.Context(), node.ChangeRequest{Edits: []config.Patch{{Object: "node", Field: "admin.api.roles", Value: "{ somebody: read }"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := once[api.ChangeRequest, api.ChangeReport](t.Context(), h, "https://"+addr+holdfastv1connect.NodeApplyProcedure, apply); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("after its role was taken away: %v", err)
	}
}

// The strongest role that one of its names has is a certificate's, and that name
// is who it is.
func TestRoleOfCertificate(t *testing.T) {
	a := newAuthority(t, "ours")
	may := map[string]config.Role{"x": config.ReadRole, "x.example.org": config.AdminRole, "spiffe://x/y": config.OperateRole, "10.0.0.1": config.ReadRole}
	for _, c := range []struct {
		names []string
		want  caller
	}{
		{[]string{"x"}, caller{"x", config.ReadRole, true}},
		{[]string{"x", "x.example.org", "spiffe://x/y"}, caller{"x.example.org", config.AdminRole, true}},
		{[]string{"x", "spiffe://x/y"}, caller{"spiffe://x/y", config.OperateRole, true}},
		{[]string{"z", "spiffe://x/z"}, caller{name: "spiffe://x/z"}},
		{[]string{"X"}, caller{name: "X"}},
		{[]string{""}, caller{name: "a certificate without a name"}},
	} {
		der := a.client(c.names[0], c.names[1:]...).Certificate[0]
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if got := certified(cert, may); got != c.want {
			t.Errorf("%q: %+v, want %+v", c.names, got, c.want)
		}
	}
}

// Strangers cannot have more than so many connections; when they leave, there is
// room again.
func TestStrangersOverTCP(t *testing.T) {
	a, addr := newAuthority(t, "ours"), port(t)
	_ = serving(t, fmt.Sprintf(`, admin: { api: { listen: %q, certificate: %q, key: %q, trust: %q, roles: { deploy: admin } } }`, addr, a.server.cert, a.server.key, a.file))
	var open []net.Conn
	for range apiConnections + 1 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	// Which of them is one too many is the order in which they are accepted.
	last := open[len(open)-1]
	_ = last.SetReadDeadline(time.Now().Add(headTime / 2)) // later it is closed for its silence
	if _, err := last.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("one too many reads %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	conf := &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{a.client("deploy")}}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := tls.Dial("tcp", addr, conf)
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no room again: %v", err)
		}
	}
}

// A certificate that was renewed serves the next connection, one that is broken
// is as if it had not come, and without a section there is nothing.
func TestCertificatesAreRenewed(t *testing.T) {
	a, addr := newAuthority(t, "ours"), port(t)
	s := serving(t, fmt.Sprintf(`, admin: { api: { listen: %q, certificate: %q, key: %q, trust: %q, roles: { deploy: admin } } }`, addr, a.server.cert, a.server.key, a.file))
	conf := &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{a.client("deploy")}}
	serial := func() int64 {
		c, err := tls.Dial("tcp", addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	h := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: conf}}
	ask := func() error {
		_, err := once[api.StatusRequest, api.Status](t.Context(), h, "https://"+addr+holdfastv1connect.NodeStatusProcedure, &api.StatusRequest{})
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	was := serial()
	a.renew()
	if is := serial(); is == was || is != a.serial {
		t.Errorf("certificate %d, was %d, the new one is %d", is, was, a.serial)
	}
	if err := os.WriteFile(a.server.cert, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if is := serial(); is != a.serial {
		t.Errorf("with a broken file certificate %d, want %d", is, a.serial)
	}
	if err := ask(); err != nil {
		t.Errorf("on a connection that was open: %v", err)
	}
	// What is taken out of the configuration is not served any more.
	if _, err := s.Change(t.Context(), node.ChangeRequest{Edits: []config.Patch{{Object: "node", Field: "admin.api", Delete: true}}}); err != nil {
		t.Fatal(err)
	}
	if err := ask(); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("on a connection that was open: %v", err)
	}
	if c, err := tls.Dial("tcp", addr, conf); err == nil {
		_ = c.Close()
		t.Error("there is a new connection")
	}
}

func rank(word string) config.Role {
	for _, r := range []config.Role{config.ReadRole, config.OperateRole, config.AdminRole} {
		if r.String() == word {
			return r
		}
	}
	panic("no role " + word)
}

// send asks by POST with headers.
func (s *served) send(name, body string, headers ...string) (int, string) {
	s.t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://localhost/holdfast.v1.Node/"+name, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	a, err := s.http.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return a.StatusCode, strings.TrimSpace(string(b))
}

func weigh(weight int, more string) string {
	return fmt.Sprintf(`{"edits":[{"object":"endpoint/app/b","field":"weight","value":"%d"}]%s}`, weight, more)
}

// The kernel tells who is at the other end of the socket, and no request can say
// something else; it says why, and what its writer has seen.
func TestPeerAndHeaders(t *testing.T) {
	s := serving(t, "")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if status, text := s.send("Apply", weigh(3, `,"name":"root"`)); status != 400 || !strings.Contains(text, `no field \"name\"`) {
		t.Errorf("a request says who asks: %d %s", status, text)
	}
	for _, x := range []struct{ more, header, want string }{{"", "by header", "by header"}, {`,"reason":"by field"`, "by header", "by field"}} {
		if status, text := s.send("Apply", weigh(len(x.want), x.more), "X-Reason", x.header); status != 200 {
			t.Fatalf("%d %s", status, text)
		}
		if by := s.Generations(1)[0].By; by != (node.Author{Name: me.Username, Reason: x.want}) {
			t.Errorf("%+v, want %s", by, x.want)
		}
	}
	now := s.Generation()
	for _, seen := range []string{fmt.Sprint(now - 1), fmt.Sprintf("%q", fmt.Sprint(now-1))} {
		if status, text := s.send("Apply", weigh(12, ""), "If-Match", seen); status != 409 || !strings.Contains(text, "aborted") || s.Generation() != now {
			t.Errorf("seen %s, is %d: %d %s", seen, now, status, text)
		}
	}
	if status, text := s.send("Apply", weigh(12, ""), "If-Match", "abc"); status != 400 || !strings.Contains(text, "If-Match") {
		t.Errorf("%d %s", status, text)
	}
	if status, text := s.send("Apply", weigh(12, ""), "If-Match", fmt.Sprint(now)); status != 200 || s.Generation() != now+1 {
		t.Errorf("%d %s", status, text)
	}
}

// A write that is sent again under its key has the first one's answer and no
// further effect; another one under that key is refused, and so is a key where
// nobody would remember it.
func TestIdempotencyKey(t *testing.T) {
	s := serving(t, "")
	was := s.Generation()
	status, firstly := s.send("Apply", weigh(7, ""), "Idempotency-Key", "k-1")
	if status != 200 || s.Generation() != was+1 {
		t.Fatalf("%d %s", status, firstly)
	}
	if status, text := s.send("SetEndpoint", `{"backend":"app","endpoint":"b","do":"weight","weight":8}`); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	if status, again := s.send("Apply", weigh(7, ""), "Idempotency-Key", "k-1"); status != 200 || again != firstly || s.Generation() != was+2 {
		t.Errorf("%d: %s\nand at first: %s\ngeneration %d, was %d", status, again, firstly, s.Generation(), was)
	}
	if status, text := s.send("Apply", weigh(9, `,"idempotency_key":"k-1"`)); status != 409 || !strings.Contains(text, "already_exists") || s.Generation() != was+2 {
		t.Errorf("%d %s", status, text)
	}
	for _, name := range []string{"Rebalance", "SetLog", "Busy"} {
		if status, text := s.send(name, "{}", "Idempotency-Key", "k-2"); status != 400 || !strings.Contains(text, "takes no idempotency key") {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
}

// A file goes in as it is, whole or not at all; what is wrong with it comes back
// with its place.
func TestFilesAsTheyAre(t *testing.T) {
	s := serving(t, "")
	was := s.Generation()
	file := strings.Replace(s.source, "weight: 0", "weight: 4", 1)
	if status, text := s.send("Diff", file, "Content-Type", "application/yaml"); status != 200 || !strings.Contains(text, `"weights_changed":1`) || s.Generation() != was {
		t.Errorf("%d %s", status, text)
	}
	if status, text := s.send("Apply", file, "Content-Type", "application/yaml"); status != 200 || s.Generation() != was+1 {
		t.Errorf("%d %s", status, text)
	}
	bad := strings.Replace(s.source, "weight: 0", "weigth: 4", 1)
	if status, text := s.send("Apply", bad, "Content-Type", "application/yaml"); status != 400 || !strings.Contains(text, "invalid_argument") || !strings.Contains(text, "weigth") || s.Generation() != was+1 {
		t.Errorf("%d %s", status, text)
	}
	if status, text := s.send("Kill", file, "Content-Type", "application/yaml"); status != 400 || !strings.Contains(text, "takes no file") {
		t.Errorf("%d %s", status, text)
	}
	for _, kind := range []string{"application/x-www-form-urlencoded", "text/plain"} {
		if status, text := s.send("Status", "{}", "Content-Type", kind); status != 415 || !strings.Contains(text, "--json") {
			t.Errorf("%s: %d %s", kind, status, text)
		}
	}
}

// There is a bound for what is asked at once and for how much, and who comes above
// it is told so.
func TestLimits(t *testing.T) {
	s := serving(t, "")
	body := `{"source":"` + strings.Repeat("#", bodyMax) + `"}`
	for _, name := range []string{"Apply", "Remove"} {
		if status, text := s.send(name, body); status != 429 && status != 413 || !strings.Contains(text, "resource_exhausted") {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	s.server.underWay.Store(requestsMax)
	if status, text := s.send("Status", "{}"); status != 429 || !strings.Contains(text, "resource_exhausted") {
		t.Errorf("%d %s", status, text)
	}
	s.server.underWay.Store(requestsMax - 1)
	for range 3 { // each gives its place back
		if status, text := s.send("Status", "{}"); status != 200 {
			t.Errorf("%d %s", status, text)
		}
	}
	if got := s.server.underWay.Load(); got != requestsMax-1 {
		t.Errorf("%d are under way", got)
	}
}

// gRPC's own tools find out what there is, and whether it serves.
func TestReflectionAndHealth(t *testing.T) {
	s := serving(t, "")
	h := clear(t, s.path)
	for _, o := range [][]connect.ClientOption{{connect.WithGRPC()}, {connect.WithGRPCWeb()}} {
		names, err := grpcreflect.NewClient(h, "http://localhost", o...).NewStream(t.Context()).ListServices()
		if err != nil || len(names) != 2 || names[1] != holdfastv1connect.NodeName && names[0] != holdfastv1connect.NodeName {
			t.Errorf("%v, %v", names, err)
		}
	}
	health := func() string {
		_, text := s.ask("/grpc.health.v1.Health/Check", `{"service":"holdfast.v1.Node"}`)
		return strings.TrimSpace(text)
	}
	if got := health(); got != `{"status":"SERVING_STATUS_SERVING"}` {
		t.Error(got)
	}
	s.server.farewell()
	if got := health(); got != `{"status":"SERVING_STATUS_NOT_SERVING"}` {
		t.Error(got)
	}
	if _, text := s.ask("/openapi.yaml", ""); !strings.HasPrefix(text, "openapi: 3.1.0") || !strings.Contains(text, "/holdfast.v1.Node/Apply") || text != string(api.OpenAPI) {
		t.Errorf("%.200s", text)
	}
}
