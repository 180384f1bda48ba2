package accesslog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/flow"
)

var (
	web  = &config.Listener{Ref: config.Ref{Name: "web"}, Protocol: config.HTTP}
	app  = &config.Backend{Ref: config.Ref{Name: "app"}}
	a1   = &config.Endpoint{Ref: config.Ref{Name: "app/a1"}, Backend: "app", Name: "a1"}
	from = netip.MustParseAddrPort("192.0.2.7:4711")
)

func request() *flow.Record {
	return &flow.Record{
		Flow: 0x2f00000001, Number: 3, Attempts: 1, Reused: true,
		Listener: web, Route: 0, Backend: app, Endpoint: a1, Protocol: config.HTTP, Client: from,
		Status: 200, Minor: 1, Cause: flow.Finished, Phase: flow.Response,
		Total: 5*time.Millisecond + 30*time.Microsecond, Head: 0, Wait: -1, Connect: 250 * time.Microsecond, Answer: 4 * time.Millisecond,
		In: 120, Out: 4096,
		Note: flow.Note{Method: []byte("GET"), Target: []byte("/a?b=c"), Host: []byte("www.example"), Agent: []byte("curl/8")},
	}
}

func stream() *flow.Record {
	return &flow.Record{
		Flow: 7, Attempts: 2, Moves: 4, Stuck: true, Listener: &config.Listener{Ref: config.Ref{Name: "pg"}}, Route: -1, Backend: app, Endpoint: a1, Client: from,
		Cause: flow.ClientReset, Total: 61 * time.Second, Head: -1, Wait: 12 * time.Millisecond, Connect: time.Millisecond, Answer: -1, In: 1, Out: 2,
	}
}

func refused() *flow.Record {
	return &flow.Record{
		Flow: 8, Number: 1, Own: true, Listener: web, Route: -1, Protocol: config.HTTP, Client: netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 0),
		Status: 400, Cause: flow.BadRequest, Phase: flow.Head, Total: time.Microsecond, Head: -1, Wait: -1, Connect: -1, Answer: -1,
	}
}

// The lines as people and machines read them.
func TestLines(t *testing.T) {
	at := time.Date(2026, 11, 22, 11, 48, 44, 50_123_456, time.UTC).UnixNano()
	for _, x := range []struct {
		form config.LogFormat
		r    *flow.Record
		want string
	}{
		{config.LogText, request(), `2026-11-22T11:48:44.050123Z 192.0.2.7:4711 web/0 app/a1 0.000/-1/0.250/4.000/5.030 200 120/4096 finished/response 1 f-2f00000001#3 "GET /a?b=c HTTP/1.1" "www.example" "curl/8"`},
		{config.LogText, stream(), `2026-11-22T11:48:44.050123Z 192.0.2.7:4711 pg app/a1 -1/12.000/1.000/-1/61000.000 - 1/2 client-reset/octets 2 f-7`},
		{config.LogText, refused(), `2026-11-22T11:48:44.050123Z 2001:db8::1 web -/- -1/-1/-1/-1/0.001 400 0/0 bad-request/head 0 f-8#1 "-" "-" "-"`},
		{config.LogJSON, request(), `{"time":"2026-11-22T11:48:44.050123Z","flow":"f-2f00000001","number":3,"client":"192.0.2.7:4711","listener":"web","route":0,"backend":"app","endpoint":"a1","protocol":"http","version":"1.1","method":"GET","target":"/a?b=c","host":"www.example","agent":"curl/8","status":200,"cause":"finished","phase":"response","attempts":1,"reused":true,"head_ms":0.000,"connect_ms":0.250,"answer_ms":4.000,"total_ms":5.030,"in":120,"out":4096}`},
		{config.LogJSON, stream(), `{"time":"2026-11-22T11:48:44.050123Z","flow":"f-7","client":"192.0.2.7:4711","listener":"pg","backend":"app","endpoint":"a1","protocol":"tcp","cause":"client-reset","phase":"octets","attempts":2,"moves":4,"stuck":true,"wait_ms":12.000,"connect_ms":1.000,"total_ms":61000.000,"in":1,"out":2}`},
		{config.LogJSON, refused(), `{"time":"2026-11-22T11:48:44.050123Z","flow":"f-8","number":1,"client":"2001:db8::1","listener":"web","protocol":"http","status":400,"cause":"bad-request","phase":"head","attempts":0,"own":true,"total_ms":0.001,"in":0,"out":0}`},
	} {
		var f former
		got := string(f.line(nil, x.form, at, x.r))
		if got != x.want+"\n" {
			t.Errorf("%v:\n got %s\nwant %s", x.form, got, x.want)
		}
		if x.form == config.LogJSON && !json.Valid([]byte(got)) {
			t.Errorf("not JSON: %s", got)
		}
	}
}

