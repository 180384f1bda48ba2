package config

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

var (
	matchKeys = []string{"host", "path", "method", "header", "query", "source"}
	pathKeys  = []string{"exact", "prefix", "regex"}
	valueKeys = []string{"present", "regex"}
)

// match reads what a request must be like.
func (s *section) match() Match {
	m := Match{Hosts: s.words("host", parseHost), Methods: s.words("method", parseMethod)}
	for _, method := range m.Methods {
		if upper := strings.ToUpper(method); upper != method {
			s.r.warn(s.at("method"), join(s.path, "method"), "methods are case-sensitive; %q is not %q", method, upper)
		}
	}
	if n := s.values["path"]; n != nil && n.Kind == yaml.MappingNode {
		s.section("path", pathKeys...).wayOf(&m)
	} else {
		m.Prefix = s.checked("path", "", checkPath)
		s.warnOfStar("path", m.Prefix)
	}
	m.Headers = s.pairs("header", true)
	m.Query = s.pairs("query", false)
	m.Sources = s.prefixes("source")
	return m
}

// wayOf reads the long form of a path.
func (s *section) wayOf(m *Match) {
	found := ""
	for _, key := range pathKeys {
		if s.has(key) && found != "" {
			s.fail(key, "there is %s already; a path is matched in one way", found)
		} else if s.has(key) {
			found = key
		}
	}
	switch found {
	case "exact":
		m.Exact = s.checked("exact", "", checkPath)
		s.warnOfStar("exact", m.Exact)
	case "prefix":
		m.Prefix = s.checked("prefix", "", checkPath)
		s.warnOfStar("prefix", m.Prefix)
	case "regex":
		m.Regex = s.pathRegex("regex")
	default:
		if len(s.meant) == 0 {
			s.r.fail(s.place, s.path, "needs one of %s", strings.Join(pathKeys, ", "))
		}
	}
}

// pairs reads names with what their values must be: a text that is equal, or
// {present: true} or {regex: ...}.
func (s *section) pairs(key string, header bool) []Pair {
	if !s.has(key) {
		return nil
	}
	checkOne := checkQueryPair
	if header {
		checkOne = checkHeaderPair
	}
	open := s.open(key)
	if n := len(open.entries); n > pairsMax {
		s.fail(key, "%d of them; at most %d are taken", n, pairsMax)
		return nil
	}
	var all []Pair
	for _, e := range open.entries {
		p := Pair{Name: e.key.Value}
		if e.value.Kind == yaml.MappingNode {
			v := open.section.section(e.key.Value, valueKeys...)
			switch {
			case v.has("present") && v.has("regex"):
				v.fail("regex", "there is present already; a value is matched in one way")
			case v.has("regex"):
				p.Regex = v.regex("regex")
			case v.has("present"):
				if p.Present = v.boolean("present", true); !p.Present {
					v.fail("present", "must be true; a route cannot ask for what is not there")
				}
			case len(v.meant) == 0:
				v.r.fail(v.place, v.path, "needs one of %s", strings.Join(valueKeys, ", "))
			}
		} else if t, ok := open.scalar(e.key.Value); ok {
			p.Value = t.value
			open.noteText(e.key.Value, t.value)
		}
		if err := checkOne(p); err != nil {
			s.r.fail(at(e.key), e.path, "%v", err)
			continue
		}
		all = append(all, p)
	}
	sortPairs(all, header)
	for i := range all {
		if i > 0 && samePair(all[i-1], all[i], header) {
			s.fail(key, "%s and %s are one name", all[i-1].Name, all[i].Name)
		}
	}
	return all
}

// item is a text of a list, with its place.
type item struct {
	value string
	node  *yaml.Node
	path  string
}

// items reads one text, or a list of at least one.
func (s *section) items(key string) []item {
	all := s.texts(key)
	s.noteItems(key, all)
	return all
}

// texts is items without a note.
func (s *section) texts(key string) []item {
	n := s.values[key]
	if n == nil {
		return nil
	}
	path := join(s.path, key)
	if n.Kind != yaml.SequenceNode {
		if t, ok := s.scalar(key); ok {
			return []item{{t.value, n, path}}
		}
		return nil
	}
	if len(n.Content) == 0 {
		s.fail(key, "the list is empty")
	}
	var all []item
	for i, node := range n.Content {
		below := index(path, i)
		if t, ok := s.r.scalar(node, below); ok {
			all = append(all, item{t.value, node, below})
		}
	}
	return all
}

// words reads one text or a list of them, each brought to its normal form by
// parse. They come in order, for the order of the file means nothing here.
func (s *section) words(key string, parse func(string) (string, error)) []string {
	return several(s, key, wordsMax, parse, strings.Compare)
}

// prefixes reads one network or a list of them.
func (s *section) prefixes(key string) []netip.Prefix {
	return several(s, key, prefixesMax, parsePrefix, comparePrefixes)
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func several[T comparable](s *section, key string, most int, parse func(string) (T, error), compare func(T, T) int) []T {
	items := s.items(key)
	if len(items) > most {
		s.fail(key, "%d of them; at most %d are taken", len(items), most)
		return nil
	}
	var all []T
	for _, t := range items {
		v, err := parse(t.value)
		switch {
		case err != nil:
			s.r.fail(at(t.node), t.path, "%q: %v", clip(t.value), err)
		case slices.Contains(all, v):
			s.r.fail(at(t.node), t.path, "%q is there already", clip(t.value))
		default:
			all = append(all, v)
		}
	}
	slices.SortFunc(all, compare)
	return all
}

// normal reads a text and brings it to its normal form.
func (s *section) normal(key string, parse func(string) (string, error)) string {
	t, ok := s.scalar(key)
	if !ok {
		return ""
	}
	v, err := parse(t.value)
	if err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
	}
	s.noteText(key, v)
	return v
}

// regex reads an expression; nil is one that was refused.
func (s *section) regex(key string) *regexp.Regexp {
	t, ok := s.scalar(key)
	if !ok {
		return nil
	}
	s.noteText(key, t.value)
	e, err := parseRegex(t.value)
	if err != nil {
		s.fail(key, "%q: %v", clip(t.value), err)
	}
	return e
}

// pathRegex reads an expression for paths.
func (s *section) pathRegex(key string) *regexp.Regexp {
	e := s.regex(key)
	if e != nil {
		s.warnOfPart(key, regexText(e))
	}
	return e
}

// openSection is a mapping whose keys are not ours.
type openSection struct {
	*section
	entries []entry
}

func (s *section) open(key string) openSection {
	o := openSection{section: &section{r: s.r, path: join(s.path, key), where: s.below(key), place: s.at(key), values: make(map[string]*yaml.Node), out: s.r.mappingOut(s.has(key))}}
	s.keep(key, o.out)
	o.entries = s.r.mapping(s.values[key], o.path, example(s.below(key)))
	for _, e := range o.entries {
		o.values[e.key.Value] = e.value
	}
	return o
}
