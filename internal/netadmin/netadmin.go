package netadmin

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tuple names one leg of a flow as this host's socket sees it: Local is the
// address that moves, Remote a client or an endpoint. Both are of one family.
type Tuple struct{ Local, Remote netip.AddrPort }

// String returns the tuple as "local-remote".
func (t Tuple) String() string { return t.Local.String() + "-" + t.Remote.String() }

func (t Tuple) check() error {
	l, r := t.Local.Addr(), t.Remote.Addr()
	if !l.IsValid() || !r.IsValid() || l.Is4() != r.Is4() || l.Is4In6() || r.Is4In6() ||
		l.Zone() != "" || r.Zone() != "" || t.Local.Port() == 0 || t.Remote.Port() == 0 {
		return fmt.Errorf("netadmin: tuple %v: not two ends of one family", t)
	}
	return nil
}

// Defaults of Config.
const (
	DefaultTable      = "holdfast"
	DefaultHoldDevice = "hf-hold"
	DefaultVIPDevice  = "hf-vips"
	// DefaultMaxFrames and DefaultMaxBytes bound what is held, all tuples
	// together. A flow holds at most its receive window: 16 flows with two
	// legs and windows of 1 MiB come to half of it.
	DefaultMaxFrames = 1 << 16
	DefaultMaxBytes  = 64 << 20
	// DefaultMaxTuples bounds the tuples that are held, diverted or here, together. A
	// tuple takes some 300 octets of this process and as much of the kernel.
	DefaultMaxTuples = 1 << 18
	// DefaultResolveTimeout bounds how long Divert looks for a peer's MAC.
	DefaultResolveTimeout = 2 * time.Second
)

// Config of an Admin. Device is required, the zero value of the rest means
// its default.
type Config struct {
	// Device is the network device by which clients, endpoints and the
	// other hosts are reached.
	Device string
	// LocalDevices are devices by which endpoints on this host itself reach
	// the addresses that move: the loopback device, and bridges to
	// containers. Nil means "lo" alone.
	LocalDevices []string
	// HoldDevice is the name of the TAP device on which segments wait.
	HoldDevice string
	// VIPDevice is the name of the device for addresses that are Routed.
	VIPDevice string
	// Tunnel reaches hosts that are not on Device's Ethernet; nil: none.
	Tunnel *Tunnel
	// Table is the name of our nftables tables; one Admin for each name.
	Table string
	// MaxFrames and MaxBytes bound what is held in all; what exceeds them is
	// dropped and counted, and the sender's TCP repeats it.
	MaxFrames int
	MaxBytes  int64
	// MaxTuples bounds what is held, diverted and here in all; what exceeds it is refused.
	MaxTuples int
	// ResolveTimeout bounds the search for a peer's MAC address.
	ResolveTimeout time.Duration
	// Log gets one line for each sysctl changed and each leftover removed.
	// Nil discards them.
	Log *slog.Logger

	unfinished bool // see Adopt
}

