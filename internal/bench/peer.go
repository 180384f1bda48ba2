package bench

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"
)

// The names of the proxies, as flags and results have them.
const (
	holdfast = "holdfast"
	haproxy  = "haproxy"
	nginx    = "nginx"
)

//go:embed peers/*.tmpl
var templates embed.FS

// settings is what a configuration template may use.
type settings struct {
	Port, BackendPort int
	Loops             int
	Dir               string // a directory of this proxy's own
	FilesMax          int    // RLIMIT_NOFILE
	ConnectionsMax    int    // clients that the proxy must be able to serve
	Bulk              bool   // the row streams: each proxy as it is best for that
	NginxStream       string // the dynamic stream module, empty if built in
	HTTP              bool   // HTTP instead of TCP; the template is another
	WebSocket         bool   // the row upgrades
	AnswerBytes       int    // of the content of an answer
	Log               bool   // each exchange is written to a file
}

// forRow fills in what follows from the row.
func (s *settings) forRow(r *row) {
	s.Bulk, s.HTTP, s.WebSocket = r.backend == "source", r.backend == "http", r.load.Talk == "websocket"
	s.AnswerBytes, s.Log = r.load.Bytes, r.log
}

// proxy is one that can be measured.
type proxy struct {
	name     string
	template string
	// command returns the program with its arguments for a configuration.
	command func(config string) []string
	// ready reports whether it says "ready:" on standard output; others are
	// asked by connecting.
	saysReady bool
	// forks says that it has a process for each loop beside its first.
	forks bool
	// dying is what it gets should we be killed.
	dying syscall.Signal
}

// programs finds the executables. Nothing is skipped: what is missing is an
// error that says how to get it.
func programs(names []string, binary string) (map[string]proxy, error) {
	found := map[string]proxy{}
	var missing error
	need := func(file string) string {
		for _, dir := range []string{"", "/usr/sbin", "/usr/local/sbin"} {
			if p, err := exec.LookPath(filepath.Join(dir, file)); err == nil {
				return p
			}
		}
		missing = errors.Join(missing, fmt.Errorf("bench: %s is not installed: run `make deps`", file))
		return file
	}
	for _, name := range names {
		switch name {
		case holdfast:
			found[name] = proxy{name: name, template: "holdfast.yaml", saysReady: true, dying: syscall.SIGKILL,
				command: func(config string) []string { return []string{binary, "run", "--grace", "0s", "-c", config} }}
		case haproxy:
			p := need(haproxy)
			found[name] = proxy{name: name, template: "haproxy.cfg", dying: syscall.SIGKILL,
				// -db: stay in the foreground.
				command: func(config string) []string { return []string{p, "-db", "-f", config} }}
		case nginx:
			p := need(nginx)
			found[name] = proxy{name: name, template: "nginx.conf",
				// A master that is killed leaves its workers behind.
				dying: syscall.SIGTERM,
				forks: true,
				command: func(config string) []string {
					// -e: the log of the time before the configuration is read.
					return []string{p, "-e", filepath.Join(filepath.Dir(config), "nginx.err"), "-c", config}
				}}
		default:
			return nil, fmt.Errorf("bench: proxy %q unknown: want %s, %s or %s", name, holdfast, haproxy, nginx)
		}
	}
	return found, missing
}

// nginxStream is where Debian puts the stream module; elsewhere it is built in.
const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// nginxStreamModule returns the module to load, or nothing.
func nginxStreamModule() string {
	if _, err := os.Stat(nginxStream); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return nginxStream
}

// configure writes the configuration for s below s.Dir and returns its path.
func (p proxy) configure(s settings) (string, error) {
	source := p.template + ".tmpl"
	if s.HTTP {
		source = "http-" + source
	}
	t, err := template.New(source).Option("missingkey=error").ParseFS(templates, "peers/"+source)
	if err != nil {
		return "", fmt.Errorf("bench: template of %s: %w", p.name, err)
	}
	path := filepath.Join(s.Dir, p.template)
	f, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("bench: configuration of %s: %w", p.name, err)
	}
	if err := errors.Join(t.Execute(f, s), f.Close()); err != nil {
		return "", fmt.Errorf("bench: configuration of %s: %w", p.name, err)
	}
	return path, nil
}
