package lab

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

func TestWebConfigParses(t *testing.T) {
	services := []webService{{name: "good", vip: netip.MustParseAddrPort("10.9.0.11:8001"),
		endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.9.0.30:9001"), netip.MustParseAddrPort("10.9.0.30:9002")},
		header:    3 * time.Second, body: 5 * time.Second, keepalive: time.Second, answer: 2 * time.Second}}
	var texts [2]string
	for variant := range texts {
		texts[variant] = webConfig("n1", "/run/n1.sock", services, variant)
		if _, _, err := config.Parse("web.yaml", []byte(texts[variant]), nil); err != nil {
			t.Errorf("%s\n%v", texts[variant], err)
		}
	}
	if texts[0] == texts[1] {
		t.Error("a reload from one variant to the other changes nothing")
	}
}

func openOrigin(t *testing.T) *Origin {
	t.Helper()
	o, err := NewOrigin(nil, "o", netip.MustParseAddrPort("127.0.0.1:0"), 7)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// Every maker's exchanges are right when nobody is in between.
func TestExchangesWithoutBalancer(t *testing.T) {
	o := openOrigin(t)
	id := uint32(0)
	for name, next := range map[string]maker{"any": anyExchange, "repeatable": repeatable, "early": earlyAnswer, "bulky": bulky} {
		r := rand.New(rand.NewPCG(1, 2))
		n := 60
		if name == "bulky" {
			n = 4
		}
		for n > 0 {
			c, err := dialWeb(nil, o.Addr, 7, 0)
			if err != nil {
				t.Fatal(err)
			}
			for ; n > 0; n-- {
				id++
				x := next(r, id)
				x.upRest, x.wait = 0, 0
				if err := c.do(x); err != nil {
					t.Fatalf("%s: %v: %v", name, x, err)
				}
				if !c.mayStay() {
					n--
					break
				}
			}
			c.close()
		}
	}
	if f := o.Faults(); len(f) > 0 {
		t.Error(f)
	}
}

// What is wrong with an answer is found, and told from a connection that broke.
func TestExchangeFindsFaults(t *testing.T) {
	right := make([]byte, 4)
	NewStream(7, 5, Down).Fill(right, 0)
	head := func(id, up, rest string) string {
		return "HTTP/1.1 200 OK\r\nX-Lab-Id: " + id + "\r\nX-Lab-Up: " + up + "\r\n" + rest + "\r\n"
	}
	for name, c := range map[string]struct {
		answer string
		wrong  bool
		none   bool
	}{
		"right":              {head("5", "0", "Content-Length: 4\r\n") + string(right), false, true},
		"until close":        {head("5", "0", "Connection: close\r\n") + string(right), false, true},
		"of another request": {head("6", "0", "Content-Length: 4\r\n") + string(right), true, false},
		"wrong octet":        {head("5", "0", "Content-Length: 4\r\n") + "\x00" + string(right[1:]), true, false},
		"torso looks whole":  {head("5", "0", "Connection: close\r\n") + string(right[:3]), true, false},
		"short length":       {head("5", "0", "Content-Length: 3\r\n") + string(right[:3]), true, false},
		"upload short":       {head("5", "9", "Content-Length: 4\r\n") + string(right), true, false},
		"nonsense":           {"nonsense\r\n\r\n", true, false},
		"broke off":          {head("5", "0", "Content-Length: 4\r\n") + string(right[:2]), false, false},
		"status":             {"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", false, false},
		"nothing":            {"", false, false},
	} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			_, _ = conn.Read(buf)
			_, _ = io.WriteString(conn, c.answer)
			_ = conn.Close()
		}()
		w, err := dialWeb(nil, lis.Addr().(*net.TCPAddr).AddrPort(), 7, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = w.do(&exchange{id: 5, method: http.MethodGet, down: 4})
		var wrong wrongError
		if errors.As(err, &wrong) != c.wrong || (err == nil) != c.none {
			t.Errorf("%s: %v; want wrong %v, no error %v", name, err, c.wrong, c.none)
		}
		w.close()
		_ = lis.Close()
	}
}

// The origin finds a request whose octets were changed on the way.
func TestOriginFindsFaults(t *testing.T) {
	body := make([]byte, 4)
	NewStream(7, 5, Up).Fill(body, 0)
	for name, c := range map[string]struct {
		body  string
		fault bool
	}{
		"right": {string(body), false}, "changed": {"\x00" + string(body[1:]), true}, "short": {string(body[:3]), true},
	} {
		o := openOrigin(t)
		r, err := http.Post(fmt.Sprintf("http://%v/o?id=5&up=4&down=0", o.Addr), "", strings.NewReader(c.body))
		if err == nil {
			_ = r.Body.Close()
		}
		if got := len(o.Faults()) > 0; got != c.fault {
			t.Errorf("%s: faults %v, want one: %v", name, o.Faults(), c.fault)
		}
	}
}

func TestWebSocketEchoes(t *testing.T) {
	o := openOrigin(t)
	c, err := dialWeb(nil, o.Addr, 7, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ws, head, err := DialWebSocket(c.conn, "h", "/ws")
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{0, 1, 125, 126, 1 << 16, 70000} {
		b := make([]byte, n)
		Stream{}.Fill(b, 0)
		if err := ws.Send(BinaryMessage, b); err != nil {
			t.Fatal(err)
		}
		op, got, err := ws.Receive()
		if err != nil || op != BinaryMessage || string(got) != string(b) {
			t.Fatalf("%d octets: opcode %d, %d octets, %v", n, op, len(got), err)
		}
		if i == 3 {
			if err := ask(ws, "o "+head.Get(connField)+" 4"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ask(ws, "somebody else"); err == nil {
		t.Error("the wrong identity is no error")
	}
}

// An error is excused only where there was trouble, and a wrong octet never.
func TestFleetExcusesOnlyTrouble(t *testing.T) {
	var tr trouble
	f := &fleet{name: "f", trouble: &tr, began: time.Now()}
	began := time.Now()
	f.note(textOf("before"), began, io.EOF)
	tr.begin("crash")
	f.note(textOf("during"), began, io.EOF)
	f.note(textOf("during"), began, statusError{502})
	f.note(textOf("during"), began, wrongf("an octet"))
	f.note(textOf("during"), began, nil)
	tr.end()
	f.note(textOf("after"), time.Now().Add(2*aftermath), io.EOF)
	strict := &fleet{name: "s", began: time.Now()}
	strict.note(textOf("at any time"), began, io.EOF)
	if len(f.unexplained) != 2 || f.excuses() != 2 || len(f.wrong) != 1 || f.right != 1 || f.undisturbed != 0 || len(strict.unexplained) != 1 {
		t.Errorf("unexplained %d, excused %v, wrong %d, right %d, undisturbed %d; strict %d", len(f.unexplained), f.excused, len(f.wrong), f.right, f.undisturbed, len(strict.unexplained))
	}
}