func (c *Config) setDefaults() {
	if c.LocalDevices == nil {
		c.LocalDevices = []string{"lo"}
	}
	if c.HoldDevice == "" {
		c.HoldDevice = DefaultHoldDevice
	}
	if c.VIPDevice == "" {
		c.VIPDevice = DefaultVIPDevice
	}
	if c.Tunnel != nil && c.Tunnel.Device == "" {
		t := *c.Tunnel
		t.Device, c.Tunnel = DefaultTunnelDevice, &t
	}
	if c.Table == "" {
		c.Table = DefaultTable
	}
	if c.MaxFrames == 0 {
		c.MaxFrames = DefaultMaxFrames
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxTuples == 0 {
		c.MaxTuples = DefaultMaxTuples
	}
	if c.ResolveTimeout == 0 {
		c.ResolveTimeout = DefaultResolveTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("netadmin: closed")

// Counters are totals since Open, but for those that say now.
type Counters struct {
	HeldTuples    int   // tuples held now
	HeldFrames    int   // frames held now
	HeldBytes     int64 // octets held now
	DivertTuples  int   // tuples diverted now
	HereTuples    int   // tuples of a peer's ports that are here now
	HeldTotal     uint64
	Replayed      uint64
	Dropped       uint64 // frames beyond MaxFrames or MaxBytes
	Strays        uint64 // frames on the TAP device of no tuple of ours
	DeviceDropped uint64 // frames the TAP device dropped since we read too slowly
	Diverted      uint64 // segments sent on to a peer, steered ones too; a superframe counts as one
	Looped        uint64 // segments dropped since they went round between hosts
	Resets        uint64 // RST segments of this host that the guard stopped
	Rebuilt       uint64 // times that somebody else had removed the rules
	Fenced        uint64 // packets of movable addresses that this host may not speak for
}

// Admin holds and diverts the segments of tuples. Its methods may be called
// from any goroutine; Open and Close from a thread in the network namespace
// to be administered. Only Close ends what Admin set up.
type Admin struct {
	cfg    Config
	nic    netlink.Link
	lo     netlink.Link
	tunnel netlink.Link // nil: none
	route  *netlink.Handle
	tap    *tap
	// packet is a packet socket that only sends.
	packet int
	// UDP sockets that make the kernel resolve a peer; -1: no such family.
	// Opened early, for the namespace is that of the thread that opens them.
	ask4, ask6 int
	sysctls    []sysctl // changed by us, in order
	done       chan struct{}
	quit       chan struct{} // closed by Close
	tended     chan struct{} // closed when tend has ended
	watch      *watch

	// diagMu guards the socket that lists sockets.
	diagMu  sync.Mutex
	diag    int
	diagSeq uint32
	diagBuf []byte

	// vipMu lets one at a time change whose addresses are where. It comes
	// before steerMu and mu.
	vipMu   sync.Mutex
	routed  map[netip.Addr]bool   // by a daemon
	onLinks map[netip.Prefix]bool // networks of IPv6 that have a route of ours

	// steerMu lets one at a time change what is steered. It comes before mu,
	// and is held while a peer is looked for, which mu must not be.
	steerMu sync.Mutex

	// mu guards all below, the TAP device's queue and the nft connection:
	// frames are read, sets changed and frames replayed one after another.
	mu       sync.Mutex
	rules    *rules
	peers    map[netip.Addr]*peer
	hops     map[netip.Addr]hop // where they were found
	tuples   map[Tuple]*entry
	released map[Tuple]time.Time // until when late frames are passed on
	tidied   time.Time           // when those of released were looked through
	steering steering            // written with steerMu held as well
	reserved reserve
	vips     map[netip.Addr]*movable // made and deleted with vipMu held as well
	vipLink  netlink.Link            // nil until something is routed; written with vipMu held as well
	learning []netip.AddrPort
	// unsettled: packets may be under way by rules of before.
	unsettled bool
	// Of one call of change, kept for the next.
	steps []step
	seen  map[Tuple]struct{}
	// hereSerial is the last one given to an entry.
	hereSerial uint64
	counters   Counters
	closed     bool
}

// entry is what is wanted for a tuple; at least one is set.
type entry struct {
	held   bool
	frames [][]byte // in order of arrival; see tap for their form
	peer   *peer    // diverted to
	here   uint64   // not 0: not steered away, see Steer
}

// some tells whether anything is wanted for the tuple.
func (e *entry) some() bool { return e.held || e.peer != nil || e.here != 0 }

// step is how one tuple changes.
type step struct {
	t        Tuple
	was, now entry
}

// way is where the segments of e go.
func (e *entry) way() way {
	switch {
	case e == nil:
		return wayUsual
	case e.held && e.peer != nil:
		return e.peer.held()
	case e.held:
		return wayHold
	case e.peer != nil:
		return e.peer.way()
	case e.here != 0:
		return wayHere
	}
	return wayUsual
}

// lateFor is how long a frame of a released tuple that turns up in the TAP
// device is still passed on: one that was on its way when the set changed.
const lateFor = 2 * time.Second

// replayRounds bounds how often Release delivers what came while it was
// delivering; a fast sender could keep it busy for ever.
const replayRounds = 32

// Open prepares this network namespace: it removes what a predecessor of the
// same Config.Table left behind, creates the tables and the TAP device, and
// sets the sysctls that diverted segments need. On error nothing is left.
func Open(cfg Config) (a *Admin, err error) {
	cfg.setDefaults()
	a = &Admin{
		cfg: cfg, done: make(chan struct{}), quit: make(chan struct{}), tended: make(chan struct{}), ask4: -1, ask6: -1, packet: -1, diag: -1,
		diagBuf: make([]byte, 1<<16), vips: map[netip.Addr]*movable{}, onLinks: map[netip.Prefix]bool{},
		hops: map[netip.Addr]hop{}, seen: map[Tuple]struct{}{}, peers: map[netip.Addr]*peer{}, tuples: map[Tuple]*entry{}, released: map[Tuple]time.Time{},
		reserved: reserve{ports: map[uint16]bool{}},
	}
	defer func() {
		if err != nil {
			_ = a.teardown()
			a = nil
		}
	}()
	if a.route, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return a, fmt.Errorf("netadmin: route netlink: %w", err)
	}
	if a.diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG); err != nil {
		return a, fmt.Errorf("netadmin: diag netlink: %w", err)
	}
	if a.packet, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return a, fmt.Errorf("netadmin: packet socket: %w", err)
	}
	if a.lo, err = a.route.LinkByName("lo"); err != nil {
		return a, fmt.Errorf("netadmin: device lo: %w", err)
	}
	if a.nic, err = a.route.LinkByName(cfg.Device); err != nil {
		return a, fmt.Errorf("netadmin: device %s: %w", cfg.Device, err)
	}
	if len(a.nic.Attrs().HardwareAddr) != 6 {
		return a, fmt.Errorf("netadmin: device %s: not an Ethernet", cfg.Device)
	}
	for _, s := range []struct {
		domain int
		fd     *int
	}{{unix.AF_INET, &a.ask4}, {unix.AF_INET6, &a.ask6}} {
		if fd, err := unix.Socket(s.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
			*s.fd = fd
		}
	}
	if a.rules, err = openRules(cfg); err != nil {
		return a, err
	}
	if a.tap, err = openTap(a.route, cfg.HoldDevice); err != nil {
		return a, err
	}
	if err = a.setSysctls(); err != nil {
		return a, err
	}
	if err = a.reserved.open(); err != nil {
		return a, err
	}
	if err = a.tap.up(a.route); err != nil {
		return a, err
	}
	if cfg.Tunnel != nil {
		if err = a.openTunnel(); err != nil {
			return a, err
		}
	}
	if a.watch, err = openWatch(); err != nil {
		return a, err
	}
	if err = a.rules.create(a.tap.index); err != nil {
		return a, err
	}
	go a.read()
	go a.tend()
	go a.watch.listen(a.heard, a.forgetHops)
	return a, nil
}

