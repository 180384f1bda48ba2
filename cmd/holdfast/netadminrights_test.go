package main

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/netadmin"
)

const rightsFile = `
nodes:
  n1: { address: "192.168.7.1:7443", device: eth0, sourcePorts: "20000-29999" }
  n2: { address: "192.168.7.2:7443", device: eth0, sourcePorts: "30000-39999" }
cluster: { identity: { certificate: /n.crt, key: /n.key, trust: /ca.crt } }
vips:
  shop: { address: "192.0.2.10/24", home: n1 }
node: { name: n1 }
listeners:
  shop: { vip: "shop:443", backend: app }
  plain: { vip: "0.0.0.0:80", backend: other }
  literal: { vip: "192.0.2.11:25", backend: mail, movable: true }
backends:
  app: { source: vip, endpoints: [ { address: "10.0.0.1:80" } ] }
  other: { source: 10.0.0.77, endpoints: [ { address: "10.0.0.1:80" } ] }
  mail: { source: 192.0.2.12, endpoints: [ { address: "10.0.0.1:25" } ] }
`

// Of the file, what moves may be moved, what is owned owned, and nothing else.
func TestRightsOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "h.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(rightsFile)
	c, err := clusterOf(file)
	if err != nil {
		t.Fatal(err)
	}
	want := netadmin.Rights{
		Movable: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")},
		VIPs:    []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24")},
		Nodes: []netadmin.PortRange{
			{First: 20000, Last: 29999, To: netip.MustParseAddr("192.168.7.1")},
			{First: 30000, Last: 39999, To: netip.MustParseAddr("192.168.7.2")},
		},
	}
	order := func(r netadmin.Rights) netadmin.Rights {
		slices.SortFunc(r.Movable, netip.Addr.Compare)
		r.Movable = slices.DeleteFunc(slices.Compact(r.Movable), func(a netip.Addr) bool { return a == want.VIPs[0].Addr() })
		slices.SortFunc(r.Nodes, func(a, b netadmin.PortRange) int { return int(a.First) - int(b.First) })
		return r
	}
	if got := order(rightsOf(c)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// The file is read again, unless who is served may write it; one that is none changes nothing.
	log := slog.New(slog.DiscardHandler)
	again := rightsFrom(file, c, 0, log)
	vip := func(rights func() (netadmin.Rights, bool)) string {
		r, _ := rights()
		return r.VIPs[0].String()
	}
	write(strings.Replace(rightsFile, "192.0.2.10/24", "192.0.2.20/24", 1))
	if got := vip(again); got != "192.0.2.20/24" {
		t.Errorf("after a change: %v", got)
	}
	// One that has not changed is not read again; the time of a fresh one is not precise.
	if err := os.Chtimes(file, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false} {
		if _, changed := again(); changed != want {
			t.Errorf("question %d: changed %t", i, changed)
		}
	}
	if err := os.Chmod(filepath.Dir(file), 0o777); err != nil {
		t.Fatal(err)
	}
	once := rightsFrom(file, c, os.Geteuid()+1, log)
	write(strings.Replace(rightsFile, "192.0.2.10/24", "192.0.2.30/24", 1))
	if got := vip(once); got != "192.0.2.10/24" {
		t.Errorf("who is served has made it %v", got)
	}
	write("nodes: [")
	if got := vip(again); got != "192.0.2.20/24" {
		t.Errorf("of a file that is none: %v", got)
	}
}

// A privileged process of another release is not nobody: it is said what to do, and none is begun
// in its place.
func TestPrivilegedOfAnotherRelease(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := make(chan []byte, 1)
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			body := <-answers
			head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
			_, _ = c.Write(append(head, body...))
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	file := filepath.Join(dir, "h.yaml")
	text := strings.Replace(rightsFile, "cluster: {", "cluster: { netadmin: "+at+",", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, answer := range []string{"\x80" + `{"version":99,"pid":7}`, "\x81a client that speaks version 1; process 7 speaks version 99"} {
		answers <- []byte(answer)
		_, err := privileged(file)
		if err == nil || !strings.Contains(err.Error(), "version 99") || !strings.Contains(err.Error(), "begun anew") || !strings.Contains(err.Error(), "kill -KILL") {
			t.Errorf("%q: %v", answer, err)
		}
	}
	if _, err := os.Stat(at + ".log"); err == nil {
		t.Error("another one was begun")
	}
}
