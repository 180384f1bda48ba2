package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// addrPort reads an address with a port. With wildcard it may be 0.0.0.0 or
// [::], and ":PORT" is "[::]:PORT". The zero AddrPort says that it is not
// there or was refused.
func (s *section) addrPort(key string, wildcard bool) (a netip.AddrPort) {
	defer func() { s.noteAddrPort(key, a) }()
	t, ok := s.scalar(key)
	if !ok {
		return netip.AddrPort{}
	}
	a, err := parseAddrPort(t.value, wildcard)
	if err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
		return netip.AddrPort{}
	}
	return a
}

func parseAddrPort(s string, wildcard bool) (netip.AddrPort, error) {
	if strings.HasPrefix(s, unixPrefix) {
		return netip.AddrPort{}, errors.New("a unix socket can only be the address of an endpoint")
	}
	if port := strings.TrimPrefix(s, "*:"); wildcard && (port != s || wholeForm.MatchString(s)) {
		return netip.AddrPort{}, noAddress(port)
	}
	host, port, err := cutPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		if !wildcard {
			return netip.AddrPort{}, fmt.Errorf("the address is missing, as in 10.0.0.31:%s", printable(port))
		}
		host = "::"
	}
	a, err := parseAddr(host, wildcard)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := parsePort(port)
	return netip.AddrPortFrom(a, n), err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || !wholeForm.MatchString(s) {
		return 0, fmt.Errorf("port %q must be 1 to 65535, in decimal", clip(s))
	}
	return uint16(n), nil
}

// cutPort takes "10.0.0.5:80", "[::1]:80" and ":80" apart.
func cutPort(s string) (host, port string, err error) {
	if scheme, rest, found := strings.Cut(s, "://"); found {
		return "", "", fmt.Errorf("an address has no %s://; write %s", printable(scheme), printable(strings.TrimRight(rest, "/")))
	}
	if inner, found := strings.CutPrefix(s, "["); found {
		host, port, found = strings.Cut(inner, "]")
		if !found {
			return "", "", errors.New("[ without its ]")
		}
		if !strings.Contains(host, ":") {
			return "", "", errors.New("brackets are for IPv6 addresses only")
		}
		port, found = strings.CutPrefix(port, ":")
		if !found {
			return "", "", fmt.Errorf("a port is missing, as in [%s]:5432", printable(host))
		}
		return host, port, nil
	}
	switch strings.Count(s, ":") {
	case 0:
		if _, err := netip.ParseAddr(s); err == nil || isHostName(s) && strings.Contains(s, ".") {
			return "", "", fmt.Errorf("a port is missing, as in %s:5432", printable(s))
		}
		return "", "", errors.New("not of the form ADDRESS:PORT, as in 10.0.0.5:5432 or [2001:db8::5]:5432")
	case 1:
		host, port, _ = strings.Cut(s, ":")
		return host, port, nil
	}
	return "", "", errors.New("an IPv6 address with a port needs brackets, as in [2001:db8::5]:5432")
}

// parseAddr reads an IP address that checkAddr allows.
func parseAddr(s string, wildcard bool) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, notAddr(s)
	}
	return a, checkAddr(a, wildcard)
}

// notAddr says why s is no address, as far as one can tell.
func notAddr(s string) error {
	parts := strings.Split(s, ".")
	numbers := len(parts) > 1
	for _, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			numbers = false
			break
		}
		if len(parts) == 4 && n > 255 {
			return fmt.Errorf("not an IP address (octet %d > 255)", n)
		}
		if len(parts) == 4 && len(p) > 1 && p[0] == '0' {
			return fmt.Errorf("not an IP address (octet %s has a leading zero)", clip(p))
		}
	}
	switch {
	case numbers:
		return errors.New("not an IP address (an IPv4 address has four octets)")
	case strings.Contains(s, ":"):
		return errors.New("not an IP address")
	}
	return errors.New("not an IP address; a name can only be the address of an endpoint")
}

// endpointAddress reads the address of an endpoint: ADDRESS:PORT, NAME:PORT or
// unix:PATH.
func (s *section) endpointAddress(key string, e *Endpoint) {
	t, ok := s.scalar(key)
	if !ok {
		return
	}
	path, unix := strings.CutPrefix(t.value, unixPrefix)
	if host, _, err := cutPort(t.value); !unix && err == nil && isHostName(host) {
		if e.Host, e.Port, err = parseHostPort(t.value); err != nil {
			s.fail(key, "%q: %v", clip(t.value), err)
			e.Host, e.Port = "", 0
			return
		}
		s.noteText(key, e.Address())
		return
	}
	if !unix {
		e.Addr = s.addrPort(key, false)
		return
	}
	if err := checkUnixPath(path); err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
		return
	}
	e.Unix = path
	s.noteText(key, e.Address())
}

// source reads where a backend dials from: "", vip, or an address. It says
// whether the kernel chooses.
func (s *section) source(key string, b *Backend) (byKernel bool) {
	defer func() { s.keepText(key, strings.Trim(sourceText(b), `"`)) }()
	t, ok := s.scalar(key)
	switch {
	case !s.has(key) || ok && t.value == "":
		return true
	case !ok:
	case t.value == sourceVIP:
		b.SourceVIP = true
	default:
		a, err := netip.ParseAddr(t.value)
		if err != nil {
			s.fail(key, `%q: must be vip, an IP address without port, or "" for the kernel's choice`, clip(t.value))
			return false
		}
		if err := checkAddr(a, false); err != nil {
			s.fail(key, "%q: %v", clip(t.value), err)
			return false
		}
		b.Source = a
	}
	return false
}

// portRange reads "FIRST-LAST".
func (s *section) portRange(key string) (first, last uint16) {
	defer func() { s.noteText(key, portsText(first, last)) }()
	t, ok := s.scalar(key)
	if !ok {
		return 0, 0
	}
	from, to, _ := strings.Cut(t.value, "-")
	a, errA := strconv.ParseUint(from, 10, 16)
	b, errB := strconv.ParseUint(to, 10, 16)
	if errA != nil || errB != nil || a < sourcePortMin || a > b || !wholeForm.MatchString(from) || !wholeForm.MatchString(to) {
		s.fail(key, "%q: must be two ports from %d to 65535, the lower first, as in 20000-39999", clip(t.value), sourcePortMin)
		return 0, 0
	}
	return uint16(a), uint16(b)
}

func portsText(first, last uint16) string { return fmt.Sprintf("%d-%d", first, last) }
