package lab

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// serviceFleet is what is configured: many services, some of which change from
// one generation to the next, and a listener that comes while another one goes.
// It is one state; a syntax makes a file of it for one balancer.
type serviceFleet struct {
	services []service
	gen      int
	dirty    map[int]bool // services that changed since they were rendered last
	listener int          // the generation whose own listener is there; 0: none
	apart    int          // what the route /b of the service apart is made for
}

// service is one VIP. What changes in it is its class.
type service struct {
	class    serviceClass
	second   bool // the second server is the one that answers
	both     bool // classMembers: both servers are there
	route    int  // classRoutes: the generation by which it has a route of its own; 0: none
	modified int  // the generation of the last change
}

// serviceClass is what is changed in a service.
type serviceClass int

// The classes, a fifth of all services each.
const (
	classEndpoint serviceClass = iota // its only endpoint is replaced by another one
	classWeight                       // of two endpoints, all weight goes from one to the other
	classRoutes                       // a route is added; later it is removed
	classMembers                      // the second of two endpoints goes and comes
	classTCP                          // without HTTP; its endpoint and its timeout
	serviceClasses
)

// Where everything is. No port is one that the kernel gives to clients.
const (
	servicePort   = 2000 // and those that follow
	listenerPort  = 4000 // of those that come and go
	listenerPorts = 1000 // they and their names take turns
	apartPort     = 6000
	serverA       = "127.0.0.2:7000"
	serverB       = "127.0.0.2:7001"
	serverApart   = "127.0.0.2:7002"
	serverOther   = "127.0.0.2:7003"
	routeLag      = 10 // generations for which a route is there
)

var serverNames = map[bool]string{false: "a", true: "b"}

func serverOf(second bool) string {
	if second {
		return serverB
	}
	return serverA
}

func newServiceFleet(n int) *serviceFleet {
	f := &serviceFleet{dirty: map[int]bool{}, services: make([]service, n)}
	for i := range f.services {
		f.services[i].class = serviceClass(i % int(serviceClasses))
		f.services[i].both = true
		f.dirty[i] = true
	}
	return f
}

// at is the service of a class that generation i changes.
func (f *serviceFleet) at(c serviceClass, i int) int {
	per := len(f.services) / int(serviceClasses)
	return (i*7%per)*int(serviceClasses) + int(c)
}

// interval is that of checks: all together are about a hundred and twenty a second.
func (f *serviceFleet) interval() time.Duration {
	return time.Duration(len(f.services)) * 10 * time.Millisecond
}

// ports are those of the services.
func (f *serviceFleet) ports(with func(service) bool) (all []int) {
	for i, s := range f.services {
		if with(s) {
			all = append(all, servicePort+i)
		}
	}
	return all
}

// proof is a request by which it shows that a configuration is in force.
type proof struct {
	what       string
	port       int
	path       string
	generation string // the field in the answer; "": none
	server     string // who answers; "": anybody
	refused    bool   // the connection is, for nobody listens there
}

// next goes over to generation i, and says how it shows.
func (f *serviceFleet) next(i int) []proof {
	f.gen, f.apart = i, i
	change := func(c serviceClass) (*service, int) {
		k := f.at(c, i)
		f.dirty[k] = true
		f.services[k].modified = i
		return &f.services[k], servicePort + k
	}
	var all []proof
	s, port := change(classEndpoint)
	s.second = !s.second
	all = append(all, proof{what: "another endpoint", port: port, path: "/o", server: serverNames[s.second]})
	s, port = change(classWeight)
	s.second = !s.second
	all = append(all, proof{what: "other weights", port: port, path: "/o", server: serverNames[s.second]})
	s, port = change(classRoutes)
	s.route = i
	all = append(all, proof{what: "a new route", port: port, path: "/g/o", generation: strconv.Itoa(i)})
	if old := i - routeLag; old > 0 {
		if k := f.at(classRoutes, old); f.services[k].route == old {
			f.services[k].route = 0
			f.dirty[k] = true
			all = append(all, proof{what: "a route removed", port: servicePort + k, path: "/g/o"})
		}
	}
	s, port = change(classMembers)
	s.both = !s.both
	if !s.both {
		all = append(all, proof{what: "an endpoint removed", port: port, path: "/o", server: "a"},
			proof{what: "an endpoint removed", port: port, path: "/o", server: "a"})
	}
	s, port = change(classTCP)
	s.second = !s.second
	all = append(all, proof{what: "another endpoint of TCP", port: port, path: "/o", server: serverNames[s.second]})
	if f.listener > 0 {
		all = append(all, proof{what: "a listener removed", port: f.listenerPort(), refused: true})
	}
	f.listener = i
	return append(all, proof{what: "a listener added", port: f.listenerPort(), path: "/g/o", generation: strconv.Itoa(i)})
}