// Close removes the rules, the device and the changes of sysctls. What is
// held is dropped: Release first.
func (a *Admin) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return ErrClosed
	}
	a.closed = true
	a.mu.Unlock()
	close(a.quit)
	<-a.tended // it uses what is closed next
	a.vipMu.Lock()
	defer a.vipMu.Unlock()
	err := a.teardown()
	<-a.done
	<-a.watch.done
	return err
}

func (a *Admin) teardown() error {
	var errs []error
	if a.route != nil && a.lo != nil {
		errs = append(errs, a.silence())
	}
	if a.rules != nil {
		errs = append(errs, a.rules.remove())
	}
	if a.tap != nil {
		errs = append(errs, a.tap.close())
	}
	if a.watch != nil {
		_ = a.watch.file.Close()
	}
	if a.tunnel != nil {
		errs = append(errs, a.route.LinkDel(a.tunnel))
	}
	errs = append(errs, a.giveBack(), a.restoreSysctls())
	if a.route != nil {
		a.route.Close()
	}
	for _, fd := range []int{a.ask4, a.ask6, a.packet, a.diag} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	return errors.Join(errs...)
}

// Hold makes the segments of ts that another host sends on to this one wait in this process,
// and keeps this host from answering with a reset. Those that nobody has sent on yet go where they
// went, to the host where the flow is still, be it by Divert, Lead, Steer or Forward; where that
// is here, they wait as well. It is called before a socket of these tuples can exist here, and
// ended by Release or Drop. On error nothing has changed.
func (a *Admin) Hold(ts []Tuple) error {
	if err := checkAll(ts); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(ts, nil, func(_ Tuple, e *entry) { e.held = true })
}

