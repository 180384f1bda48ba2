package config

import (
	"fmt"
	"strings"
	"time"
)

// form is a way to write a value: how a person is told of it, how a JSON Schema
// says it, and an example. Bounds are those that the parser uses.
type form struct {
	says    string         // "" is any text
	schema  map[string]any // of the value alone; variables are added
	example string         // in YAML
	list    bool           // it may be a list of such values

	// Values at the ends, and just beyond them, for tests.
	good, bad []string
}

type jsonMap = map[string]any

// variable is what every value may hold in the place of anything.
const variable = `\$\{[a-zA-Z_][a-zA-Z0-9_]*(:-[^}]*)?\}`

func matching(p string) jsonMap { return jsonMap{"type": "string", "pattern": p} }

// textForm is a text in words of its own; numbers need no quotes to be one.
func textForm(says, example string) form {
	return form{says: says, example: example, schema: jsonMap{"type": []string{"string", "number", "boolean"}}}
}

func (b intBound) form(example int) form {
	return form{
		says: fmt.Sprintf("%d to %d", b.min, b.max), example: fmt.Sprint(example),
		schema: jsonMap{"type": "integer", "minimum": b.min, "maximum": b.max},
		good:   []string{fmt.Sprint(b.min), fmt.Sprint(b.max)}, bad: []string{fmt.Sprint(b.min - 1), fmt.Sprint(b.max + 1), "1.5", "x"},
	}
}

// durationPattern is what time.ParseDuration takes, without a sign.
const durationPattern = `([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)`

func (b durationBound) form(example string) form {
	f := form{
		says:    durationText(b.min) + " to " + durationText(b.max),
		example: example, schema: matching("^(" + durationPattern + ")+$"),
		good: []string{b.min.String(), b.max.String()},
		bad:  []string{"5", "x", "-1s", (b.min - 1).String(), (b.max + max(b.grain, time.Nanosecond)).String()},
	}
	if b.zero != "" {
		f.says += "; `0s`: " + b.zero
		f.good = append(f.good, "0s")
	} else {
		f.bad = append(f.bad, "0s")
	}
	if b.grain == time.Second {
		f.says += "; whole seconds"
		f.bad = append(f.bad, "1500ms")
	}
	return f
}

func (b sizeBound) form(example string) form {
	f := form{
		says: sizeText(b.min) + " to " + sizeText(b.max), example: example,
		schema: jsonMap{"anyOf": []jsonMap{matching("^(0|[1-9][0-9]*(B|KiB|MiB|GiB|TiB))$"), {"const": 0}}},
		good:   []string{sizeText(b.min), sizeText(b.max)}, bad: []string{"5", "x", fmt.Sprintf("%dB", b.max+1)},
	}
	if b.zero != "" {
		f.says += "; `0`: " + b.zero
		f.good = append(f.good, "0")
	} else {
		f.bad = append(f.bad, "0")
	}
	if b.min > 1 {
		f.bad = append(f.bad, fmt.Sprintf("%dB", b.min-1))
	}
	return f
}

func percentForm(b intBound, zero, example string) form {
	f := form{
		says: fmt.Sprintf("%d%% to %d%%", b.min, b.max), example: example, schema: matching("^(0|[1-9][0-9]*)%$"),
		good: []string{percentText(b.min), percentText(b.max)}, bad: []string{"5", "0.5", "x%", percentText(b.max + 1)},
	}
	if zero != "" {
		if b.min == 0 {
			f.says = fmt.Sprintf("1%% to %d%%", b.max)
		}
		f.says += "; `0%`: " + zero
		f.good = append(f.good, "0%")
	} else if b.min > 0 {
		f.bad = append(f.bad, percentText(b.min-1))
	}
	return f
}

func rateForm() form {
	return form{
		says: "as `100/s`, `20/m` or `5/h`", example: "100/s", schema: matching("^[1-9][0-9]*/[smh]$"),
		good: []string{fmt.Sprintf("%d/s", rateBound.max), "1/m", "1/h"},
		bad:  []string{"100", "x", "1/d", "0/s", fmt.Sprintf("%d/s", rateBound.max+1), "1.5/s"},
	}
}

func boolForm() form {
	return form{says: "`true` or `false`", example: "true", schema: jsonMap{"type": "boolean"}, good: []string{"true", "false"}, bad: []string{"yes", "on", "1"}}
}

func wordForm(words []string, example string) form {
	return form{
		says: "`" + strings.Join(words, "`, `") + "`", example: example, schema: jsonMap{"enum": anyOf(words)},
		good: words, bad: []string{"qqq", strings.ToUpper(words[0]) + "Q"},
	}
}

// anyOf gives words for an enumeration, with those that YAML takes for another
// value in that form as well.
func anyOf(words []string) (all []any) {
	for _, w := range words {
		all = append(all, w)
		switch w {
		case "503":
			all = append(all, 503)
		case wordOff:
			all = append(all, false) // as YAML 1.1 has it, and editors
		case wordOn:
			all = append(all, true)
		}
	}
	return all
}

// or is a form that may also be this word.
func (f form) or(word string) form {
	f.says = "`" + word + "`, or " + f.says
	f.schema = jsonMap{"anyOf": []jsonMap{{"enum": anyOf([]string{word})}, f.schema}}
	f.good = append(f.good, word)
	return f
}

// several is a form of which there may be a list.
func (f form) several(example string) form {
	f.says += ", or a list"
	f.list, f.example = true, example
	return f
}

// like is a form with another schema.
func (f form) like(schema jsonMap) form {
	f.schema = schema
	return f
}

func (f form) because(says string) form {
	f.says = says
	return f
}

func aName(example string) form {
	return form{says: "a name", example: example, schema: jsonMap{"anyOf": []jsonMap{matching(namePattern), {"type": "integer"}}}, bad: []string{"a b", "''"}}
}

func statusForm() form {
	return form{
		says: "a status code as `404` or a range as `200-299`", example: "404", list: true,
		schema: jsonMap{"anyOf": []jsonMap{{"type": "integer", "minimum": answerStatusBound.min, "maximum": answerStatusBound.max}, matching("^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$")}},
		good:   []string{"100", "599", "200-299"}, bad: []string{"99", "600", "299-200", "2xx"},
	}.several("[ 200-299, 304 ]")
}

func networkForm(example string) form {
	return form{says: "a network as `10.0.0.0/8`", schema: matching("^[0-9a-fA-F.:]+/[0-9]+$"), bad: []string{"10.0.0.1", "10.0.0.1/8", "x"}}.several(example)
}

func addressForm(says, example string) form {
	return form{says: says, example: example, schema: jsonMap{"type": "string"}, bad: []string{"10.0.0.300:80", "x"}}
}