// Whatever octets a client sends: one line, printable, and JSON gives them back.
func TestHostileOctetsForgeNothing(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	forged := []byte("/\" 200 \n2026-11-22T00:00:00Z 10.0.0.1 web/0 \x1b[2J\\\"},{\"status\":200}\u2028")
	for _, hostile := range [][]byte{all, forged} {
		r := request()
		r.Note = flow.Note{Method: hostile, Target: hostile, Host: hostile, Agent: hostile}
		for _, form := range []config.LogFormat{config.LogJSON, config.LogText} {
			var f former
			line := f.line(nil, form, 0, r)
			for i, c := range line[:len(line)-1] {
				if c < ' ' || c >= 0x7f {
					t.Fatalf("%v: octet %#x at %d of %q", form, c, i, line)
				}
			}
			if line[len(line)-1] != '\n' {
				t.Errorf("%v: no end: %q", form, line)
			}
			if form == config.LogText {
				// Out of quotes there are no more words than in any line.
				bare := regexp.MustCompile(`"(\\.|[^"\\])*"`).ReplaceAll(line, []byte("Q"))
				if n := len(bytes.Fields(bare)); n != 13 {
					t.Errorf("%d words: %s", n, bare)
				}
				continue
			}
			var back struct{ Method, Target, Host, Agent string }
			if err := json.Unmarshal(line, &back); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			for _, s := range []string{back.Method, back.Target, back.Host, back.Agent} {
				var octets []byte
				for _, c := range s {
					octets = append(octets, byte(c)) // the code point of the same number
				}
				if !bytes.Equal(octets, hostile) {
					t.Errorf("got %q, sent %q", octets, hostile)
				}
			}
		}
	}
}

func begin(t *testing.T, to string, form config.LogFormat, loops int) *Log {
	t.Helper()
	p, err := Open(&config.AccessLog{To: to, Format: form}, "holdfast")
	if err != nil {
		t.Fatal(err)
	}
	l := New(loops, slog.New(slog.DiscardHandler))
	l.Set(p)
	return l
}

func lines(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// Many loops, a change of the file under way, and another process that writes
// to the same file: every record is a whole line, once, in its loop's order.
func TestEveryRecordOnce(t *testing.T) {
	const loops, each = 4, 3000
	name := filepath.Join(t.TempDir(), "access.log")
	logs := []*Log{begin(t, name, config.LogJSON, loops), begin(t, name, config.LogText, loops)}
	var wg sync.WaitGroup
	for _, l := range logs {
		for i := range loops {
			wg.Add(1)
			go func() {
				defer wg.Done()
				s := l.Sink(i)
				for k := range each {
					r := request()
					r.Flow, r.Number = uint64(i+1), uint32(k)
					s.Note(flow.Instant(k+1), r)
					if k == each/2 && i == 0 {
						if err := os.Rename(name, name+fmt.Sprintf(".%p", l)); err != nil && !os.IsNotExist(err) {
							t.Error(err)
						}
						l.Reopen()
					}
				}
				s.Flush(each)
			}()
		}
	}
	wg.Wait()
	noted := uint64(0)
	for _, l := range logs {
		l.Close()
		noted += l.Lines() + l.Dropped()
	}
	if noted != loops*each*2 {
		t.Errorf("%d written or dropped of %d", noted, loops*each*2)
	}
	files, _ := filepath.Glob(name + "*")
	got := uint64(0)
	whole := regexp.MustCompile(`^(?:\{"time":"\d{4}-[^{}]+,"out":4096\}|\d{4}-[^"]+ f-\d#\d+ "GET /a\?b=c HTTP/1\.1" "www\.example" "curl/8")$`)
	for _, f := range files {
		for _, line := range lines(t, f) {
			if line == "" {
				continue // a file that was renamed before anything came
			}
			if !whole.MatchString(line) {
				t.Fatalf("%s: %q", f, line)
			}
			got++
		}
	}
	if want := logs[0].Lines() + logs[1].Lines(); got != want {
		t.Errorf("%d lines in the files, %d were written", got, want)
	}
}

// Of one loop records stay in order, with the times at which they were noted.
func TestOrderAndTime(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l := begin(t, name, config.LogJSON, 1)
	s := l.Sink(0)
	for k := range 1000 {
		r := request()
		r.Number = uint32(k)
		s.Note(flow.Instant(k+1)*flow.Instant(time.Millisecond), r)
	}
	s.Flush(flow.Instant(time.Second))
	l.Close()
	all := lines(t, name)
	if len(all) != 1000 {
		t.Fatalf("%d lines", len(all))
	}
	var before time.Time
	for k, line := range all {
		var x struct {
			Time   time.Time
			Number int
		}
		if err := json.Unmarshal([]byte(line), &x); err != nil || x.Number != k {
			t.Fatalf("line %d: %v: %s", k, err, line)
		}
		// Chunks tell the time of day by themselves, so only within one.
		if d := x.Time.Sub(before); k%recordsMax != 0 && (d < 999*time.Microsecond || d > 1001*time.Microsecond) {
			t.Errorf("line %d is %v after the one before", k, d)
		}
		before = x.Time
	}
}

// A pipe that nobody reads costs lines, which are counted, and neither a Note
// nor the end waits for a reader.
func TestBlockedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	f := &file{to: "/pipe"}
	f.f.Store(w)
	l := New(1, slog.New(slog.DiscardHandler))
	l.Set(&Place{config.LogJSON, f})
	s := l.Sink(0)
	const noted = 4 * chunksMax * recordsMax
	for k := range noted {
		s.Note(flow.Instant(k+1), request())
	}
	s.Flush(noted)
	if l.Dropped() == 0 {
		t.Error("nothing was dropped: the pipe took all?")
	}
	writer := l.writer
	l.Close()
	// Close waits a second; on a machine that is busy the writer may still be about
	// to drop the rest then.
	select {
	case <-writer.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the writer does not end")
	}
	if got := l.Lines() + l.Dropped(); got != noted {
		t.Errorf("%d written or dropped of %d", got, noted)
	}
}

