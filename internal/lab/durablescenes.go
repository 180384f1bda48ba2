package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// durableSteps makes some changes, each durable before the next, and tells how
// long the newest file of the journal was before the last and after it.
func (l *durableLab) durableSteps(many int) (file string, before, after int64, err error) {
	for range many {
		if file, err = l.newest(); err != nil {
			return
		}
		before, _ = sizeOf(file)
		r, err := l.step(true)
		if err != nil {
			return "", 0, 0, err
		}
		if r.Durable != "yes" {
			return "", 0, 0, fmt.Errorf("lab: generation %d: durable: %s", r.Generation, r.Durable)
		}
	}
	// A change may have begun another file.
	now, err := l.newest()
	if now != file {
		before = 0
	}
	after, _ = sizeOf(now)
	return now, before, after, err
}

func sizeOf(file string) (int64, error) {
	s, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return s.Size(), nil
}

// again starts the node that was killed and judges it.
func (l *durableLab) again(what string) (string, error) {
	var err error
	if l.node, err = l.start("durable", l.text(0, durablePort, l.dir)); err != nil {
		return "", err
	}
	return l.judge(what, 0)
}

// tearing cuts the last change of the real file at any octet, or has it
// overwritten in part, as a disk does that loses power. The change before it is
// in force then, and it is said that something was cut off.
func (l *durableLab) tearing() error {
	var wrong []string
	torn := 0
	for k := range l.tears {
		file, before, after, err := l.durableSteps(3)
		if err != nil {
			return err
		}
		l.kill()
		if before == 0 { // what a file begins with was durable before it had its name
			if s, err := l.again("a new file"); err != nil || s != "" {
				return errors.Join(err, textError(s))
			}
			continue
		}
		at := before + 1 + l.rng.Int64N(after-before-1)
		if k%2 == 0 {
			err = os.Truncate(file, at)
		} else {
			err = overwrite(file, at, make([]byte, after-at))
		}
		if err != nil {
			return err
		}
		torn++
		last := len(l.steps) - 1
		l.sure = last - 1 // it was durable until we tore it
		s, err := l.again(fmt.Sprintf("torn at %d of %d to %d", at, before, after))
		if err != nil {
			return err
		}
		if s == "" && len(l.steps) != last {
			s = fmt.Sprintf("torn at %d of %d to %d: step %d is in force, not %d", at, before, after, len(l.steps)-1, last-1)
		}
		if s == "" && !strings.Contains(l.node.process.Tail(200), filepath.Base(file)) {
			s = "nothing is said of a torn tail"
		}
		if s != "" {
			wrong = append(wrong, s)
			break
		}
	}
	for _, s := range wrong {
		l.v.Say("  WRONG: %s", s)
	}
	l.v.Zero(fmt.Sprintf("starts at another state than the one before what was torn, of %d", torn), len(wrong))
	l.v.Must(torn > l.tears/2, "torn tails", fmt.Sprint(torn), fmt.Sprintf("more than %d", l.tears/2))
	return nil
}

func overwrite(file string, at int64, with []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(with, at)
	return errors.Join(err, f.Close())
}

// refusesToStart runs the product where it must not, and returns what it says.
func (l *durableLab) refusesToStart(name, config string) (said string, err error) {
	ctx, cancel := context.WithTimeout(l.ctx, 2*readyPatience)
	defer cancel()
	_, err = l.here.Output(ctx, l.Binary, "run", "--grace", "0s", "-c", config)
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("lab: %s: it runs", name)
	case err == nil:
		return "", fmt.Errorf("lab: %s: it ended without an error", name)
	}
	return err.Error(), nil
}

// damaging changes an octet of what was durable: no start on an older state,
// but a refusal that names the place; and all is well when it is put back.
func (l *durableLab) damaging() error {
	file, _, _, err := l.durableSteps(5)
	if err != nil {
		return err
	}
	l.kill()
	whole, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	bad := bytes.Clone(whole)
	bad[len(bad)/3] ^= 4
	if err := os.WriteFile(file, bad, 0o600); err != nil {
		return err
	}
	said, err := l.refusesToStart("a damaged journal", filepath.Join(l.here.world.Dir, "durable.yaml"))
	if err != nil {
		said = err.Error()
	}
	l.v.Must(err == nil && strings.Contains(said, filepath.Base(file)) && strings.Contains(said, "offset"),
		"a damaged journal", said, "no start, and the file and the offset are named")
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		return err
	}
	s, err := l.again("the damage is mended")
	if err != nil {
		return err
	}
	l.v.Must(s == "", "after the damage was mended", orOK(s), "ok")
	return nil
}

func orOK(s string) string {
	if s == "" {
		return "ok"
	}
	return s
}

// wrongCorpus has files that somebody might write, each with what is said of it.
const wrongCorpus = "internal/config/testdata/wrong.txt"

