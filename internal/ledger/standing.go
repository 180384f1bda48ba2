package ledger

import "fmt"

// Admin is what the operator wants of an endpoint. Append-only.
type Admin uint8

const (
	Ready       Admin = iota // it serves
	Quiescing                // nothing new but what is sticky to it
	Held                     // nothing; who finds no other endpoint, or is sticky to it, waits
	Maintenance              // nothing at all
)

var adminWords = []string{"ready", "quiescing", "held", "maintenance"}

// String gives the word for a.
func (a Admin) String() string { return word(adminWords, uint8(a)) }

// Health is what checks have found. Append-only.
type Health uint8

const (
	Unknown  Health = iota // nobody checks it; it serves
	Checking               // its first check is under way: it does not serve yet
	Up                     // it serves
	Down                   // it does not
	Draining               // it says that it wants nothing new but what is sticky to it
)

var healthWords = []string{"unknown", "checking", "up", "down", "draining"}

// String gives the word for h.
func (h Health) String() string { return word(healthWords, uint8(h)) }

func word(words []string, n uint8) string {
	if int(n) < len(words) {
		return words[n]
	}
	return fmt.Sprintf("unknown(%d)", n)
}

// Standing is how an endpoint stands: what rules whether it is chosen.
type Standing struct {
	Admin    Admin
	Health   Health
	Ejected  bool
	Weight   int // the operator's; -1: that of the file
	Permille int // of the weight: slow start, or what an agent says; 1000 is all
}

// standing changes of one call of Stand or StandMany.
type standing struct {
	changes map[string]func(*Standing)
	after   map[string]Standing
	done    bool // guarded by Backend.roll
}

// Stand changes the standing of the endpoint of that full name and gives the new
// one. When it returns, nothing is granted by the old one any more, on any loop;
// what was granted before is counted in InUse. Waiters that may go on have been
// told.
func (b *Backend) Stand(full string, change func(*Standing)) Standing {
	return b.stand(map[string]func(*Standing){full: change})[full]
}

// StandMany is Stand for many endpoints, by full name, and makes the rosters once.
func (b *Backend) StandMany(changes map[string]func(*Standing)) {
	if len(changes) > 0 {
		b.stand(changes)
	}
}

// stand makes the rosters once for all who ask while they are being made: many
// checks that fail at once cost two rounds and not one each.
func (b *Backend) stand(changes map[string]func(*Standing)) map[string]Standing {
	mine := &standing{changes: changes, after: map[string]Standing{}}
	b.asked.Lock()
	b.asks = append(b.asks, mine)
	b.asked.Unlock()

	b.roll.Lock()
	if !mine.done {
		b.asked.Lock()
		asks := b.asks
		b.asks = nil
		b.asked.Unlock()
		changed := false
		for _, s := range asks {
			for full, change := range s.changes {
				e := b.Endpoint(full)
				was := e.Standing()
				is := was
				change(&is)
				if is != was {
					e.standing.Store(&is)
					changed = true
				}
				s.after[full] = is
			}
			s.done = true
		}
		if changed {
			b.remake()
		}
	}
	b.roll.Unlock()
	b.grantAll()
	return mine.after
}
