package lab

import (
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// haproxyPath is where Debian has it.
const haproxyPath = "/usr/sbin/haproxy"

// shopHAProxy is Debian's haproxy beside us, as seed 002 has it, with what a
// release of today wants besides: a frontend, a mode and timeouts.
type shopHAProxy struct {
	r       *rollingLab
	name    string
	process *Process
}

// seedBackend are the four lines of seed 002 but for the address of the host.
const seedBackend = `backend srvs
  server webA %[1]s:1000 check port 2000 inter %[2]d
  server webB %[1]s:1001 check port 2001 inter %[2]d
  server bkpA %[1]s:1000 cookie A check port 1000 inter %[2]d backup
  server bkpB %[1]s:1001 cookie B check port 1001 inter %[2]d backup
`

func (r *rollingLab) haproxy(name, vip, backend string) (*shopHAProxy, error) {
	h := &shopHAProxy{r: r, name: name}
	text := fmt.Sprintf("global\n  maxconn 2000\n  stats socket %s level admin\ndefaults\n  mode http\n  retries 3\n  option redispatch\n"+
		"  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n  timeout queue 15s\n  timeout tunnel 1h\n"+
		"frontend web\n  bind %s\n  default_backend srvs\n%s", h.socket(), vip, backend)
	file := filepath.Join(r.here.world.Dir, name+".cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var err error
	if h.process, err = r.here.Start(name, nil, haproxyPath, "-db", "-f", file); err != nil {
		return nil, err
	}
	ok := eventually(readyPatience, func() bool {
		_, err := h.state("webA")
		return err == nil || h.process.Ended()
	})
	if !ok || h.process.Ended() {
		return nil, fmt.Errorf("lab: haproxy does not run:\n%s", h.process.Tail(20))
	}
	return h, nil
}

func (h *shopHAProxy) socket() string {
	return filepath.Join(h.r.here.world.Dir, h.name+".stats")
}

// state is what haproxy says of a server.
func (h *shopHAProxy) state(server string) (string, error) {
	c, err := net.DialTimeout("unix", h.socket(), time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "show stat\n"); err != nil {
		return "", err
	}
	all, err := csv.NewReader(c).ReadAll()
	if err != nil {
		return "", err
	}
	const name, status = 1, 17 // columns; management.txt, section 9.1
	for _, x := range all {
		if len(x) > status && x[name] == server {
			return x[status], nil
		}
	}
	return "", fmt.Errorf("lab: haproxy has no server %s", server)
}

// await waits until haproxy says that a server is up or down.
func (h *shopHAProxy) await(server string, up bool) error {
	said := ""
	ok := eventually(30*time.Second, func() bool {
		said, _ = h.state(server)
		return (said == "UP") == up && !strings.HasPrefix(said, "UP ") // "UP 1/3" is on its way down
	})
	if !ok {
		return fmt.Errorf("lab: haproxy says %q of %s", said, server)
	}
	return nil
}

// haproxyLines is seed 002 as it was, with the same servers, clients and
// restarts as ours.
func (r *rollingLab) haproxyLines(c *crowd) (restarts int, err error) {
	const host = "127.0.0.2"
	servers, err := r.seedServers(host, "haproxy-")
	if err != nil {
		return 0, err
	}
	h, err := r.haproxy("haproxy-seed", c.to, fmt.Sprintf(seedBackend, host, r.inter.Milliseconds()))
	if err != nil {
		return 0, err
	}
	known := func(i int, up bool) error { return h.await([]string{"webA", "webB"}[i], up) }
	if restarts, err = r.rollThenClose(c, servers, known); err != nil {
		return restarts, err
	}
	r.settled()
	return restarts, nil
}

// haproxyOne restarts the only server behind haproxy, which knows no hold.
func (r *rollingLab) haproxyOne(c *crowd) (restarts int, err error) {
	s := newShopServer(r.here, "haproxy-solo", shopAddr(6, 1, shopPort), shopAddr(6, 1, shopCheck), r.Seed, 0)
	if err := r.start([]*shopServer{s}, true); err != nil {
		return 0, err
	}
	s.warm = r.alone
	h, err := r.haproxy("haproxy-solo", c.to, fmt.Sprintf("backend srvs\n  server webA %s check port %d inter %d\n", s.addr, shopCheck, r.inter.Milliseconds()))
	if err != nil {
		return 0, err
	}
	r.load(c)
	r.settled()
	for range r.rounds {
		if err := s.finish(r.ctx); err != nil {
			return restarts, err
		}
		if err := r.again(s, true); err != nil {
			return restarts, err
		}
		if err := h.await("webA", true); err != nil {
			return restarts, err
		}
		restarts++
		r.settled()
	}
	return restarts, nil
}
