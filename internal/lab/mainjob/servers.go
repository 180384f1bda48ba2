package mainjob

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// Where the servers listen and where the files in examples have their VIPs,
// both by default: the network namespace is ours alone. The lab of moves between hosts
// has them elsewhere, see placeOn.
var (
	postgresServer, postgresVIP = "127.0.0.1:5432", "127.0.0.1:6432"
	redisServer, redisVIP       = "127.0.0.1:6379", "127.0.0.1:6380"
	sshServer, sshVIP           = "127.0.0.1:22", "127.0.0.1:2222"
	iperfServer, iperfVIP       = "127.0.0.1:5201", "127.0.0.1:5202"
	webVIP                      = "127.0.0.1:8080"
)

// programs are looked up where Debian puts those that are in no PATH.
var programs = []string{"initdb", "postgres", "psql", "pgbench", "redis-server", "sshd", "ssh", "ssh-keygen", "iperf3", "curl"}

// program gives the path of a program, "" if it is not installed.
func program(name string) string {
	// Debian has each major release of PostgreSQL in a directory of its own.
	// What is in PATH is a wrapper that chooses by its own rules.
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(found) > 0 {
		return slices.MaxFunc(found, func(a, b string) int { return majorOf(a) - majorOf(b) })
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	path, _ := exec.LookPath(name)
	return path
}

// majorOf reads 15 from /usr/lib/postgresql/15/bin/psql.
func majorOf(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

func missingPrograms() (missing []string) {
	for _, name := range programs {
		if program(name) == "" {
			missing = append(missing, name)
		}
	}
	return missing
}

// unprivileged is the user that PostgreSQL runs as: it refuses root.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			continue
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("main-job: neither a user postgres nor nobody")
}

// answers gives no error when somebody accepts at addr.
func answers(addr string) func() error {
	return func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
}

func (j *job) startPostgres() error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	home := filepath.Join(j.dir, "postgres")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	if err := os.Chown(home, int(as.Uid), int(as.Gid)); err != nil {
		return err
	}
	data := filepath.Join(home, "data")
	if _, err := j.output(spec{user: as, dir: home, argv: []string{
		program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8", "--no-instructions",
	}}); err != nil {
		return err
	}
	// It trusts those of its own host; here clients come through a balancer.
	rules, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = rules.WriteString("host all all 0.0.0.0/0 trust\n")
	if err := errors.Join(err, rules.Close()); err != nil {
		return err
	}
	p, err := j.start(spec{name: "postgres", on: j.serversOn, user: as, dir: home, argv: []string{
		program("postgres"), "-D", data, "-c", "listen_addresses=" + host(postgresServer), "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40", "-c", "autovacuum=off",
	}})
	if err != nil {
		return err
	}
	if err := p.await(j.ctx, func() error {
		_, err := j.output(spec{argv: psqlCommand(postgresServer, "-c", "SELECT 1")})
		return err
	}); err != nil {
		return err
	}
	_, err = j.output(spec{argv: pgbenchCommand(postgresServer, "-i", "-q", "-s", "1")})
	return err
}

func (j *job) startRedis() error {
	p, err := j.start(spec{name: "redis", on: j.serversOn, dir: j.dir, argv: []string{
		program("redis-server"), "--port", port(redisServer), "--bind", host(redisServer), "--protected-mode", "no", "--save", "", "--appendonly", "no",
	}})
	if err != nil {
		return err
	}
	return p.await(j.ctx, answers(redisServer))
}

func (j *job) startSSH() error {
	hostKey, client := filepath.Join(j.dir, "ssh-host-key"), filepath.Join(j.dir, "ssh-key")
	for _, key := range []string{hostKey, client} {
		if _, err := j.output(spec{argv: []string{program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key}}); err != nil {
			return err
		}
	}
	file := filepath.Join(j.dir, "sshd_config")
	text := fmt.Sprintf(`Port %s
ListenAddress %s
HostKey %s
AuthorizedKeysFile %s.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
PidFile none
`, port(sshServer), host(sshServer), hostKey, client)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	p, err := j.start(spec{name: "sshd", on: j.serversOn, argv: []string{program("sshd"), "-D", "-e", "-f", file}})
	if err != nil {
		return err
	}
	return p.await(j.ctx, answers(sshServer))
}

func (j *job) startIperf() error {
	p, err := j.start(spec{name: "iperf3-server", argv: []string{program("iperf3"), "-s", "-B", "127.0.0.1", "-p", port(iperfServer)}})
	if err != nil {
		return err
	}
	// Its queue is not tried by connecting: it would take that for a test.
	return p.await(j.ctx, func() error {
		l, err := net.Listen("tcp", iperfServer)
		if err != nil {
			return nil
		}
		_ = l.Close()
		return fmt.Errorf("nobody listens at %s", iperfServer)
	})
}

func host(addr string) string {
	h, _, _ := net.SplitHostPort(addr)
	return h
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}
