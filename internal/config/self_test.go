package config

import (
	"slices"
	"strings"
	"testing"
)

// Which of the nodes this one is: by its name in the file, by the variable, or by the
// host's name if that is one of them; the file's ${HOLDFAST_NODE} says the same. A
// document that is read again when the section nodes has come knows it, too.
func TestWhichNodeThisIs(t *testing.T) {
	for _, c := range []struct{ name, file, variable, host, want, err string }{
		{"variable", cluster3, "n2", "n1", "n2", ""},
		{"host", cluster3, "", "n3", "n3", ""},
		{"another host", cluster3, "", "build7", "", `this node, "node", is not among them`},
		{"name", "node: { name: n1 }\n" + cluster3, "", "n3", "n1", ""},
		{"a variable that is no node", cluster3, "n7", "n3", "", `this node, "n7", is not among them`},
		{"no nodes", "listeners: {}\n", "", "n3", "node", ""},
		{"no nodes but a variable", "listeners: {}\n", "n2", "n3", "n2", ""},
	} {
		lookup := func(name string) (string, bool) {
			switch name {
			case NodeVariable:
				return c.variable, c.variable != ""
			case HostVariable:
				return c.host, true
			}
			return "", false
		}
		before, _, err := Read("f", []byte("listeners: {}\n"), lookup, nil)
		if err != nil {
			t.Fatal(err)
		}
		read, _, err := Read("f", []byte(c.file), lookup, before)
		parsed, _, also := Parse("f", []byte(c.file), lookup)
		if (err == nil) != (also == nil) || err != nil && err.Error() != also.Error() {
			t.Errorf("%s: Read says %v, Parse %v", c.name, err, also)
		}
		if c.err != "" || err != nil {
			if err == nil || c.err == "" || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.err)
			}
			continue
		}
		for how, got := range map[string]*Config{"Read": read.Config(), "Parse": parsed} {
			if got.Node.Name != c.want {
				t.Errorf("%s: %s: got %q, want %q", c.name, how, got.Node.Name, c.want)
			}
			if got.Cluster == nil {
				continue
			}
			if crt := "/etc/holdfast/" + c.want + ".crt"; got.Cluster.Certificate != crt && !strings.HasPrefix(c.file, "node:") || got.Cluster.Listen != got.Cluster.Nodes[c.want].Address {
				t.Errorf("%s: %s: got %+v", c.name, how, got.Cluster)
			}
		}
	}
}

// A file that is for any of its nodes is known as such.
func TestUndecided(t *testing.T) {
	at := func(host string) func(string) (string, bool) {
		return func(name string) (string, bool) { return host, name == HostVariable }
	}
	all := []string{"n1", "n2", "n3"}
	for _, c := range []struct {
		name, file string
		lookup     func(string) (string, bool)
		want       []string
	}{
		{"on another host", cluster3, at("build7"), all},
		{"without lookup", cluster3, nil, all},
		{"on one of them", cluster3, at("n2"), nil},
		{"by the variable", cluster3, as("n2"), nil},
		{"by the file", "node: { name: n1 }\n" + cluster3, nil, nil},
		{"a node without a name", "node: { loops: 2 }\n" + cluster3, nil, all},
		{"without nodes", "listeners: {}\n", nil, nil},
		{"nonsense", "nodes: [ 1 ]\n", nil, nil},
		{"no YAML", "\x00", nil, nil},
	} {
		if got := Undecided([]byte(c.file), c.lookup); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
