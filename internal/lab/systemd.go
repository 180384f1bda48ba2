package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// underSystemd is the lab of the unit in packaging/ under the systemd that is here, as
// process 1: flows of all kinds while systemctl reload upgrades again and again; new
// connections while the process is killed; what is removed, stopped, and started by
// whoever comes. The protocol of a systemd that is not here has its tests in
// cmd/holdfast, against a stand-in.
func underSystemd(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	if o.Flows == 0 {
		o.Flows = 1000
		if o.Short {
			o.Flows = 150
		}
	}
	if o.Moves == 0 {
		o.Moves = 10
	}
	if o.Sabotage == NoStore {
		o.Moves = 1 // it strikes afterwards
	}
	u := &unitLab{v: v}
	mix, webMix := mixOf(o.Flows), httpMixOf(o.Flows*httpPerThousand/1000)
	s, err := setStage(ctx, o, out, v, "server", allKinds(mix, webMix))
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	// Hundreds of flows whose receivers are slow fill their queues in the kernel, which
	// without a bound grow to the limit of the whole machine (tcp_mem): then the kernel
	// drops segments, and a flow stands still for a minute, upgrade or not.
	for _, h := range s.world.Hosts {
		for _, name := range []string{"net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"} {
			if err := h.Sysctl(name, "4096 65536 262144"); err != nil {
				return err
			}
		}
	}
	u.longRun = &longRun{scene: s, mix: mix, http: &httpRun{scene: s, mix: webMix}}
	if err := u.start(); err != nil {
		return err
	}
	made := []Label{ProcessMove}
	if err = u.openAll(); err == nil {
		u.control("before the reloads", true)
		err = u.moveAll(made)
	}
	if err != nil && !errors.Is(err, errNoDistance) {
		v.Broken(err)
	}
	u.finish(err != nil)
	u.judgeStatus()
	u.judgeTraffic(u.flows)
	u.http.judge(made)
	u.judgeQueue()
	u.mover.Judge(v, made)
	u.judgeGoals(made)
	if err == nil {
		err = u.lifeOfUnit()
	}
	if v.Wrong() {
		v.Say("-- log of the unit\n%s", u.side.Logs())
	}
	if errors.Is(err, errNoDistance) {
		err = nil // the verdict has it
	}
	return err
}

type unitLab struct {
	*longRun
	v     *Verdict
	side  *unitSide
	plain *plainServer
}

// NoStore is the sabotage of the lab systemd alone: the unit keeps no listener.
const NoStore = "no-store"

// unitName is that of packaging/.
const unitName = "holdfast.service"

// unitVIPs beside those of the traffic.
var (
	plainVIP   = netip.AddrPortFrom(vip4, 83)
	leavingVIP = netip.AddrPortFrom(vip4, 84)
)

// unitSide is the unit as the balancer.
type unitSide struct {
	at       *Host
	services []Service
	binary   string
	other    string         // directory of another systemd than the machine's
	noStore  bool           // as sabotage
	plain    netip.AddrPort // where the plain server is
	systemd  *systemdHost
	node     *shopNode
	main     int // the main process, as it is numbered here
	wrong    []string
}

// config is the file of the unit.
func (b *unitSide) config() string {
	h := Holdfast{Services: b.services, Nodes: []*Host{b.at, b.at}}
	text := h.config(0, 0)
	_, rest, _ := strings.Cut(text, "\n")
	extra := ""
	for _, x := range []struct {
		name string
		vip  netip.AddrPort
	}{{"plain", plainVIP}, {"leaving", leavingVIP}} {
		extra += fmt.Sprintf("  %s: { vip: \"%v\", protocol: http, backend: plain }\n", x.name, x.vip)
	}
	rest = strings.Replace(rest, "listeners:\n", "listeners:\n"+extra, 1)
	// The admin socket is where the unit makes room for it: the default.
	return "node: { name: n1, loops: 2 }\n" + rest + fmt.Sprintf("  plain: { endpoints: [ { name: s1, address: \"%v\" } ] }\n", b.plain)
}

// listeners is how many there are.
func (b *unitSide) listeners() int { return len(b.services) + 2 }

