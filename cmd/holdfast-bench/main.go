// Command holdfast-bench measures one row of the benchmarks: what Holdfast
// costs next to HAProxy and nginx, in one run on one machine. It prints a
// table and, as the last line, one JSON object.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/holdfast-lb/holdfast/internal/bench"
)

func init() {
	// Children get the death of the thread that forked them as a signal, so
	// all are forked by one thread that lasts as long as the process.
	runtime.LockOSThread()
}

func main() {
	bench.Child()
	os.Exit(command())
}

func command() int {
	var opt bench.Options
	flag.StringVar(&opt.Row, "row", "", "what to measure: "+strings.Join(bench.RowNames(), ", "))
	flag.BoolVar(&opt.Short, "short", false, "fewer and shorter rounds: under 50 s")
	flag.StringVar(&opt.Binary, "binary", "", "Holdfast's `program`; built from the checkout if not given")
	peers := flag.String("peers", strings.Join(bench.DefaultPeers(), ","), "proxies to measure, by comma")
	flag.IntVar(&opt.Rounds, "rounds", 0, "number of rounds; 0 is the default for the length")
	flag.StringVar(&opt.Out, "out", "", "`directory` for ROW.json; DIRECTORY.md gets the table")
	flag.BoolVar(&opt.Namespace, "namespace", true, "measure in a network namespace of its own, where the kernel grants one")
	flag.Parse()
	if opt.Row == "" || flag.NArg() > 0 {
		flag.Usage()
		return 2
	}
	opt.Peers = strings.Split(*peers, ",")
	opt.Command = "go run ./cmd/holdfast-bench " + strings.Join(os.Args[1:], " ")

	if opt.Namespace {
		entered, code, err := bench.Inside()
		if err != nil {
			return failed(err)
		}
		if entered {
			return code
		}
	}
	if err := bench.Furnish(); err != nil {
		return failed(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	// A reader that has gone away is an error of a write, and we still tidy
	// up. Caught and not ignored: what is ignored, children inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := bench.Measure(opt, os.Stdout, stop); err != nil {
		return failed(err)
	}
	return 0
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
