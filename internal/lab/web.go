package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// webHosts are those of the labs for HTTP.
var webHosts = []HostSpec{
	{Name: "client", V4: "10.9.0.20/24"},
	{Name: "n1", V4: "10.9.0.11/24"},
	{Name: "server", V4: "10.9.0.30/24"},
}

// webService is one VIP for HTTP and its endpoints.
type webService struct {
	name      string
	vip       netip.AddrPort
	endpoints []netip.AddrPort
	// timeouts of the listener and of the backend.
	header, body, keepalive, answer time.Duration
}

// webConfig is the product's configuration for the services. Its variants
// differ in what a reload may change under way: every listener and backend
// is another version of itself.
func webConfig(node, socket string, services []webService, variant int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "node: { name: %s, loops: 2, admin: { socket: %s } }\nlisteners:\n", node, socket)
	for _, v := range services {
		fmt.Fprintf(&s, "  %s:\n    vip: \"%v\"\n    protocol: http\n    backend: %s\n    onChange: adopt\n", v.name, v.vip, v.name)
		fmt.Fprintf(&s, "    http: { timeouts: { header: %v, body: %v, keepalive: %v, tunnel: %v } }\n",
			v.header, v.body, v.keepalive, time.Duration(1+variant)*time.Hour)
	}
	fmt.Fprintf(&s, "backends:\n")
	for _, v := range services {
		fmt.Fprintf(&s, "  %s:\n    balance: %s\n    connectTimeout: %v\n", v.name, [2]string{"round-robin", "least"}[variant], webConnectTimeout)
		fmt.Fprintf(&s, "    answerTimeout: %v\n    reuse: { idle: 32, time: %v }\n    endpoints:\n", v.answer, webIdleTime)
		for i, e := range v.endpoints {
			fmt.Fprintf(&s, "      - { name: e%d, address: \"%v\" }\n", i+1, e)
		}
	}
	return s.String()
}

// webConnectTimeout is how long the balancers try one endpoint.
const webConnectTimeout = time.Second

// webIdleTime is how long connections to endpoints are kept for later.
const webIdleTime = 3 * time.Second

// webHoldfast is the product with listeners for HTTP, on one host.
type webHoldfast struct {
	*Holdfast
	at       *Host
	services []webService
}

func newWebHoldfast(binary string, at *Host, services []webService) *webHoldfast {
	return &webHoldfast{&Holdfast{Binary: binary, Nodes: []*Host{at}}, at, services}
}

// Start runs it.
func (b *webHoldfast) Start(ctx context.Context) error {
	dir := b.at.world.Dir
	n := &holdfastNode{host: b.at, socket: filepath.Join(dir, b.at.Name+".sock")}
	for k := range n.files {
		n.files[k] = filepath.Join(dir, fmt.Sprintf("%s-%d.yaml", b.at.Name, k))
		if err := os.WriteFile(n.files[k], []byte(webConfig(b.at.Name, n.socket, b.services, k)), 0o600); err != nil {
			return err
		}
	}
	var err error
	if n.process, err = b.at.Start(b.at.Name, nil, b.Binary, "run", "--grace", "0s", "-c", n.files[0]); err != nil {
		return err
	}
	n.pid = n.process.Pid
	b.nodes, b.active = map[string]*holdfastNode{b.at.Name: n}, b.at.Name
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	return n.process.WaitLine(ctx, "ready:")
}

// Stop asks the process that serves to end, and says whether it did.
func (b *webHoldfast) Stop(patience time.Duration) bool {
	pid := b.Serving().PID
	_ = unix.Kill(pid, unix.SIGTERM)
	return eventually(patience, func() bool { return !Alive(pid) })
}

// webHAProxy is Debian's, for trying the labs: it does what HTTP asks for, and
// it moves nothing.
type webHAProxy struct {
	HAProxy
	services []webService
}

// Start runs it.
func (b *webHAProxy) Start(ctx context.Context) error {
	var s strings.Builder
	s.WriteString("global\n  maxconn 9000\n  nbthread 2\n  ")
	s.WriteString("defaults\n  mode http\n  option http-no-delay\n  retries 2\n  option redispatch\n  retry-on conn-failure empty-response\n")
	fmt.Fprintf(&s, "  timeout connect %dms\n  timeout queue 10s\n  timeout tunnel 1h\n", webConnectTimeout.Milliseconds())
	for _, v := range b.services {
		fmt.Fprintf(&s, "listen %s\n  bind %v\n", v.name, v.vip)
		fmt.Fprintf(&s, "  timeout http-request %dms\n  timeout client %dms\n  timeout http-keep-alive %dms\n  timeout server %dms\n",
			v.header.Milliseconds(), v.body.Milliseconds(), v.keepalive.Milliseconds(), v.answer.Milliseconds())
		for i, e := range v.endpoints {
			fmt.Fprintf(&s, "  server e%d %v pool-purge-delay 1s\n", i+1, e)
		}
		b.Services = append(b.Services, Service{Name: v.name, VIP: v.vip})
	}
	return b.run(ctx, s.String())
}

// webCast chooses who plays the balancer.
func webCast(o Options, at *Host, services []webService) (Balancer, error) {
	if o.Sabotage == BlindRelay {
		b := &Blind{At: at}
		for _, v := range services {
			b.Services = append(b.Services, Service{Name: v.name, VIP: v.vip, To: v.endpoints[0]})
		}
		return b, nil
	}
	switch o.Balancer {
	case "holdfast":
		return newWebHoldfast(o.Binary, at, services), nil
	case "haproxy":
		return &webHAProxy{HAProxy{At: at}, services}, nil
	}
	return nil, fmt.Errorf("lab: balancer %q: one of holdfast, haproxy", o.Balancer)
}
