package admin

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/node"
)

func begin(t *testing.T) *node.Node {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	vip := l.Addr().String()
	_ = l.Close()
	source := fmt.Sprintf("listeners: { web: { vip: %q, backend: app } }\nbackends: { app: { endpoints: [ { name: a, address: \"127.0.0.1:1\" } ] } }\n", vip)
	n, err := node.Start(node.Options{File: "holdfast.yaml", Source: []byte(source), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n
}

func answers(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// A successor's socket is ready beside the predecessor's and takes its place at
// once; the predecessor then removes nothing.
func TestPublishTakesThePlace(t *testing.T) {
	n, log, path := begin(t), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "admin.sock")
	old, err := Serve(n, path, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(n, path, log); err == nil {
		t.Error("a second one serves where one answers")
	}
	heir, err := Prepare(n, path, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := heir.Publish(); err != nil {
		t.Fatal(err)
	}
	old.Close(true)
	if !answers(path) {
		t.Error("the predecessor took its successor's socket along")
	}
	heir.Close(true)
	if left, _ := filepath.Glob(path + "*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A file of somebody else's is not replaced, early or late; late the server
// goes on where it was prepared.
func TestPublishSparesFiles(t *testing.T) {
	n, log, path := begin(t), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "admin.sock")
	heir, err := Prepare(n, path, log)
	if err != nil {
		t.Fatal(err)
	}
	defer heir.Close(true)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := heir.Publish(); err == nil {
		t.Error("a file was replaced")
	}
	if !answers(node.PreparedSocket(path, os.Getpid())) {
		t.Error("nobody answers any more")
	}
	if _, err := Prepare(n, path, log); err == nil {
		t.Error("prepared for a place that is a file's")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "precious" {
		t.Errorf("the file is %q, %v", got, err)
	}
}