func (f *serviceFleet) listenerPort() int { return listenerPort + f.listener%listenerPorts }

// heldPlan says where flows of generation i are opened: on what was changed by it,
// and will be changed again or go.
func (f *serviceFleet) heldPlan(i, n int) []ReloadHeld {
	web, tcp := servicePort+f.at(classRoutes, i), servicePort+f.at(classTCP, i)
	all := []ReloadHeld{
		{Kind: int(heldTCP), Generation: i, Port: tcp, N: n * 4 / 10},
		{Kind: int(heldWebSocket), Generation: i, Port: web, Path: "/g", N: n * 3 / 10},
		{Kind: int(heldStream), Generation: i, Port: web, Path: "/g", N: n * 2 / 10},
	}
	left := n
	for _, x := range all {
		left -= x.N
	}
	return append(all, ReloadHeld{Kind: int(heldStream), Generation: i, Port: f.listenerPort(), Path: "/g", N: left})
}

// prove tries one proof; nil is that it holds.
func (p proof) prove(d *reloadDriver) error {
	k, err := dialKept(loopbackPort(p.port))
	if p.refused {
		if err == nil {
			_ = k.c.Close()
			return fmt.Errorf("%s: there is somebody at %d", p.what, p.port)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.what, err)
	}
	defer func() { _ = k.c.Close() }()
	head, err := k.ask(d, p.path, 100)
	if err != nil {
		return fmt.Errorf("%s, at %d: %w", p.what, p.port, err)
	}
	return p.shows(head)
}

func (p proof) shows(head http.Header) error {
	if got := head.Get(generationField); got != p.generation {
		return fmt.Errorf("%s, at %d: generation %q, want %q", p.what, p.port, got, p.generation)
	}
	if got := head.Get(originField); p.server != "" && got != p.server {
		return fmt.Errorf("%s, at %d: server %s answers, want %s", p.what, p.port, got, p.server)
	}
	return nil
}

// syntax writes one balancer's file: a part for each service, which is kept
// until the service changes, and what stands around them.
type syntax struct {
	render func(f *serviceFleet, parts *[2]strings.Builder, i int) // into listeners and backends
	whole  func(f *serviceFleet, listeners, backends []string) string
	kept   [2][]string
}

// file is the whole configuration now.
func (y *syntax) file(f *serviceFleet) string {
	for k := range y.kept {
		if y.kept[k] == nil {
			y.kept[k] = make([]string, len(f.services))
		}
	}
	for i := range f.dirty {
		var parts [2]strings.Builder
		y.render(f, &parts, i)
		y.kept[0][i], y.kept[1][i] = parts[0].String(), parts[1].String()
	}
	clear(f.dirty)
	return y.whole(f, y.kept[0], y.kept[1])
}

// weights of the two endpoints of classWeight.
func (s service) weights() (a, b int) {
	if s.second {
		return 0, 100
	}
	return 100, 0
}

