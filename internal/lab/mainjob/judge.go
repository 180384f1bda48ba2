package mainjob

import (
	"fmt"
	"time"

	"github.com/holdfast-lb/holdfast/internal/lab"
)

// judgeWitnesses says who has changed; nameless is how many witnesses have no other
// end that matters.
func (j *job) judgeWitnesses(nameless int) {
	var changes, errs []string
	identities := map[string]string{}
	asked := map[string]int{}
	for _, w := range j.witnesses {
		w.mu.Lock()
		changes = append(changes, w.changes...)
		if w.err != nil {
			errs = append(errs, w.err.Error())
		}
		if w.identity != "" {
			identities[w.name] = w.identity
		}
		asked[w.name] = w.asked
		w.mu.Unlock()
	}
	j.v.figure("identities", identities)
	j.v.figure("asked", asked)
	j.v.figure("identity_changes", len(changes))
	j.v.figure("errors", len(errs))
	j.v.must(len(identities) == len(j.witnesses)-nameless, "sessions whose other end is known", fmt.Sprint(len(identities)), fmt.Sprint(len(j.witnesses)-nameless))
	j.v.zero("identity changes", changes)
	j.v.zero("sessions that ended with an error", errs)
}

// judgeMessages compares what was published with what came. The subscriber
// cannot be asked who it is; redis can, on another connection.
func (j *job) judgeMessages() {
	c := j.messages
	heard, err := c.finish()
	j.v.figure("messages", heard)
	j.v.must(err == nil && heard == c.sent, "published messages that came to the subscriber", fmt.Sprintf("%d of %d (%v)", heard, c.sent, orNone(err)), "all")
	direct, err := dialRedis("redis direct", redisServer)
	listed := ""
	if err == nil {
		listed, err = direct.do("CLIENT", "LIST", "ID", c.id)
	}
	j.v.must(err == nil && listed != "", "the subscriber that redis knew at first", fmt.Sprintf("%d octets of description (%v)", len(listed), orNone(err)), "still there")
	events := 0
	for _, n := range j.events {
		events += n
	}
	j.v.must(j.open.done == events, "transactions open over an event",
		fmt.Sprintf("%d executed", j.open.done), "one for each event")
}

// judgeSession ends the transaction that was open all the time.
func (j *job) judgeSession() {
	got, err := j.session.ask(`COMMIT; SELECT count(*) FROM held;`)
	want := fmt.Sprint(j.session.rows)
	j.v.figure("rows", j.session.rows)
	j.v.must(err == nil && got == want, "rows of the temporary table after COMMIT", fmt.Sprintf("%s (%v)", got, orNone(err)), want)
	said := j.session.tail()
	j.v.must(said == "", "what psql had to say", fmt.Sprintf("%q", said), "nothing")
}

func (j *job) judgeStalls() {
	s := &j.stalls // complete: nobody asks any more
	longest, late, count, most := map[string]float64{}, map[string]int{}, 0, s.most()
	for w := range whens {
		longest[w.String()], late[w.String()] = millis(s.longest[w]), s.late[w]
		count += s.count[w]
		j.v.say("redis PING, %-8s %5d of them, longest %8.2f ms, %d longer than %v", w.String()+":", s.count[w], millis(s.longest[w]), s.late[w], lateAfter)
	}
	j.v.figure("pings", count)
	j.v.figure("max_stall_ms", millis(most))
	j.v.figure("max_stall_ms_by_event", longest)
	j.v.figure("late_pings_by_event", late)
	// Not a goal of speed, which depends on the machine: a client that waits
	// so long has noticed.
	const stallMax = time.Second
	j.v.must(most < stallMax, "longest stall of a redis PING", fmt.Sprintf("%.1f ms", millis(most)), fmt.Sprintf("less than %v", stallMax))
}

// judgeAccounts asks each Holdfast what it knows to have lost.
func (j *job) judgeAccounts() {
	if j.sabotage == lab.BlindRelay {
		return // nobody to ask
	}
	var lost []string
	for _, b := range j.balancers {
		var a account
		if err := b.verb(&a, "status"); err != nil {
			lost = append(lost, err.Error())
		} else if a.Lost > 0 || a.ResetByMove > 0 {
			lost = append(lost, fmt.Sprintf("%s: lost %d, reset by a move %d", b.name, a.Lost, a.ResetByMove))
		}
		if j.session == nil || j.sabotage != "" {
			continue
		}
		var open struct {
			Flows []struct {
				ID     string `json:"id"`
				Client string `json:"client"`
				Moves  int    `json:"moves"`
			} `json:"flows"`
		}
		if err := b.verb(&open, "flows", "--max", "0"); err != nil {
			lost = append(lost, err.Error())
		}
		for _, f := range open.Flows {
			if j.reader != nil && j.reader.gaveUp > 0 && f.Client == j.reader.on.LocalAddr().String() {
				continue // its client opened it on the way, instead of one that was well
			}
			// Standing flows have been through all rebalances and upgrades.
			if want := j.events[rebal] + j.events[upgrade]; f.Moves < want {
				lost = append(lost, fmt.Sprintf("%s: flow %s has moved %d times of %d", b.name, f.ID, f.Moves, want))
			}
		}
	}
	j.v.zero("flows lost or left behind, by Holdfast's own account", lost)
}
