package loop

import (
	"fmt"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// become puts another version of the test's backend in force.
func (w *web) become(number uint64, address, more string) {
	w.t.Helper()
	text := fmt.Sprintf("accessLog: { to: stdout }\nlisteners: { e: { vip: 127.0.0.1:1, protocol: http, backend: b } }\nbackends: { b: { endpoints: [ { name: one, address: %q%s } ] } }\n", address, more)
	c, _, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	c = c.Reuse(w.l.gen.Config)
	w.l.shared.Objects = exact{c}
	w.l.SetGeneration(&Generation{Number: number, Config: c, Listening: map[string]*Listening{
		"e": {Object: c.Listeners["e"], FD: w.l.gen.Listening["e"].FD, Gate: w.l.gen.Listening["e"].Gate},
	}})
	w.l.Turn(false)
	w.l.Turn(false)
}

// keepsLegs: idle legs stay over a change that dials the same, and serve the next
// request; one that dials elsewhere closes them.
func keepsLegs(w *web) (wrong string) {
	at := sock.LocalAddr(w.server).String()
	w.become(2, at, "")
	near := w.client()
	far := w.ask(near)
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	for i, more := range []string{", weight: 7", ", weight: 3, backup: true", ", zone: z", ", weight: 7"} {
		w.become(uint64(3+i), at, more)
		if n := w.l.Idle(); n != 1 {
			return fmt.Sprintf("%d idle legs after %q", n, more)
		}
	}
	w.says(near, plainGet)
	w.hears(far, "\r\n\r\n") // on the same leg
	w.says(far, plainAnswer)
	w.hears(near, "hello")
	w.become(9, "127.0.0.1:9", "")
	if n := w.l.Idle(); n != 0 {
		return fmt.Sprintf("%d legs to an address that the endpoint has left are idle", n)
	}
	return ""
}

func TestIdleLegsOutliveAChange(t *testing.T) {
	if wrong := keepsLegs(newWeb(t, "")); wrong != "" {
		t.Error(wrong)
	}
}