func holdfastSyntax() *syntax {
	const web = "protocol: http, http: { timeouts: { keepalive: 1h, body: 1h } }"
	// No idle leg outlives its use for long: there are a thousand backends.
	const more = "reuse: { time: 2s }"
	route := func(gen int, to string) string {
		return fmt.Sprintf("routes: [ { match: { path: /g }, backend: %s, headers: { response: { set: { %s: \"%d\" } } } } ]", to, generationField, gen)
	}
	y := &syntax{}
	y.render = func(f *serviceFleet, parts *[2]strings.Builder, i int) {
		s, l, b := f.services[i], &parts[0], &parts[1]
		fmt.Fprintf(l, "  s%d: { vip: \"%s\", backend: s%d, ", i, loopbackPort(servicePort+i), i)
		switch {
		case s.class == classTCP:
			fmt.Fprintf(l, "idleTimeout: %ds }\n", 3600+s.modified)
		case s.route > 0:
			fmt.Fprintf(l, "%s, %s }\n", web, route(s.route, fmt.Sprintf("s%d", i)))
		default:
			fmt.Fprintf(l, "%s }\n", web)
		}
		fmt.Fprintf(b, "  s%d: { ", i)
		if s.class != classTCP {
			b.WriteString(more + ", ")
		}
		check := fmt.Sprintf("check: { tcp: {}, interval: %v }, ", f.interval())
		switch s.class {
		case classEndpoint, classTCP: // of one that has yet to be checked nothing could be told at once
			fmt.Fprintf(b, "endpoints: [ { name: %s, address: \"%s\" } ] }\n", serverNames[s.second], serverOf(s.second))
		case classWeight:
			wa, wb := s.weights()
			fmt.Fprintf(b, "%sendpoints: [ { name: a, address: \"%s\", weight: %d }, { name: b, address: \"%s\", weight: %d } ] }\n", check, serverA, wa, serverB, wb)
		case classMembers, classRoutes:
			fmt.Fprintf(b, "%sendpoints: [ { name: a, address: \"%s\" }", check, serverA)
			if s.both {
				fmt.Fprintf(b, ", { name: b, address: \"%s\" }", serverB)
			}
			b.WriteString(" ] }\n")
		}
	}
	y.whole = func(f *serviceFleet, listeners, backends []string) string {
		var s strings.Builder
		s.Grow(300 * len(listeners))
		s.WriteString("node: { name: reload, admin: { socket: SOCKET } }\nlisteners:\n")
		for _, x := range listeners {
			s.WriteString(x)
		}
		if f.listener > 0 {
			fmt.Fprintf(&s, "  n%d: { vip: \"%s\", backend: extra, %s, %s }\n", f.listener%listenerPorts, loopbackPort(f.listenerPort()), web, route(f.listener, "extra"))
		}
		fmt.Fprintf(&s, "  apart: { vip: \"%s\", %s, routes: [ { match: { path: /a }, backend: apart }, { match: { path: /b }, backend: other, %s } ] }\n",
			loopbackPort(apartPort), web, fmt.Sprintf("headers: { response: { set: { %s: \"%d\" } } }", generationField, f.apart))
		s.WriteString("backends:\n")
		for _, x := range backends {
			s.WriteString(x)
		}
		fmt.Fprintf(&s, "  extra: { %s, endpoints: [ { name: a, address: \"%s\" } ] }\n", more, serverA)
		fmt.Fprintf(&s, "  apart: { check: { tcp: {}, interval: 1s }, endpoints: [ { name: one, address: \"%s\" } ] }\n", serverApart)
		fmt.Fprintf(&s, "  other: { endpoints: [ { name: one, address: \"%s\", weight: %d } ] }\n", serverOther, 1+f.apart%1000)
		return s.String()
	}
	return y
}

func haproxySyntax(stats string, maxconn int) *syntax {
	y := &syntax{}
	const set = "  http-request set-var(txn.gen) int(%d) if { path_beg /g }\n  http-response set-header " + generationField + " %%[var(txn.gen)] if { var(txn.gen) -m found }\n"
	y.render = func(f *serviceFleet, parts *[2]strings.Builder, i int) {
		s, l, b := f.services[i], &parts[0], &parts[1]
		fmt.Fprintf(l, "frontend s%d\n  bind %s\n  default_backend s%d\n", i, loopbackPort(servicePort+i), i)
		fmt.Fprintf(b, "backend s%d\n", i)
		if s.class == classTCP {
			fmt.Fprintf(l, "  mode tcp\n  timeout client %ds\n", 3600+s.modified)
			b.WriteString("  mode tcp\n")
		}
		if s.route > 0 {
			fmt.Fprintf(l, set, s.route)
		}
		check := fmt.Sprintf(" check inter %d", f.interval().Milliseconds())
		switch s.class {
		case classEndpoint, classTCP:
			fmt.Fprintf(b, "  server %s %s\n", serverNames[s.second], serverOf(s.second))
		case classWeight:
			wa, wb := s.weights()
			fmt.Fprintf(b, "  server a %s weight %d%s\n  server b %s weight %d%s\n", serverA, wa, check, serverB, wb, check)
		case classMembers, classRoutes:
			fmt.Fprintf(b, "  server a %s%s\n", serverA, check)
			if s.both {
				fmt.Fprintf(b, "  server b %s%s\n", serverB, check)
			}
		}
	}
	y.whole = func(f *serviceFleet, listeners, backends []string) string {
		var s strings.Builder
		s.Grow(300 * len(listeners))
		fmt.Fprintf(&s, "global\n  maxconn %d\n  nbthread 2\n  stats socket %s mode 600 level admin expose-fd listeners\n", maxconn, stats)
		s.WriteString("defaults\n  mode http\n  http-reuse safe\n  default-server pool-purge-delay 2s\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  timeout http-request 10s\n" +
			"  timeout http-keep-alive 1h\n  timeout tunnel 1h\n")
		for _, x := range listeners {
			s.WriteString(x)
		}
		if f.listener > 0 {
			fmt.Fprintf(&s, "frontend n%d\n  bind %s\n  default_backend extra\n"+set, f.listener, loopbackPort(f.listenerPort()), f.listener)
		}
		for _, x := range backends {
			s.WriteString(x)
		}
		fmt.Fprintf(&s, "backend extra\n  server a %s\n", serverA)
		return s.String()
	}
	return y
}

