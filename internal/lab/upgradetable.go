package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// write puts what was measured into a table.
func (u *upgradeLab) write() error {
	if u.Out == "" {
		return nil
	}
	var s strings.Builder
	fmt.Fprintf(&s, `# Upgrades

Written by `+"`make lab LAB=upgrade LABFLAGS=\"-out docs/benchmarks\"`"+`.

%d upgrades in a row under flows of every kind: small requests, downloads and uploads of megabytes, slow ones, pipelined ones, bodies in
chunks, WebSockets and other tunnels, TCP of all shapes (half-closed and backpressured ones too), idle ones, dials without an answer, and
queues at limited endpoints; new connections all the time. Then %d with as many flows as %d descriptors allow. At least half of the flows
are under objects that the configuration in force no longer has. Every octet is checked at both ends.
The *pause* of a flow is the time for which nobody served it, as the reports of the upgrades say. The *longest word* is what clients see: %d flows
on which a word goes to and fro each millisecond, the longest that one took around each upgrade, beside the same without upgrades on the same machine, whose two
processors clients, servers and both processes share.

`, u.upgrades, u.manyUpgrades, u.nofile, echoFlows)
	row := func(cells ...string) { fmt.Fprintf(&s, "| %s |\n", strings.Join(cells, " | ")) }
	row("flows", "upgrades", "flows moved", "lost, refused, reset", "pause p50 / p99 / max ms", "longest word p50 / p99 / max ms", "without upgrades", "hand-over p50 / max ms", "whole upgrade p50 / max ms", "under old objects")
	s.WriteString(strings.Repeat("|---", 10) + "|\n")
	for _, x := range u.scenes {
		took, _ := x.took()
		row(fmt.Sprint(x.flows), fmt.Sprint(x.n), fmt.Sprint(x.moved), fmt.Sprint(x.lost+x.refused), threefoldMicros(x.pauses.pooled()).String(),
			threefoldOf(x.seen).String(), threefoldOf(x.quiet).String(), short(took.Quantile(0.5))+" / "+short(took.Max), short(x.whole.Quantile(0.5))+" / "+short(x.whole.Max), fmt.Sprint(x.onOld))
	}
	was, is := u.appetites[0], u.appetites[1]
	fmt.Fprintf(&s, "\nBefore the first of the %d upgrades the process had %.1f MB (anonymous, resident) and %d descriptors; the one after the last %.1f MB and %d.\n", u.upgrades,
		megabytes(was.rssBytes), was.fds, megabytes(is.rssBytes), is.fds)
	if n := len(u.scenes); n > 1 {
		fmt.Fprintf(&s, "With %d flows one process has %.1f MB; in an upgrade both together have at most %.1f MB, shared pages and the binary counted twice.\n", u.scenes[n-1].flows, megabytes(u.alone), megabytes(u.both.rss))
	}
	for _, x := range u.scenes {
		if len(x.cpu[0]) > 0 {
			fmt.Fprintf(&s, "An upgrade of %d flows takes %s ms of processors' time in the old process and %s ms in the new one (p50); serving them takes %.2f of one all the time.\n", x.flows, short(threefoldOf(x.cpu[0]).p50), short(threefoldOf(x.cpu[1]).p50), x.serving)
		}
	}
	c := &u.collected
	fmt.Fprintf(&s, "The collector of Go ran %d times in all of these processes; everything stood for %s (p50 / p99 / max ms) each time, as its own trace says.\n", c.stops.N, triple(&c.stops))
	u.writeParts(&s, row)
	s.WriteString("\n## The same connections when others reload\n\n")
	fmt.Fprintf(&s, "Debian's haproxy (`-x`, `-sf`) and nginx (`HUP`) hold as many of the same connections (TCP, WebSocket, streamed responses), and go over to\nanother configuration once; %v later. They cut what is left with `hard-stop-after` and `worker_shutdown_timeout`, if one says so.\n\n", u.old)
	row("balancer", "flows", "old processes", "connections that sit in them", "their memory MB", "flows cut", "idle or kept connections closed", "new connections or requests lost")
	s.WriteString(strings.Repeat("|---", 8) + "|\n")
	if n := len(u.scenes); n > 0 {
		x := u.scenes[n-1]
		row("holdfast, each upgrade", fmt.Sprint(x.flows), fmt.Sprintf("0 (gone after %s ms)", short(x.leave.Max)), "0", "0", fmt.Sprint(x.lost), fmt.Sprint(x.closed), fmt.Sprint(x.failed))
	}
	for _, p := range u.peers {
		left := fmt.Sprint(p.processes)
		if p.gone > 0 {
			left = fmt.Sprintf("0 (gone after %.1f s)", p.gone.Seconds())
		}
		row(p.who, fmt.Sprint(p.flows), left, fmt.Sprint(p.sitting), fmt.Sprintf("%.0f", megabytes(p.rss)), fmt.Sprint(p.cut), fmt.Sprint(p.closed), fmt.Sprint(p.lost))
	}
	r := &reloadLab{}
	fmt.Fprintf(&s, "\n%s.\n", r.machine())
	return os.WriteFile(filepath.Join(u.Out, "upgrade.md"), []byte(s.String()), 0o644)
}

// writeParts tells of the parts of an upgrade, and of the forms of flows.
func (u *upgradeLab) writeParts(s *strings.Builder, row func(...string)) {
	phases := false
	for _, x := range u.scenes {
		phases = phases || len(x.phases) > 0
	}
	if phases {
		s.WriteString("\n## Where the time goes\n\nMilliseconds, p50 / p99 / max.\n\n")
		names := map[string]bool{}
		head := []string{"part"}
		for _, x := range u.scenes {
			head = append(head, fmt.Sprintf("%d flows", x.flows))
			for name := range x.phases {
				names[name] = true
			}
		}
		row(head...)
		s.WriteString(strings.Repeat("|---", len(head)) + "|\n")
		for _, name := range sortedNames(names) {
			cells := []string{name}
			for _, x := range u.scenes {
				if h := x.phases[name]; h != nil {
					cells = append(cells, triple(h))
				} else {
					cells = append(cells, "-")
				}
			}
			row(cells...)
		}
	}
	kinds := map[string]kindReport{}
	for _, x := range u.scenes {
		for name, k := range x.kinds {
			was := kinds[name]
			kinds[name] = kindReport{was.Flows + k.Flows, was.Octets + k.Octets, was.Frozen + k.Frozen}
		}
	}
	if len(kinds) == 0 {
		return
	}
	s.WriteString("\n## What a frozen flow weighs\n\nOctets, the mean over all flows of a kind; of these the users' octets that were under way.\n\n")
	row("what it was doing", "flows moved", "frozen", "of these under way")
	s.WriteString("|---|---|---|---|\n")
	for _, name := range sortedNames(kinds) {
		k := kinds[name]
		row(name, fmt.Sprint(k.Flows), fmt.Sprintf("%.0f", per(k.Frozen, k.Flows)), fmt.Sprintf("%.0f", per(k.Octets, k.Flows)))
	}
}
