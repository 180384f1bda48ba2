//go:build planted

package planted

import (
	"fmt"
	"os"
	"strings"
)

var current int

// Bug tells whether bug n is there.
func Bug(n int) bool { return n == current }

// Zero forgets *p if bug n is there.
func Zero[T any](n int, p *T) {
	if Bug(n) {
		*p = *new(T)
	}
}

// Cut loses the last octet of *p if bug n is there.
func Cut(n int, p *[]byte) {
	if b := *p; Bug(n) && len(b) > 0 {
		*p = b[:len(b)-1]
	}
}

// Set chooses the bug; 0 is none.
func Set(n int) { current = n }

// All says what each bug is, by number from 1.
var All = []string{
	"",
	"freeze forgets that a leg has ended",
	"freeze forgets that FIN was sent",
	"freeze loses the last unsent octet",
	"freeze forgets the place in the queue",
	"freeze forgets how much was received",
	"a parked flow stays in the table: two owners",
	"the tail of a pipe is lost when a flow is parked",
	"FIN is said to be sent and is not",
	"a socket is restored one sequence number off on the other host",
	"an event's incarnation is not looked at",
	"the slot at the endpoint is not released",
	"a waiter is parked and stays in the queue",
	"what was granted while a flow was parked is dropped",
	"a short write is treated as a full one",
	"a short read ends readiness with FIN pending",
	"octets that lie in the scratch are not settled",
	"thaw forgets the deadline",
	"a descriptor is closed twice",
	"the end of a spliced leg is told before the pipe is empty",
	"RST becomes FIN",
	"freeze forgets which endpoints were tried",
	"a moved flow goes to the end of the queue",
	"the ledger imports a connection twice",
	"the giver forgets to end its account",
	"the kernel is not asked for room after a short write",
	"a muted leg stays muted",
	"a bulk transfer whose pipe is full is not taken up again",
	"the gate is not left when a flow ends",
	"age is lost on a move",
	"a leg is pooled although its server said that it ends",
	"freeze loses the last octet of half a head",
	"a pooled leg is not looked at before a request that can be sent but once",
	"freeze forgets how a body is framed",
	"thaw forgets that a request may have to be sent again",
	"any method may be sent again",
	"freeze forgets that the connection ends with this response",
	"what is sent again lacks its first octet",
	"a leg that was dialled for another version of its endpoint is pooled",
	"a leg is pooled although the request is not whole",
	"a response that was cut off is not reset",
	"what is sent again may go to a pooled leg",
	"interim answers are not passed on",
	"a leg goes to its pool muted",
	"freeze forgets that the leg is good for nothing more",
	"a limit is exceeded by one",
	"who gives a slot back does not look for those who wait",
	"a change of standing is not told to older versions of the backend",
	"the classes of waiters are not looked at",
	"an entry of a sticky table does not expire",
	"a rate lets one more through at once",
	52: "a client with a good cookie is given another one",
	53: "an exchange that went well is not reported",
	54: "a cookie is believed whoever signed it",
	55: "a cookie does not end",
	56: "freeze forgets what the record will say",
	57: "a leg to an endpoint that is out of service is pooled",
	58: "what an attempt has shown is not noted to the endpoint",
	59: "who leaves goes on counting under its source",
	60: "what was under way when a flow is removed is not recorded",
	// Of the journal.
	61: "a group is said to be durable without an fsync",
	62: "a new segment's name is not synced",
	63: "checksums of records and states are not looked at",
	64: "a new segment gets its name before its contents are synced",
	65: "what follows is put behind a torn tail",
	66: "an fsync that failed is tried again, and believed then",
	67: "half a group stays, and the next one is put behind it",
	68: "damage is taken for a torn tail",
	69: "the old segment is removed before the new one is durable",
	70: "a difference is made from a state that did not reach the disk",
	// Of changes of the configuration.
	71: "the next request of a connection is ruled as the first one was",
	72: "a connection whose listener has another name now counts on under the old one",
	73: "idle legs to an address that an endpoint has left stay",
	74: "a change of weight closes idle legs",
	75: "a listener is closed though connections wait in its queue",
	76: "a listener is closed though handshakes with it are under way",
	77: "who is ended by FIN loses what was read for it",
	78: "who has waited is shed as if it came anew",
	79: "who has left goes on counting at its backend",
	80: "connections go on to come under the listener that their socket had before",
	// Of upgrades: the protocol, what is lent, idle legs, the switch.
	81: "flows that were not committed are not given back",
	82: "flows of which nobody knows who has served them are served on",
	83: "what the giver had not committed ends in peace with it",
	84: "a copy that was adopted counts as one still",
	86: "an idle leg that went along stays here as well",
	88: "the giver goes on to grant all that is free after the switch",
	89: "the taker grants before the switch",
	91: "flows that the taker cannot hold are in no table any more",
	93: "a commit that could not be sent counts as sent",
	94: "copies are found in the wrong order",
	95: "a gate has room for who has left to the taker",
	// Of moves to another host.
	85:  "a lot is committed though its sockets are not what was offered any more",
	87:  "a group is held no more while flows of it stand still",
	90:  "flows that were committed when the talk broke are served again, without asking",
	92:  "flows that nobody can tell of count as the other host's",
	96:  "the other host is believed to have one lot more than it said",
	97:  "flows that the other host cannot hold are in no table any more",
	99:  "what was offered when the talk broke is served",
	100: "a lot counts as ours when the answer is sent, and not when it is",
	105: "flows are offered before the other host holds their segments",
}

// Record writes rows into the section of docs/planted-bugs.md that begins and
// ends with the markers of its name.
func Record(file, section string, rows []string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+section+" -->\n", "<!-- end "+section+" -->"
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("planted: %s has no section %s", file, section)
	}
	return os.WriteFile(file, []byte(head+begin+strings.Join(rows, "\n")+"\n"+end+tail), 0o644)
}