// A write that stops half way leaves a torn line; the next line begins anew.
func TestTornLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f := &file{to: "/pipe"}
	f.f.Store(w)
	long := &batch{}
	for range 1000 {
		long.octets = append(long.octets, strings.Repeat("x", 998)+"\n"...)
		long.end(0)
	}
	if err := w.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := f.write(long)
	if err == nil || n >= 1000 || !f.torn {
		t.Fatalf("%d lines, %v, torn %v", n, err, f.torn)
	}
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		got <- string(b)
	}()
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	next := &batch{octets: []byte("next\n")}
	next.end(0)
	if k, err := f.write(next); k != 1 || err != nil {
		t.Fatal(k, err)
	}
	f.close()
	all := strings.Split(<-got, "\n")
	if all[len(all)-2] != "next" || all[len(all)-3] == strings.Repeat("x", 998) {
		t.Errorf("it ends with %q", all[len(all)-3:])
	}
}

// A full disk is said, counted, and tried again.
func TestFullDisk(t *testing.T) {
	var said bytes.Buffer
	p, err := Open(&config.AccessLog{To: "/dev/full"}, "holdfast")
	if err != nil {
		t.Fatal(err)
	}
	l := New(1, slog.New(slog.NewTextHandler(&said, nil)))
	l.Set(p)
	for k := range 2 * recordsMax {
		l.Sink(0).Note(flow.Instant(k+1), request())
	}
	l.Close()
	if l.Dropped() != 2*recordsMax || l.Lines() != 0 {
		t.Errorf("%d dropped, %d written", l.Dropped(), l.Lines())
	}
	if got := said.String(); strings.Count(got, "cannot be written") != 1 || !strings.Contains(got, "no space left") {
		t.Errorf("said: %s", got)
	}
}

// The file is opened anew when it was renamed; what was handed over before goes
// to the old one or to the new one, all of it to one of them.
func TestReopen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l := begin(t, name, config.LogText, 1)
	s := l.Sink(0)
	s.Note(1, request())
	s.Flush(1)
	for l.Lines() < 1 {
		time.Sleep(time.Millisecond)
	}
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	for _, err := os.Stat(name); err != nil; _, err = os.Stat(name) {
		time.Sleep(time.Millisecond)
	}
	s.Note(2, stream())
	s.Flush(2)
	l.Close()
	if a, b := lines(t, name+".1"), lines(t, name); len(a) != 1 || len(b) != 1 || !strings.Contains(b[0], "client-reset") {
		t.Errorf("before %q, after %q", a, b)
	}
}

// A place that cannot be opened is an error, and a log without a place notes
// nothing.
func TestOff(t *testing.T) {
	if _, err := Open(&config.AccessLog{To: "/nowhere/at/all"}, "holdfast"); err == nil {
		t.Error("opened")
	}
	p, err := Open(nil, "holdfast")
	if p != nil || err != nil {
		t.Error(p, err)
	}
	p.Close()
	l := New(1, slog.New(slog.DiscardHandler))
	l.Set(p)
	l.Sink(0).Note(1, request())
	l.Sink(0).Flush(1)
	l.Reopen()
	l.Close()
	if l.Lines() != 0 || l.Dropped() != 0 {
		t.Error(l.Lines(), l.Dropped())
	}
}

