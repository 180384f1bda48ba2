package bench

import (
	"slices"
	"time"
)

// row is one thing that can be measured.
type row struct {
	name  string
	title string // in a sentence: what an operation is
	unit  string // of the figure that is compared

	backend string   // kind of the backend: "echo" or "source"
	load    loadSpec // what the generator does; ports and times are filled in
	loops   int      // event loops, threads or workers of the proxy, a CPU each
	run     func(*run) error

	// only names the proxies that the row is about; none means all.
	only []string
}

// rows is the table of all rows, in the order of the documentation. A row for
// another protocol is an entry with a load and a backend of its own.
var rows = []row{
	{
		name: "tcp-echo", title: "64 octets there and back, 64 connections", unit: "us/op",
		backend: "echo", load: loadSpec{Kind: "echo", Conns: 64, Bytes: 64},
		loops: 1, run: (*run).rounds,
	},
	{
		name: "tcp-connect", title: "connect, 64 octets there and back, close; 4 at a time", unit: "us/op",
		backend: "echo", load: loadSpec{Kind: "connect", Conns: 4, Bytes: 64},
		loops: 1, run: (*run).rounds,
	},
	{
		name: "tcp-bulk", title: "a backend sends as fast as the client reads, 4 connections", unit: "us/MiB",
		backend: "source", load: loadSpec{Kind: "bulk", Conns: 4},
		loops: 1, run: (*run).rounds,
	},
	{
		name: "tcp-idle", title: "resident memory of a pair of connections after one echo, 4,500 pairs", unit: "octets/pair",
		backend: "echo", load: loadSpec{Kind: "idle", Conns: 4500, Bytes: 64},
		loops: 1, run: (*run).idle,
	},
	{
		name: "control-busy", title: "echo latency while 1,000 configurations are parsed and 1,000 checks a second run in the process, over the latency without", unit: "ratio",
		backend: "echo", load: loadSpec{Kind: "echo", Conns: 64, Bytes: 64, Rate: 10000},
		loops: 1, run: (*run).busy, only: []string{holdfast},
	},
}

// RowNames lists the rows that can be measured.
func RowNames() []string {
	var names []string
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

func rowNamed(name string) (row, bool) {
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
	if i < 0 {
		return row{}, false
	}
	return rows[i], true
}

// Times of a run. Short ones fit in 50 s with the build, on any row.
const (
	roundsLong   = 5
	roundsShort  = 3
	measureLong  = 3 * time.Second
	measureShort = time.Second
	warmup       = 200 * time.Millisecond
	// settle is how long memory is left alone before it is measured.
	settle = 500 * time.Millisecond
)
