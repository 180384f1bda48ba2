package mainjob

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// page is what the browser shows: it fetches several things, again and again,
// keeps a WebSocket, and writes what it found into its document.
const page = `<!DOCTYPE html>
<html><head><title>main-job</title><link rel="stylesheet" href="/page.css"></head>
<body><img id="image" src="/page.svg" alt=""><pre id="result">{}</pre><script src="/page.js"></script></body></html>
`

// pageScript never connects again: a WebSocket that closes is an error.
const pageScript = `"use strict";
const state = { who: "", messages: 0, fetched: 0, errors: [], styled: false, image: 0 };
const show = () => {
  state.styled = getComputedStyle(document.getElementById("result")).color === "rgb(1, 2, 3)";
  state.image = document.getElementById("image").naturalWidth;
  document.getElementById("result").textContent = JSON.stringify(state);
};
const fail = (what) => { if (state.errors.length < 10) state.errors.push(String(what)); show(); };

const socket = new WebSocket("ws://" + location.host + "/socket/page");
socket.onclose = (e) => fail("WebSocket closed " + e.code);
socket.onerror = () => fail("WebSocket error");
let sent = 0;
const say = () => socket.send(new Blob(["message " + sent]));
socket.onopen = say;
socket.onmessage = async (e) => {
  if (e.data instanceof Blob) {
    const text = await e.data.text();
    if (text !== "message " + sent) fail("WebSocket: " + text + " in place of message " + sent);
    socket.send("who");
    return;
  }
  const parts = e.data.split(" ");
  if (parts[2] !== String(2 * sent + 1)) fail("WebSocket: " + e.data + " after " + sent + " messages");
  const who = parts[0] + " " + parts[1];
  if (state.who !== "" && state.who !== who) fail("WebSocket: " + state.who + " has become " + who);
  state.who = who;
  state.messages = ++sent;
  show();
  setTimeout(say, 50);
};

const one = async (n) => {
  const text = "request " + n + " " + "x".repeat(n % 5000);
  const answers = await Promise.all([
    fetch("/echo", { method: "POST", body: text }).then((r) => r.text()),
    fetch("/article.txt?" + n, { cache: "no-store" }).then((r) => r.text()),
    fetch("/article.txt?r" + n, { cache: "no-store", headers: { Range: "bytes=0-9" } }).then((r) => r.text()),
  ]);
  if (answers[0] !== text) fail("POST " + n + " came back as " + answers[0].length + " characters");
  if (answers[1].length !== ARTICLE) fail("GET " + n + " gave " + answers[1].length + " characters");
  if (answers[2] !== answers[1].slice(0, 10)) fail("range " + n + " gave " + answers[2]);
  state.fetched += 3;
  show();
};
const go = async (n) => {
  try { await one(n); } catch (e) { fail("fetch " + n + ": " + e); }
  setTimeout(() => go(n + 1), 60);
};
go(0);
`

// browser is a headless Chromium with one page open. What the page shows is
// read over its own WebSocket for tools, past Holdfast.
type browser struct {
	*process
	ws    *lab.WebSocket
	calls int
	last  pageState
}

// pageState is what the page writes into its document.
type pageState struct {
	Who      string   `json:"who"`
	Messages int      `json:"messages"`
	Fetched  int      `json:"fetched"`
	Errors   []string `json:"errors"`
	Styled   bool     `json:"styled"`
	Image    int      `json:"image"`
}

var devTools = regexp.MustCompile(`DevTools listening on ws://([^/\s]+)/`)

// openBrowser opens the page and waits until its session stands.
func (j *job) openBrowser() (*browser, error) {
	p, err := j.start(spec{name: "chromium", argv: []string{
		program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
		"--disable-background-networking", "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
		"--remote-debugging-port=0", "--user-data-dir=" + filepath.Join(j.dir, "chromium"), "http://" + webVIP + "/page.html",
	}})
	if err != nil {
		return nil, err
	}
	b := &browser{process: p}
	if err := p.await(j.ctx, func() error { return b.attach() }); err != nil {
		return nil, err
	}
	return b, p.await(j.ctx, func() error {
		if err := b.look(); err != nil {
			return err
		}
		if s := &b.last; s.Who == "" || s.Fetched == 0 || !s.Styled || s.Image != 7 {
			return fmt.Errorf("the page shows %+v", *s)
		}
		return nil
	})
}

// attach connects to the page's own WebSocket for tools.
func (b *browser) attach() error {
	text, err := os.ReadFile(b.out.Name())
	if err != nil {
		return err
	}
	m := devTools.FindSubmatch(text)
	if m == nil {
		return errors.New("the browser has not said where its tools are")
	}
	res, err := http.Get("http://" + string(m[1]) + "/json/list")
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	var all []struct {
		Type string `json:"type"`
		URL  string `json:"webSocketDebuggerUrl"`
	}
	if err := json.NewDecoder(res.Body).Decode(&all); err != nil {
		return err
	}
	for _, t := range all {
		if t.Type != "page" {
			continue
		}
		u, err := url.Parse(t.URL)
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(answerTime))
		b.ws, _, err = lab.DialWebSocket(c, u.Host, u.Path)
		return err
	}
	return errors.New("the browser has no page yet")
}

// look reads what the page shows.
func (b *browser) look() error {
	b.calls++
	ask := fmt.Sprintf(`{"id":%d,"method":"Runtime.evaluate","params":{"expression":"document.getElementById('result').textContent"}}`, b.calls)
	b.ws.Deadline(time.Now().Add(answerTime))
	if err := b.ws.Send(lab.TextMessage, []byte(ask)); err != nil {
		return fmt.Errorf("the browser: %w", err)
	}
	for {
		_, octets, err := b.ws.Receive()
		if err != nil {
			return fmt.Errorf("the browser: %w", err)
		}
		var answer struct {
			ID     int `json:"id"`
			Result struct {
				Result struct {
					Value string `json:"value"`
				} `json:"result"`
			} `json:"result"`
		}
		if err := json.Unmarshal(octets, &answer); err != nil {
			return fmt.Errorf("the browser: %w", err)
		}
		if answer.ID != b.calls {
			continue // an event, or what was asked before
		}
		b.last = pageState{}
		if err := json.Unmarshal([]byte(answer.Result.Result.Value), &b.last); err != nil {
			return fmt.Errorf("the browser: the page shows %q: %w", answer.Result.Result.Value, err)
		}
		return nil
	}
}

// identity reads the page until it has gone on, and gives who is at the other
// end of its WebSocket.
func (b *browser) identity() (string, error) {
	before := b.last
	for deadline := time.Now().Add(answerTime); ; time.Sleep(20 * time.Millisecond) {
		if err := b.look(); err != nil {
			return "", err
		}
		s := &b.last
		if len(s.Errors) > 0 {
			return "", fmt.Errorf("the browser: the page says %q", s.Errors)
		}
		if s.Messages > before.Messages && s.Fetched > before.Fetched {
			return s.Who, nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the browser: the page has stopped at %+v", *s)
		}
	}
}

// closeBrowser ends Chromium and notes what its page has shown. Its
// connections come and go, so they are to be gone before all flows are counted.
func (j *job) closeBrowser() {
	b := j.browser
	if b == nil {
		return
	}
	j.v.figure("chromium", b.last)
	j.v.say("the browser: %d messages of its WebSocket and %d fetches", b.last.Messages, b.last.Fetched)
	b.end(3 * time.Second)
	time.Sleep(500 * time.Millisecond) // its last segments are on their way
}
