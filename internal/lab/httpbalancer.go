package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// httpSetup is what a balancer is told.
type httpSetup struct {
	Binary string // of the product
	Dir    string // of this balancer alone
	Loops  int    // or threads, or workers
	Doors  []httpDoor
}

// httpDoor is a listener for HTTP and the one endpoint behind it.
type httpDoor struct {
	Name     string
	At, To   netip.AddrPort
	ProxyIn  bool // clients begin with a PROXY header
	ProxyOut int  // the version of the PROXY header towards the endpoint; 0: none
}

// httpWait is how long a balancer waits for a client: long against what a
// lab does on purpose, short enough to wait for.
const httpWait = 2 * time.Second

// httpBalancers start what may be tried with HTTP: the product; peers, which
// show that a lab finds in them what is known of them; and a relay that
// understands nothing. Each gives its program with the arguments.
var httpBalancers = map[string]func(httpSetup) (config string, argv []string){
	"holdfast": httpHoldfast, "haproxy": httpHAProxy, "nginx": httpNginx, BlindRelay: httpBlind,
}

// startHTTP runs a balancer on a host and returns when it listens. name tells
// its log and its configuration from others'.
func startHTTP(ctx context.Context, h *Host, kind, name string, s httpSetup) (*Process, error) {
	of := httpBalancers[kind]
	if of == nil {
		return nil, fmt.Errorf("lab: balancer %q does not do HTTP", kind)
	}
	s.Dir = filepath.Join(h.world.Dir, name)
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	config, argv := of(s)
	if err := os.WriteFile(s.file(), []byte(config), 0o600); err != nil {
		return nil, err
	}
	var env []string
	if kind == BlindRelay {
		env = []string{stageEnv + "=" + stageBlind}
	}
	p, err := h.Start(name, env, argv...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	var all []Service
	for _, d := range s.Doors {
		all = append(all, Service{Name: d.Name, VIP: d.At})
	}
	return p, awaitListeners(ctx, h, p, all)
}

// file is where the configuration is.
func (o *httpSetup) file() string { return filepath.Join(o.Dir, "config") }

func httpHoldfast(o httpSetup) (string, []string) {
	var s strings.Builder
	fmt.Fprintf(&s, "node: { name: lab, loops: %d, admin: { socket: %s/admin.sock } }\nlisteners:\n", o.Loops, o.Dir)
	for _, d := range o.Doors {
		fmt.Fprintf(&s, "  %s: { vip: \"%v\", protocol: http, backend: %s", d.Name, d.At, d.Name)
		if d.ProxyIn {
			fmt.Fprintf(&s, ", proxyProtocol: { from: [ 127.0.0.0/8 ] }")
		}
		fmt.Fprintf(&s, ", http: { timeouts: { header: %v, body: %v } } }\n", httpWait, httpWait)
	}
	s.WriteString("backends:\n")
	for _, d := range o.Doors {
		fmt.Fprintf(&s, "  %s: { endpoints: [ { name: one, address: \"%v\" } ]", d.Name, d.To)
		if d.ProxyOut > 0 {
			fmt.Fprintf(&s, ", proxyProtocol: v%d", d.ProxyOut)
		}
		s.WriteString(" }\n")
	}
	return s.String(), []string{o.Binary, "run", "--grace", "0s", "-c", o.file()}
}

func httpHAProxy(o httpSetup) (string, []string) {
	var s strings.Builder
	fmt.Fprintf(&s, "global\n  maxconn 5000\n  nbthread %d\n", o.Loops)
	fmt.Fprintf(&s, "defaults\n  mode http\n  option forwardfor\n  http-reuse always\n  timeout connect 5s\n  timeout client %[1]dms\n  timeout server 5s\n  timeout http-request %[1]dms\n", httpWait.Milliseconds())
	for _, d := range o.Doors {
		fmt.Fprintf(&s, "listen %s\n  bind %v", d.Name, d.At)
		if d.ProxyIn {
			s.WriteString(" accept-proxy")
		}
		fmt.Fprintf(&s, "\n  server one %v", d.To)
		switch d.ProxyOut {
		case 1:
			s.WriteString(" send-proxy")
		case 2:
			s.WriteString(" send-proxy-v2")
		}
		s.WriteString("\n")
	}
	return s.String(), []string{"/usr/sbin/haproxy", "-db", "-f", o.file()}
}

// httpNginx has no PROXY header behind: nginx does not send it with HTTP.
func httpNginx(o httpSetup) (string, []string) {
	var s strings.Builder
	fmt.Fprintf(&s, "daemon off;\nuser root;\nworker_processes %d;\npid %[2]s/pid;\nerror_log %[2]s/error.log;\nevents { worker_connections 4096; }\n", o.Loops, o.Dir)
	fmt.Fprintf(&s, "http {\n  access_log off;\n  client_header_timeout %[1]dms;\n  client_body_timeout %[1]dms;\n", httpWait.Milliseconds())
	s.WriteString("  map $http_upgrade $forth { default upgrade; '' ''; }\n")
	for _, x := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&s, "  %s_temp_path %s/%s;\n", x, o.Dir, x)
	}
	for _, d := range o.Doors {
		in, client := "", "$remote_addr"
		if d.ProxyIn {
			in, client = " proxy_protocol", "$proxy_protocol_addr"
		}
		fmt.Fprintf(&s, "  upstream %s { server %v; keepalive 8; }\n", d.Name, d.To)
		fmt.Fprintf(&s, "  server {\n    listen %v%s;\n    server_name lab;\n", d.At, in)
		fmt.Fprintf(&s, "    location / {\n      proxy_pass http://%s;\n      proxy_http_version 1.1;\n      proxy_request_buffering off;\n", d.Name)
		fmt.Fprintf(&s, "      proxy_set_header Host $host;\n      proxy_set_header Connection $forth;\n      proxy_set_header Upgrade $http_upgrade;\n      proxy_set_header X-Forwarded-For %s;\n    }\n  }\n", client)
	}
	s.WriteString("}\n")
	return s.String(), []string{"/usr/sbin/nginx", "-e", filepath.Join(o.Dir, "error.log"), "-c", o.file()}
}

func httpBlind(o httpSetup) (string, []string) {
	argv := []string{"/proc/self/exe"}
	for _, d := range o.Doors {
		argv = append(argv, fmt.Sprintf("%v=%v", d.At, d.To))
	}
	return "", argv
}
