package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// reader reads the values of a file. Its report has what strict found;
// what strict refused already (aliases, second keys) is passed over here.
type reader struct {
	report
	lookup  func(string) (string, bool)
	asked   []asked // of lookup, in order
	logging bool    // there is an access log
	// showing: what is understood is noted, for [Show].
	showing bool
}

// section is one mapping of the file. Each of its methods reads one key,
// reports what is wrong with it, and gives its default in that case. A
// section that is not in the file gives defaults for everything.
type section struct {
	r      *reader
	path   string
	where  string // path with NAME and [] for what the file has there: see key
	place  place  // of the key that holds the section
	broken bool   // it is there, but it is no mapping, which was reported
	values map[string]*yaml.Node
	meant  map[string]bool // keys that some unknown key was probably meant to be
	out    *yaml.Node      // of [Show]: the mapping as it was understood
}

// section reads n as a mapping that has no keys but these. n is nil if the
// section is not there.
func (r *reader) section(n *yaml.Node, p place, path, where string, keys ...string) *section {
	s := &section{r: r, path: path, where: where, place: p, values: make(map[string]*yaml.Node), meant: make(map[string]bool)}
	s.out = r.mappingOut(n != nil)
	if n == nil {
		return s
	}
	s.broken = n.Kind != yaml.MappingNode
	for _, e := range r.mapping(n, path, "{ "+keys[0]+": "+example(s.below(keys[0]))+" }") {
		switch {
		case path == "" && isExtension(e.key):
		case slices.Contains(keys, e.key.Value):
			s.values[e.key.Value] = e.value
		default:
			if a := s.advise(e.key.Value); a.says != "" {
				s.meant[a.meant] = true
				r.fail(at(e.key), e.path, "unknown key; %s", a.says)
				continue
			}
			if place := s.misplaced(e.key.Value); place != "" {
				r.fail(at(e.key), e.path, "unknown key here; there is %s", place)
				continue
			}
			best := nearest(e.key.Value, keys)
			s.meant[best] = true
			r.fail(at(e.key), e.path, "unknown key%s", hint(best, keys))
		}
	}
	return s
}

// below gives where the key of s stands.
func (s *section) below(key string) string {
	if s.where == "" {
		return key
	}
	return s.where + "." + key
}

// misplaced gives where a key belongs that stands in s but is none of its own:
// in a section of it, or in one that s is in; "" if that cannot be told.
func (s *section) misplaced(name string) string {
	for i := range keys {
		k := &keys[i]
		if rest, found := strings.CutPrefix(k.path, s.below("")); found && s.where != "" && strings.HasSuffix(rest, "."+name) && strings.Count(rest, ".") == 1 {
			return rest
		}
	}
	for i := range keys {
		parent, last := keys[i].parent()
		if last == name && parent != "" && strings.HasPrefix(s.where, parent+".") {
			return keys[i].path
		}
	}
	return ""
}

// entry is one key of a mapping with its value.
type entry struct {
	key, value *yaml.Node
	path       string
}

// mapping gives the entries of n in the order of the file, each key once.
// like is one for a message.
func (r *reader) mapping(n *yaml.Node, path, like string) []entry {
	if n.Kind == yaml.AliasNode {
		return nil
	}
	if isNull(n) {
		r.fail(at(n), path, "has no value; leave the key out, or write {}")
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.fail(at(n), path, "must be a mapping, as in %s", like)
		return nil
	}
	var all []entry
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" || seen[key.Value] {
			continue
		}
		seen[key.Value] = true
		all = append(all, entry{key, n.Content[i+1], join(path, key.Value)})
	}
	return all
}

// at gives the place of a key's value, or that of the section if the key is
// not there.
func (s *section) at(key string) place {
	if n := s.values[key]; n != nil {
		return at(n)
	}
	return s.place
}

func (s *section) has(key string) bool { return s.values[key] != nil }

// fail reports a fault of the value of key.
func (s *section) fail(key, format string, args ...any) {
	s.r.fail(s.at(key), join(s.path, key), format, args...)
}

