package flow

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

func deskOfTests() *Desk {
	d := NewDesk(new(Lender))
	d.Config, d.Wall = httpObjects.Config, wallAt
	return d
}

// cookieHead is a request with these Cookie fields.
func cookieHead(t testing.TB, lines ...string) *h1.Head {
	t.Helper()
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("Cookie: " + l + "\r\n")
	}
	return parseRequest(t, "GET / HTTP/1.1\r\nHost: h\r\n"+b.String()+"\r\n")
}

// The form of cookies is fixed: other hosts, later releases and clients that come
// again must read the same. The values were made by hand from the words of
// sticky.go.
func TestCookieForm(t *testing.T) {
	d := deskOfTests()
	b := httpObjects.Backends["sticky"]
	if got, want := string(d.cookies.field(d, b, b.Endpoints[0])), "Set-Cookie: hf=z-34IIN40Y0AAAAAZVP_EILp0EpQcT_qZLXSEOAz9TA; "+
		"Path=/; Domain=example.org; Max-Age=3600; HttpOnly; Secure; SameSite=Lax\r\n"; got != want {
		t.Errorf("signed: %q, want %q", got, want)
	}
	b = httpObjects.Backends["open"]
	if got, want := string(d.cookies.field(d, b, b.Endpoints[0])), "Set-Cookie: hf=xgGUFNWRbDE; Path=/; HttpOnly\r\n"; got != want {
		t.Errorf("plain: %q, want %q", got, want)
	}
}

func TestCookieIsRead(t *testing.T) {
	good := goodCookie("sticky", "e2", wallAt+10)
	if !strings.ContainsAny(goodCookie("sticky", "e1", 0), "-_") {
		t.Fatal("both alphabets write it alike")
	}
	for _, c := range []struct {
		name    string
		backend string
		wall    int64
		lines   []string
		want    uint32
	}{
		{"a good one", "sticky", wallAt, []string{"hf=" + good}, 2},
		{"that never ends", "sticky", 1 << 60, []string{"hf=" + goodCookie("sticky", "e3", 0)}, 3},
		{"one second before its end", "sticky", wallAt + 9, []string{"hf=" + good}, 2},
		{"at its end", "sticky", wallAt + 10, []string{"hf=" + good}, 0},
		{"a clock before the epoch", "sticky", -5, []string{"hf=" + good}, 2},
		{"among others", "sticky", wallAt, []string{"a=b; hf=" + good + "; c=d"}, 2},
		{"in a later field", "sticky", wallAt, []string{"a=b", "", ";;", "c; hf=" + good}, 2},
		{"in quotes", "sticky", wallAt, []string{`hf="` + good + `"`}, 2},
		{"behind a bad one", "sticky", wallAt, []string{"hf=x; hf=; hf=y; hf=" + good}, 2},
		{"behind too many", "sticky", wallAt, []string{"hf=1; hf=2; hf=3; hf=4; hf=" + good}, 0},
		{"of another name", "sticky", wallAt, []string{"HF=" + good + "; xhf=" + good + "; hf x=" + good}, 0},
		{"of another backend", "sticky", wallAt, []string{"hf=" + goodCookie("again", "e2", wallAt+10)}, 0},
		{"of an endpoint that is not there", "sticky", wallAt, []string{"hf=" + goodCookie("sticky", "e4", wallAt+10)}, 0},
		{"cut", "sticky", wallAt, []string{"hf=" + good[:42]}, 0},
		{"longer", "sticky", wallAt, []string{"hf=" + good + "A"}, 0},
		{"padded", "sticky", wallAt, []string{"hf=" + good + "="}, 0},
		{"in the other alphabet", "sticky", wallAt, []string{"hf=" + strings.NewReplacer("-", "+", "_", "/").Replace(goodCookie("sticky", "e1", 0))}, 0},
		{"signed, without a key", "open", wallAt, []string{"hf=" + good}, 0},
		{"plain", "open", wallAt, []string{"hf=" + plainCookie("open", "e3")}, 3},
		{"plain, of another backend", "open", wallAt, []string{"hf=" + plainCookie("many", "e3")}, 0},
		{"plain, with a key", "sticky", wallAt, []string{"hf=" + plainCookie("sticky", "e3")}, 0},
		{"none is looked for", "many", wallAt, []string{"hf=" + good}, 0},
	} {
		d := deskOfTests()
		d.Wall = c.wall
		if got := d.cookies.endpoint(d, httpObjects.Backends[c.backend], cookieHead(t, c.lines...)); got != c.want {
			t.Errorf("%s: endpoint %d, want %d", c.name, got, c.want)
		}
	}
}

