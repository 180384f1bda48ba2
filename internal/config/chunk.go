package config

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// A file is cut into chunks, so that what did not change need not be read again.
// What a chunk means must not depend on the others: each of them, alone, is a
// whole document with one section of the top level, or with one entry of
// listeners or backends. The cut is by lines and their indentation alone and may
// be wrong; reading the chunk tells, and then the file is read as a whole.
type chunk struct {
	text  string
	line  int // of its first line in the file, from 1
	lines int // that it has
	// The key stands so many lines below the first, behind comments, in this column.
	above, column int
	kind          chunkKind
	key           string // as it is written
	piece         *piece // what it means; nil of what is read with each file
}

type chunkKind uint8

const (
	remark        chunkKind = iota // before the first key: comments and empty lines
	topSection                     // a section of the top level, with all below it
	listenersHead                  // the line "listeners:", and what follows up to the first entry
	backendsHead
	listenerEntry // one entry of listeners
	backendEntry
)

var chunkKindWords = [...]string{"remark", "section", "listeners", "backends", "listener", "backend"}

// String gives a word for k.
func (k chunkKind) String() string { return word(chunkKindWords[:], uint8(k), "chunk") }

// Further line breaks and the mark of an encoding: YAML 1.2.2, sections 5.2 and 5.4.
var unusual = []string{"\r", "\u0085", "\u2028", "\u2029", "\ufeff"}

// indentMin and indentMax bound the indentation that is written, so that a chunk
// can be written again as it stands.
const indentMin, indentMax = 2, 9

// cutter goes through the lines of a file.
type cutter struct {
	text   string
	all    []chunk
	begin  int       // where the chunk that is under way begins
	line   int       // its line
	above  int       // lines of comments before its key
	kind   chunkKind // of the chunk that is under way
	key    string
	indent int // of entries of the group that is under way; 0: not known yet
	// A run of comments right above a key belongs to the key: where it begins, or -1.
	comment, commentLine int
	seen                 []string // keys of the top level
}

// cut gives the chunks of text, which one after the other are text; none if it is
// not written in lines as most files are. It has as many as was, more or less.
func cut(text string, was *Document) []chunk {
	for _, s := range unusual {
		if strings.Contains(text, s) {
			return nil
		}
	}
	c := cutter{text: text, line: 1, comment: -1}
	if was != nil {
		const more = 16
		c.all = make([]chunk, 0, len(was.chunks)+more)
	}
	at, line := 0, 1
	for ; at < len(text); line++ {
		end := len(text)
		if i := strings.IndexByte(text[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if !c.take(text[at:end], at, line) {
			return nil
		}
		at = end
	}
	if c.bare() || c.kind == remark {
		return nil
	}
	c.end(len(text), line)
	return c.all
}

// bare: the group that is under way has no entry.
func (c *cutter) bare() bool { return c.kind == listenersHead || c.kind == backendsHead }

// take looks at one line, which begins at an octet of the text.
func (c *cutter) take(text string, at, line int) bool {
	rest := strings.TrimLeft(text, " ")
	indent := len(text) - len(rest)
	rest = strings.TrimRight(rest, " \t\n")
	switch {
	case rest == "":
		c.comment = -1
	case rest[0] == '\t':
		if c.kind == remark || c.kind == topSection && indent == 0 || c.kind != topSection && (indent <= c.indent || c.indent == 0) {
			return false
		}
		c.comment = -1
	case rest[0] == '#':
		if indent > c.indent {
			c.comment = -1
		} else if c.comment < 0 {
			c.comment, c.commentLine = at, line
		}
	case indent == 0:
		key, value, found := strings.Cut(rest, ":")
		if !found || !isTopKey(key) || value != "" && value[0] != ' ' || slices.Contains(c.seen, key) || c.bare() {
			return false
		}
		c.seen = append(c.seen, key)
		kind := topSection
		if value = strings.TrimLeft(value, " "); value == "" || value[0] == '#' {
			switch key {
			case "listeners":
				kind = listenersHead
			case "backends":
				kind = backendsHead
			}
		}
		c.cut(at, line)
		c.kind, c.key, c.indent = kind, key, 0
	case c.kind == remark:
		return false
	case c.kind == topSection:
		c.comment = -1
	case indent < c.indent:
		return false
	case c.indent > 0 && (indent > c.indent || rest[0] == '}' || rest[0] == ']'):
		c.comment = -1
	default:
		key, _, found := strings.Cut(rest, ":")
		if !found || indent < indentMin || indent > indentMax {
			return false
		}
		c.indent = indent
		c.cut(at, line)
		if c.kind == listenersHead {
			c.kind = listenerEntry
		}
		if c.kind == backendsHead {
			c.kind = backendEntry
		}
		c.key = key
	}
	return true
}

// cut ends the chunk that is under way before the key at an octet of the text,
// and the comment above it.
func (c *cutter) cut(at, line int) {
	above := 0
	if c.comment >= 0 {
		at, line, above = c.comment, c.commentLine, line-c.commentLine
	}
	c.end(at, line)
	c.begin, c.line, c.above, c.comment = at, line, above, -1
}

// end ends the chunk that is under way before an octet of the text, in this line.
func (c *cutter) end(at, line int) {
	if at > c.begin {
		c.all = append(c.all, chunk{text: c.text[c.begin:at], line: c.line, lines: line - c.line, above: c.above, column: c.indent + 1, kind: c.kind, key: c.key})
	}
}

// isTopKey: key may be one of the top level without further thought.
func isTopKey(key string) bool {
	for i := range len(key) {
		if c := key[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_' || c == '.' || '0' <= c && c <= '9') {
			return false
		}
	}
	return key != "" && 'A' <= key[0]
}

// entry tells whether c is one of listeners or backends.
func (c *chunk) entry() bool { return c.kind == listenerEntry || c.kind == backendEntry }

// group is the key of the top level below which c is, or which it is.
func (c *chunk) group() string {
	switch c.kind {
	case listenersHead, listenerEntry:
		return "listeners"
	case backendsHead, backendEntry:
		return "backends"
	}
	return c.key
}

// lasting: what c means does not depend on others, so that it is read once.
func (c *chunk) lasting() bool {
	return c.entry() || c.kind == topSection && strings.HasPrefix(c.key, "x-")
}

// load reads c alone, with the lines of the file: a root with one key, and for
// an entry one key below it. Nil says that it is something else.
func (c *chunk) load() *yaml.Node {
	r := &report{}
	text, above := c.text, 0
	if c.entry() {
		text, above = c.group()+":\n"+text, 1
	}
	root := r.load([]byte(text))
	if root == nil || len(r.problems) > 0 {
		return nil
	}
	key, value := soleEntry(root)
	if key == nil || key.Value != c.group() {
		return nil
	}
	if c.entry() {
		if key, value = soleEntry(value); key == nil || value.Kind != yaml.MappingNode {
			return nil
		}
	}
	moveLines(root, c.line-1-above)
	return root
}

// soleEntry gives key and value of a mapping in lines that has no more.
func soleEntry(n *yaml.Node) (key, value *yaml.Node) {
	if n.Kind != yaml.MappingNode || n.Style&yaml.FlowStyle != 0 || len(n.Content) != 2 || n.Content[0].Kind != yaml.ScalarNode {
		return nil, nil
	}
	return n.Content[0], n.Content[1]
}

func moveLines(n *yaml.Node, by int) {
	n.Line += by
	for _, below := range n.Content {
		moveLines(below, by)
	}
}
