package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// directive is one line of a unit file.
type directive struct {
	file    string
	line    int
	section string
	name    string
	value   string
}

func (d directive) String() string {
	return fmt.Sprintf("%s:%d: [%s] %s", d.file, d.line, d.section, d.name)
}

const packaging = "../../packaging"

// The units that are there, without what is installed by another name only.
var unitFiles = []string{
	"holdfast.service", "holdfast.socket", "holdfast.service.d/before-253.conf", "holdfast.service.d/cluster.conf.example",
	"holdfast-netadmin.service",
}

// directives reads a unit file.
func directives(t *testing.T, name string) (all []directive) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(packaging, name))
	if err != nil {
		t.Fatal(err)
	}
	section := ""
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1 : len(line)-1]
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || section == "" {
				t.Errorf("%s:%d: %q is no directive", name, i+1, line)
			}
			all = append(all, directive{name, i + 1, section, key, value})
		}
	}
	return all
}

// value is what the last line of a name says.
func value(all []directive, name string) string {
	for _, d := range slices.Backward(all) {
		if d.name == name {
			return d.value
		}
	}
	return ""
}

// newer are directives that systemd knows from this release on, for those that are
// not in every one that we speak of (250).
var newer = map[string]int{"ReloadSignal": 253}

// systemd is the one that is here; 0: none is.
func systemd(t *testing.T) (program string, release int) {
	t.Helper()
	for _, program = range []string{"/lib/systemd/systemd", "/usr/lib/systemd/systemd"} {
		out, err := exec.CommandContext(t.Context(), program, "--version").Output()
		if m := regexp.MustCompile(`^systemd (\d+)`).FindSubmatch(out); err == nil && m != nil {
			release, _ = strconv.Atoi(string(m[1]))
			return program, release
		}
	}
	t.Log("no systemd is here: what only it can tell is not asked")
	return "", 0
}

// Every directive is one that systemd has, in the section where it has it.
func TestUnitsHaveNoUnknownDirectives(t *testing.T) {
	known := map[string]bool{}
	program, release := systemd(t)
	if release > 0 {
		out, err := exec.CommandContext(t.Context(), program, "--dump-configuration-items").Output()
		if err != nil {
			t.Fatal(err)
		}
		section := ""
		for line := range strings.SplitSeq(string(out), "\n") {
			if strings.HasPrefix(line, "[") {
				section = strings.Trim(line, "[]")
			} else if name, _, ok := strings.Cut(line, "="); ok {
				known[section+" "+name] = true
			}
		}
	}
	for _, name := range unitFiles {
		all := directives(t, name)
		if len(all) == 0 {
			t.Errorf("%s says nothing", name)
		}
		for _, d := range all {
			if release > 0 && !known[d.section+" "+d.name] && newer[d.name] <= release {
				t.Errorf("%v: systemd %d does not know it", d, release)
			}
		}
	}
}

// What systemd-analyze says of the units is nothing, but for what an older one does
// not know; and how far the service is shut in is no worse than the document says.
func TestUnitsVerify(t *testing.T) {
	_, release := systemd(t)
	if release == 0 {
		return
	}
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"holdfast.service", "holdfast.socket", "holdfast-netadmin.service"} {
		text, err := os.ReadFile(filepath.Join(packaging, name))
		if err == nil {
			// The command must be there to be verified.
			text = []byte(strings.ReplaceAll(string(text), "/usr/local/bin/holdfast", exe))
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", filepath.Join(dir, "holdfast.socket"), filepath.Join(dir, "holdfast.service"), filepath.Join(dir, "holdfast-netadmin.service")).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		old := release < 253 && (strings.Contains(line, "notify-reload") || strings.Contains(line, "ReloadSignal"))
		if line != "" && strings.Contains(line, dir) && !old {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	page, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("`systemd-analyze security` rates the unit ([0-9.]+)").FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/operate.md does not say how systemd-analyze security rates the unit")
	}
	most, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	out, err = exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=yes", "--no-pager", fmt.Sprintf("--threshold=%.0f", 10*most), filepath.Join(dir, "holdfast.service")).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security finds it worse than %.1f: %v\n%s", most, err, out)
	}
}

