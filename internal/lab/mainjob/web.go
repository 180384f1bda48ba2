package mainjob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// webSeed is of the streams that web servers and clients send.
const webSeed = 7

// webServers are where examples/websocket.yaml looks for its endpoints.
var webServers = []string{"127.0.0.1:9001", "127.0.0.1:9005", "127.0.0.1:9006"}

// webStanding are the connections through the web's Holdfast that are never
// without a request: a WebSocket, two downloads, an upload and the members of a chat.
const webStanding = 4 + chatMembers

// startWeb starts the servers of pages and WebSockets.
func (j *job) startWeb() error {
	for i, at := range webServers {
		o := &lab.Origin{Name: fmt.Sprintf("web%d", i+1), Addr: netip.MustParseAddrPort(at), Seed: webSeed, Pages: pages()}
		open := o.Open
		if j.serversOn != nil {
			open = func() error { return j.serversOn.Do(o.Open) }
		}
		if err := open(); err != nil {
			return err
		}
		j.origins = append(j.origins, o)
	}
	return nil
}

// article is a page of some length, of which ranges are asked for.
var article = bytes.Repeat([]byte("All happy connections are alike; each unhappy one is unhappy in its own way.\n"), 1000)

// pages are what a browser and curl find at the servers.
func pages() http.Handler {
	mux := http.NewServeMux()
	serve := func(path, name string, octets []byte) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(octets))
		})
	}
	serve("/article.txt", "article.txt", article)
	serve("/page.html", "page.html", []byte(page))
	serve("/page.css", "page.css", []byte("#result { color: rgb(1, 2, 3) }\n"))
	serve("/page.js", "page.js", []byte(strings.ReplaceAll(pageScript, "ARTICLE", strconv.Itoa(len(article)))))
	serve("/page.svg", "page.svg", []byte(`<svg xmlns="http://www.w3.org/2000/svg" width="7" height="5"/>`))
	mux.Handle("/chat", &room{})
	mux.HandleFunc("/paced", paced)
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Version", r.Proto)
		w.Header().Set("X-Method", r.Method)
		_, _ = w.Write(b)
	})
	return mux
}

// tunnel is a WebSocket that is open all the time.
type tunnel struct {
	ws   *lab.WebSocket
	sent int
}

func openTunnel() (*tunnel, error) {
	c, err := net.Dial("tcp", webVIP)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(answerTime))
	ws, _, err := lab.DialWebSocket(c, webVIP, "/socket/main-job")
	return &tunnel{ws: ws}, err
}

// identity sends a message that comes back, and asks who sent it.
func (t *tunnel) identity() (string, error) {
	t.ws.Deadline(time.Now().Add(answerTime))
	text := fmt.Sprintf("message %d", t.sent)
	if err := t.ws.Send(lab.BinaryMessage, []byte(text)); err != nil {
		return "", fmt.Errorf("WebSocket: %w", err)
	}
	if _, b, err := t.ws.Receive(); err != nil || string(b) != text {
		return "", fmt.Errorf("WebSocket: %q came back as %q (%w)", text, b, orUnexpected(err))
	}
	if err := t.ws.Send(lab.TextMessage, []byte("who")); err != nil {
		return "", fmt.Errorf("WebSocket: %w", err)
	}
	_, b, err := t.ws.Receive()
	if err != nil {
		return "", fmt.Errorf("WebSocket: %w", err)
	}
	who, right := strings.CutSuffix(string(b), fmt.Sprintf(" %d", t.sent+1))
	if !right {
		return "", fmt.Errorf("WebSocket: %q after %d messages", b, t.sent+1)
	}
	t.sent += 2
	return who, nil
}

// reader is Go's own client, which keeps a connection, and would open another
// one without a word.
type reader struct {
	client *http.Client
	url    string
	asked  int
	name   string    // of the first connection
	on     *readerOn // the one in use
	most   int       // octets of a response with its head, which are always as many
	gaveUp int       // connections that the client closed of itself
}

// readerOn is a connection of a reader.
type readerOn struct {
	net.Conn
	octets atomic.Int64  // that came since a response was whole
	ended  chan struct{} // closed by the client's Close
	once   sync.Once
	mu     sync.Mutex // guards broken
	broken error      // what it met before it closed
}

