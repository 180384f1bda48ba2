package config

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// tokenMarks are what a token may hold but letters and digits: RFC 9110,
// section 5.6.2.
const tokenMarks = "!#$%&'*+-.^_`|~"

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// checkToken wants a name of a field, a method, a pseudonym.
func checkToken(s string) error {
	if s == "" || len(s) > tokenMax {
		return fmt.Errorf("not a token: 1 to %d letters, digits and marks", tokenMax)
	}
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && !strings.Contains(tokenMarks, s[i:i+1]) {
			return fmt.Errorf("not a token: letters, digits and %s", tokenMarks)
		}
	}
	return nil
}

func parseMethod(s string) (string, error) { return s, checkToken(s) }

// forwarding are the names that say how a message is framed, or that are for
// one hop alone: RFC 9110, section 7.6.1, and RFC 9112, section 6. Whoever
// changed them would make two readers see two messages. In lower case.
var forwarding = []string{"connection", "content-length", "expect", "keep-alive", "proxy-connection",
	"te", "trailer", "transfer-encoding", "upgrade"}

func isForwarding(name string) bool { return slices.Contains(forwarding, strings.ToLower(name)) }

func checkRequestID(name string) error {
	if err := checkToken(name); err != nil {
		return err
	}
	ours := []string{"host", "via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
	if isForwarding(name) || slices.Contains(ours, strings.ToLower(name)) {
		return errors.New("this field has another meaning")
	}
	return nil
}

// checkEdit says nothing of the name of e, which stands before its errors.
func checkEdit(e Edit, response bool) error {
	if err := checkToken(e.Name); err != nil {
		return err
	}
	switch {
	case isForwarding(e.Name):
		return errors.New("says how messages are passed on, and cannot be edited")
	case !strings.EqualFold(e.Name, "host"):
	case response:
		return errors.New("is a field of requests")
	case e.Kind != SetField:
		return errors.New("a request has exactly one; it can be set, and nothing else")
	default:
		if normal, err := parseAuthority(e.Value); err != nil || normal != e.Value {
			return fmt.Errorf("%q: not a host in lower case, with or without port", clip(e.Value))
		}
	}
	if e.Kind == RemoveField && e.Value != "" {
		return errors.New("is removed, so it has no value")
	}
	return checkFieldValue(e.Value)
}

// checkFieldValue wants what RFC 9110, section 5.5, lets a field hold, in
// UTF-8 and without tabs, which are never needed.
func checkFieldValue(value string) error {
	switch {
	case !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		return errors.New("a value cannot hold control characters")
	case strings.Trim(value, " ") != value:
		return errors.New("a value neither begins nor ends with space")
	case len(value) > valueMax:
		return fmt.Errorf("a value of %d octets; at most %d are taken", len(value), valueMax)
	}
	return nil
}

// checkHeaderPair and checkQueryPair are as checkEdit.
func checkHeaderPair(p Pair) error {
	if err := checkToken(p.Name); err != nil {
		return err
	}
	return checkFieldValue(p.Value)
}

// checkQueryPair wants what can stand between & and =.
func checkQueryPair(p Pair) error {
	if p.Name == "" || strings.ContainsAny(p.Name, "=&#") || !isTarget(p.Name) {
		return errors.New("not a name of a query as it is sent")
	}
	if strings.ContainsAny(p.Value, "&#") || !isTarget(p.Value) {
		return fmt.Errorf("%q: not a value of a query as it is sent, with %%20 for a space", clip(p.Value))
	}
	if n := max(len(p.Name), len(p.Value)); n > valueMax {
		return fmt.Errorf("%d octets; at most %d are taken", n, valueMax)
	}
	return nil
}

// isTarget: s is made of what RFC 3986, section 2, lets an URI hold.
func isTarget(s string) bool {
	const marks = "-._~:/?#[]@!$&'()*+,;="
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			i += 2
			continue
		}
		if !isAlphanumeric(s[i]) && !strings.Contains(marks, s[i:i+1]) {
			return false
		}
	}
	return true
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }

// checkPath wants a path as it is sent, in the one way to write it.
func checkPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("a path begins with /")
	case strings.ContainsAny(path, "?#"):
		return errors.New("a path ends before ? and #")
	case !isTarget(path):
		return errors.New("a path is written as it is sent, with %20 for a space")
	case len(path) > pathMax:
		return fmt.Errorf("a path of %d octets; at most %d are taken", len(path), pathMax)
	}
	for segment := range strings.SplitSeq(segments.Replace(path), "/") {
		if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
			return fmt.Errorf("a path has no segment %s; requests with one are refused", name)
		}
	}
	if way := plainPath(path); way != path {
		return fmt.Errorf("must be %q, which names the same", clip(way))
	}
	return nil
}

// plainPath gives path, which is well formed, in the one way to write it: letters,
// digits and "-._~" not percent-encoded, other octets with capital digits (RFC
// 3986, section 6.2.2). So are those of requests compared.
func plainPath(path string) string {
	return encodedForm.ReplaceAllStringFunc(path, func(c string) string {
		v, _ := strconv.ParseUint(c[1:], 16, 8)
		if b := byte(v); isAlphanumeric(b) || strings.IndexByte("-._~", b) >= 0 {
			return string(rune(b))
		}
		return strings.ToUpper(c)
	})
}

var encodedForm = regexp.MustCompile("%[0-9a-fA-F]{2}")

// segments gives a path as the most generous backend reads it, as far as that
// makes segments: it is so that requests are refused.
var segments = strings.NewReplacer("%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%5c", "/", "%5C", "/", "%3b", ";", "%3B", ";")

func checkScheme(s string) error {
	if s != "http" && s != "https" {
		return errors.New("must be http or https")
	}
	return nil
}

func checkType(s string) error {
	if kind, sub, found := strings.Cut(s, "/"); !found || checkToken(kind) != nil || sub == "" {
		return errors.New("not a type of media, as in text/plain")
	}
	return checkFieldValue(s)
}

// parseHost gives the name of a host in lower case. It may begin with "*.",
// and be an address, of IPv6 in brackets.
func parseHost(s string) (string, error) {
	rest, wild := strings.CutPrefix(s, "*.")
	if inner, v6 := strings.CutPrefix(rest, "["); v6 && !wild {
		inner, closed := strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		if err != nil || !closed || !a.Is6() || a.Zone() != "" {
			return "", errors.New("not an IPv6 address in brackets, without port")
		}
		return "[" + a.String() + "]", nil
	}
	switch {
	case strings.Contains(rest, "*"):
		return "", errors.New("* stands for whole names in front, as in *.example.org")
	case strings.Contains(rest, ":"):
		return "", errors.New("a host is matched without its port")
	case strings.HasSuffix(rest, "."):
		return "", errors.New("a host has no dot at its end")
	case len(rest) > hostMax:
		return "", fmt.Errorf("a host has at most %d octets", hostMax)
	}
	for label := range strings.SplitSeq(rest, ".") {
		if !labelForm.MatchString(label) {
			return "", errors.New("not a host: names of letters, digits and dashes with dots between them; others are written as xn--")
		}
	}
	return strings.ToLower(s), nil
}