// What one line of a unit means for another, and for the command that it starts.
func TestUnitsFitTheCommand(t *testing.T) {
	service, old, socket := directives(t, "holdfast.service"), directives(t, "holdfast.service.d/before-253.conf"), directives(t, "holdfast.socket")
	for name, want := range map[string]string{
		"Type": "notify-reload", "ReloadSignal": "SIGUSR2",
		"NotifyAccess": "all", "ExitType": "cgroup", // or a successor is not heard, or ended
		"NoNewPrivileges": "yes",
	} {
		if got := value(service, name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	if value(old, "Type") != "notify" || value(service, "ExecReload") != "" {
		t.Error("the kind of reload is not that of the release")
	}
	// Each command is one of ours, and its flags are.
	privileged := directives(t, "holdfast-netadmin.service")
	for _, line := range []string{value(service, "ExecStart"), value(old, "ExecReload"), value(privileged, "ExecStart")} {
		words := strings.Fields(line)
		if words[0] != "/usr/local/bin/holdfast" {
			t.Errorf("%q is not ours", words[0])
			continue
		}
		out, err := holdfast(t, append(words[1:], "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	// The privileged one serves the user of the other, where only it may come.
	line := value(privileged, "ExecStart")
	if user := value(service, "User"); !strings.HasSuffix(line, " --user "+user) || !strings.Contains(line, " --at /run/"+value(privileged, "RuntimeDirectory")+"/") {
		t.Errorf("%s: not for the user %s, or not in its directory", line, user)
	}
	if value(privileged, "User") != "" || !slices.Contains(strings.Fields(value(privileged, "CapabilityBoundingSet")), "CAP_NET_ADMIN") {
		t.Error("the privileged process has no privilege")
	}
	for _, d := range slices.Concat(service, directives(t, "holdfast.service.d/cluster.conf.example")) {
		if strings.Contains(d.name, "Capabilit") && strings.Contains(d.value, "CAP_NET_ADMIN") {
			t.Errorf("%v: the process that serves needs none", d)
		}
	}
	// The end may take as long as --grace says, and a little.
	m := regexp.MustCompile(`--grace (\S+)`).FindStringSubmatch(value(service, "ExecStart"))
	stop, err := time.ParseDuration(value(service, "TimeoutStopSec"))
	if m == nil || err != nil {
		t.Fatalf("no --grace, or no end: %v, %v", m, err)
	}
	if grace, err := time.ParseDuration(m[1]); err != nil || stop < grace+stopRest {
		t.Errorf("--grace is %s (%v), TimeoutStopSec %v, want %v more", m[1], err, stop, stopRest)
	}
	if n, err := strconv.Atoi(value(service, "FileDescriptorStoreMax")); err != nil || n < 1000 {
		t.Errorf("room for %d listeners: %v", n, err)
	}
	// The admin socket of the default and the state lie where systemd makes room.
	if dir := "/run/" + value(service, "RuntimeDirectory"); filepath.Dir(defaultSocket) != dir {
		t.Errorf("the admin socket is %s, the directory %s", defaultSocket, dir)
	}
	for _, d := range socket {
		if d.name == "ListenStream" && !regexp.MustCompile(`^(\d+\.\d+\.\d+\.\d+|\[[0-9a-f:]+\]):\d+$`).MatchString(d.value) {
			t.Errorf("%v=%s: a port alone is an IPv6 address too, which the listener may not be", d, d.value)
		}
	}
	user, err := os.ReadFile(filepath.Join(packaging, "sysusers.d/holdfast.conf"))
	if err != nil || !regexp.MustCompile(`(?m)^u `+regexp.QuoteMeta(value(service, "User"))+` `).Match(user) {
		t.Errorf("no user %q is made: %v", value(service, "User"), err)
	}
}
