package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
)

// An upgrade in the middle of a watch ends it with a word where to go on, and
// there the successor does: the same numbers, the same history, no gap.
func TestWatchGoesOnAtTheSuccessor(t *testing.T) {
	h := runFile(t, fmt.Sprintf(`
node: { admin: { socket: "${HOLDFAST_SOCKET}" } }
listeners: { web: { vip: %q, backend: app } }
backends: { app: { endpoints: [ { name: a, address: "127.0.0.1:1" } ] } }
`, freshAddress(t)))
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.socket)
	}}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	c := holdfastv1connect.NewNodeClient(&http.Client{Transport: transport}, "http://localhost", connect.WithGRPC())
	weigh := func(weight int) uint64 {
		t.Helper()
		r, err := c.Apply(t.Context(), &api.ChangeRequest{
			Edits:          []*api.Patch{{Object: "endpoint/app/a", Field: "weight", Value: fmt.Sprint(weight)}},
			IdempotencyKey: fmt.Sprint("weight ", weight),
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.Generation
	}
	watch := func(after uint64) *connect.ServerStreamForClient[api.Event] {
		t.Helper()
		w, err := c.Watch(t.Context(), &api.WatchRequest{After: after})
		if err != nil || !w.Receive() || w.Msg().Kind != "watching" {
			t.Fatalf("%v, %v", err, w)
		}
		return w
	}
	w := watch(0)
	seen := w.Msg().Seq
	until := func(generation uint64) {
		t.Helper()
		for w.Receive() {
			e := w.Msg()
			if e.Seq != seen+1 {
				t.Fatalf("event %d after %d", e.Seq, seen)
			}
			seen = e.Seq
			if e.Kind == "generation" && e.Generation == generation {
				return
			}
		}
		t.Fatalf("ends after event %d: %v", seen, w.Err())
	}
	before := weigh(5)
	until(before)
	was, err := c.Status(t.Context(), &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}

	h.upgraded()
	for w.Receive() { // what the old process told of it
		seen = w.Msg().Seq
	}
	if err := w.Err(); connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), fmt.Sprintf("after event %d", seen)) {
		t.Errorf("after event %d it ends with %v", seen, err)
	}
	transport.CloseIdleConnections() // it is to the old process, which lives a moment longer
	w = watch(seen)
	is, err := c.Status(t.Context(), &api.StatusRequest{})
	if err != nil || is.Pid == was.Pid || is.Generation != before {
		t.Fatalf("%v: process %d and generation %d, were %d and %d", err, is.GetPid(), is.GetGeneration(), was.Pid, before)
	}
	// The successor knows what had which key, and goes on with the numbers.
	if again := weigh(5); again != before {
		t.Errorf("a write that was sent again is generation %d, was %d", again, before)
	}
	after := weigh(6)
	if after != before+1 {
		t.Errorf("generation %d after %d", after, before)
	}
	until(after)
}

// The successor has the API's place over TCP, and whoever asks meanwhile has an
// answer, of the one or the other.
func TestUpgradeKeepsTheAPIOverTCP(t *testing.T) {
	dir, addr := t.TempDir(), freshAddress(t)
	makeCertificates(t, dir)
	h := runFile(t, fmt.Sprintf(`
node:
  admin:
    socket: "${HOLDFAST_SOCKET}"
    api: { listen: %q, certificate: %[2]s/node.crt, key: %[2]s/node.key, trust: %[2]s/ca.crt, roles: { monitor: read } }
listeners: { web: { vip: %[3]q, backend: app } }
backends: { app: { endpoints: [ { name: a, address: "127.0.0.1:1" } ] } }
`, addr, dir, freshAddress(t)))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "monitor.crt"), filepath.Join(dir, "monitor.key"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(pem)
	c := holdfastv1connect.NewNodeClient(&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: trust, Certificates: []tls.Certificate{pair}},
	}}, "https://"+addr)
	first, err := c.Status(t.Context(), &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	pids := make(chan map[int64]int)
	go func() { // ends when the upgrade is done and the successor has answered
		seen := map[int64]int{}
		defer func() { pids <- seen }()
		for over := false; ; {
			s, err := c.Status(t.Context(), &api.StatusRequest{})
			if err != nil {
				t.Errorf("after %d answers: %v", len(seen), err)
				return
			}
			seen[s.Pid]++
			if over && s.Pid != first.Pid {
				return
			}
			select {
			case <-done:
				over = true
			default:
			}
		}
	}()
	h.upgraded()
	close(done)
	if seen := <-pids; !t.Failed() && len(seen) != 2 {
		t.Errorf("answers by process: %v", seen)
	}
}
