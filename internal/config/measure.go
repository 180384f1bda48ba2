package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// percent reads a share, which is written with its sign so that nobody takes 50
// for 0.5 or for a number of endpoints.
func (s *section) percent(key string, otherwise int, bound intBound, zero string) (n int) {
	defer func() { s.notePlain(key, percentText(n)) }()
	t, ok := s.scalar(key)
	if !ok {
		return otherwise
	}
	n, err := parsePercent(t.value)
	switch {
	case err != nil:
		s.fail(key, "%q: %v", clip(t.value), err)
		return otherwise
	case n == 0 && zero != "":
	case bound.check(n) != nil && zero != "":
		s.fail(key, "%s must be %d%% to %d%%, or 0%% for %s", clip(t.value), bound.min, bound.max, zero)
		return otherwise
	case bound.check(n) != nil:
		s.fail(key, "%s must be %d%% to %d%%", clip(t.value), bound.min, bound.max)
		return otherwise
	}
	return n
}

func parsePercent(s string) (int, error) {
	if numberForm.MatchString(s) {
		return 0, errors.New("a share needs its sign, as in 50%")
	}
	digits, found := strings.CutSuffix(s, "%")
	n, err := strconv.Atoi(digits)
	if !found || err != nil || !wholeForm.MatchString(digits) {
		return 0, errors.New("not a share: a whole number with %, as in 50%")
	}
	return n, nil
}

func percentText(n int) string { return strconv.Itoa(n) + "%" }

// ratePeriods are the periods of a rate by their letters.
var ratePeriods = []struct {
	letter string
	per    time.Duration
}{{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}}

// parseRate reads "100/s", "20/m" or "5/h".
func parseRate(s string) (Rate, error) {
	form := errors.New("not a rate, as in 100/s, 20/m or 5/h")
	if numberForm.MatchString(s) {
		return Rate{}, errors.New("a rate needs its period, as in 100/s, 20/m or 5/h")
	}
	digits, letter, found := strings.Cut(s, "/")
	if !found || !wholeForm.MatchString(digits) {
		return Rate{}, form
	}
	for _, p := range ratePeriods {
		if p.letter != letter {
			continue
		}
		n, err := strconv.Atoi(digits)
		if err != nil || rateBound.check(n) != nil {
			return Rate{}, fmt.Errorf("must be %d to %d in each period", rateBound.min, rateBound.max)
		}
		return Rate{Count: n, Per: p.per}, nil
	}
	return Rate{}, form
}

// String gives r as the file writes it, without its burst: "100/s".
func (r Rate) String() string {
	for _, p := range ratePeriods {
		if p.per == r.Per {
			return fmt.Sprintf("%d/%s", r.Count, p.letter)
		}
	}
	return fmt.Sprintf("%d/%v", r.Count, r.Per)
}

func (r *Rate) check() error {
	if !slices.ContainsFunc(ratePeriods, func(p struct {
		letter string
		per    time.Duration
	}) bool {
		return p.per == r.Per
	}) {
		return fmt.Errorf("a rate is for a second, a minute or an hour, not for %v", r.Per)
	}
	if err := rateBound.check(r.Count); err != nil {
		return err
	}
	if err := burstBound.check(r.Burst); err != nil {
		return fmt.Errorf("burst: %w", err)
	}
	return nil
}

func (r *SourceRate) check() error {
	return cmp.Or(r.Rate.check(), checkBits(r.Bits4, r.Bits6))
}

func checkBits(bits4, bits6 int) error {
	if err := bits4Bound.check(bits4); err != nil {
		return fmt.Errorf("bits4: %w", err)
	}
	if err := bits6Bound.check(bits6); err != nil {
		return fmt.Errorf("bits6: %w", err)
	}
	return nil
}

// rate reads a section that says how many of what may happen in a time.
func (s *section) rate(what string) (Rate, bool) {
	example := "100/s"
	if !s.require(what, example) {
		s.integer("burst", 1, burstBound)
		return Rate{}, false
	}
	t, ok := s.scalar(what)
	if !ok {
		return Rate{}, false
	}
	r, err := parseRate(t.value)
	if err != nil {
		s.fail(what, "%q: %v", clip(t.value), err)
		return Rate{}, false
	}
	s.notePlain(what, r.String())
	r.Burst = s.integer("burst", r.Count, burstBound)
	return r, true
}

