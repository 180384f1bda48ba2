package loop

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
)

// What is examined before it is adopted is thawed once: the flows of the batch are
// served as they were thawed, and a second adoption of them touches nothing. A flow that
// cannot be thawed is named by its place, and then none is.
func TestThawedIsAdoptedOnce(t *testing.T) {
	w := newWorld(t, 2)
	here, there := w.loops[0], w.loops[1]
	here.shared.Fixed.Store(true)
	var clients []net.Conn
	for range 3 {
		c := w.dial()
		_, _ = fmt.Fprint(c, "x")
		clients = append(clients, c)
	}
	w.turn(func() bool {
		there.SendTo(here, there.Slots(0, nil), nil)
		n := 0
		for _, i := range here.Slots(0, nil) {
			if f := here.Flow(i); f.State() == flow.Relaying && f.Sent(flow.Client) == 1 {
				n++
			}
		}
		return n == len(clients)
	})
	parked, _ := here.ParkMany(here.Slots(0, nil))
	p, err := Pack(parked)
	if err != nil {
		t.Fatal(err)
	}
	read := func(spoil func(*frozen.Batch)) (*Thawed, map[int]error) {
		b, err := frozen.Decode(p.Octets)
		if err != nil {
			t.Fatal(err)
		}
		spoil(b)
		return Thaw(there.Now(), b, len(p.FDs), there.shared.Objects)
	}
	for name, spoil := range map[string]func(*frozen.Batch){
		"a descriptor beyond those that came": func(b *frozen.Batch) { b.Flows[1].Legs[0].Fd = 7 },
		"no descriptor for the client":        func(b *frozen.Batch) { b.Flows[1].Client.Fd = 0 },
		"no descriptor for the endpoint":      func(b *frozen.Batch) { b.Flows[1].Legs[0].Fd = 0 },
		"a listener that is not here":         func(b *frozen.Batch) { b.Flows[1].Listener.Version++ },
		"no client":                           func(b *frozen.Batch) { b.Flows[1].Client = nil },
	} {
		thawed, no := read(spoil)
		because := new(frozen.Refused)
		if thawed != nil || len(no) != 1 || !errors.As(no[1], &because) {
			t.Errorf("%s: thawed %t, refused %v; want the second flow refused", name, thawed != nil, no)
		}
	}
	thawed, no := read(func(*frozen.Batch) {})
	if no != nil {
		t.Fatal(no)
	}
	lost := -1
	for range 2 {
		there.Deliver(&Parcel{Thawed: thawed, FDs: p.FDs, Since: p.Since, Adopted: func(_ []int64, n int) { lost = n }})
		there.Turn(false)
	}
	if there.Load() != len(clients) || there.Count.Adopted != uint64(len(clients)) || there.Count.Lost != 0 || lost != 0 {
		t.Errorf("%d flows, %d adopted, %d lost", there.Load(), there.Count.Adopted, there.Count.Lost)
	}
	done := make(chan error, 1)
	go func() {
		for _, c := range clients {
			_, _ = fmt.Fprint(c, "y")
			got := make([]byte, 2)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "xy" {
				done <- fmt.Errorf("%q, %w", got, err)
				return
			}
		}
		done <- nil
	}()
	w.turn(func() bool {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return true
		default:
			return false
		}
	})
}
