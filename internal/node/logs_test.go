package node

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func logged(t *testing.T, name string) []map[string]any {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if line == "" {
			continue
		}
		m := map[string]any{}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, m)
	}
	return all
}

// Each request and each other flow has a line, in the file that the
// configuration of then named; nothing of the node's end is missing.
func TestAccessLog(t *testing.T) {
	web, raw, server := free(t), free(t), webServer(t)
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.log"), filepath.Join(dir, "second.log")
	r := start(t, site(web, raw, server, "accessLog: { to: "+first+" }\n"))
	get(t, web, "/one?two=3")
	get(t, web, "/bad")
	r.flows(0)
	// What was served before the reload is in the first file: the line of a
	// request is handed over within 100 ms, and the change waits for no line.
	for len(logged(t, first)) < 2 {
		time.Sleep(time.Millisecond)
	}
	r.reload(site(web, raw, server, "accessLog: { to: "+second+" }\n"))
	get(t, raw, "/through")
	open := dial(t, raw)
	if _, err := io.WriteString(open, "GET /open HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.flows(1)
	r.Stop()

	a, b := logged(t, first), logged(t, second)
	if len(a) != 2 || len(b) != 2 {
		t.Fatalf("%d and %d lines, want 2 and 2:\n%v\n%v", len(a), len(b), a, b)
	}
	if a[0]["status"] == 500.0 { // loops write by themselves
		a[0], a[1] = a[1], a[0]
	}
	if x := a[0]; x["target"] != "/one?two=3" || x["status"] != 200.0 || x["endpoint"] != "a" || x["backend"] != "app" || x["listener"] != "web" || x["method"] != "GET" || x["agent"] != "Go-http-client/1.1" {
		t.Errorf("%v", x)
	}
	if x := a[1]; x["status"] != 500.0 {
		t.Errorf("%v", x)
	}
	if b[0]["cause"] == "killed" {
		b[0], b[1] = b[1], b[0]
	}
	if x := b[0]; x["protocol"] != "tcp" || x["status"] != nil || x["out"].(float64) < 50 {
		t.Errorf("%v", x)
	}
	if x := b[1]; x["cause"] != "killed" {
		t.Errorf("what was under way when the node ended: %v", x)
	}
	if r.access.Dropped() != 0 {
		t.Errorf("%d dropped", r.access.Dropped())
	}
}

// A log that cannot be opened refuses the configuration, at the start and at a
// reload, which then changes nothing.
func TestAccessLogRefused(t *testing.T) {
	web, raw := free(t), free(t)
	bad := site(web, raw, "127.0.0.1:1", "accessLog: { to: /nowhere/at/all }\n")
	r := start(t, site(web, raw, "127.0.0.1:1", ""))
	r.write(bad)
	if _, err := r.Reload(); err == nil || !strings.Contains(err.Error(), "/nowhere/at/all") {
		t.Errorf("reload: %v", err)
	}
	if r.Generation() != 1 {
		t.Errorf("generation %d", r.Generation())
	}
	if n, err := Start(Options{File: "x", Source: []byte(bad), Log: slog.New(slog.DiscardHandler)}); err == nil {
		n.Stop()
		t.Error("started")
	}
}

// Metrics over TCP: an address that is taken refuses the start.
func TestMetricsAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	text := strings.Replace(site(free(t), free(t), "127.0.0.1:1", ""), "loops: 2", "loops: 2, admin: { metrics: \""+l.Addr().String()+"\" }", 1)
	if n, err := Start(Options{File: "x", Source: []byte(text), Log: slog.New(slog.DiscardHandler)}); err == nil {
		n.Stop()
		t.Error("started")
	}
}

// The log's level changes while the node runs.
func TestLogLevel(t *testing.T) {
	text := site(free(t), free(t), "127.0.0.1:1", "")
	level := new(slog.LevelVar)
	var log bytes.Buffer
	n, err := Start(Options{File: "x", Source: []byte(text), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level})), Level: level})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	for _, to := range []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo} { // told, and as no warning
		if _, err := n.LogLevel(&to); err != nil || !strings.Contains(log.String(), `level=INFO msg="log level changed"`) || !strings.Contains(log.String(), "to="+to.String()) {
			t.Errorf("%v: %v, %q", to, err, log.String())
		}
	}
	to := slog.LevelDebug
	if was, err := n.LogLevel(&to); err != nil || was != slog.LevelInfo || level.Level() != slog.LevelDebug {
		t.Error(was, err, level.Level())
	}
	if _, err := start(t, site(free(t), free(t), "127.0.0.1:1", "")).LogLevel(&to); err == nil {
		t.Error("a log without a level took one")
	}
}

// says200 asks for a path and leaves the connection open.
func says200(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for !strings.HasSuffix(string(got), "\r\n\r\n/x") {
		b := make([]byte, 1000)
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		got = append(got, b[:n]...)
	}
}
