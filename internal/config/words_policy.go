package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// sameSiteNone is what a cookie has that goes to other sites, too.
const sameSiteNone = "None"

// sameSites are the values of SameSite: RFC 6265bis, section 4.1.2.7.
var sameSites = []string{"Lax", "Strict", sameSiteNone}

// Where an access log may go, beside files.
const (
	logStdout = "stdout"
	logStderr = "stderr"
	logSyslog = "syslog"
)

// checkLogTo wants what [AccessLog] describes.
func checkLogTo(to string) error {
	switch to {
	case logStdout, logStderr, logSyslog:
		return nil
	}
	if server, found := strings.CutPrefix(to, logSyslog+":"); found {
		_, err := parseAddrPort(server, false)
		return err
	}
	if !strings.HasPrefix(to, "/") {
		return errors.New("must be stdout, stderr, syslog, syslog:ADDRESS:PORT, or the absolute path of a file" +
			meant(to, []string{logStdout, logStderr, logSyslog}))
	}
	return checkFilePath(to)
}

// checkSecret says nothing of what the secret is.
func checkSecret(s string) error {
	switch {
	case len(s) < secretMin:
		return fmt.Errorf("%d octets are too few for a key; it needs %d, as openssl rand -base64 24 makes them", len(s), secretMin)
	case len(s) > secretMax:
		return fmt.Errorf("%d octets; at most %d are taken", len(s), secretMax)
	case !utf8.ValidString(s):
		return errors.New("the key is not UTF-8")
	}
	return nil
}

func checkZone(s string) error {
	if !nameForm.MatchString(s) {
		return fmt.Errorf("not a zone: 1 to %d letters, digits, dots, dashes and underscores", zoneMax)
	}
	return nil
}

// checkCookiePath wants an attribute of RFC 6265, section 4.1.1: a path without
// what would end it.
func checkCookiePath(s string) error {
	if err := checkPath(s); err != nil {
		return err
	}
	if strings.Contains(s, ";") {
		return errors.New("the path of a cookie cannot hold ;")
	}
	return nil
}

// parseCookieDomain gives a domain in lower case, without the dot in front that
// user agents ignore (RFC 6265, section 5.2.3).
func parseCookieDomain(s string) (string, error) {
	host, err := parseHost(strings.TrimPrefix(s, "."))
	switch {
	case err != nil:
		return "", err
	case strings.HasPrefix(host, "*"):
		return "", errors.New("a cookie's domain holds for all below it, without *")
	case strings.HasPrefix(host, "[") || isIPv4(host):
		return "", errors.New("a cookie has no address as its domain; leave it out")
	}
	return host, nil
}

func isIPv4(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is4()
}

// checkSent bounds what a check sends or waits for.
func checkSent(s string) error {
	if len(s) > checkSendMax {
		return fmt.Errorf("%d octets; at most %d are taken", len(s), checkSendMax)
	}
	return nil
}

// checkProbePath wants a target in the form of a path, perhaps with a query.
func checkProbePath(s string) error {
	path, query, _ := strings.Cut(s, "?")
	if err := checkPath(path); err != nil {
		return err
	}
	if strings.Contains(query, "#") || !isTarget(query) {
		return errors.New("not a query as it is sent, with %20 for a space")
	}
	return nil
}

func checkProbeField(e Edit) error {
	if e.Kind != AddField {
		return errors.New("is not added")
	}
	if strings.EqualFold(e.Name, "host") {
		return errors.New("the host of a check is check.http.host")
	}
	return checkEdit(e, false)
}

// overlapping tells whether one of the ranges has a status of r.
func overlapping(all []StatusRange, r StatusRange) bool {
	return slices.ContainsFunc(all, func(o StatusRange) bool { return o.First <= r.Last && r.First <= o.Last })
}

// parseHostPort takes the address of an endpoint that is a name apart, and
// gives the name in lower case.
func parseHostPort(s string) (host string, port uint16, err error) {
	name, digits, err := cutPort(s)
	if err != nil {
		return "", 0, err
	}
	if host, err = parseHost(name); err != nil {
		return "", 0, err
	}
	if strings.HasPrefix(host, "*") {
		return "", 0, errors.New("a name has no *")
	}
	port, err = parsePort(digits)
	return host, port, err
}

// isHostName tells whether s may be a name: its last label is no number, as
// that of an address with a slip in it is (RFC 1123, section 2.1).
func isHostName(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	return strings.ContainsFunc(last, func(c rune) bool { return c < '0' || c > '9' }) && !strings.Contains(s, ":")
}