// Start boots systemd and starts the unit.
func (b *unitSide) Start(ctx context.Context) error {
	packaging, err := filepath.Abs("packaging")
	if err != nil {
		return err
	}
	if b.systemd, err = bootSystemd(ctx, b.at, packaging, b.binary, b.other); err != nil {
		return err
	}
	files := map[string][]byte{"/etc/holdfast/holdfast.yaml": []byte(b.config())}
	if release, err := strconv.Atoi(b.systemd.release); err == nil && release < 253 {
		const dropIn = "holdfast.service.d/before-253.conf"
		if files["/etc/systemd/system/"+dropIn], err = os.ReadFile(filepath.Join(packaging, dropIn)); err != nil {
			return err
		}
	}
	if b.noStore {
		files["/etc/systemd/system/holdfast.service.d/sabotage.conf"] = []byte("[Service]\nFileDescriptorStoreMax=0\n")
	}
	for name, text := range files {
		if err := b.put(name, text, 0o644); err != nil {
			return err
		}
	}
	b.node = &shopNode{binary: b.binary, host: b.at, name: "n1", socket: b.systemd.path("/run/holdfast/admin.sock")}
	b.node.api = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", b.node.socket)
	}}}
	if _, err := b.systemd.control(ctx, "daemon-reload"); err != nil {
		return err
	}
	if _, err := b.systemd.control(ctx, "start", unitName); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, b.unitStatus(ctx), b.Logs())
	}
	return b.look(ctx)
}

// put writes a file of systemd's world.
func (b *unitSide) put(name string, text []byte, mode os.FileMode) error {
	path := b.systemd.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// Another file at the same place, as an installer does: the old one may run.
	fresh := path + ".new"
	if err := os.WriteFile(fresh, text, mode); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// unitStatus is what systemd says, for a person.
func (b *unitSide) unitStatus(ctx context.Context) string {
	out, _ := b.systemd.control(ctx, "status", "--full", unitName)
	return string(out)
}

// look notes who the main process is.
func (b *unitSide) look(ctx context.Context) error {
	pid, err := strconv.Atoi(b.systemd.shows(ctx, unitName, "MainPID"))
	if err != nil || pid == 0 {
		return fmt.Errorf("lab: systemd: no main process: %w\n%s", err, b.unitStatus(ctx))
	}
	if b.main = b.systemd.outer(pid); b.main == 0 {
		return fmt.Errorf("lab: systemd: the main process %d is not there", pid)
	}
	b.node.pid = pid
	b.node.api.CloseIdleConnections()
	return nil
}

// want notes what a property of the unit should be and is not.
func (b *unitSide) want(ctx context.Context, when, property, value string) {
	if got := b.systemd.shows(ctx, unitName, property); got != value {
		b.wrong = append(b.wrong, fmt.Sprintf("%s: %s=%s, want %s", when, property, got, value))
	}
}

// Move makes an upgrade by systemctl reload, to another file at the same path.
func (b *unitSide) Move(ctx context.Context, d Label) (*MoveReport, error) {
	if d != ProcessMove {
		return nil, fmt.Errorf("lab: %v is no reload of the unit", d)
	}
	product, err := os.ReadFile(b.binary)
	if err != nil {
		return nil, err
	}
	if err := b.put("/usr/local/bin/holdfast", product, 0o755); err != nil {
		return nil, err
	}
	was, began := b.main, time.Now()
	if _, err := b.systemd.control(ctx, "reload", unitName); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, b.unitStatus(ctx))
	}
	took := time.Since(began)
	if err := b.look(ctx); err != nil {
		return nil, err
	}
	if b.main == was {
		return nil, errors.New("lab: systemctl reload: the main process is the same")
	}
	for property, value := range map[string]string{"ActiveState": "active", "SubState": "running", "NRestarts": "0", "NFileDescriptorStore": strconv.Itoa(b.listeners())} {
		b.want(ctx, "after a reload", property, value)
	}
	var s struct {
		PID  int `json:"pid"`
		Last struct {
			Result string     `json:"result"`
			Move   MoveReport `json:"move"`
		} `json:"last_upgrade"`
	}
	if err := b.node.call(ctx, "Status", struct{}{}, &s); err != nil {
		return nil, err
	}
	if s.PID != b.node.pid {
		return nil, fmt.Errorf("lab: systemd says that %d is the main process, and %d serves", b.node.pid, s.PID)
	}
	r := &s.Last.Move
	r.PID, r.Distance = b.main, ProcessMove.String()
	if r.Millis == 0 {
		r.Millis = millis(took)
	}
	return r, nil
}

