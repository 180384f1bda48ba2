package demo

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// browse asks a server whose answers go through tamper until it has answered
// enough, and gives the figures.
func browse(t *testing.T, enough uint64, tamper func(w *httptest.ResponseRecorder)) WebFigures {
	t.Helper()
	page, served, done := Page("a1"), atomic.Uint64{}, make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		page.ServeHTTP(rec, r)
		if n := served.Add(1); n == 20 && tamper != nil {
			tamper(rec)
		} else if n == enough {
			close(done)
		}
		for name, v := range rec.Header() {
			w.Header()[name] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}))
	defer server.Close()
	w := Browse(strings.TrimPrefix(server.URL, "http://"))
	<-done
	return w.Stop()
}

func TestPagesArriveWhole(t *testing.T) {
	f := browse(t, 200, nil)
	if f.Errors != 0 || f.Wrong != 0 || f.Requests < 200 || f.Servers["a1"] != f.Requests || f.Octets < 100<<10 || f.P99 == 0 || f.Open > WebClients {
		t.Errorf("%+v", f)
	}
}

// Each of these happens to one answer and must be found.
func TestWhatIsWrongWithAPageIsFound(t *testing.T) {
	for name, tamper := range map[string]func(w *httptest.ResponseRecorder){
		"a status": func(w *httptest.ResponseRecorder) { w.Code = http.StatusBadGateway },
		"an octet more": func(w *httptest.ResponseRecorder) {
			w.Header().Del("Content-Length")
			w.Body.WriteByte(1)
		},
		"an octet is another": func(w *httptest.ResponseRecorder) {
			if w.Body.Len() == 0 { // of no use: make it one too many
				w.Header().Del("Content-Length")
				w.Body.WriteByte(1)
				return
			}
			w.Body.Bytes()[w.Body.Len()-1] ^= 1
		},
		"it is another answer's": func(w *httptest.ResponseRecorder) {
			w.Header().Del("Content-Length")
			rec := httptest.NewRecorder()
			Page("a1").ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/octets/999999999/1000", nil))
			w.Body = rec.Body
		},
		"it is cut short": func(w *httptest.ResponseRecorder) {
			w.Header().Set("Content-Length", "100000")
			w.Body.Truncate(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if f := browse(t, 60, tamper); f.Errors != 1 || len(f.Faults) != 1 {
				t.Errorf("%+v", f)
			}
		})
	}
}

// The server looks at what it is sent.
func TestPageFindsWrongOctets(t *testing.T) {
	right := make([]byte, 1000)
	(&stream{seed: bodySeed(7, false)}).next(right)
	wrong := bytes.Clone(right)
	wrong[500] ^= 1
	for _, c := range []struct {
		body []byte
		want int
	}{{right, http.StatusOK}, {wrong, http.StatusUnprocessableEntity}} {
		w := httptest.NewRecorder()
		Page("a1").ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/octets/7/10", bytes.NewReader(c.body)))
		if b, _ := io.ReadAll(w.Body); w.Code != c.want {
			t.Errorf("%d, want %d: %s", w.Code, c.want, b)
		}
	}
}