func (c *readerOn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.octets.Add(int64(n))
	c.note(err)
	return n, err
}

func (c *readerOn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.note(err)
	return n, err
}

func (c *readerOn) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ended:
	default:
		if c.broken == nil {
			c.broken = err
		}
	}
}

func (c *readerOn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// gaveUp tells that nobody but the client ended the connection. On a busy
// machine Go's does so to one that is well, a balancer or none: when its writer
// is not heard of within 50 ms of the response (maxWriteWaitBeforeConnReuse in
// net/http).
func (c *readerOn) gaveUp() bool {
	select {
	case <-c.ended:
	case <-time.After(answerTime): // it may open another one before it closes this
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken == nil && c.octets.Load() == 0 // it also ends one that says what was not asked for
}

func newReader(url string) *reader {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &readerOn{Conn: c, ended: make(chan struct{})}, nil
	}
	transport := &http.Transport{MaxConnsPerHost: 1, DisableCompression: true, DialContext: dial}
	return &reader{url: url, client: &http.Client{Transport: transport, Timeout: answerTime}}
}

// identity reads an article. The connection is known by its own end.
func (r *reader) identity() (string, error) {
	var on *readerOn
	req, err := http.NewRequest(http.MethodGet, r.url, nil)
	if err != nil {
		return "", err
	}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) { on, _ = c.Conn.(*readerOn) },
	}))
	res, err := r.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("the client of Go: %w", err)
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	r.asked++
	if err != nil || res.StatusCode != http.StatusOK || res.Close || !bytes.Equal(b, article) {
		return "", fmt.Errorf("the client of Go: request %d: status %d, %d octets, to be closed: %v: %w", r.asked, res.StatusCode, len(b), res.Close, orUnexpected(err))
	}
	return r.judge(on)
}

// judge compares the connection of a response with that of the one before.
func (r *reader) judge(on *readerOn) (string, error) {
	octets := int(on.octets.Swap(0))
	if r.on == nil {
		r.most = octets
	}
	if octets != r.most {
		// More than was asked for makes Go's client close, too.
		return "", fmt.Errorf("the client of Go: request %d: %d octets came, with the first response it was %d", r.asked, octets, r.most)
	}
	switch was := r.on; {
	case was == on:
	case was != nil && was.gaveUp():
		r.gaveUp++
	default:
		r.name = on.LocalAddr().String()
	}
	r.on = on
	return r.name, nil
}

// visit is one run of curl and what it must say.
type visit struct {
	name string
	args []string
	in   []byte
	out  string
	// says is what curl writes of each transfer: status, version, new connections.
	says string
}

// saying is curl's format of what it says of a transfer, each on a line.
const saying = "\n=%{http_code} %{http_version} %{num_connects}\n"

func visits() []visit {
	base := "http://" + webVIP
	text := string(article)
	octets := []byte(strings.Repeat("0123456789abcdef", 20000))
	return []visit{
		// Four requests, one connection.
		{name: "keep-alive", args: []string{base + "/article.txt", base + "/page.css", base + "/page.svg", base + "/article.txt"},
			says: "200 1.1 1, 200 1.1 0, 200 1.1 0, 200 1.1 0"},
		{name: "Expect", args: []string{"-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-", base + "/echo"},
			in: octets, out: string(octets), says: "200 1.1 1"},
		{name: "chunked", args: []string{"-H", "Transfer-Encoding: chunked", "-T", "-", base + "/echo"}, in: octets, out: string(octets), says: "200 1.1 1"},
		{name: "HTTP/1.0", args: []string{"-0", base + "/article.txt"}, out: text, says: "200 1.1 1"},
		{name: "range", args: []string{"-r", "100-299", base + "/article.txt"}, out: text[100:300], says: "206 1.1 1"},
		{name: "HEAD, then GET", args: []string{"-I", base + "/article.txt", "--next", "-sS", "-w", saying, base + "/page.svg"}, says: "200 1.1 1, 200 1.1 0"},
	}
}

