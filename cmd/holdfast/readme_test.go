package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// What the README tells people to copy works as it stands there. Only the
// build, the ports, the paths and the server are the test's own.
func TestReadmeByHand(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)<!-- by hand[^\n]*-->\n```sh\n(.*?)\n```\n").FindAllSubmatch(text, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks to copy, want 2", len(blocks))
	}
	script := string(blocks[0][1]) + "\n" + string(blocks[1][1]) + "\n"

	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pages := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = pages.Serve(server) }() // ends with Close
	defer func() { _ = pages.Close() }()
	vip, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "by-hand-") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, change := range [][2]string{
		{"make\n", ""},
		{"/tmp/holdfast.sock", dir + "/s"},
		{"127.0.0.1:8080", vip},
		{"127.0.0.1/8080", strings.Replace(vip, ":", "/", 1)},
		{"127.0.0.1:9000", server.Addr().String()},
		{"python3 -m http.server 9000 --bind 127.0.0.1 &", "sleep 60 &"},
		{"bin/holdfast run -c holdfast.yaml", "bin/holdfast run -c " + dir + "/holdfast.yaml"},
	} {
		if !strings.Contains(script, change[0]) {
			t.Fatalf("the block has no %q", change[0])
		}
		script = strings.ReplaceAll(script, change[0], change[1])
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.Symlink(exe, filepath.Join(dir, "bin", "holdfast"))); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-e", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asHoldfast+"=1", quickEnd, "STATE_DIRECTORY="+filepath.Join(dir, "state"))
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	for _, want := range []string{
		"holdfast.yaml: ok: 1 listener, 1 backend, 1 endpoint", "generation 2 effective on ", "process ", " -> ", "1 flow moved", "  2x  ",
		"HTTP/1.0 404", "flows reset by a move 0", "descriptors ",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
	leftNothingRunning(t, dir)
}

// Wrong usage is told in plain words, with where to read on, and exit status 2.
func TestUsage(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"run", "wants a FILE"},
		{"run a.yaml b.yaml", "wants one FILE"},
		{"run -c a.yaml b.yaml", "two files given"},
		{"check", "wants a FILE"},
		{"flows --max -1", "--max is not negative"},
		{"flows --max many", `--max: "many" is not a whole number`},
		{"demo --duration long", `--duration: "long" is not a duration such as 30s`},
		{"migrate", "wants --to NODE"},
		{"rebalance --share 30%", "--share and --to go together"},
		{"rebalance --share 30 --to n3", "is no share"},
		{"evacuate --hook reboot", "--hook is run between nodes"},
		{"evacuate --rolling --to n3", "frees every node in its turn"},
		{"status now", "wants no argument"},
	} {
		out, err := holdfast(t, strings.Fields(c.args)...).CombinedOutput()
		verb, _, _ := strings.Cut(c.args, " ")
		var status *exec.ExitError
		if !errors.As(err, &status) || status.ExitCode() != exitUsage || !strings.Contains(string(out), c.want) ||
			!strings.HasSuffix(string(out), "see: holdfast "+verb+" --help\n") {
			t.Errorf("holdfast %s: %v\n%s", c.args, err, out)
		}
	}
}

// Who asks is told what to do about it when nobody answers, or nobody may.
func TestNobodyAnswers(t *testing.T) {
	path := t.TempDir() + "/s"
	cmd := holdfast(t, "status")
	cmd.Env = append(cmd.Env, socketEnv+"="+path)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no holdfast answers at "+path) || !strings.Contains(string(out), "start one with") {
		t.Errorf("%v\n%s", err, out)
	}
	if text := clientOf(path, false).silent(os.ErrPermission).Error(); !strings.Contains(text, "answers only its owner") ||
		strings.Contains(text, "start one") {
		t.Error(text)
	}
	out, err = holdfast(t, "status", "--server", "127.0.0.1:1", "--cert", "no.crt", "--key", "no.key", "--ca", "no.ca").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--cert no.crt, --key no.key: ") {
		t.Errorf("%v\n%s", err, out)
	}
}
