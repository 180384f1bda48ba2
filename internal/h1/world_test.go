package h1

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/frozen"
)

var rewrite = flag.Bool("rewrite", false, "write the results of this run to testdata")

var testLimits = Limits{LineMax: 8 << 10, HeadMax: HeadMost, FieldsMax: 100}

// kind is what a reader reads.
type kind struct {
	responses bool
	asked     Method // with responses
	bare      bool   // only content is passed on
	lim       Limits
}

// reader is one direction of a connection: heads and bodies one after another,
// as a flow reads them. What it has seen is written down in words. All but that,
// and the input, moves.
type reader struct {
	kind
	input   []byte
	cuts    []int // where the pieces of the input end
	scratch []byte

	unread  []byte
	scanned int
	passing bool
	body    Body

	head   Head
	failed *Error
	log    strings.Builder
	passed []byte // of the body under way
}

// newReader reads input in the pieces that end at cuts.
func newReader(k kind, input []byte, cuts ...int) *reader {
	return &reader{kind: k, input: input, cuts: append(cuts, len(input))}
}

// everywhere cuts behind every octet.
func everywhere(input []byte) (cuts []int) {
	for i := 1; i < len(input); i++ {
		cuts = append(cuts, i)
	}
	return cuts
}

// byBits cuts behind octet i if bit i of mask is set; the mask repeats itself.
func byBits(input []byte, mask uint64) (cuts []int) {
	for i := 1; i < len(input); i++ {
		if mask>>(i%64)&1 != 0 {
			cuts = append(cuts, i)
		}
	}
	return cuts
}

func (r *reader) Steps() int      { return len(r.cuts) }
func (r *reader) Scratch() []byte { return r.scratch }
func (r *reader) Verify() error   { return nil }

func (r *reader) Step(i int) {
	from := 0
	if i > 0 {
		from = r.cuts[i-1]
	}
	r.scratch = append(append(r.scratch[:0], r.unread...), r.input[from:r.cuts[i]]...)
	rest := r.read(r.scratch)
	r.unread = slices.Clone(rest)
	if i == len(r.cuts)-1 {
		r.end()
	}
}

func (r *reader) read(p []byte) (rest []byte) {
	for r.failed == nil && len(p) > 0 {
		if r.passing {
			n, out, err := r.body.Feed(p, r.bare)
			r.passed = append(r.passed, p[:out]...)
			if p = p[n:]; err != nil {
				r.fail(err)
			} else if r.body.Done() {
				r.over()
			}
			continue
		}
		size, scanned, err := Scan(p, r.scanned, &r.lim)
		if err != nil {
			r.fail(err)
			continue
		}
		if r.scanned = scanned; size == 0 {
			break
		}
		r.scanned = 0
		if r.responses {
			err = r.head.Response(p[:size], r.asked, &r.lim)
		} else {
			err = r.head.Request(p[:size], &r.lim)
		}
		if err != nil {
			r.fail(err)
			continue
		}
		r.log.WriteString(describe(&r.head, r.responses))
		p = p[size:]
		if r.body = NewBody(r.head.Framing, r.head.Length); !r.body.Done() {
			r.passing = true
		}
	}
	return p
}

func (r *reader) over() {
	fmt.Fprintf(&r.log, "= body %q, %d of content\n", r.passed, r.body.Content())
	r.passing, r.passed, r.body = false, nil, Body{}
}

func (r *reader) fail(err *Error) {
	r.failed = err
	if r.passing {
		fmt.Fprintf(&r.log, "= of a body %q\n", r.passed)
	}
	code := err.Status
	if r.responses {
		code = 502 // whatever Scan and Feed say
	}
	fmt.Fprintf(&r.log, "= %d %s\n", code, err.Why)
}

// end is the FIN of the sender.
func (r *reader) end() {
	switch {
	case r.failed != nil:
	case r.passing:
		if err := r.body.End(); err != nil {
			r.fail(err)
		} else {
			r.over()
		}
	case len(r.unread) > 0:
		fmt.Fprintf(&r.log, "= %d octets of a head\n", len(r.unread))
	}
}

