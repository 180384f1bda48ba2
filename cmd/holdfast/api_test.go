package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// session is one command of a page, and what it says there that is printed.
type session struct {
	line     int
	command  string
	expected []string
}

// sessionsOf reads the blocks of a page that begin with ```console.
func sessionsOf(page string) (all []session) {
	inside := false
	for i, line := range strings.Split(page, "\n") {
		command, is := strings.CutPrefix(line, "$ ")
		switch {
		case line == "```console":
			inside = true
		case line == "```":
			inside = false
		case inside && is:
			all = append(all, session{line: i + 1, command: command})
		case inside:
			s := &all[len(all)-1]
			s.expected = append(s.expected, line)
		}
	}
	return all
}

// matches compares output with what a page says: ... stands for anything in a
// line, and alone in one for any lines.
func matches(expected []string, got string) bool {
	var b strings.Builder
	b.WriteString("^")
	for _, line := range expected {
		if line == "..." {
			b.WriteString(`(?:.*\n)*?`)
			continue
		}
		parts := strings.Split(line, "...")
		for i, p := range parts {
			parts[i] = regexp.QuoteMeta(p)
		}
		b.WriteString(strings.Join(parts, ".*") + `\n`)
	}
	return regexp.MustCompile(b.String() + "$").MatchString(got)
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		expected, got string
		want          bool
	}{
		{"a\nb", "a\nb\n", true}, {"a\nb", "a\nc\n", false}, {"a", "a\nb\n", false}, {"a...z", "a (b) z\n", true}, {"a...z", "a\nz\n", false},
		{"...", "a\nb\n", true}, {"...", "", true}, {"a\n...\nz", "a\nb\nc\nz\n", true}, {"a\n...\nz", "a\nb\n", false}, {"[1.5]", "[125]\n", false},
	} {
		if got := matches(strings.Split(c.expected, "\n"), c.got); got != c.want {
			t.Errorf("%q and %q: %v", c.expected, c.got, got)
		}
	}
}

// What docs/api.md shows of curl, grpcurl and the command is what they print, in
// front of a real process. Only places are the test's own.
func TestSessionsOfTheAPI(t *testing.T) {
	t.Parallel() // most of it is waiting
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	a1, a2, vip, tcp := newNamed(t, "a1"), newNamed(t, "a2"), freshAddress(t), freshAddress(t)
	dir, err := os.MkdirTemp("", "hf-") // short: the path of a socket is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	makeCertificates(t, dir)
	for _, change := range [][2]string{
		{"/tmp/holdfast.sock", filepath.Join(dir, "s")}, {"127.0.0.1:8080", vip}, {"127.0.0.1:9001", a1.address}, {"127.0.0.1:9002", a2.address},
		{"127.0.0.1:7444", tcp},
	} {
		if !strings.Contains(page, change[0]) {
			t.Fatalf("the page has no %q", change[0])
		}
		page = strings.ReplaceAll(page, change[0], change[1])
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(page)
	// Beside what is shown there, the second file of the page is in force, too.
	file := strings.Replace(block[1], "admin: { socket:", fmt.Sprintf("state: %s, admin: { api: { listen: %q, certificate: %s, key: %s, trust: %s, roles: { monitor: read } }, socket:",
		filepath.Join(dir, "state"), tcp, filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"), filepath.Join(dir, "ca.crt")), 1)
	if err := os.WriteFile(filepath.Join(dir, "holdfast.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	h := begin(t, []string{socketEnv + "=" + filepath.Join(dir, "s")}, "run", "-c", filepath.Join(dir, "holdfast.yaml"))
	h.socket = filepath.Join(dir, "s")
	eventually(t, "both endpoints are up", func() bool { return strings.Count(states(h, "up"), "web/") == 2 })

	bin := filepath.Join(dir, "bin")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(exe, filepath.Join(bin, "holdfast")), os.Symlink(grpcurl(t), filepath.Join(bin, "grpcurl"))); err != nil {
		t.Fatal(err)
	}
	all := sessionsOf(page)
	if len(all) < 25 {
		t.Fatalf("%d commands", len(all))
	}
	const mark = "-- the next command --"
	script := ""
	for _, s := range all {
		script += s.command + "\necho '" + mark + "'\n"
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", script)
	shell.Dir = dir
	shell.Env = append(os.Environ(), asHoldfast+"=1", quickEnd, "STATE_DIRECTORY="+filepath.Join(dir, "state"), "PATH="+bin+":"+os.Getenv("PATH"))
	shell.WaitDelay = 5 * time.Second
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	h.successor(h.status().PID)
	got := strings.Split(string(out), mark+"\n")
	if len(got) != len(all)+1 {
		t.Fatalf("%d answers to %d commands:\n%s", len(got)-1, len(all), out)
	}
	for i, s := range all {
		if !matches(s.expected, got[i]) {
			t.Errorf("docs/api.md:%d: $ %s\n-- says\n%s\n-- is\n%s", s.line, s.command, strings.Join(s.expected, "\n"), got[i])
		}
	}
}

// grpcurl is the client pinned in tools/grpcurl, built as users do.
func grpcurl(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=tools/grpcurl/go.mod", "-n", "grpcurl")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // one build for all stages
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, errs.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// makeCertificates makes an authority, and certificates of the node and of one who
// may look.
func makeCertificates(t *testing.T, dir string) {
	t.Helper()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var authority *x509.Certificate
	var signer *ecdsa.PrivateKey
	for i, name := range []string{"ca", "node", "monitor"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if i == 0 {
			c.IsCA, c.KeyUsage, authority, signer = true, x509.KeyUsageCertSign, c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, authority, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".crt", "CERTIFICATE", der)
		write(name+".key", "PRIVATE KEY", private)
	}
}
