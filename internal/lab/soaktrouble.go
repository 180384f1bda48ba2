package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// mortalPort is where the endpoint listens that is a process and is killed.
const mortalPort = 9023

// hangPatience is the balancer's with an endpoint that does not answer.
const hangPatience = 2 * time.Second

// makeTrouble lets one endpoint of the bad fleet after the other crash, hang or
// be killed, and come back, with peace in between.
func (s *soak) makeTrouble(peace time.Duration) {
	r := rand.New(rand.NewPCG(s.Seed, 1))
	for n := 0; ; n++ {
		s.rest(peace + aftermath)
		if s.over() {
			return
		}
		o := s.victims[r.IntN(len(s.victims))]
		down := time.Duration(300+r.IntN(1500)) * time.Millisecond
		var err error
		switch n % 4 {
		case 0:
			s.trouble.begin("crash")
			o.Crash()
			s.rest(down)
			err = o.Open()
		case 1, 2: // it wakes up in the end, or does not
			s.trouble.begin("hang")
			o.Hang()
			s.rest(hangPatience + down)
			if n%4 == 2 {
				o.Crash()
			}
			o.Resume()
			if n%4 == 2 {
				err = o.Open()
			}
		case 3:
			s.trouble.begin("kill")
			s.mortal.Kill()
			s.rest(down)
			err = s.revive()
		}
		s.trouble.end()
		if err != nil {
			s.v.Broken(fmt.Errorf("an endpoint does not come back: %w", err))
			return
		}
	}
}

// revive starts the endpoint that is a process.
func (s *soak) revive() (err error) {
	at := netip.AddrPortFrom(s.world.Host("server").V4, mortalPort)
	s.starts++
	s.mortal, err = s.world.Host("server").Start(fmt.Sprintf("mortal-%d", s.starts), []string{stageEnv + "=" + stageOrigin},
		"/proc/self/exe", "bad3", at.String(), fmt.Sprint(s.Seed))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, readyPatience)
	defer cancel()
	return s.mortal.WaitLine(ctx, "ready:")
}