// wrongFiles applies each file of the corpus: state, journal and what clients
// see stay as they are.
func (l *durableLab) wrongFiles() error {
	text, err := os.ReadFile(wrongCorpus) // labs are run at the top of the source tree
	if err != nil {
		return err
	}
	before, err := l.config()
	if err != nil {
		return err
	}
	sizes, err := l.journalOctets()
	if err != nil {
		return err
	}
	w := l.watch(durablePort)
	files, taken, silent := 0, 0, 0
	for _, section := range strings.Split(string(text), "=== ")[1:] {
		title, rest, _ := strings.Cut(section, "\n")
		src, said, ok := strings.Cut(rest, "----\n")
		if !ok || strings.HasSuffix(strings.TrimSpace(said), "\nok") { // it is warned of, and that is all
			continue
		}
		files++
		var r changeReport
		err := l.node.call(l.ctx, "Apply", map[string]any{"source": src, "wait_durable": true}, &r)
		var no *refusal
		switch {
		case err == nil:
			taken++
			l.v.Say("  WRONG: taken: %s", title)
		case !errors.As(err, &no):
			return err
		case no.status != http.StatusBadRequest || len(no.text) < 20:
			silent++
			l.v.Say("  WRONG: %s: status %d: %s", title, no.status, no.text)
		}
	}
	w.end()
	after, err := l.config()
	if err != nil {
		return err
	}
	now, err := l.journalOctets()
	if err != nil {
		return err
	}
	l.v.Must(files >= 50, "wrong files", fmt.Sprint(files), "at least 50")
	l.v.Zero("wrong files that were taken", taken)
	l.v.Zero("wrong files that were refused without a word or with another status than 400", silent)
	l.v.Must(before == after, "the state after them", fmt.Sprintf("generation %d, durable %s", after.Generation, after.Durable), fmt.Sprintf("as before, generation %d", before.Generation))
	l.v.Must(slices.Equal(sizes, now), "the journal after them", fmt.Sprint(now), fmt.Sprint(sizes))
	if p := w.wrong.Load(); p != nil {
		l.v.Say("  WRONG: %s", *p)
		l.v.Zero("clients that saw wrong files", 1)
	}
	l.v.Must(w.answers.Load() > 0, "answers meanwhile", fmt.Sprint(w.answers.Load()), "more than 0")
	return nil
}

// journalOctets are the lengths of all files of the journal.
func (l *durableLab) journalOctets() ([]int64, error) {
	all, err := filepath.Glob(l.dir + "/*.journal")
	if err != nil {
		return nil, err
	}
	var sizes []int64
	for _, f := range all {
		n, err := sizeOf(f)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, n)
	}
	return sizes, nil
}

// twoWriters: a second process does not get the journal of the first; and of two
// who have seen the same generation and write at once, one is refused.
func (l *durableLab) twoWriters() error {
	second := filepath.Join(l.here.world.Dir, "second.yaml")
	text := strings.Replace(l.text(0, durablePort+20, l.dir), "SOCKET", filepath.Join(l.here.world.Dir, "second.sock"), 1)
	if err := os.WriteFile(second, []byte(text), 0o600); err != nil {
		return err
	}
	said, err := l.refusesToStart("a second process on one journal", second)
	if err != nil {
		said = err.Error()
	}
	l.v.Must(err == nil && strings.Contains(said, fmt.Sprint(l.node.pid)), "a second process on one journal", said, fmt.Sprintf("no start, and process %d is named", l.node.pid))

	rounds, both, none := 20, 0, 0
	for range rounds {
		c, err := l.config()
		if err != nil {
			return err
		}
		var together sync.WaitGroup
		var errs [2]error
		l.t += 2
		for i := range errs {
			together.Go(func() {
				var r changeReport
				errs[i] = l.node.call(l.ctx, "Apply", map[string]any{
					"expected_generation": c.Generation,
					"edits":               []map[string]any{{"object": "backend/edited", "field": "connectTimeout", "value": fmt.Sprintf("%dms", 1000+l.t-i)}},
				}, &r)
			})
		}
		together.Wait()
		switch {
		case errs[0] == nil && errs[1] == nil:
			both++
		case errs[0] != nil && errs[1] != nil:
			if none++; none == 1 {
				l.v.Say("  WRONG: %v, %v", errs[0], errs[1])
			}
		}
	}
	l.v.Zero(fmt.Sprintf("times that two writers of one generation both succeeded, of %d", rounds), both)
	l.v.Zero("times that neither did", none)
	c, err := l.config()
	if err != nil {
		return err
	}
	is, wrong := l.read(c.Source)
	l.v.Must(wrong == "", "the state after two writers", orOK(wrong), "ok")
	l.steps = append(l.steps, is)
	if _, err := l.step(true); err != nil {
		return err
	}
	l.kill()
	s, err := l.again("after two writers")
	if err != nil {
		return err
	}
	l.v.Must(s == "", "a start after two writers", orOK(s), "ok")
	return nil
}