// RFC 1123, section 2.1; the underscore is no part of it, and in use.
var labelForm = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?$`)

// parseAuthority gives a host in lower case, which may have a port.
func parseAuthority(s string) (string, error) {
	if strings.Contains(s, "$") {
		return "", errors.New("nothing of a request is put into a host; leave the key out for the usual one")
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, port = s[:i], s[i:]
		if n, err := strconv.ParseUint(port[1:], 10, 16); err != nil || n == 0 || !wholeForm.MatchString(port[1:]) {
			return "", fmt.Errorf("port %q must be 1 to 65535, in decimal", clip(port[1:]))
		}
	}
	if strings.HasPrefix(host, "*") {
		return "", errors.New("must be one host")
	}
	host, err := parseHost(host)
	return host + port, err
}

// parsePrefix reads a network: an address and a length.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return netip.Prefix{}, fmt.Errorf("a network needs a length; the one of this address alone is %v/%d", a.Unmap(), a.Unmap().BitLen())
		}
		return netip.Prefix{}, errors.New("not a network, as in 10.0.0.0/8 or 2001:db8::/32")
	}
	return p, checkPrefix(p)
}

func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("not a network")
	case p.Addr().Is4In6():
		return errors.New("an IPv4 network written as IPv6")
	case p.Masked() != p:
		return fmt.Errorf("has bits beyond its length; the network is %v", p.Masked())
	}
	return nil
}

const regexBegin, regexEnd = `^(?:`, `)$`

// parseRegex compiles an expression so that it matches from begin to end.
func parseRegex(s string) (*regexp.Regexp, error) {
	if s == "" || len(s) > regexMax {
		return nil, fmt.Errorf("an expression has 1 to %d octets", regexMax)
	}
	tree, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, regexError(err)
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, regexError(err)
	}
	if n := len(program.Inst); n > stepsMax {
		return nil, fmt.Errorf("an expression of %d steps; at most %d are taken, with each repetition counted", n, stepsMax)
	}
	e, err := regexp.Compile(regexBegin + s + regexEnd)
	if err != nil {
		return nil, regexError(err) // \Q without \E quotes what we append
	}
	return e, nil
}

// canBeginWith tells whether an expression, which parseRegex took, can match a
// text that begins with c. When in doubt it can.
func canBeginWith(e string, c rune) bool {
	tree, err := syntax.Parse(e, syntax.Perl)
	if err != nil {
		return true
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return true
	}
	seen := make([]bool, len(program.Inst))
	next := []uint32{uint32(program.Start)}
	for len(next) > 0 {
		pc := next[len(next)-1]
		next = next[:len(next)-1]
		if seen[pc] {
			continue
		}
		seen[pc] = true
		switch i := &program.Inst[pc]; i.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			next = append(next, i.Out, i.Arg)
		case syntax.InstCapture, syntax.InstNop, syntax.InstEmptyWidth:
			next = append(next, i.Out)
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if i.MatchRune(c) {
				return true
			}
		case syntax.InstMatch, syntax.InstFail: // of nothing at all, or of nothing
		}
	}
	return false
}

func regexError(err error) error {
	var e *syntax.Error
	if errors.As(err, &e) {
		return fmt.Errorf("not an expression of RE2: %v", e.Code)
	}
	return errors.New("not an expression of RE2")
}

// regexText gives what parseRegex was given; "" of nil.
func regexText(e *regexp.Regexp) string {
	if e == nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimPrefix(e.String(), regexBegin), regexEnd)
}

// parseReplacement reads a path in which $1 to $9 are groups of e, $0 all of
// it, and $$ is a dollar sign. It gives it in the form of
// [regexp.Regexp.Expand]: ${1}.
func parseReplacement(s string, e *regexp.Regexp) (string, error) {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9':
			return "", fmt.Errorf("a group is written $%c, not \\%[1]c", s[i+1])
		case s[i] != '$':
			out.WriteByte(s[i])
			continue
		case i+1 < len(s) && s[i+1] == '$':
			out.WriteString("$$")
		case i+1 < len(s) && '0' <= s[i+1] && s[i+1] <= '9':
			out.WriteString("${" + s[i+1:i+2] + "}")
		default:
			return "", errors.New("$ is followed by the number of a group, 0 to 9, or by $")
		}
		i++
	}
	return out.String(), checkReplacement(out.String(), e)
}

var groupForm = regexp.MustCompile(`\$\{([0-9])\}`)

func checkReplacement(s string, e *regexp.Regexp) error {
	for _, m := range groupForm.FindAllStringSubmatch(s, -1) {
		if n, _ := strconv.Atoi(m[1]); n > e.NumSubexp() {
			return fmt.Errorf("$%d: the expression has %d groups", n, e.NumSubexp())
		}
	}
	literal := strings.ReplaceAll(s, "$$", "")
	if strings.Contains(groupForm.ReplaceAllString(literal, ""), "$") {
		return errors.New("$ is followed by the number of a group, 0 to 9, or by $")
	}
	// A group holds octets of a path, so what surrounds it makes a path of it.
	return checkPath(groupForm.ReplaceAllString(literal, "_"))
}
