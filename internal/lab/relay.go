package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// The sabotages. Each breaks a run from outside the product; with each the lab
// must fail, or its verdict on the product is worth nothing.
const (
	DropOctet  = "drop-octet"  // one octet of one flow is left out
	RSTOne     = "rst-one"     // one flow is reset
	BlindRelay = "blind-relay" // instead of the balancer a relay that knows no half-close and no moves
	KillOne    = "kill"        // the balancer is killed in mid-run
	SkipApply  = "skip-apply"  // one configuration is not applied, for the lab reload
	Forget     = "forget"      // the journal is taken away at one start, for the lab durable
)

// Sabotages lists them all.
var Sabotages = []string{DropOctet, RSTOne, BlindRelay, KillOne, SkipApply, Forget, OldStays, NoStore, TwoAnswer}

// saboteur is a relay between one client and the balancer. It relays octets
// and half-closes faithfully until it strikes.
type saboteur struct {
	Addr netip.AddrPort

	how    string
	to     netip.AddrPort
	host   *Host
	lis    net.Listener
	strike atomic.Bool // the next octets down are maltreated
	struck atomic.Bool

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// newSaboteur listens at addr on a host (nil: this process's namespace).
func newSaboteur(h *Host, how string, addr, to netip.AddrPort) (*saboteur, error) {
	s := &saboteur{how: how, to: to, host: h}
	err := s.in(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		var err error
		s.lis, err = lc.Listen(context.Background(), "tcp", addr.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	s.Addr = s.lis.Addr().(*net.TCPAddr).AddrPort()
	go s.run()
	return s, nil
}

func (s *saboteur) in(f func() error) error {
	if s.host == nil {
		return f()
	}
	return s.host.Do(f)
}

// Strike lets the sabotage happen with the next octets.
func (s *saboteur) Strike() { s.strike.Store(true) }

// Close ends the relay, and with it the flow.
func (s *saboteur) Close() {
	_ = s.lis.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
}

func (s *saboteur) run() {
	for {
		c, err := s.lis.Accept()
		if err != nil {
			return
		}
		var b net.Conn
		err = s.in(func() error {
			d := net.Dialer{Timeout: 5 * time.Second}
			d.SetMultipathTCP(false)
			b, err = d.Dial("tcp", s.to.String())
			return err
		})
		if err != nil {
			_ = c.Close()
			continue
		}
		s.mu.Lock()
		s.conns = append(s.conns, c, b)
		s.mu.Unlock()
		go s.relay(b, c, nil)
		go s.relay(c, b, s.maltreat)
	}
}

// relay copies octets, then the FIN. A nil tamper leaves them alone.
func (s *saboteur) relay(to, from net.Conn, tamper func(to net.Conn, b []byte) []byte) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		b := buf[:n]
		if tamper != nil && n > 0 && s.strike.Load() && s.struck.CompareAndSwap(false, true) {
			b = tamper(to, b)
		}
		if _, werr := to.Write(b); werr != nil {
			_ = from.Close()
			return
		}
		if errors.Is(err, io.EOF) {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
		if err != nil {
			_ = to.(*net.TCPConn).SetLinger(0)
			_ = to.Close()
			return
		}
	}
}

func (s *saboteur) maltreat(to net.Conn, b []byte) []byte {
	if s.how == RSTOne {
		_ = to.(*net.TCPConn).SetLinger(0) // Close sends RST
		_ = to.Close()
		return nil
	}
	return b[1:]
}

// BlindMain is a relay as one writes it in ten minutes: a connection ends when
// either side ends, and nothing outlives the process. Each argument is
// LISTEN=TARGET. It prints "ready:" and serves until it is killed.
func BlindMain(args []string, out io.Writer) error {
	for _, a := range args {
		var at, to string
		for i := range a {
			if a[i] == '=' {
				at, to = a[:i], a[i+1:]
			}
		}
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		lis, err := lc.Listen(context.Background(), "tcp", at)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := lis.Accept()
				if err != nil {
					return
				}
				go func() {
					defer func() { _ = c.Close() }()
					b, err := net.Dial("tcp", to)
					if err != nil {
						return
					}
					defer func() { _ = b.Close() }()
					one := make(chan struct{}, 2)
					go func() { _, _ = io.Copy(b, c); one <- struct{}{} }()
					go func() { _, _ = io.Copy(c, b); one <- struct{}{} }()
					<-one
				}()
			}
		}()
	}
	if _, err := io.WriteString(out, "ready: blind\n"); err != nil {
		return err
	}
	select {}
}