// curl lets curl make its next visit.
func (j *job) curl() (string, error) {
	all := visits()
	v := all[j.visited%len(all)]
	j.visited++
	argv := append([]string{program("curl"), "-sS", "--max-time", "20", "-w", saying}, v.args...)
	out, err := j.output(spec{argv: argv, says: v.in})
	if err != nil {
		return "", err
	}
	var said []string
	var rest strings.Builder
	for line := range strings.Lines(string(out)) {
		if s, ok := strings.CutPrefix(line, "="); ok {
			said = append(said, strings.TrimSpace(s))
			continue
		}
		rest.WriteString(line)
	}
	if got := strings.Join(said, ", "); got != v.says {
		return "", fmt.Errorf("curl, %s: %q; want %q", v.name, got, v.says)
	}
	if v.out != "" && strings.TrimRight(rest.String(), "\n") != strings.TrimRight(v.out, "\n") {
		return "", fmt.Errorf("curl, %s: %d octets came, %d are right", v.name, rest.Len(), len(v.out))
	}
	return "", nil
}

// transferRate is that of the long transfers, in octets a second. curl keeps to
// it by reading up to 10 MB at once (100 times 100 KiB) and then nothing until
// that was slow enough: at 256 KiB/s nothing at all for 39 s, which is longer
// than timeouts.body.
const transferRate = 1 << 20

// startTransfers lets curl download and upload for about d, in one request
// each.
func (j *job) startTransfers(d time.Duration) (err error) {
	j.transferOctets = int(d.Seconds()) * transferRate
	rate := strconv.Itoa(transferRate)
	j.downloaded = filepath.Join(j.dir, "downloaded")
	url := fmt.Sprintf("http://%s/o?id=1&frame=length&down=%d", webVIP, j.transferOctets)
	if j.download, err = j.start(spec{name: "curl-download", argv: []string{program("curl"), "-sS", "--fail", "--limit-rate", rate, "-o", j.downloaded, url}}); err != nil {
		return err
	}
	file := filepath.Join(j.dir, "to-upload")
	octets := make([]byte, j.transferOctets)
	lab.NewStream(webSeed, 2, lab.Up).Fill(octets, 0)
	if err := os.WriteFile(file, octets, 0o600); err != nil {
		return err
	}
	url = fmt.Sprintf("http://%s/o?id=2&up=%d&down=0", webVIP, j.transferOctets)
	j.upload, err = j.start(spec{name: "curl-upload", argv: []string{program("curl"), "-sS", "--fail", "--limit-rate", rate, "-T", file,
		"-D", "-", "-o", filepath.Join(j.dir, "uploaded"), url}})
	return err
}

// judgeWeb looks at the long transfers, and at what the servers were sent.
func (j *job) judgeWeb() {
	if j.download == nil || j.upload == nil {
		return
	}
	for _, p := range []*process{j.download, j.upload} {
		if !p.ended() {
			p.end(time.Second)
		}
		if p.err != nil {
			j.v.say("%s: %s", p.name, p.tail())
		}
	}
	got, err := os.ReadFile(j.downloaded)
	err = errors.Join(err, j.download.err)
	right := lab.NewStream(webSeed, 1, lab.Down).Match(got, 0)
	j.v.must(err == nil && len(got) == j.transferOctets && right == len(got), "curl's download through all events",
		fmt.Sprintf("%d octets, %d of them right (%v)", len(got), right, orNone(err)), fmt.Sprint(j.transferOctets))
	said := j.upload.tail()
	whole := strings.Contains(strings.ToLower(said), fmt.Sprintf("x-lab-up: %d", j.transferOctets))
	j.v.must(j.upload.err == nil && whole, "curl's upload through all events", fmt.Sprintf("whole: %v (%v)", whole, orNone(j.upload.err)), fmt.Sprintf("%d right octets", j.transferOctets))
	var faults []string
	for _, o := range j.origins {
		faults = append(faults, o.Faults()...)
	}
	j.v.zero("wrong octets at the web servers", faults)
	j.v.figure("curl_visits", j.visited)
	if j.reader != nil {
		j.v.figure("connections_given_up_by_client", j.reader.gaveUp)
	}
	j.v.must(j.visited >= len(visits()), "curl's visits", fmt.Sprint(j.visited), "each kind once, and right")
}