// Release says that ts have sockets on this host now: their frames are
// delivered in order, later ones take the usual way, a Divert of them is
// forgotten, and Steer leaves them alone as long as the sockets exist. It
// returns how many frames it delivered. A peer that sends at line rate may
// have a segment overtake those delivered last, which costs it needless
// retransmissions and nothing else. On error the tuples that are not released
// yet are still held, with the frames not delivered.
func (a *Admin) Release(ts []Tuple) (frames int, err error) {
	if err := checkAll(ts); err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return 0, ErrClosed
	}
	// A segment that overtakes a held one makes a modern sender (RFC 8985)
	// believe that all before it is lost, and send it again. So what waits
	// is delivered before the way is opened; what that provokes the peer to
	// send is still held, and delivered in turn, until little is left; and
	// while the set changes, frames are passed on as they come.
	begin, sent := a.counters.Replayed, 0
	for range replayRounds {
		a.drain()
		frames, octets := a.replay(ts)
		if sent += octets; frames == 0 {
			break
		}
	}
	now := time.Now()
	a.tidyReleased(now)
	until := now.Add(lateFor)
	for _, t := range ts {
		if e := a.tuples[t]; e != nil && e.held && len(a.released) < a.cfg.MaxTuples {
			a.released[t] = until
		}
	}
	// Another thread costs as much again as the change. Where nobody has sent
	// anything while it was held but an ACK, hardly anybody does just now. Each socket
	// that goes live provokes one.
	meanwhile := a.passOn
	if sent == 0 {
		meanwhile = nil
	}
	err = a.change(ts, meanwhile, func(t Tuple, e *entry) { e.held, e.peer, e.here = false, nil, a.stays(t) })
	a.drain()
	if err != nil {
		for _, t := range ts {
			delete(a.released, t)
		}
	}
	return int(a.counters.Replayed - begin), err
}

// passOn delivers frames of released tuples as they come, on another thread,
// until the function it returns is called. a.mu is held by the caller, who
// meanwhile leaves the tap, the tuples and the counters alone.
func (a *Admin) passOn() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			a.drain()
			select {
			case <-quit:
				return
			default:
				runtime.Gosched()
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// Drop undoes Hold: the frames are forgotten. Another host owns the tuples
// again, so make sure first that their segments no longer come here.
func (a *Admin) Drop(ts []Tuple) error {
	if err := checkAll(ts); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	a.drain()
	return a.change(ts, nil, func(_ Tuple, e *entry) { e.held = false })
}

// Divert sends on to the host `to` whatever arrives for ts, be it by the
// device or from this host's own endpoints, and keeps this host from
// answering with a reset. `to` is on the same Ethernet segment; the first
// call for it may take Config.ResolveTimeout. What `to` sends back of a tuple that is
// held waits. On error nothing has changed.
func (a *Admin) Divert(ts []Tuple, to netip.Addr) error {
	if err := checkAll(ts); err != nil {
		return err
	}
	at, err := a.resolve(to, a.cfg.ResolveTimeout)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	p, err := a.peer(to.Unmap(), at)
	if err != nil {
		return err
	}
	if err := a.change(ts, nil, func(_ Tuple, e *entry) { e.peer, e.here = p, 0 }); err != nil {
		return err
	}
	a.reserve(ts)
	return nil
}

// Undivert ends Divert: this host is to have the segments of ts again.
func (a *Admin) Undivert(ts []Tuple) error {
	if err := checkAll(ts); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(ts, nil, func(t Tuple, e *entry) { e.peer, e.here = nil, a.stays(t) })
}

// Holds tells whether a tuple is held.
func (a *Admin) Holds(t Tuple) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.tuples[t]
	return e != nil && e.held
}