// rateOf reads the key rate; nil if it is not there.
func (s *section) rateOf(what string) *Rate {
	if !s.has("rate") {
		return nil
	}
	r, ok := s.section("rate", what, "burst").rate(what)
	if !ok {
		return nil
	}
	return &r
}

// sourceRateOf reads the key sourceRate; nil if it is not there.
func (s *section) sourceRateOf(what string) *SourceRate {
	if !s.has("sourceRate") {
		return nil
	}
	below := s.section("sourceRate", what, "burst", "bits4", "bits6")
	r, ok := below.rate(what)
	all := &SourceRate{Rate: r}
	all.Bits4, all.Bits6 = below.bits()
	if !ok {
		return nil
	}
	return all
}

// bits reads how much of an address names a source.
func (s *section) bits() (bits4, bits6 int) {
	return s.integer("bits4", defaultBits4, bits4Bound), s.integer("bits6", defaultBits6, bits6Bound)
}

// String gives r as the file writes it: "404" or "200-299".
func (r StatusRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// parseStatuses reads a status code or a range of them.
func parseStatuses(s string) (StatusRange, error) {
	first, last, ranged := strings.Cut(s, "-")
	if !ranged {
		last = first
	}
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(last)
	r := StatusRange{a, b}
	if errA != nil || errB != nil || !wholeForm.MatchString(first) || !wholeForm.MatchString(last) {
		return r, errors.New("not a status code, as in 404, or a range of them, as in 200-299")
	}
	return r, r.check()
}

func (r StatusRange) check() error {
	for _, status := range []int{r.First, r.Last} {
		if answerStatusBound.check(status) != nil {
			return fmt.Errorf("a status code is %d to %d", answerStatusBound.min, answerStatusBound.max)
		}
	}
	if r.First > r.Last {
		return fmt.Errorf("the lower status comes first, as in %d-%d", r.Last, r.First)
	}
	return nil
}

func compareStatuses(a, b StatusRange) int {
	return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

// checkStatuses wants ranges in order that do not overlap.
func checkStatuses(all []StatusRange) error {
	if len(all) > statusesMax {
		return fmt.Errorf("%d; at most %d are taken", len(all), statusesMax)
	}
	for i, r := range all {
		if err := r.check(); err != nil {
			return fmt.Errorf("%v: %w", r, err)
		}
		if i > 0 && all[i-1].Last >= r.First {
			return fmt.Errorf("%v and %v have a status in common, or are not in order", all[i-1], r)
		}
	}
	return nil
}

// statuses reads one status code or range, or a list of them.
func (s *section) statuses(key string, otherwise []StatusRange) (all []StatusRange) {
	defer func() { s.noteStatuses(key, all) }()
	if n := s.values[key]; n == nil || n.Kind == yaml.AliasNode {
		return otherwise
	}
	items := s.texts(key)
	if len(items) > statusesMax {
		s.fail(key, "%d of them; at most %d are taken", len(items), statusesMax)
		return otherwise
	}
	for _, t := range items {
		if r, ok := s.status(t); ok {
			all = append(all, r)
		}
	}
	return s.disjoint(key, all)
}

// status reads one item of a list of status codes.
func (s *section) status(t item) (StatusRange, bool) {
	r, err := parseStatuses(t.value)
	if err != nil {
		s.r.fail(at(t.node), t.path, "%q: %v", clip(t.value), err)
	}
	return r, err == nil
}

// disjoint sorts ranges, and reports those that overlap.
func (s *section) disjoint(key string, all []StatusRange) []StatusRange {
	slices.SortFunc(all, compareStatuses)
	for i := 1; i < len(all); i++ {
		if all[i-1].Last >= all[i].First {
			s.fail(key, "%v and %v have a status in common", all[i-1], all[i])
		}
	}
	return all
}

func statusesText(all []StatusRange) string {
	texts := make([]string, len(all))
	for i, r := range all {
		texts[i] = r.String()
	}
	return "[" + strings.Join(texts, ", ") + "]"
}
