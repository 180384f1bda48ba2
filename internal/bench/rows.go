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

	backend string   // kind of the backend: "echo", "source" or "http"
	load    loadSpec // what the generator does; ports and times are filled in
	merged  bool     // backend and load are one process
	loops   int      // event loops, threads or workers of the proxy, a CPU each
	run     func(*run) error

	// goal is the ratio to the best peer that the row is to reach; 0 is none.
	goal float64

	// only names the proxies that the row is about; none means all.
	only []string

	log    bool // each exchange is written to a file
	scrape bool // Holdfast's metrics are read each second
}

// rows is the table of all rows, in the order of the documentation. A row for
// another protocol is an entry with a load and a backend of its own.
var rows = []row{
	{
		name: "tcp-echo", title: "64 octets there and back, 64 connections", unit: "us/op",
		backend: "echo", load: loadSpec{Kind: "keep", Talk: "echo", Conns: 64, Bytes: 64},
		loops: 1, run: (*run).rounds,
	},
	{
		name: "tcp-connect", title: "connect, 64 octets there and back, close; 4 at a time", unit: "us/op",
		backend: "echo", load: loadSpec{Kind: "connect", Talk: "echo", Conns: 4, Bytes: 64},
		loops: 1, run: (*run).rounds,
	},
	{
		name: "tcp-bulk", title: "a backend sends as fast as the client reads, 4 connections", unit: "us/MiB",
		backend: "source", load: loadSpec{Kind: "bulk", Conns: 4},
		loops: 1, run: (*run).rounds,
	},
	{
		name: "tcp-idle", title: "resident memory of a pair of connections after one echo, 4,500 pairs", unit: "octets/pair",
		backend: "echo", load: loadSpec{Kind: "idle", Talk: "echo", Conns: 4500, Bytes: 64},
		loops: 1, run: (*run).idle,
	},
	{
		name: "http-small", title: "GET with an answer of 100 octets, 64 connections", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 64, Bytes: 100},
		loops: 1, run: (*run).rounds, goal: 0.75,
	},
	{
		name: "http-small-log", title: "the same, and an access log: JSON of ours, nginx's combined format, both to a file", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 64, Bytes: 100},
		loops: 1, run: (*run).rounds, only: []string{holdfast, nginx}, log: true,
	},
	{
		name: "http-small-metrics", title: "the same, without a log, and /metrics read each second", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 64, Bytes: 100},
		loops: 1, run: (*run).rounds, only: []string{holdfast}, scrape: true,
	},
	{
		name: "http-small-8", title: "GET with an answer of 100 octets, 8 connections", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 8, Bytes: 100},
		loops: 1, run: (*run).rounds, goal: 0.85,
	},
	{
		name: "http-small-2loops", title: "the same, 64 connections, 2 loops, threads or workers", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 64, Bytes: 100},
		loops: 2, run: (*run).rounds, goal: 0.85,
	},
	{
		name: "http-10k", title: "GET with an answer of 10 KiB, 64 connections", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 64, Bytes: 10 << 10},
		loops: 1, run: (*run).rounds, goal: 0.75,
	},
	{
		name: "http-1m", title: "GET with an answer of 1 MiB, 8 connections", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "http", Conns: 8, Bytes: 1 << 20},
		loops: 1, run: (*run).rounds, goal: 0.95,
	},
	{
		name: "http-close", title: "connect, GET with an answer of 100 octets, close; 64 at a time", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "connect", Talk: "http", Conns: 64, Bytes: 100},
		loops: 1, run: (*run).rounds, goal: 0.85,
	},
	{
		name: "http-ws-echo", title: "WebSocket frames of 64 octets there and back, 64 connections", unit: "us/op",
		backend: "http", merged: true, load: loadSpec{Kind: "keep", Talk: "websocket", Conns: 64, Bytes: 64},
		loops: 1, run: (*run).rounds, goal: 0.90,
	},
	{
		name: "http-idle", title: "resident memory of an idle connection after one GET, 9,400 connections", unit: "octets/connection",
		backend: "http", load: loadSpec{Kind: "idle", Talk: "http", Conns: 9400, Bytes: 100},
		loops: 1, run: (*run).idle, goal: 0.30,
	},
	{
		name: "control-busy", title: "echo latency while 1,000 configurations are parsed and 1,000 checks a second run in the process, over the latency without", unit: "ratio",
		backend: "echo", load: loadSpec{Kind: "keep", Talk: "echo", Conns: 64, Bytes: 64, Rate: 10000},
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