// Not one bit of a cookie may be another.
func TestCookieBits(t *testing.T) {
	d := deskOfTests()
	b := httpObjects.Backends["sticky"]
	good := goodCookie("sticky", "e2", wallAt+10)
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(raw) {
		raw[i/8] ^= 1 << (i % 8)
		if got := d.cookies.read(d, b, []byte(base64.RawURLEncoding.EncodeToString(raw))); got != 0 {
			t.Errorf("with bit %d turned it names endpoint %d", i, got)
		}
		raw[i/8] ^= 1 << (i % 8)
	}
	if d.cookies.read(d, b, []byte(good)) != 2 {
		t.Error("and the good one is not read")
	}
}

// What is known of backends that have left the configuration is forgotten.
func TestCookieNamesAreForgotten(t *testing.T) {
	d := deskOfTests()
	sticky, open := httpObjects.Backends["sticky"], httpObjects.Backends["open"]
	d.cookies.names(d.Config, sticky)
	d.cookies.names(d.Config, open)
	if len(d.cookies.by) != 2 {
		t.Fatalf("%d backends are known", len(d.cookies.by))
	}
	other := *sticky
	other.Ref.Version++
	d.cookies.names(&config.Config{Backends: map[string]*config.Backend{"sticky": &other, "open": open}}, open)
	if len(d.cookies.by) != 1 || d.cookies.by[open.Ref] == nil {
		t.Errorf("known are %v", d.cookies.by)
	}
}

// Any octets: what is read as a cookie is one, and net/http reads the same ones.
func FuzzCookies(f *testing.F) {
	good := goodCookie("sticky", "e2", wallAt+10)
	for _, s := range []string{"", "hf=" + good, "a=b; hf=" + good + "; c", "hf=\"" + good + "\"", "hf=x;hf=y", "; ;=;hf", "hf==", "hf =h", "hf=\"", "hf=" + good[:40], "hf=" + plainCookie("open", "e1")} {
		f.Add(s, "")
		f.Add("x=y", s)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		h := new(h1.Head)
		text := "GET / HTTP/1.1\r\nHost: h\r\nCookie: " + one + "\r\nX: y\r\ncookie: " + two + "\r\n\r\n"
		if h.Request([]byte(text), &testLimits) != nil {
			return
		}
		r := http.Request{Header: http.Header{"Cookie": {strings.Trim(one, " \t"), strings.Trim(two, " \t")}}}
		var ours []string
		for all := (jar{h: h}); ; {
			v := all.next("hf")
			if v == nil {
				break
			}
			ours = append(ours, string(v))
		}
		// It leaves out what is no cookie by the letter; we do not look.
		for i, k := 0, 0; k < len(r.CookiesNamed("hf")); k++ {
			want := r.CookiesNamed("hf")[k].Value
			for want != "" && i < len(ours) && ours[i] != want {
				i++
			}
			if want != "" && i == len(ours) {
				t.Fatalf("%q, %q: net/http has %q, we have %q", one, two, want, ours)
			}
		}
		d := deskOfTests()
		for _, name := range []string{"sticky", "open"} {
			b := httpObjects.Backends[name]
			i := d.cookies.endpoint(d, b, h)
			if i == 0 {
				continue
			}
			found := false
			for _, v := range ours[:min(len(ours), triesMax)] {
				raw, _ := base64.RawURLEncoding.DecodeString(v)
				switch e := b.Endpoints[i-1].Name; {
				case name == "open":
					found = found || v == plainCookie(name, e)
				case len(raw) == signedBytes:
					end := int(raw[8])<<56 | int(raw[9])<<48 | int(raw[10])<<40 | int(raw[11])<<32 | int(raw[12])<<24 | int(raw[13])<<16 | int(raw[14])<<8 | int(raw[15])
					found = found || v == goodCookie(name, e, end) && (end == 0 || uint64(end) > wallAt)
				}
			}
			if !found {
				t.Fatalf("%q, %q: endpoint %d of %s by none of %q", one, two, i, name, ours)
			}
		}
	})
}
