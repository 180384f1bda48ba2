package config

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// No text makes Parse panic. What it refuses has a place in the text and
// stays on its line; what it takes passes the checks of the wire.
func FuzzParse(f *testing.F) {
	for _, file := range []string{"good.yaml", "many.yaml", "old.yaml", "new.yaml", "http-old.yaml", "http-new.yaml"} {
		f.Add([]byte(fuzzSeed(f, file)))
	}
	for _, section := range append(strings.Split(fuzzSeed(f, "problems.txt"), "=== ")[1:], strings.Split(fuzzSeed(f, "wrong.txt"), "=== ")[1:]...) {
		_, rest, _ := strings.Cut(section, "\n")
		src, _, _ := strings.Cut(rest, "----\n")
		f.Add([]byte(src))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c, warnings, err := Parse("f", src, lookup)
		var all *Errors
		if err != nil && !errors.As(err, &all) {
			t.Fatalf("got %T, want *Errors", err)
		}
		if (err == nil) != (c != nil) || err != nil && len(all.Problems) == 0 {
			t.Fatalf("got %v and %v", c, err)
		}
		problems := []Problem(warnings)
		if all != nil {
			problems = append(problems, all.Problems...)
		}
		lines := bytes.Count(src, []byte("\n")) + bytes.Count(src, []byte("\r")) +
			bytes.Count(src, []byte("\u0085")) + bytes.Count(src, []byte("\u2028")) + bytes.Count(src, []byte("\u2029")) + 2
		for _, p := range problems {
			if p.Line < 1 || p.Column < 1 || p.Text == "" || strings.ContainsAny(p.String(), "\n\r") {
				t.Errorf("%+v", p)
			}
			if utf16 := bytes.HasPrefix(src, []byte("\xff\xfe")) || bytes.HasPrefix(src, []byte("\xfe\xff")); p.Line > lines && !utf16 {
				t.Errorf("a text of %d lines has %v", lines, p)
			}
		}
		if c == nil {
			return
		}
		checkConfig(t, c)
		again, _, err := Parse("f", src, lookup)
		if err != nil || !Diff(c, again).Empty() || Diff(nil, c).Empty() != (len(c.Listeners)+len(c.Backends) == 0 && c.Cluster == nil) {
			t.Errorf("twice the same text: %v\n%v", err, Diff(c, again))
		}
		// What is shown means the same, but for secrets.
		shown, _, err := Show("f", src, lookup)
		if err != nil {
			t.Fatal(err)
		}
		if again, _, err = Parse("f", []byte(shown), nil); err != nil && strings.Contains(shown, secretShown) {
			return
		}
		if err != nil || !Diff(c, again).Empty() {
			t.Errorf("shown as\n%s\n%v\n%v", shown, err, Diff(c, again))
		}
		checkConfig(t, c.Resolve(Resolved{"app.example.org:8080": {netip.MustParseAddrPort("10.0.0.7:8080")}}))
	})
}

// No octets make DecodeObject panic, and what it takes is what Encode gives.
func FuzzDecodeObject(f *testing.F) {
	f.Add(uint8(ListenerKind), "pg", listener().Encode())
	f.Add(uint8(ListenerKind), "web", web().Encode())
	f.Add(uint8(BackendKind), "primary", backend().Encode())
	for _, b := range policies() {
		f.Add(uint8(BackendKind), "primary", b.Encode())
	}
	f.Add(uint8(EndpointKind), "primary/db1", endpoint("db1").Encode())
	f.Fuzz(func(t *testing.T, kind uint8, name string, data []byte) {
		for _, data := range [][]byte{data, encodeRaw(data)} {
			got, err := DecodeObject(Kind(kind), name, data)
			if err != nil {
				continue
			}
			object := got.(interface {
				ref() Ref
				Encode() []byte
			})
			if r := object.ref(); r.Kind != Kind(kind) || r.Name != name {
				t.Errorf("asked for %v %q, got %v", Kind(kind), name, r)
			}
			if !bytes.Equal(object.Encode(), data) {
				t.Errorf("got %s, want %s", object.Encode(), data)
			}
		}
	})
}

// encodeRaw gives data a version that matches, for a fuzzer finds none.
func encodeRaw(data []byte) []byte {
	_, object, found := bytes.Cut(data, []byte(`"object":`))
	object, closed := bytes.CutSuffix(object, []byte("}"))
	if !found || !closed {
		return nil
	}
	return []byte(`{"version":"` + versionText(version(object)) + `","object":` + string(object) + `}`)
}
