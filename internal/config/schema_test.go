package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("holdfast.schema.json", document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("holdfast.schema.json") // against the schema of schemas
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// value is what an editor makes of a text.
func value(t *testing.T, src []byte) any {
	t.Helper()
	data, err := JSON(string(src))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// What Parse takes, the schema takes: examples, files of other tests, each example
// and each bound of the table.
func TestSchemaTakes(t *testing.T) {
	s := compiled(t)
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%q %v", files, err)
	}
	files = append(files, "testdata/good.yaml", "testdata/old.yaml", "testdata/new.yaml", "testdata/http-old.yaml", "testdata/http-new.yaml", "testdata/good-shown.yaml")
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(value(t, src)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, k := range keys {
		if k.path == "listeners" || k.path == "backends" {
			continue
		}
		for _, example := range append([]string{k.form.example}, k.form.good...) {
			if example == "{}" {
				continue
			}
			f := fileFor(t, k.path)
			f.set(k.path, example)
			if err := s.Validate(value(t, []byte(f.text()))); err != nil {
				t.Errorf("%s: %s: %v", k.path, example, err)
			}
			f.set(k.path, `"${NAME:-x}"`)
			if k.form.schema != nil && k.form.schema["type"] != "object" && (!k.form.list || k.form.example[0] != '[' || !strings.Contains(k.form.example, "{")) {
				if err := s.Validate(value(t, []byte(f.text()))); err != nil {
					t.Errorf("%s: a variable: %v", k.path, err)
				}
			}
		}
	}
}

// What it can tell to be wrong, it does: unknown keys everywhere, and values of
// another form.
func TestSchemaRefuses(t *testing.T) {
	s := compiled(t)
	for _, k := range keys {
		if k.path == "listeners" || k.path == "backends" {
			continue
		}
		f := fileFor(t, k.path)
		wrong := "{ qqq: [ [ 1 ] ] }"
		if k.form.schema["type"] == "object" || k.form.list && k.form.schema == nil {
			wrong = "qqq"
		}
		f.set(k.path, wrong)
		if err := s.Validate(value(t, []byte(f.text()))); err == nil {
			t.Errorf("%s: %s is taken", k.path, wrong)
		}
	}
	for _, src := range []string{"listenrs: {}", "listeners: { a: {} }", "node: { loops: 300 }", "node: { memory: { max: 512 } }", "backends: { a: { panic: 50, endpoints: [ {} ] } }"} {
		if err := s.Validate(value(t, []byte(src))); err == nil {
			t.Errorf("%s is taken", src)
		}
	}
}