// Serving says which process it is.
func (b *unitSide) Serving() Place { return Place{Host: b.at, PID: b.main} }

// Status asks it.
func (b *unitSide) Status(ctx context.Context) (*Status, error) {
	s, err := b.node.status(ctx)
	if err == nil {
		s.PID = b.main
	}
	return s, err
}

// Flows lists its flows.
func (b *unitSide) Flows(ctx context.Context) ([]FlowStatus, error) {
	var all struct {
		Flows []FlowStatus `json:"flows"`
	}
	h := Holdfast{Binary: b.binary}
	err := h.verb(ctx, &holdfastNode{host: b.at, socket: b.node.socket}, &all, "flows", "--max", "0")
	return all.Flows, err
}

// Logs is the end of what its processes wrote.
func (b *unitSide) Logs() string {
	if b.systemd == nil {
		return ""
	}
	text, _ := os.ReadFile(b.systemd.path("/run/holdfast.log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// start brings the unit up, behind the servers.
func (u *unitLab) start() error {
	n1, server := u.world.Host("n1"), u.world.Host("server")
	var err error
	if u.plain, err = servePlain(server, netip.AddrPortFrom(server.V4, 9090)); err != nil {
		return err
	}
	u.side = &unitSide{at: n1, services: u.services, binary: u.Binary, other: u.Systemd, noStore: u.Sabotage == NoStore, plain: u.plain.at}
	u.phase("systemd as process 1, and the unit")
	if err := u.castAs(u.side); err != nil {
		return err
	}
	u.mover.emptyMayMove = true // how many have octets other labs judge
	u.phase("systemd %s; the unit is up", u.side.systemd.release)
	u.v.Figure("systemd", u.side.systemd.release)
	u.judgeProcess()
	kept := u.side.systemd.shows(u.ctx, unitName, "NFileDescriptorStore")
	u.v.Must(kept == strconv.Itoa(u.side.listeners()), "listeners that systemd keeps", kept, strconv.Itoa(u.side.listeners()))
	return nil
}

// judgeProcess looks at what the main process may do.
func (u *unitLab) judgeProcess() {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", u.side.main))
	if err != nil {
		u.v.Broken(err)
		return
	}
	uids := strings.Fields(field(text, "Uid"))
	u.v.Must(len(uids) == 4 && uids[0] != "0" && uids[0] == uids[1], "user of the main process", field(text, "Uid"), "not root")
	// CAP_NET_BIND_SERVICE is 10 (include/uapi/linux/capability.h).
	for _, name := range []string{"CapEff", "CapBnd", "CapAmb"} {
		u.v.Must(field(text, name) == "0000000000000400", name+" of the main process", field(text, name), "0000000000000400: ports below 1024 and nothing else")
	}
	u.v.Must(field(text, "NoNewPrivs") == "1" && field(text, "Seccomp") == "2", "NoNewPrivs, Seccomp of the main process", field(text, "NoNewPrivs")+", "+field(text, "Seccomp"), "1, 2")
}

// plainServer answers each request with its path.
type plainServer struct {
	at   netip.AddrPort
	slow chan struct{} // what /slow waits for
	came chan struct{} // and says when it has come
}

func servePlain(h *Host, at netip.AddrPort) (*plainServer, error) {
	s := &plainServer{at: at, slow: make(chan struct{}), came: make(chan struct{})}
	var l net.Listener
	if err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	}); err != nil {
		return nil, fmt.Errorf("lab: plain server: %w", err)
	}
	go func() { // ends with the world
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				s.came <- struct{}{}
				<-s.slow
			}
			_, _ = io.WriteString(w, r.URL.Path)
		}))
	}()
	return s, nil
}
