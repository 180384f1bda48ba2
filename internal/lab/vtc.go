package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

//go:embed testdata/vtc/*.vtc
var vtcOwn embed.FS

// vtcLimit is the most that one case may take, in seconds: none waits for much
// more than a moment, unless something is wrong.
const vtcLimit = "8"

// vtcAtOnce is how many cases run at a time, each at ports of its own: mostly
// they wait.
const vtcAtOnce = 3

// vtcPlain is how many failures make it plain that a sabotage was noticed: what
// fails mostly waits for something.
const vtcPlain = 3

// vtc runs cases of varnishtest, each with a client and a server of its own,
// around a balancer that is started anew for it. A case finds these macros:
// proxy, where the balancer listens; backend, where it has to serve; and
// proxy_in, proxy_out_1 and proxy_out_2, like proxy with a PROXY header in
// front, or with one of version 1 or 2 behind.
func vtc(ctx context.Context, o Options, out io.Writer, v *Verdict) error {
	if _, err := exec.LookPath("varnishtest"); err != nil {
		return errors.New("lab: varnishtest is not installed: run make deps")
	}
	cases, err := vtcCases(o)
	if err != nil {
		return err
	}
	world, err := NewWorld(o.dir, []HostSpec{{Name: "n1"}})
	if err != nil {
		return err
	}
	defer world.Close()
	if o.Sabotage != "" && o.Sabotage != BlindRelay && o.Sabotage != KillOne {
		return fmt.Errorf("lab: vtc knows no sabotage %q", o.Sabotage)
	}
	var mu sync.Mutex // guards passed, failed and broken
	passed, failed, broken := 0, []string{}, error(nil)
	one := func(i int) {
		began := time.Now()
		name := filepath.Base(cases[i])
		trouble, err := vtcRun(ctx, o, world.Host("n1"), cases[i], i, i == len(cases)/2)
		mu.Lock()
		defer mu.Unlock()
		word := "ok"
		switch {
		case err != nil:
			word, broken = "BROKEN", errors.Join(broken, err)
		case trouble != "":
			word, failed = "FAILED", append(failed, name)
			v.Say("-- %s\n%s", name, trouble)
		default:
			passed++
		}
		_, _ = fmt.Fprintf(out, "%6.1f s  %-6s  %-28s %6.2f s\n",
			time.Since(o.began).Seconds(), word, strings.TrimSuffix(name, ".vtc"), time.Since(began).Seconds())
	}
	plain := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return broken != nil || o.Sabotage != "" && len(failed) >= vtcPlain
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range vtcAtOnce {
		wg.Go(func() {
			for ctx.Err() == nil && !plain() {
				i := int(next.Add(1)) - 1
				if i >= len(cases) {
					return
				}
				one(i)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(ctx.Err(), broken); err != nil {
		return err
	}
	slices.Sort(failed)
	v.Figure("cases", len(cases))
	v.Figure("passed", passed)
	v.Must(len(failed) == 0 && passed > 0, "cases passed", strings.TrimSpace(fmt.Sprintf("%d of %d %s", passed, len(cases), strings.Join(failed, " "))), "all")
	return nil
}

// vtcCases gives the files of our own cases, and those of Options.VTC.
func vtcCases(o Options) ([]string, error) {
	var files []string
	own, err := fs.Glob(vtcOwn, "testdata/vtc/*.vtc")
	if err != nil {
		return nil, err
	}
	for _, name := range own {
		b, err := vtcOwn.ReadFile(name)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(o.dir, filepath.Base(name))
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	if o.VTC == "" {
		return files, nil
	}
	dir, err := filepath.Abs(o.VTC)
	if err != nil {
		return nil, err
	}
	more, err := filepath.Glob(filepath.Join(dir, "*.vtc"))
	if err == nil && len(more) == 0 {
		err = fmt.Errorf("lab: no *.vtc in %s", dir)
	}
	return append(files, more...), err
}

// vtcRun runs one case and gives what went wrong in it. The victim is the
// case that meets a killed balancer.
func vtcRun(ctx context.Context, o Options, h *Host, file string, n int, victim bool) (trouble string, err error) {
	kind := o.Balancer
	if o.Sabotage == BlindRelay {
		kind = BlindRelay
	}
	// Ports of its own for each case: no case meets what another left behind.
	at := func(port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port+10*n))
	}
	backend, proxy := at(5000), at(7000)
	doors := []httpDoor{
		{Name: "plain", At: proxy, To: backend},
		{Name: "in", At: at(7001), To: backend, ProxyIn: true},
		{Name: "out1", At: at(7002), To: backend, ProxyOut: 1},
		{Name: "out2", At: at(7003), To: backend, ProxyOut: 2},
	}
	p, err := startHTTP(ctx, h, kind, fmt.Sprintf("balancer-%d", n), httpSetup{Binary: o.Binary, Loops: 1, Doors: doors})
	if err != nil {
		return "", err
	}
	defer p.Kill()
	if victim && o.Sabotage == KillOne {
		p.Kill()
	}
	text, err := h.Output(ctx, "env", "TMPDIR="+h.world.Dir, "varnishtest", "-t", vtcLimit, "-v",
		"-D", "backend="+backend.String(), "-D", "proxy="+proxy.String(),
		"-D", "proxy_in="+doors[1].At.String(), "-D", "proxy_out_1="+doors[2].At.String(), "-D", "proxy_out_2="+doors[3].At.String(), file)
	if err == nil {
		return "", nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return vtcTrouble(string(text)) + "\n" + p.Tail(5), nil
}

// vtcTrouble is the end of a case's log: what each side did last, and what was
// not as expected, in lines that begin with four dashes.
func vtcTrouble(text string) string {
	const shown = 12
	var last []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "----") {
			last = append(last[max(0, len(last)-shown):], line)
			break
		}
		if strings.HasPrefix(line, "**** s") || strings.HasPrefix(line, "**** c") {
			last = append(last, line)
		}
	}
	return strings.Join(last, "\n")
}
