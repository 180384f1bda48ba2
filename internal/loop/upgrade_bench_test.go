package loop

import (
	"fmt"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/flow"
	"github.com/holdfast-lb/holdfast/internal/frozen"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// BenchmarkLot is what a lot of eight flows goes through on its way to another
// process and before it is served there: parked, frozen, encoded, sent with its
// descriptors or with the names of copies, decoded, thawed, adopted. Both processes
// are this one; the time is what such a flow's pause is made of, without the
// wake-ups between.
func BenchmarkLot(b *testing.B) {
	for _, kind := range []string{"tcp", "http-idle"} {
		for _, copied := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/copied=%t", kind, copied), func(b *testing.B) { benchLot(b, kind, copied) })
		}
	}
}

func benchLot(b *testing.B, kind string, copied bool) {
	const flows = 8
	var giver, taker *Loop
	switch kind {
	case "tcp":
		w := newWorld(b, 2)
		giver, taker = w.loops[0], w.loops[1]
		taker.SetAccepting(false)
		for range flows {
			c := w.dial()
			_, _ = c.Write([]byte("x"))
		}
		w.turn(func() bool {
			taker.SendTo(giver, taker.Slots(0, nil), nil) // wherever they were accepted
			n := 0
			for _, i := range giver.Slots(0, nil) {
				if f := giver.Flow(i); f.State() == flow.Relaying && f.Sent(flow.Client) > 0 {
					n++
				}
			}
			return n == flows
		})
	default:
		w := newWeb(b, "")
		giver, taker = w.l, w.successor()
		far := w.exchange(w.client())
		for range flows - 1 {
			near := w.client()
			w.says(near, plainGet)
			w.hears(far, "\r\n\r\n")
			w.says(far, plainAnswer)
			w.hears(near, "hello")
		}
	}
	giver.shared.Fixed.Store(true)
	here, there, err := sock.ChannelPair()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _, _ = here.Close(), there.Close() }()
	buf := make([]byte, sock.MessageMax)
	// Copies are made in advance, as another process has them.
	dup := func(fds []sock.FD) (all []sock.FD) {
		for _, fd := range fds {
			other, err := fd.Dup()
			if err != nil {
				b.Fatal(err)
			}
			all = append(all, other)
		}
		return all
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		parked, _ := giver.ParkMany(giver.Slots(0, nil))
		if len(parked) != flows {
			b.Fatalf("%d flows were parked", len(parked))
		}
		p, err := Pack(parked)
		if err != nil {
			b.Fatal(err)
		}
		with := p.FDs
		var copies []sock.FD
		if copied {
			b.StopTimer()
			copies, with = dup(p.FDs), nil
			b.StartTimer()
			for _, fd := range p.FDs {
				if _, err := sock.Cookie(fd); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := here.Send(with, p.Octets); err != nil {
			b.Fatal(err)
		}
		n, fds, err := there.Receive(buf)
		if err != nil {
			b.Fatal(err)
		}
		if copied {
			fds = copies
		}
		batch, err := frozen.Decode(buf[:n])
		if err != nil {
			b.Fatal(err)
		}
		thawed, no := Thaw(taker.Now(), batch, len(fds), taker.shared.Objects)
		if no != nil {
			b.Fatal(no)
		}
		taker.Deliver(&Parcel{Thawed: thawed, FDs: fds, Since: p.Since})
		taker.Turn(false)
		for _, fd := range p.FDs {
			fd.Close()
		}
		encoded.Put(&p.Octets)
		giver, taker = taker, giver
	}
	b.StopTimer()
	if giver.Load() != flows {
		b.Fatalf("%d flows arrived", giver.Load())
	}
}
