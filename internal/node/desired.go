package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/ledger"
)

// editsMax bounds the edits at run time that lie over a file. Whoever has so many
// means another file.
const editsMax = 10_000

// desired is one whole desired state: what a file says, the edits at run time that
// lie over it, and what operators have ordered of endpoints. It is immutable:
// each change makes another one. It knows no loop, no disk and no clock.
type desired struct {
	Generation uint64
	By         Author
	At         time.Time
	Kind       string

	text    []byte // the file's, or what was applied in its place
	applied bool   // in its place
	fileSum string // of the file's text, as it was read last
	doc     *config.Document
	edited  map[place]stamp    // of the document's patches
	orders  map[string]ordered // by "backend/endpoint"
	trial   *trial             // nil: no canary is watched
}

// trial notes that a state is watched as a canary: a process that begins with it
// goes back, for nobody has watched it to its end.
type trial struct {
	Generation uint64 `json:"generation"`
	Back       uint64 `json:"back"` // to this one
}

// place is what a patch is of.
type place struct{ object, field string }

func placeOf(p config.Patch) place { return place{p.Object, p.Field} }

// String names it.
func (p place) String() string {
	if p.field == "" {
		return p.object
	}
	return p.object + " " + p.field
}

// stamp tells who has made an edit, and when.
type stamp struct {
	By Author    `json:"by"`
	At time.Time `json:"at"`
}

// edit is a change at run time as it is kept on disk.
type edit struct {
	config.Patch
	stamp
}

// ordered is what operators want of an endpoint beside what its file says.
type ordered struct {
	Admin  string    `json:"admin,omitempty"` // quiescing, maintenance; "" is ready
	Weight int       `json:"weight"`          // -1: the file's
	By     Author    `json:"by"`
	At     time.Time `json:"at"`
}

// none tells that nothing is ordered.
func (o ordered) none() bool { return o.Admin == "" && o.Weight < 0 }

// asked says what of a state is to be another.
type asked struct {
	text []byte // of a file
	file bool   // it is the node's file
	sum  string // of text, if file
	mode string // for edits: keep, discard or refuse; "" is keep

	edits  []config.Patch
	revert []config.Patch

	by   Author
	at   time.Time
	kind string
}

// became is a state that may come next, and what is to be told of it.
type became struct {
	next     *desired
	edits    []Drift // that the change met
	warnings []string
	// same: nothing differs but letters that mean nothing, so there is no new
	// generation.
	same bool
}

// reader makes documents of text.
type reader struct {
	file   string
	lookup func(string) (string, bool)
}

func (r reader) read(text []byte, was *config.Document) (*config.Document, []string, error) {
	doc, warnings, err := config.Read(r.file, text, r.lookup, was)
	if err != nil {
		return nil, nil, err
	}
	var lines []string
	for _, w := range warnings {
		lines = append(lines, w.String())
	}
	return doc, lines, nil
}