// Observe leaves out how far was scanned: that depends on the pieces.
func (r *reader) Observe() string {
	return r.log.String() + "passed " + string(r.passed) + ", unread " + string(r.unread) + ", content " + strconv.FormatUint(r.body.Content(), 10)
}

func (r *reader) Freeze() ([]byte, bool, error) {
	if r.failed != nil {
		return nil, false, nil
	}
	leg := &frozen.H1Leg{Unread: r.unread, Scanned: uint32(r.scanned)}
	if r.passing {
		leg.Body = r.body.Freeze()
	}
	batch := frozen.Batch{Flows: []*frozen.Flow{{Client: &frozen.Leg{H1: leg}}}}
	octets, err := batch.Encode()
	r.unread, r.scanned, r.passing, r.body = nil, 0, false, Body{}
	return octets, true, err
}

func (r *reader) Thaw(octets []byte) error {
	batch, err := frozen.Decode(octets)
	if err != nil {
		return err
	}
	leg := batch.Flows[0].Client.H1
	r.unread, r.scanned, r.passing = slices.Clone(leg.Unread), int(leg.Scanned), leg.Body != nil
	if r.passing {
		r.body, err = ThawBody(leg.Body)
	}
	return err
}

// run reads all of the input and tells what was seen.
func (r *reader) run() string {
	for i := range r.Steps() {
		r.Step(i)
	}
	return r.log.String()
}

var forms = [...]string{OriginForm: "origin", AbsoluteForm: "absolute", AuthorityForm: "authority", AsteriskForm: "asterisk"}

func describe(h *Head, response bool) string {
	var w strings.Builder
	if response {
		fmt.Fprintf(&w, "= %d %q", h.Status, h.Reason.Of(h.Octets))
	} else {
		fmt.Fprintf(&w, "= %s %s %s, authority %q, path %q, query %q", h.MethodName.Of(h.Octets), h.Target.Of(h.Octets), forms[h.Form],
			h.Authority.Of(h.Octets), h.Path.Of(h.Octets), h.Query.Of(h.Octets))
	}
	fmt.Fprintf(&w, ", 1.%d, %s", h.Minor, framingWords(h.Framing, h.Length))
	for _, flag := range []struct {
		is   bool
		word string
	}{{h.Close, "close"}, {h.Upgrade, "upgrade"}, {h.Continue, "continue"}, {h.Trailers, "trailers"}, {h.HasHost && h.Form == AbsoluteForm, "with Host"}} {
		if flag.is {
			w.WriteString(", " + flag.word)
		}
	}
	drops := ""
	for _, f := range h.Fields {
		if f.Drop {
			drops += " " + string(f.Name.Of(h.Octets))
		}
	}
	if drops != "" {
		w.WriteString(", drops" + drops)
	}
	return w.String() + "\n"
}

func framingWords(f Framing, length uint64) string {
	switch f {
	case ByLength:
		return fmt.Sprintf("length %d", length)
	case Chunked:
		return "chunked"
	case UntilClose:
		return "until close"
	}
	return "no body"
}

// vector is an input with what is to be seen of it. In testdata it is a line
// with the word of the kind and the quoted input, and a line for each thing that
// is seen.
type vector struct {
	line  int
	word  string
	kind  kind
	input []byte
	want  string
}

func (v vector) name() string { return fmt.Sprintf("line %d, %s %q", v.line, v.word, v.input) }

// vectors reads testdata. The word is that of a method, whose responses these
// are; "request"; or one of these with "-bare".
func vectors(t testing.TB, file string) (all []vector) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '=':
			all[len(all)-1].want += line + "\n"
		default:
			word, quoted, _ := strings.Cut(line, " ")
			input, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatalf("%s:%d: %v", file, n+1, err)
			}
			all = append(all, vector{line: n + 1, word: word, kind: kindOf(word), input: []byte(input)})
		}
	}
	return all
}

func kindOf(word string) kind {
	k := kind{lim: testLimits}
	word, k.bare = strings.CutSuffix(word, "-bare")
	k.responses = word != "request"
	k.asked = method([]byte(word))
	return k
}
