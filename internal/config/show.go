package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// secretShown stands for a secret that is set. As a value it is refused, so
// nobody runs with it.
const secretShown = "(secret)"

// Show gives the text of a file as it is understood: variables replaced, every
// default filled in and marked as one, secrets left out. But for these, Parse
// makes the same of it. Warnings and the error are those of [Parse].
func Show(file string, src []byte, lookup func(string) (string, bool)) (string, Warnings, error) {
	r := &reader{report: report{file: file}, lookup: lookup, showing: true}
	_, draft := r.config(src)
	warnings, err := r.result()
	if err != nil {
		return "", warnings, err
	}
	prune(draft.root.out)
	var out bytes.Buffer
	dumper, err := yaml.NewDumper(&out, yaml.WithIndent(2), yaml.WithLineWidth(-1))
	if err == nil {
		err = dumper.Dump(draft.root.out)
	}
	if err == nil {
		err = dumper.Close()
	}
	if err != nil {
		return "", warnings, fmt.Errorf("config: %s: %w", file, err)
	}
	return out.String(), warnings, nil
}

// prune takes sections away of which nothing is known, and that the file does
// not have.
func prune(n *yaml.Node) (empty bool) {
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			prune(item)
		}
	}
	if n.Kind != yaml.MappingNode {
		return false
	}
	var left []*yaml.Node
	for i := 0; i < len(n.Content); i += 2 {
		if !prune(n.Content[i+1]) {
			left = append(left, n.Content[i], n.Content[i+1])
		}
	}
	n.Content = left
	if len(left) == 0 {
		n.Style = yaml.FlowStyle
	}
	return len(left) == 0 && n.Line == 0
}

// textNode is a text, which the encoder puts in quotes where it has to.
func textNode(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

// plainNode is a value that is no text, or that reads the same either way.
func plainNode(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// listNode is a list on one line.
func listNode(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle, Content: items}
}

// mappingOut begins what is shown of a section; nil if nothing is. Its line
// tells whether the file has the section.
func (r *reader) mappingOut(given bool) *yaml.Node {
	if !r.showing {
		return nil
	}
	n := &yaml.Node{Kind: yaml.MappingNode}
	if given {
		n.Line = 1
	}
	return n
}

// keep notes that the value of key is n.
func (s *section) keep(key string, n *yaml.Node) {
	if s.out == nil || n == nil {
		return
	}
	if !s.has(key) && n.Kind != yaml.MappingNode {
		n.LineComment = "default"
	}
	s.out.Content = append(s.out.Content, textNode(key), n)
}

// keepIn adds items to the list or the mapping that key has.
func (s *section) keepIn(key string, kind yaml.Kind, items ...*yaml.Node) {
	if s.out == nil {
		return
	}
	all := s.out.Content
	if len(all) == 0 || all[len(all)-2].Value != key {
		s.keep(key, &yaml.Node{Kind: kind, Line: 1})
		all = s.out.Content
	}
	last := all[len(all)-1]
	last.Content = append(last.Content, items...)
}

// noteText notes a text; "" is a key that has no value.
func (s *section) noteText(key, value string) {
	if s.out != nil && (value != "" || s.has(key)) {
		s.keep(key, textNode(value))
	}
}

// keepText is noteText for a text of which "" is a value like others.
func (s *section) keepText(key, value string) {
	if s.out != nil {
		s.keep(key, textNode(value))
	}
}

func (s *section) noteNumber(key string, n int) {
	if s.out != nil {
		s.keep(key, plainNode(strconv.Itoa(n)))
	}
}

func (s *section) noteBool(key string, is bool) {
	if s.out != nil {
		s.keep(key, plainNode(strconv.FormatBool(is)))
	}
}

// notePlain notes a value that is never taken for another one without quotes.
func (s *section) notePlain(key, value string) {
	if s.out != nil {
		s.keep(key, plainNode(value))
	}
}

// noteSecret notes that a secret is set.
func (s *section) noteSecret(key, value string) {
	if value != "" {
		s.noteText(key, secretShown)
	}
}

func (s *section) noteStatuses(key string, all []StatusRange) {
	if s.out == nil || len(all) == 0 && !s.has(key) {
		return
	}
	list := listNode()
	for _, r := range all {
		list.Content = append(list.Content, plainNode(r.String()))
	}
	s.keep(key, list)
}

func (s *section) noteItems(key string, items []item) {
	if s.out == nil || len(items) == 0 {
		return
	}
	shown := func(t item) *yaml.Node {
		if isSecretField(key) {
			return textNode(secretShown)
		}
		return textNode(t.value)
	}
	if s.values[key].Kind != yaml.SequenceNode {
		s.keep(key, shown(items[0]))
		return
	}
	list := listNode()
	for _, t := range items {
		list.Content = append(list.Content, shown(t))
	}
	s.keep(key, list)
}

// isSecretField tells of a field of HTTP that its value is a secret as a rule.
func isSecretField(name string) bool {
	switch strings.ToLower(name) {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token":
		return true
	}
	return false
}

func (s *section) noteAddrPort(key string, a netip.AddrPort) {
	if a.IsValid() {
		s.noteText(key, a.String())
	}
}

// JSON gives a document of YAML, such as [Show] gives, as JSON, without its
// comments. Keys are texts, whatever they look like.
func JSON(shown string) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(shown), &document); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(document.Content) != 1 {
		return nil, errors.New("config: not one document")
	}
	data, err := json.MarshalIndent(plainValue(document.Content[0]), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return append(data, '\n'), nil
}

func plainValue(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		all := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			all[n.Content[i].Value] = plainValue(n.Content[i+1])
		}
		return all
	case yaml.SequenceNode:
		all := make([]any, len(n.Content))
		for i, item := range n.Content {
			all[i] = plainValue(item)
		}
		return all
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return n.Value == "true"
	case "!!int", "!!float":
		if json.Valid([]byte(n.Value)) {
			return json.Number(n.Value)
		}
	}
	return n.Value
}