// A listener that is not to be logged is not.
func TestUnlogged(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l := begin(t, name, config.LogText, 1)
	r := request()
	r.Listener = &config.Listener{Ref: web.Ref, Unlogged: true}
	l.Sink(0).Note(1, r)
	l.Sink(0).Flush(1)
	l.Close()
	if l.Lines() != 0 {
		t.Error("it was written")
	}
}

// The local syslog gets what syslog(3) sends; when it has been restarted it gets
// the next lines.
func TestLocalSyslog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	listen := func() *net.UnixConn {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	daemon := listen()
	to, err := openSyslog("unixgram", name, "holdfast")
	if err != nil {
		t.Fatal(err)
	}
	b := &batch{octets: []byte("one\ntwo\n")}
	b.ends, b.at = []int{4, 8}, []int64{0, time.Second.Nanoseconds()}
	if n, err := to.write(b); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	form := regexp.MustCompile(`^<134>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d holdfast\[\d+\]: (one|two)$`)
	buf := make([]byte, 1000)
	for range 2 {
		n, err := daemon.Read(buf)
		if err != nil || !form.Match(buf[:n]) {
			t.Errorf("%q %v", buf[:n], err)
		}
	}
	_ = daemon.Close()
	_ = os.Remove(name)
	if n, err := to.write(b); n != 0 || err == nil {
		t.Errorf("nobody listens: %d, %v", n, err)
	}
	daemon = listen()
	defer func() { _ = daemon.Close() }()
	if n, err := to.write(b); n != 2 || err != nil {
		t.Errorf("it listens again: %d, %v", n, err)
	}
	to.close()
}

// Another host gets RFC 5424, a datagram a line.
func TestRemoteSyslog(t *testing.T) {
	daemon, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = daemon.Close() }()
	l := begin(t, "syslog:"+daemon.LocalAddr().String(), config.LogJSON, 1)
	l.Sink(0).Note(1, request())
	l.Sink(0).Flush(1)
	buf := make([]byte, 64<<10)
	n, _, err := daemon.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	host, _ := os.Hostname()
	form := regexp.MustCompile(`^<134>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ` + regexp.QuoteMeta(host) + ` holdfast \d+ access - (\{.*\})$`)
	m := form.FindSubmatch(buf[:n])
	if m == nil || !json.Valid(m[1]) {
		t.Errorf("%q", buf[:n])
	}
}

// A Note costs a loop no allocation.
func TestNoteAllocatesNothing(t *testing.T) {
	l := New(1, slog.New(slog.DiscardHandler))
	l.on.Store(true)
	s, r := l.Sink(0), request()
	s.Note(1, r)
	if n := testing.AllocsPerRun(100, func() { s.Note(1, r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNote(b *testing.B) {
	l := New(1, slog.New(slog.DiscardHandler))
	l.on.Store(true)
	s, r := l.Sink(0), request()
	for b.Loop() {
		s.Note(1, r)
		select {
		case p := <-l.full:
			p.back()
		default:
		}
	}
}

func BenchmarkLine(b *testing.B) {
	for _, form := range []config.LogFormat{config.LogJSON, config.LogText} {
		b.Run(form.String(), func(b *testing.B) {
			var f former
			var line []byte
			r := request()
			w := bufio.NewWriter(io.Discard)
			b.ReportAllocs()
			for b.Loop() {
				line = f.line(line[:0], form, 1_700_000_000_123_456_789, r)
				_, _ = w.Write(line)
			}
		})
	}
}

// Every cause and every phase that can stand in a line is in the document.
func TestWordsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/accesslog.md")
	if err != nil {
		t.Fatal(err)
	}
	for c := flow.NotEnded + 1; int(c) < flow.Causes; c++ {
		if !strings.Contains(string(text), "\n| `"+c.String()+"` |") {
			t.Errorf("no row for %v", c)
		}
	}
	_, phases, _ := strings.Cut(string(text), "The phase says")
	for p := flow.Octets; p <= flow.Tunnel; p++ {
		if !strings.Contains(phases, "`"+p.String()+"`") {
			t.Errorf("not a word of %v", p)
		}
	}
	var f former
	example := string(f.line(nil, config.LogText, time.Date(2026, 11, 22, 11, 48, 44, 50_123_456, time.UTC).UnixNano(), request()))
	if !strings.Contains(string(text), "\n"+example) {
		t.Errorf("the example is not %s", example)
	}
}