func nginxSyntax(dir string, connections int) *syntax {
	const pass = "proxy_pass http://s%d;"
	y := &syntax{}
	y.render = func(f *serviceFleet, parts *[2]strings.Builder, i int) {
		s, l, b := f.services[i], &parts[0], &parts[1]
		at := loopbackPort(servicePort + i)
		if s.class == classTCP {
			fmt.Fprintf(l, "  upstream s%d { server %s; }\n  server { listen %s; proxy_pass s%d; proxy_timeout %ds; }\n", i, serverOf(s.second), at, i, 3600+s.modified)
			return
		}
		fmt.Fprintf(b, "  server { listen %s; location / { "+pass+" }", at, i)
		if s.route > 0 {
			fmt.Fprintf(b, " location /g { add_header %s %d always; "+pass+" }", generationField, s.route, i)
		}
		fmt.Fprintf(b, " }\n  upstream s%d { keepalive 8; keepalive_timeout 2s; ", i)
		switch s.class {
		case classEndpoint:
			fmt.Fprintf(b, "server %s; }\n", serverOf(s.second))
		case classWeight:
			down := map[bool]string{true: " down"}
			fmt.Fprintf(b, "server %s%s; server %s%s; }\n", serverA, down[s.second], serverB, down[!s.second])
		default:
			fmt.Fprintf(b, "server %s; ", serverA)
			if s.both {
				fmt.Fprintf(b, "server %s; ", serverB)
			}
			b.WriteString("}\n")
		}
	}
	y.whole = func(f *serviceFleet, streams, web []string) string {
		var s strings.Builder
		s.Grow(300 * len(web))
		fmt.Fprintf(&s, "load_module %s;\ndaemon off;\nuser root;\nworker_processes 2;\npid %s/pid;\nerror_log %s/error.log;\nworker_rlimit_nofile 20000;\nevents { worker_connections %d; }\n",
			nginxStream, dir, dir, connections)
		s.WriteString("stream {\n")
		for _, x := range streams {
			s.WriteString(x)
		}
		s.WriteString("}\nhttp {\n  access_log off;\n  keepalive_timeout 1h;\n  keepalive_requests 1000000;\n  proxy_http_version 1.1;\n  proxy_buffering off;\n  proxy_read_timeout 1h;\n  proxy_send_timeout 1h;\n" +
			"  map $http_upgrade $forth { default upgrade; '' ''; }\n  proxy_set_header Host $host;\n  proxy_set_header Connection $forth;\n  proxy_set_header Upgrade $http_upgrade;\n")
		for _, x := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			fmt.Fprintf(&s, "  %s_temp_path %s/%s;\n", x, dir, x)
		}
		for _, x := range web {
			s.WriteString(x)
		}
		if f.listener > 0 {
			fmt.Fprintf(&s, "  server { listen %s; location / { proxy_pass http://extra; } location /g { add_header %s %d always; proxy_pass http://extra; } }\n",
				loopbackPort(f.listenerPort()), generationField, f.listener)
		}
		fmt.Fprintf(&s, "  upstream extra { server %s; keepalive 8; }\n}\n", serverA)
		return s.String()
	}
	return y
}

// nginxStream is where Debian has nginx's module for TCP.
const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"