// Inject delivers one IP packet to this host's stack as if it had come from
// the network.
func (a *Admin) Inject(packet []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	return a.tap.inject(packet)
}

// Counters returns the totals, those of the kernel included.
func (a *Admin) Counters() (Counters, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return a.counters, ErrClosed
	}
	c := a.counters
	for _, e := range a.tuples {
		if e.held {
			c.HeldTuples++
		}
		if e.peer != nil {
			c.DivertTuples++
		}
		if e.here != 0 {
			c.HereTuples++
		}
	}
	if err := a.rules.read(&c); err != nil {
		return c, err
	}
	link, err := a.route.LinkByIndex(a.tap.index)
	if err != nil {
		return c, fmt.Errorf("netadmin: device %s: %w", a.cfg.HoldDevice, err)
	}
	if s := link.Attrs().Statistics; s != nil {
		c.DeviceDropped = s.TxDropped
	}
	return c, nil
}

func checkAll(ts []Tuple) error {
	for _, t := range ts {
		if err := t.check(); err != nil {
			return err
		}
	}
	return nil
}

// changeFew is change of what is in no hurry, a few tuples at a time: a lot of a move waits for
// each. f sees what each tuple is by then. a.mu is not held.
func (a *Admin) changeFew(ts []Tuple, f func(Tuple, *entry)) error {
	for some := range slices.Chunk(ts, fewTuples) {
		a.mu.Lock()
		err := a.change(some, nil, f)
		a.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

const fewTuples = 64

// change applies f to what is wanted for each of ts, and the difference to
// the kernel, a bounded number of tuples in one transaction each. If one
// fails, those before are undone; what cannot be undone is in the error.
// It forgets the frames of tuples that are no longer held. a.mu is held.
// meanwhile, if not nil, is called before each transaction and what it returns
// after it.
func (a *Admin) change(ts []Tuple, meanwhile func() (stop func()), f func(Tuple, *entry)) error {
	if a.closed {
		return ErrClosed
	}
	steps, more := a.steps[:0], 0
	clear(a.seen)
	for _, t := range ts {
		if _, twice := a.seen[t]; twice {
			continue
		}
		a.seen[t] = struct{}{}
		steps = append(steps, step{t: t})
		s := &steps[len(steps)-1]
		if e := a.tuples[t]; e != nil {
			s.was, s.now = *e, *e
		}
		f(t, &s.now)
		if s.now.some() && !s.was.some() {
			more++
		}
	}
	if more > 0 && len(a.tuples)+more > a.cfg.MaxTuples {
		clear(steps)
		return fmt.Errorf("netadmin: %v, of %d that come: %d tuples are held, diverted or here, of %d at most", ts[0], more, len(a.tuples), a.cfg.MaxTuples)
	}
	if len(steps) <= 2*tuplesPerFlush { // not the room of something rare
		a.steps = steps
	} else {
		a.seen = map[Tuple]struct{}{}
	}
	defer clear(steps) // they refer to frames
	apply := func(steps []step, back bool) error {
		for i := range steps {
			was, now := steps[i].was.way(), steps[i].now.way()
			if back {
				was, now = now, was
			}
			a.rules.queue(steps[i].t, was, now)
		}
		if meanwhile != nil {
			defer meanwhile()()
		}
		return a.rules.flush()
	}
	for at := 0; at < len(steps); at += tuplesPerFlush {
		err := apply(steps[at:min(at+tuplesPerFlush, len(steps))], false)
		if err == nil {
			continue
		}
		for at -= tuplesPerFlush; at >= 0; at -= tuplesPerFlush {
			if uerr := apply(steps[at:at+tuplesPerFlush], true); uerr != nil {
				err = errors.Join(err, fmt.Errorf("undo: %w", uerr))
			}
		}
		return err
	}
	for i := range steps {
		s := &steps[i]
		if s.was.peer != nil && s.now.peer == nil {
			a.reserved.stale = true
		}
		if s.was.held && !s.now.held {
			a.forget(s.now.frames)
			s.now.frames = nil
		}
		if s.now.held {
			delete(a.released, s.t)
		}
		if !s.now.some() {
			delete(a.tuples, s.t)
			continue
		}
		if e := a.tuples[s.t]; e != nil {
			*e = s.now
		} else {
			e := s.now
			a.tuples[s.t] = &e
		}
	}
	return nil
}

func (a *Admin) forget(frames [][]byte) {
	a.counters.HeldFrames -= len(frames)
	for _, f := range frames {
		a.counters.HeldBytes -= int64(len(f))
	}
}

// setSysctls makes the kernel accept what takes a way that routing does not
// know: on the TAP device everything, on Device segments between two
// addresses of this host (a moved socket on another host talks to an
// endpoint here from an address that this host still has).
func (a *Admin) setSysctls() error {
	ipv4 := "net/ipv4/conf/"
	hold := a.cfg.HoldDevice
	// The strictest of all and the device counts (include/linux/inetdevice.h:
	// IN_DEV_MAXCONF). So all has to be 0 for the TAP device to be free of
	// it; what it said goes to each other device.
	all, err := readSysctl(ipv4 + "all/rp_filter")
	if err != nil {
		return err
	}
	if all != "0" {
		devices, err := listSysctl(ipv4)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if d == "all" || d == hold {
				continue
			}
			if err := a.setSysctl(ipv4+d+"/rp_filter", func(v string) string { return max(v, all) }); err != nil {
				return err
			}
		}
		if err := a.setSysctl(ipv4+"all/rp_filter", to("0")); err != nil {
			return err
		}
	}
	// An address on lo is not answered for by another device, and never named in
	// a request (Documentation/networking/ip-sysctl.rst). And an address that
	// goes takes no other along that is in its network.
	for _, s := range [][2]string{{"all/arp_ignore", "1"}, {"all/arp_announce", "2"}, {a.cfg.Device + "/promote_secondaries", "1"}} {
		if err := a.setSysctl(ipv4+s[0], func(v string) string { return max(v, s[1]) }); err != nil {
			return err
		}
	}
	// Strict would drop a segment whose source is one of our own addresses,
	// loose does not (net/ipv4/fib_frontend.c: __fib_validate_source).
	loose := func(v string) string {
		if v == "1" {
			return "2"
		}
		return v
	}
	for _, s := range []struct {
		path string
		f    func(string) string
	}{
		{ipv4 + a.cfg.Device + "/rp_filter", loose},
		{ipv4 + a.cfg.Device + "/accept_local", to("1")},
		{ipv4 + hold + "/rp_filter", to("0")},
		{ipv4 + hold + "/accept_local", to("1")},
		{ipv4 + hold + "/arp_ignore", to("8")},
	} {
		if err := a.setSysctl(s.path, s.f); err != nil {
			return err
		}
	}
	// IPv6 has no such filters, but would give the device an address and
	// look for routers.
	ipv6 := "net/ipv6/conf/" + hold
	if !existsSysctl(ipv6) {
		return nil // no IPv6 on this host
	}
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"addr_gen_mode", "1"}} {
		if err := a.setSysctl(ipv6+"/"+s[0], to(s[1])); err != nil {
			return err
		}
	}
	return nil
}

func to(v string) func(string) string { return func(string) string { return v } }

func macOf(hw net.HardwareAddr) (m [6]byte) { copy(m[:], hw); return m }