// textSum identifies the text of a file.
func textSum(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// first is the state of a node that has nothing but a file.
func first(r reader, text []byte, by Author, at time.Time) (*became, error) {
	doc, warnings, err := r.read(text, nil)
	if err != nil {
		return nil, err
	}
	return &became{next: &desired{By: by, At: at, Kind: "start", text: text, fileSum: textSum(text), doc: doc}, warnings: warnings}, nil
}

// then gives the state that comes of d by a change.
func (d *desired) then(r reader, q asked) (*became, error) {
	next := *d
	next.By, next.At, next.Kind = q.by, q.at, q.kind
	b := &became{next: &next}
	var err error
	switch {
	case q.edits != nil:
		err = next.edit(q)
	case q.revert != nil:
		err = next.revert(q)
	default:
		err = next.replace(r, q, b)
	}
	if err != nil {
		return nil, err
	}
	b.edits = append(b.edits, next.keepOrders(d.doc.Config())...)
	b.same = d.says(&next)
	return b, nil
}

// says tells whether edits and orders of o are those of d.
func (d *desired) says(o *desired) bool {
	return slices.Equal(d.doc.Patches(), o.doc.Patches()) && d.applied == o.applied &&
		maps.EqualFunc(d.orders, o.orders, func(a, b ordered) bool { return a.Admin == b.Admin && a.Weight == b.Weight })
}

// replace puts another file under the edits, and tells what becomes of each.
func (d *desired) replace(r reader, q asked, b *became) error {
	if q.file {
		d.fileSum = q.sum
	}
	d.applied = !q.file
	base := d.doc.Base()
	if !bytes.Equal(q.text, d.text) {
		var err error
		if base, b.warnings, err = r.read(q.text, d.doc); err != nil {
			return err
		}
		d.text = q.text
	}
	patches := d.doc.Patches()
	if len(patches) == 0 {
		d.doc = base
		return nil
	}
	doc, met, err := base.Rebase(patches)
	if err != nil && q.mode != "discard" {
		return fmt.Errorf("with what was edited at run time, the file cannot be applied; revert the edit, or discard all: %w", err)
	}
	if err != nil { // none of them fits, and none is wanted
		met = make([]config.Rebased, len(patches))
		for i, p := range patches {
			met[i] = config.Rebased{Patch: p, Runtime: p.Value}
		}
	}
	var against []string
	for _, m := range met {
		x := d.driftOf(m)
		if q.mode == "discard" && m.Became != "absorbed" {
			x.Became, x.Why = "discarded", "as was asked for"
		}
		b.edits = append(b.edits, x)
		if m.Became != "absorbed" {
			against = append(against, placeOf(m.Patch).String())
		}
	}
	switch {
	case q.mode == "refuse" && len(against) > 0:
		return fmt.Errorf("edits at run time say other things than the file: %s", some(against))
	case q.mode == "discard":
		doc = base
	}
	d.doc = doc
	d.forget()
	return nil
}

// driftOf is how an edit is told of.
func (d *desired) driftOf(m config.Rebased) Drift {
	by := d.edited[placeOf(m.Patch)]
	return Drift{Object: m.Patch.Object, Field: m.Patch.Field, File: m.File, Runtime: m.Runtime, By: by.By, At: by.At, Became: m.Became, Why: m.Why}
}

// forget drops the stamps of edits that are no more.
func (d *desired) forget() {
	left := map[place]stamp{}
	for _, p := range d.doc.Patches() {
		left[placeOf(p)] = d.edited[placeOf(p)]
	}
	d.edited = left
}

// edit puts patches on top.
func (d *desired) edit(q asked) error {
	doc, err := d.doc.Patch(q.edits...)
	if err != nil {
		return err
	}
	if n := len(doc.Patches()); n > editsMax {
		return fmt.Errorf("there would be %d edits at run time, and %d are the most: put them into the file", n, editsMax)
	}
	d.doc = doc
	d.edited = maps.Clone(d.edited)
	if d.edited == nil {
		d.edited = map[place]stamp{}
	}
	for _, p := range q.edits {
		d.edited[placeOf(p)] = stamp{q.by, q.at}
	}
	d.forget()
	return nil
}

// revert takes edits and orders back.
func (d *desired) revert(q asked) error {
	hit := make([]bool, len(q.revert))
	keep := slices.DeleteFunc(d.doc.Patches(), func(p config.Patch) bool { return meant(q.revert, hit, p.Object, p.Field) })
	orders := ordersWithout(d.orders, q.revert, hit)
	for i, p := range q.revert {
		if !hit[i] && p.Object != "*" {
			return fmt.Errorf("%s was not edited at run time; there are: %s", placeOf(p), some(d.runtime()))
		}
	}
	base := d.doc.Base()
	doc, err := base.Patch(keep...)
	if err != nil {
		return fmt.Errorf("what else was edited at run time needs it: %w", err)
	}
	d.doc, d.orders = doc, orders
	d.forget()
	return nil
}

// meant tells whether one of revert is of that field, and which are in hit.
func meant(revert []config.Patch, hit []bool, object, field string) (is bool) {
	for i, p := range revert {
		if p.Object == "*" || p.Object == object && (p.Field == "" || p.Field == field || strings.HasPrefix(field, p.Field+".")) {
			hit[i], is = true, true
		}
	}
	return is
}

// ordersWithout are orders without those that revert takes back.
func ordersWithout(orders map[string]ordered, revert []config.Patch, hit []bool) map[string]ordered {
	left := maps.Clone(orders)
	for name, o := range orders {
		if o.Weight >= 0 && meant(revert, hit, "endpoint/"+name, "weight") {
			o.Weight = -1
		}
		if o.Admin != "" && meant(revert, hit, "endpoint/"+name, stateField) {
			o.Admin = ""
		}
		if left[name] = o; o.none() {
			delete(left, name)
		}
	}
	return left
}

// back gives the state of an earlier generation, as it was kept.
func (d *desired) back(r reader, state []byte, q asked) (*became, error) {
	next, warnings, err := decode(r, state, d)
	if err != nil {
		return nil, err
	}
	next.By, next.At, next.Kind = q.by, q.at, q.kind
	next.fileSum, next.trial = d.fileSum, nil
	if textSum(next.text) == d.fileSum {
		next.applied = false
	} else {
		next.applied = true // the file says something else by now
	}
	return &became{next: next, warnings: warnings, same: d.says(next)}, nil
}

// stateField is the word for an operator's order among the fields of an
// endpoint; the file has none of it.
const stateField = "state"

// runtime names what lies over the file.
func (d *desired) runtime() []string {
	var all []string
	for _, p := range d.doc.Patches() {
		all = append(all, placeOf(p).String())
	}
	for _, name := range slices.Sorted(maps.Keys(d.orders)) {
		o := d.orders[name]
		if o.Weight >= 0 {
			all = append(all, "endpoint/"+name+" weight")
		}
		if o.Admin != "" {
			all = append(all, "endpoint/"+name+" "+stateField)
		}
	}
	return all
}

// keepOrders drops orders of endpoints that are gone, and weights of those of which
// the configuration says another weight than before: what was said last holds.
func (d *desired) keepOrders(was *config.Config) []Drift {
	var met []Drift
	c := d.doc.Config()
	changed := false
	for _, name := range slices.Sorted(maps.Keys(d.orders)) {
		o := d.orders[name]
		e, old := endpointOf(c, name), endpointOf(was, name)
		left, why := o, ""
		switch {
		case e == nil:
			left, why = ordered{Weight: -1}, "the endpoint is gone"
		case o.Weight >= 0 && old != nil && old.Weight != e.Weight:
			left.Weight, why = -1, fmt.Sprintf("the configuration says weight %d now", e.Weight)
		default:
			continue
		}
		if !changed {
			d.orders, changed = maps.Clone(d.orders), true
		}
		if o.Weight >= 0 && left.Weight < 0 {
			met = append(met, Drift{Object: "endpoint/" + name, Field: "weight", Runtime: fmt.Sprint(o.Weight), By: o.By, At: o.At, Became: "dropped", Why: why})
		}
		if o.Admin != "" && left.Admin == "" {
			met = append(met, Drift{Object: "endpoint/" + name, Field: stateField, File: readyWord, Runtime: o.Admin, By: o.By, At: o.At, Became: "dropped", Why: why})
		}
		if d.orders[name] = left; left.none() {
			delete(d.orders, name)
		}
	}
	return met
}

const readyWord = "ready"

// endpointOf finds "backend/endpoint" as the configuration has it: a name, not
// its addresses.
func endpointOf(c *config.Config, name string) *config.Endpoint {
	backend, endpoint, _ := strings.Cut(name, "/")
	b := c.Backends[backend]
	if b == nil {
		return nil
	}
	for _, e := range b.Endpoints {
		if e.Name == endpoint || strings.HasPrefix(endpoint, e.Name+"/") {
			return e
		}
	}
	return nil
}

// order notes what was ordered of endpoints, by full names; all addresses of a name
// that is meant as a whole go under the name.
func (d *desired) order(names []string, weigh bool, weight int, admin string, by Author, at time.Time) *desired {
	next := *d
	next.By, next.At, next.Kind = by, at, "order"
	next.orders = maps.Clone(d.orders)
	if next.orders == nil {
		next.orders = map[string]ordered{}
	}
	for _, name := range names {
		o, known := next.orders[name]
		if !known {
			o.Weight = -1
			for whole, x := range d.orders {
				if strings.HasPrefix(name, whole+"/") {
					o = x // what is in force for it so far
				}
			}
		}
		if weigh {
			o.Weight = weight
		} else if o.Admin = admin; admin == readyWord {
			o.Admin = ""
		}
		for other, x := range next.orders {
			if !strings.HasPrefix(other, name+"/") {
				continue
			}
			// Said of the whole name, it holds for each of its addresses.
			if weigh {
				x.Weight = weight
			} else {
				x.Admin = o.Admin
			}
			if next.orders[other] = x; x.none() {
				delete(next.orders, other)
			}
		}
		o.By, o.At = by, at
		if next.orders[name] = o; o.none() {
			delete(next.orders, name)
		}
	}
	return &next
}

// orderOf is what is ordered of the endpoint of that full name.
func (d *desired) orderOf(name string) ordered {
	if o, ok := d.orders[name]; ok {
		return o
	}
	for whole, o := range d.orders {
		if strings.HasPrefix(name, whole+"/") {
			return o
		}
	}
	return ordered{Weight: -1}
}

// drift names all in which the desired state says another thing than the file, or
// what was applied in its place.
func (d *desired) drift() []Drift {
	var out []Drift
	for _, m := range d.doc.Differences() {
		x := d.driftOf(m)
		x.Became, x.Why = "", ""
		out = append(out, x)
	}
	for _, name := range slices.Sorted(maps.Keys(d.orders)) {
		o := d.orders[name]
		if o.Weight >= 0 {
			x := Drift{Object: "endpoint/" + name, Field: "weight", Runtime: fmt.Sprint(o.Weight), By: o.By, At: o.At}
			if e := endpointOf(d.doc.Config(), name); e != nil {
				x.File = fmt.Sprint(e.Weight)
			}
			out = append(out, x)
		}
		if o.Admin != "" {
			out = append(out, Drift{Object: "endpoint/" + name, Field: stateField, File: readyWord, Runtime: o.Admin, By: o.By, At: o.At})
		}
	}
	return out
}

// portableState is the first line of a state on disk; the file's text follows.
type portableState struct {
	Format  int                `json:"format"`
	Applied bool               `json:"applied,omitempty"`
	FileSum string             `json:"file_sum"`
	Edits   []edit             `json:"edits,omitempty"`
	Orders  map[string]ordered `json:"orders,omitempty"`
	Trial   *trial             `json:"trial,omitempty"`
}

// stateFormat is the number of the form of a state on disk.
const stateFormat = 1

// encode is the state as the journal and a successor have it.
func (d *desired) encode() []byte {
	return append(d.encodeHead(), d.text...)
}

// encodeHead is encode without the text of the file.
func (d *desired) encodeHead() []byte {
	p := portableState{Format: stateFormat, Applied: d.applied, FileSum: d.fileSum, Orders: d.orders, Trial: d.trial}
	for _, x := range d.doc.Patches() {
		p.Edits = append(p.Edits, edit{x, d.edited[placeOf(x)]})
	}
	head, err := json.Marshal(p)
	if err != nil { // words, numbers and times
		panic(err)
	}
	out := make([]byte, 0, len(head)+1+len(d.text))
	out = append(out, head...)
	return append(out, '\n')
}

// decodeHead reads the first line of what encode has written, and gives the text.
func decodeHead(state []byte) (p portableState, text []byte, err error) {
	head, text, ok := bytes.Cut(state, []byte{'\n'})
	if !ok {
		return p, nil, errors.New("node: a state without a first line")
	}
	if err := json.Unmarshal(head, &p); err != nil {
		return p, nil, fmt.Errorf("node: state: %w", err)
	}
	if p.Format != stateFormat {
		return p, nil, fmt.Errorf("node: a state of format %d; this release knows %d", p.Format, stateFormat)
	}
	return p, text, nil
}

// decode reads what encode has written. What little may have changed since was,
// if that is not nil, is not read again.
func decode(r reader, state []byte, was *desired) (*desired, []string, error) {
	p, text, err := decodeHead(state)
	if err != nil {
		return nil, nil, err
	}
	d := &desired{applied: p.Applied, fileSum: p.FileSum, orders: p.Orders, trial: p.Trial, edited: map[place]stamp{}}
	var before *config.Document
	if was != nil {
		before = was.doc
	}
	var warnings []string
	if was != nil && bytes.Equal(was.text, text) {
		d.text, d.doc = was.text, was.doc.Base()
	} else {
		var err error
		d.text = bytes.Clone(text)
		if d.doc, warnings, err = r.read(d.text, before); err != nil {
			return nil, nil, err
		}
	}
	patches := make([]config.Patch, len(p.Edits))
	for i, e := range p.Edits {
		patches[i], d.edited[placeOf(e.Patch)] = e.Patch, e.stamp
	}
	if len(patches) > 0 {
		doc, err := d.doc.Patch(patches...)
		if err != nil {
			return nil, nil, err
		}
		d.doc = doc
	}
	d.forget()
	return d, warnings, nil
}

// adminWord is how an order of the ledger is kept; holds are timed and are not.
func adminWord(a ledger.Admin) (word string, kept bool) {
	switch a {
	case ledger.Ready:
		return readyWord, true
	case ledger.Quiescing, ledger.Maintenance:
		return a.String(), true
	case ledger.Held:
		return "", false
	}
	panic("node: an order that is none: " + a.String())
}

// sortedKeys are the keys of two maps, each once, in order.
func sortedKeys[V any](a, b map[string]V) []string {
	all := slices.Collect(maps.Keys(a))
	for name := range b {
		if _, both := a[name]; !both {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}