// canary applies a file whose servers are not there, and has it watched: it is
// rolled back by the errors that clients see, as a generation of its own.
func (l *durableLab) canary() error {
	before, err := l.config()
	if err != nil {
		return err
	}
	w := l.watch(durablePort)
	defer w.end()
	eventually(time.Second, func() bool { return w.answers.Load() > 200 }) // what it is compared with
	text := strings.Replace(l.node.filled(l.text(l.n+1, durablePort, l.dir)), durableServer, "127.0.30.1:7001", 1)
	var r changeReport
	if err := l.node.call(l.ctx, "Apply", map[string]any{"source": text, "canary": "30s", "abort_on": "errors>5%", "wait_durable": true}, &r); err != nil {
		return err
	}
	began := time.Now()
	var after configState
	back := eventually(10*time.Second, func() bool {
		after, err = l.config()
		return err == nil && after.Generation > r.Generation
	})
	l.v.Must(back, "a canary with errors is rolled back", fmt.Sprintf("%v, after %.1f s", back, time.Since(began).Seconds()), "true")
	was, wrong := l.read(before.Source)
	is, now := l.read(after.Source)
	l.v.Must(is == was && wrong+now == "", "the state then", fmt.Sprintf("%d, %d %s", is.n, is.t, now), fmt.Sprintf("%d, %d as before", was.n, was.t))
	var h struct {
		Generations []struct {
			Kind string `json:"kind"`
		} `json:"generations"`
	}
	if err := l.node.call(l.ctx, "History", map[string]any{"max": 1}, &h); err != nil {
		return err
	}
	kind := ""
	if len(h.Generations) > 0 {
		kind = h.Generations[0].Kind
	}
	l.v.Must(kind == "canary-rollback", "the history says", kind, "canary-rollback")
	l.n++
	// What was rolled back stays so after a kill.
	eventually(5*time.Second, func() bool {
		after, err = l.config()
		return err == nil && after.Durable == "yes"
	})
	l.steps = append(l.steps, durableStep{is.n, is.t, after.Generation})
	l.steps, l.sure = l.steps[len(l.steps)-1:], 0
	l.kill()
	s, err := l.again("after a canary")
	if err != nil {
		return err
	}
	l.v.Must(s == "", "a start after it", orOK(s), "ok")
	return nil
}

// fullDisk gives a node a small disk, fills it, and makes room again.
func (l *durableLab) fullDisk() error {
	l.kill()
	disk := filepath.Join(l.here.world.Dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("disk", disk, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		return fmt.Errorf("lab: a small disk: %w", err)
	}
	l.dir = filepath.Join(disk, "state")
	l.steps, l.sure, l.n, l.t = []durableStep{{}}, 0, 0, 0
	if s, err := l.again("on a small disk"); err != nil || s != "" {
		return errors.Join(err, textError(s))
	}
	if _, _, _, err := l.durableSteps(3); err != nil {
		return err
	}
	filler := filepath.Join(disk, "filler")
	if err := fill(filler); err != nil {
		return err
	}
	// The last page of the journal's file may have room for a change or two.
	for k := 0; ; k++ {
		r, err := l.step(true)
		if err != nil {
			return err
		}
		if r.Durable != "yes" {
			break
		}
		if k == 20 {
			return errors.New("lab: the disk is never full")
		}
	}
	w := l.watch(durablePort)
	silent, shown := 0, 0
	const many = 10
	for range many {
		r, err := l.step(true)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(r.Durable, "no") || !strings.Contains(r.Durable, "no space") {
			silent++
			l.v.Say("  WRONG: on a full disk generation %d is durable: %s", r.Generation, r.Durable)
		}
		if c, err := l.config(); err != nil {
			return err
		} else if is, wrong := l.read(c.Source); wrong == "" && is.n == l.steps[len(l.steps)-1].n && is.t == l.steps[len(l.steps)-1].t {
			shown++
		}
	}
	l.v.Zero(fmt.Sprintf("changes on a full disk that were said to be durable, of %d", many), silent)
	l.v.Must(shown == many, "changes on a full disk that were effective", fmt.Sprint(shown), fmt.Sprint(many))

	// Killed now, it begins with what was durable: the rest is visibly undone.
	last := l.steps[len(l.steps)-1]
	eventually(time.Second, func() bool { return int(w.most.Load()) == last.n })
	l.kill()
	seen := w.end()
	l.v.Must(seen == last.n, "the last state that clients saw on a full disk", fmt.Sprint(seen), fmt.Sprint(last.n))
	sure := l.sure
	s, err := l.again("killed on a full disk")
	if err != nil {
		return err
	}
	l.v.Must(s == "" && len(l.steps)-1 == sure, "a start after it", orOK(s), fmt.Sprintf("ok, at step %d of %d", sure, last.generation))

	// With room again all of the later state is durable, without being asked.
	if _, err := l.step(true); err != nil {
		return err
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	told := eventually(5*time.Second, func() bool {
		c, err := l.config()
		return err == nil && c.Durable == "yes"
	})
	l.v.Must(told, "with room again the last change becomes durable by itself", fmt.Sprint(told), "true")
	l.sure = len(l.steps) - 1
	l.kill()
	if s, err = l.again("with room again"); err != nil {
		return err
	}
	l.v.Must(s == "", "a start with room again", orOK(s), "ok")
	return nil
}

// fill writes a file until there is no room left at all.
func fill(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	for size := 64 << 10; size > 0; {
		if _, err = f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}