// require reports a key that is not there, with an example of its value, and
// says whether it is. A key with a slip in it was reported as unknown already.
func (s *section) require(key, example string) bool {
	if s.has(key) || s.broken || s.meant[key] {
		return s.has(key)
	}
	s.r.fail(s.place, s.path, "%s is missing, as in %s: %s", key, key, example)
	return false
}

// section reads the value of key as a section with these keys.
func (s *section) section(key string, keys ...string) *section {
	below := s.r.section(s.values[key], s.at(key), join(s.path, key), s.below(key), keys...)
	s.keep(key, below.out)
	return below
}

// entry reads the value of an entry of the key group as a section.
func (s *section) entry(group string, e entry, keys ...string) *section {
	below := s.r.section(e.value, at(e.key), e.path, s.below(group)+".NAME", keys...)
	s.keepIn(group, yaml.MappingNode, textNode(e.key.Value), below.out)
	return below
}

// item reads the i-th item of the list at key as a section.
func (s *section) item(key string, i int, n *yaml.Node, keys ...string) *section {
	below := s.r.section(n, at(n), index(join(s.path, key), i), s.below(key)+"[]", keys...)
	s.keepIn(key, yaml.SequenceNode, below.out)
	return below
}

// named reads the value of key as a mapping from names to anything. Entries
// whose name is none are reported, and given nevertheless: others may refer
// to them.
func (s *section) named(key string) []entry {
	n := s.values[key]
	if n == nil {
		return nil
	}
	all := s.r.mapping(n, join(s.path, key), "{ name: ... }")
	for _, e := range all {
		if err := checkName(e.key.Value); err != nil {
			s.r.fail(at(e.key), join(s.path, key), "%q: %v", clip(e.key.Value), err)
		}
	}
	return all
}

// list gives the items of the value of key.
func (s *section) list(key string) []*yaml.Node {
	n := s.values[key]
	switch {
	case n == nil || n.Kind == yaml.AliasNode:
		return nil
	case isNull(n):
		s.fail(key, "has no value")
		return nil
	case n.Kind != yaml.SequenceNode:
		s.fail(key, "must be a list, as in %s", example(s.below(key)))
		return nil
	}
	return n.Content
}

// text is a scalar of the file after ${NAME} was expanded.
type text struct {
	value  string
	quoted bool // it stands in quotes and nothing in it was expanded
}

// scalar gives the value of key, and false if there is none or if it is no
// scalar or cannot be expanded, which is reported.
func (s *section) scalar(key string) (text, bool) {
	n := s.values[key]
	if n == nil || n.Kind == yaml.AliasNode {
		return text{}, false
	}
	return s.r.scalar(n, join(s.path, key))
}

// look gives the value of a variable, and notes it.
func (r *reader) look(name string) (string, bool) {
	value, set := look(r.lookup, name)
	r.asked = append(r.asked, asked{name, value, set})
	return value, set
}

func (r *reader) scalar(n *yaml.Node, path string) (text, bool) {
	if n.Kind != yaml.ScalarNode {
		if n.Kind != yaml.AliasNode {
			r.fail(at(n), path, "must be one value, not a mapping or a list")
		}
		return text{}, false
	}
	if isNull(n) {
		r.fail(at(n), path, "has no value; leave the key out for its default")
		return text{}, false
	}
	value, expanded, err := expand(n.Value, r.look)
	if err != nil {
		r.fail(at(n), path, "%v", err)
		return text{}, false
	}
	if value == secretShown {
		r.fail(at(n), path, "stands for a secret, which holdfast config show does not tell; write it out, or ${NAME} for a variable that has it")
		return text{}, false
	}
	const quotes = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	return text{value, n.Style&quotes != 0 && !expanded}, true
}

// hint proposes the best of the known words, or lists them all.
func hint(best string, known []string) string {
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	known = slices.Sorted(slices.Values(known))
	return "; known here: " + strings.Join(known, ", ")
}
