package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

var (
	wholeForm    = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
	numberForm   = regexp.MustCompile(`^[-+]?[0-9]*\.?[0-9]+$`)
	variableForm = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

// string reads a text. It may be in quotes or not.
func (s *section) string(key, otherwise string) string {
	if t, ok := s.scalar(key); ok {
		otherwise = t.value
	}
	s.noteText(key, otherwise)
	return otherwise
}

// integer reads a whole number, decimal and nothing else: YAML would read
// 0777 as 511 and 1_0 as 10.
func (s *section) integer(key string, otherwise int, bound intBound) (n int) {
	defer func() { s.noteNumber(key, n) }()
	t, ok := s.plain(key)
	if !ok {
		return otherwise
	}
	if !wholeForm.MatchString(t) {
		s.fail(key, "%q: must be a whole number in decimal, %d to %d", clip(t), bound.min, bound.max)
		return otherwise
	}
	n, err := strconv.Atoi(t)
	if err == nil {
		err = bound.check(n)
	} else {
		err = fmt.Errorf("must be %d to %d", bound.min, bound.max)
	}
	if err != nil {
		s.fail(key, "%s %v", clip(t), err)
		return otherwise
	}
	return n
}

// boolean reads true or false; yes, on and True are refused.
func (s *section) boolean(key string, otherwise bool) (is bool) {
	defer func() { s.noteBool(key, is) }()
	t, ok := s.plain(key)
	switch {
	case !ok:
	case t == "true":
		return true
	case t == "false":
		return false
	default:
		s.fail(key, "%q: must be true or false", clip(t))
	}
	return otherwise
}

// plain reads a scalar that is no text, so it must not be in quotes.
func (s *section) plain(key string) (string, bool) {
	t, ok := s.scalar(key)
	// Without its quotes anything else would be as wrong, and says so itself.
	if ok && t.quoted && (wholeForm.MatchString(t.value) || t.value == "true" || t.value == "false") {
		s.fail(key, "%q is a text, for it is in quotes; write it without", clip(t.value))
		return "", false
	}
	return t.value, ok
}

// duration reads a duration, which has a unit even if it is zero.
func (s *section) duration(key string, otherwise time.Duration, bound durationBound) (d time.Duration) {
	defer func() { s.notePlain(key, durationText(d)) }()
	t, ok := s.scalar(key)
	if !ok {
		return otherwise
	}
	d, err := parseDuration(t.value)
	if err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
		return otherwise
	}
	if err := bound.check(d); err != nil {
		s.fail(key, "%s %v", clip(t.value), err)
		return otherwise
	}
	return d
}

func parseDuration(s string) (time.Duration, error) {
	if numberForm.MatchString(s) {
		return 0, errors.New("a duration needs a unit, as in 2s or 250ms")
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("not a duration, as in 250ms, 2s, 1m30s or 24h")
	}
	return d, nil
}

// size reads a number of octets, which has a unit unless it is 0.
func (s *section) size(key string, otherwise uint64, bound sizeBound) (n uint64) {
	defer func() { s.notePlain(key, sizeText(n)) }()
	t, ok := s.scalar(key)
	if !ok {
		return otherwise
	}
	n, err := parseSize(t.value)
	if err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
		return otherwise
	}
	if err := bound.check(n); err != nil {
		s.fail(key, "%s %v", clip(t.value), err)
		return otherwise
	}
	return n
}

var sizeUnits = []struct {
	name  string
	shift int
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}, {"B", 0}}

func parseSize(s string) (uint64, error) {
	if s == "0" {
		return 0, nil
	}
	if numberForm.MatchString(s) {
		return 0, errors.New("a size needs a unit, as in 512B, 16KiB or 8MiB")
	}
	for _, unit := range sizeUnits {
		digits, found := strings.CutSuffix(s, unit.name)
		if !found || !wholeForm.MatchString(digits) {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || n > math.MaxUint64>>unit.shift {
			break
		}
		return n << unit.shift, nil
	}
	return 0, errors.New("not a size: a whole number with B, KiB, MiB, GiB or TiB")
}

// sizeText gives n in the largest unit that has no fraction.
func sizeText(n uint64) string {
	for _, unit := range sizeUnits {
		if n != 0 && n>>unit.shift<<unit.shift == n {
			return fmt.Sprintf("%d%s", n>>unit.shift, unit.name)
		}
	}
	return "0"
}

// choice reads one of the words, and gives its index.
func (s *section) choice(key string, otherwise uint8, words []string) (i uint8) {
	defer func() { s.noteText(key, words[i]) }()
	if n := s.values[key]; n != nil && (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) {
		s.fail(key, "must be one of %s", strings.Join(words, ", "))
		return otherwise
	}
	t, ok := s.scalar(key)
	if !ok {
		return otherwise
	}
	n := slices.Index(words, t.value)
	if n < 0 {
		s.fail(key, "%q: must be one of %s%s", clip(t.value), strings.Join(words, ", "), meant(t.value, words))
		return otherwise
	}
	return uint8(n)
}

// meant proposes the word that wrong probably is.
func meant(wrong string, words []string) string {
	if says := notYet[folded(wrong)]; says != "" {
		return "; " + says
	}
	if best := nearest(wrong, words); best != "" {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return ""
}

// checked reads a text that check allows.
func (s *section) checked(key, otherwise string, check func(string) error) (v string) {
	defer func() { s.noteText(key, v) }()
	t, ok := s.scalar(key)
	if !ok {
		return otherwise
	}
	if err := check(t.value); err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
		return otherwise
	}
	return t.value
}

func checkFilePath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errors.New("the path must be absolute")
	}
	if !isPrintable(path) {
		return errors.New("a path cannot hold control characters")
	}
	return nil
}

// expand replaces ${NAME} and ${NAME:-default} in s, and says whether there
// was any. The default is taken if NAME is unset or empty. What a variable
// holds is not expanded again.
func expand(s string, lookup func(string) (string, bool)) (string, bool, error) {
	var out strings.Builder
	expanded := false
	for {
		before, rest, found := strings.Cut(s, "${")
		out.WriteString(before)
		if !found {
			return out.String(), expanded, nil
		}
		inner, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", false, errors.New("${ without its }")
		}
		name, otherwise, hasDefault := strings.Cut(inner, ":-")
		if !variableForm.MatchString(name) {
			return "", false, fmt.Errorf("%q: not of the form ${NAME} or ${NAME:-default}", clip("${"+inner+"}"))
		}
		if strings.Contains(otherwise, "${") {
			return "", false, fmt.Errorf("${%s: a default cannot hold another ${", clip(name))
		}
		value, set := "", false
		if lookup != nil {
			value, set = lookup(name)
		}
		switch {
		case hasDefault && (!set || value == ""):
			value = otherwise
		case !set:
			return "", false, fmt.Errorf("the variable %s is not set; set it, or write ${%s:-default}", clip(name), clip(name))
		}
		// The form in which objects travel is Unicode.
		if !utf8.ValidString(value) {
			return "", false, fmt.Errorf("what the variable %s holds is not UTF-8", clip(name))
		}
		out.WriteString(value)
		expanded, s = true, after
	}
}
