package flow

import "testing"

// A response is thrown away no more often than a backend allows, though there are
// further endpoints.
func TestStatusRetriesAreBounded(t *testing.T) {
	for most, want := range []State{Reading, Queued} {
		s, err := parseHTTP("manual\nclient asks GET /again/1\nsecured 1\ndialed\nbackend answers busy 1")
		if err != nil {
			t.Fatal(err)
		}
		w := newHTTPWorld(s)
		for i := range s.hops {
			if i == len(s.hops)-1 {
				b := *w.f.backend
				b.RetryMax = most
				w.f.backend = &b
			}
			w.Step(i)
		}
		if w.f.State() != want {
			t.Errorf("with at most %d: %v, want %v", most, w.f.State(), want)
		}
	}
}
