package resolve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	typeA    = dns.TypeA
	typeAAAA = dns.TypeAAAA
)

// udpSize is what fits everywhere unfragmented (RFC 9715, section 3.1).
const udpSize = 1232

func absolute(host string) string { return dns.Fqdn(host) }

// family is what a name has of one kind of addresses.
type family struct {
	addrs []netip.Addr
	ttl   time.Duration
}

// family asks the servers in turn until one knows. That a name, or its records
// of the kind, do not exist is an answer, too.
func (r *Resolver) family(ctx context.Context, servers []string, full string, kind uint16) (f family, err error) {
	for _, server := range servers {
		var m *dns.Msg
		if m, err = exchange(ctx, server, full, kind); err != nil {
			err = fmt.Errorf("resolve: %s: %s: %w", full, server, err)
			continue
		}
		switch m.Rcode {
		case dns.RcodeSuccess:
		case dns.RcodeNameError:
			return f, fmt.Errorf("resolve: %s: %s: there is no such name", full, server)
		default:
			err = fmt.Errorf("resolve: %s: %s: %s", full, server, dns.RcodeToString[m.Rcode])
			continue
		}
		// The chain of aliases counts, too: its first link to go ends the answer.
		f.ttl = TTLMax
		for _, rr := range m.Answer {
			switch x := rr.(type) {
			case *dns.A:
				if a, ok := netip.AddrFromSlice(x.A); ok && kind == typeA {
					f.addrs = append(f.addrs, a.Unmap())
				}
			case *dns.AAAA:
				if a, ok := netip.AddrFromSlice(x.AAAA); ok && kind == typeAAAA {
					f.addrs = append(f.addrs, a)
				}
			case *dns.CNAME, *dns.DNAME:
			default:
				continue
			}
			f.ttl = min(f.ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		return f, nil
	}
	return f, err
}

// exchange asks one server, over TCP if the answer is too large for UDP.
func exchange(ctx context.Context, server, full string, kind uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(full, kind)
	q.SetEdns0(udpSize, false)
	var m *dns.Msg
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: askTime, UDPSize: udpSize}
		within, end := context.WithTimeout(ctx, askTime)
		var err error
		m, _, err = c.ExchangeContext(within, q, server)
		end()
		if err != nil {
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				return nil, fmt.Errorf("no answer in %v", askTime)
			}
			return nil, err
		}
		if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, full) || m.Question[0].Qtype != kind {
			return nil, errors.New("it answers another question")
		}
		if !m.Truncated {
			break
		}
	}
	return m, nil
}

// system is what the system's files say.
type system struct {
	hosts string

	// mu guards what follows.
	mu       sync.Mutex
	readAt   time.Time
	config   *dns.ClientConfig
	byName   map[string][]netip.Addr
	hostsAge time.Time
}

// hostsTTL is how long what the files say is believed.
const hostsTTL = 5 * time.Second

// read reads the files again if they may have changed. The caller holds mu.
func (s *system) read() {
	if !s.readAt.IsZero() && time.Since(s.readAt) < hostsTTL {
		return
	}
	s.readAt = time.Now()
	if c, err := dns.ClientConfigFromFile("/etc/resolv.conf"); err == nil {
		s.config = c // else the last one that could be read
	}
	info, err := os.Stat(s.hosts)
	if err != nil {
		s.byName = nil
		return
	}
	if s.byName != nil && info.ModTime().Equal(s.hostsAge) {
		return
	}
	s.byName, s.hostsAge = map[string][]netip.Addr{}, info.ModTime()
	f, err := os.Open(s.hosts)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		a, err := netip.ParseAddr(fields[0])
		if err != nil || a.Zone() != "" {
			continue
		}
		for _, h := range fields[1:] {
			h = strings.ToLower(strings.TrimSuffix(h, "."))
			s.byName[h] = append(s.byName[h], a.Unmap())
		}
	}
}

// lookup is what the hosts file says.
func (s *system) lookup(host string) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read()
	return s.byName[strings.ToLower(strings.TrimSuffix(host, "."))]
}

// servers are the system's, and the names to ask for, with its search list.
func (s *system) servers(host string) (servers, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read()
	if s.config == nil {
		return nil, nil
	}
	for _, a := range s.config.Servers {
		servers = append(servers, net.JoinHostPort(a, s.config.Port))
	}
	return servers, s.config.NameList(host)
}
