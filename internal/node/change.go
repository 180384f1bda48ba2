package node

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// Author is who asks for a change, and why, for history and audit.
type Author struct {
	Name   string `json:"name"` // "anna", "uid 1000", "CN=deploy", "file", "start"
	Reason string `json:"reason,omitempty"`
}

// Guard is what every write may bring along.
type Guard struct {
	Author
	// Expect is the generation that the writer has seen: with another one in force
	// the write is refused. 0: any.
	Expect uint64 `json:"expected_generation,omitempty"`
	// Key makes a write that is sent again have no effect: its first answer is
	// given again. "" is none.
	Key string `json:"idempotency_key,omitempty"`
}

// FlowsPolicy says what becomes of flows under objects that a change replaces.
type FlowsPolicy struct {
	// On is keep, adopt or close; "" is what each listener says.
	On string `json:"on,omitempty"`
	// PerSecond paces adopting and closing; 0 is at once. Jitter, 0 to 1, is the
	// share of each interval that is left to chance.
	PerSecond float64 `json:"per_second,omitempty"`
	Jitter    float64 `json:"jitter,omitempty"`
}

// ChangeRequest asks for another desired state: by one of Source, Reread, Edits,
// Revert and Rollback.
type ChangeRequest struct {
	Guard
	Source []byte         `json:"source,omitempty"` // a whole configuration, in place of the file's
	Reread bool           `json:"reread,omitempty"` // the node's file is read again
	Edits  []config.Patch `json:"edits,omitempty"`  // all of them or none
	// Rollback brings back the desired state of that generation.
	Rollback uint64 `json:"rollback,omitempty"`
	// Revert takes edits at run time back: those of Object and Field, all of Object
	// without Field, and every one if Object is "*". The file rules again.
	Revert []config.Patch `json:"revert,omitempty"`

	// DryRun tells what would be done and does nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// RuntimeEdits says what becomes of edits at run time when there is another
	// file: keep (the default), discard, or refuse if there are any that differ.
	RuntimeEdits string      `json:"runtime_edits,omitempty"`
	Flows        FlowsPolicy `json:"flows,omitzero"`
	// Canary is how long the change is watched; then it stays, or on AbortOn is
	// rolled back. 0: not at all.
	Canary time.Duration `json:"canary,omitempty"`
	// AbortOn is as in "errors>1%,p99>250ms"; "" is the default of a canary.
	AbortOn string `json:"abort_on,omitempty"`
	// WaitDurable: the answer comes when the change is durable, too.
	WaitDurable bool `json:"wait_durable,omitempty"`
}

// ErrChanged: the generation in force is not the one that was expected.
var ErrChanged = errors.New("another generation is in force")

// ErrBusy: too many changes wait.
var ErrBusy = errors.New("too many changes wait")

// ErrKey: an idempotency key came with another request than before.
var ErrKey = errors.New("another request had this key")

// ErrNone: what a request names is not there.
var ErrNone = errors.New("there is none of this name")

// missing is an [ErrNone] that says in its own words what there is not.
type missing string

func (m missing) Error() string { return string(m) }

func (m missing) Is(target error) bool { return target == ErrNone }

func missingf(format string, args ...any) error { return missing(fmt.Sprintf(format, args...)) }

// Impact is what a plan does to what is open now.
type Impact struct {
	ListenersAdded   int `json:"listeners_added"`
	ListenersRemoved int `json:"listeners_removed"`
	ListenersChanged int `json:"listeners_changed"`
	BackendsAdded    int `json:"backends_added"`
	BackendsRemoved  int `json:"backends_removed"`
	BackendsChanged  int `json:"backends_changed"`
	EndpointsAdded   int `json:"endpoints_added"`
	EndpointsRemoved int `json:"endpoints_removed"`
	EndpointsChanged int `json:"endpoints_changed"`
	WeightsChanged   int `json:"weights_changed"` // of EndpointsChanged: in nothing but weight
	FlowsClosed      int `json:"flows_closed"`
	FlowsAdopt       int `json:"flows_adopt"`
	FlowsDrain       int `json:"flows_drain"` // go on under what the plan takes away
	FlowsUntouched   int `json:"flows_untouched"`
	IdleLegsClosed   int `json:"idle_legs_closed"`
}

// Drift is one thing of which file and desired state say different things.
type Drift struct {
	Object  string    `json:"object"` // as in config.Patch: "endpoint/web/a2"
	Field   string    `json:"field,omitempty"`
	File    string    `json:"file"`    // "" : the file has no such thing
	Runtime string    `json:"runtime"` // "" : it was deleted at run time
	By      Author    `json:"by"`
	At      time.Time `json:"at"`
	// Became is what a change of the file did to the edit: kept, absorbed (the file
	// says the same now), dropped (what it belongs to is gone), discarded.
	Became string `json:"became,omitempty"`
	Why    string `json:"why,omitempty"`
}

// ChangeReport tells what a change did. Effective and durable are told apart.
type ChangeReport struct {
	Generation uint64 `json:"generation"` // in force now
	Was        uint64 `json:"was"`
	Unchanged  bool   `json:"unchanged,omitempty"`
	DryRun     bool   `json:"dry_run,omitempty"`
	// Superseded: a later reload that waited at the same time did this one's work.
	Superseded bool     `json:"superseded,omitempty"`
	Plan       string   `json:"plan,omitempty"` // a line for each thing
	Impact     Impact   `json:"impact"`
	Warnings   []string `json:"warnings,omitempty"`
	Edits      []Drift  `json:"edits,omitempty"` // runtime edits that the change met
	Loops      int      `json:"loops"`
	// EffectiveMillis is from the request until every loop rules by it.
	EffectiveMillis float64 `json:"effective_ms"`
	// Durable is yes, pending (ask again, or read status), or no with the reason.
	Durable       string  `json:"durable"`
	DurableMillis float64 `json:"durable_ms,omitempty"`
	Flows         int     `json:"flows"` // that adopted it
	Closed        int     `json:"closed"`
	Lost          int     `json:"lost"`
	Following     int     `json:"following,omitempty"` // that are still to adopt or to be closed, paced
	Pause         Pause   `json:"pause_us"`
	// Kernel is by how much the kernel's counters of silent loss grew meanwhile, in
	// this network namespace; those that did not are left out.
	Kernel map[string]uint64 `json:"kernel,omitempty"`
	// ArrivedLate: connections that came to a listener while it was closed.
	ArrivedLate uint64  `json:"arrived_late,omitempty"`
	Canary      string  `json:"canary,omitempty"` // watching until ..., or what came of it
	Millis      float64 `json:"millis"`           // until the answer
	// Of the flows that adopted it: what they carried, what they were doing, and
	// why some could not.
	Octets     uint64         `json:"octets,omitempty"`
	WithOctets int            `json:"with_octets,omitempty"`
	States     map[string]int `json:"states,omitempty"`
	Refused    int            `json:"refused,omitempty"`
	Reasons    map[string]int `json:"reasons,omitempty"`
}

// GenerationInfo is one entry of the history, the newest first.
type GenerationInfo struct {
	Generation uint64    `json:"generation"`
	At         time.Time `json:"at"`
	By         Author    `json:"by"`
	Kind       string    `json:"kind"` // start, file, apply, edit, order, rollback, canary-rollback, shift
	Plan       string    `json:"plan"`
	Durable    bool      `json:"durable"`
	InForce    bool      `json:"in_force,omitempty"`
	Impact     Impact    `json:"impact"`
}

// ConfigState is the desired state now.
type ConfigState struct {
	Generation uint64 `json:"generation"`
	// Source is a file that says all of it, edits included, with the comments of
	// the file where nothing was edited.
	Source []byte  `json:"source"`
	File   string  `json:"file"`
	Edits  []Drift `json:"edits,omitempty"`
	// FileDiffers: the file's text on disk is not the one that was applied last.
	FileDiffers bool      `json:"file_differs,omitempty"`
	By          Author    `json:"by"`
	At          time.Time `json:"at"`
	Durable     string    `json:"durable"`
	Canary      string    `json:"canary,omitempty"`
	// CanaryEnds is when the canary that is watched stays by itself.
	CanaryEnds time.Time `json:"canary_ends,omitzero"`
	// Shifts are the weights that move now.
	Shifts []ShiftState `json:"shifts,omitempty"`
	// Waiting is how many changes wait for their turn.
	Waiting int `json:"waiting"`
}

// SettleRequest ends the canary that is watched, before its time.
type SettleRequest struct {
	Guard
	Keep bool `json:"keep"` // the change stays; else it is rolled back
}

// RemoveRequest takes an endpoint, a backend or a listener away in the open.
type RemoveRequest struct {
	Guard
	Object string `json:"object"` // "endpoint/web/a2", "listener/old"
	// Drain: what is under way may end by itself until Deadline; then the rest is
	// dealt with by Then: rst, fin or migrate (to the peer To).
	Drain    bool          `json:"drain,omitempty"`
	Deadline time.Duration `json:"deadline,omitempty"`
	Then     string        `json:"then,omitempty"`
	To       string        `json:"to,omitempty"`
	Force    bool          `json:"force,omitempty"`
}

// Progress is one step of something that takes a while.
type Progress struct {
	// Phase is quiescing, draining, cutting, watching, shifting; of an upgrade starting,
	// greeting, copying, canary, switching, flows; of a move to another host plan, hold,
	// flows, handshakes, address, settling; of an evacuation also evacuating; waiting, when
	// a peer does not answer; of all done, aborted.
	Phase    string        `json:"phase"`
	InFlight int64         `json:"in_flight"`
	Text     string        `json:"text"`
	Seconds  float64       `json:"seconds"` // since it began
	Done     bool          `json:"done,omitempty"`
	Failed   string        `json:"failed,omitempty"`
	Cut      int           `json:"cut,omitempty"`    // flows that Then dealt with
	Weight   int           `json:"weight,omitempty"` // of a shift, now
	Report   *ChangeReport `json:"report,omitempty"` // of the last step
	// Of an upgrade and of a move: how many flows have moved, of how many, and to
	// which process.
	Flows      int     `json:"flows,omitempty"`
	FlowsTotal int     `json:"flows_total,omitempty"`
	PID        int     `json:"pid,omitempty"`
	Release    string  `json:"release,omitempty"`
	Move       *Report `json:"move,omitempty"` // of the last step
	// Of a move to another host: what moves ("": flows alone), from where to where, the
	// octets in queues that have gone along, how long flows have waited so far, and the
	// seconds that are left at the pace at which flows have gone so far.
	VIP        string  `json:"vip,omitempty"`
	From       string  `json:"from,omitempty"`
	To         string  `json:"to,omitempty"`
	Octets     uint64  `json:"octets,omitempty"`
	Pause      Pause   `json:"pause_us,omitzero"`
	ETASeconds float64 `json:"eta_seconds,omitempty"`
	// Committed: it is past the point of no return.
	Committed bool `json:"committed,omitempty"`
}

// MigrateRequest moves a VIP with its flows to another host, or flows alone.
type MigrateRequest struct {
	Guard
	VIP string `json:"vip,omitempty"` // its name; "": flows alone, and addresses stay where they are
	To  string `json:"to"`            // a node of the cluster
	// Share is which part of the flows moves without a VIP, 0 to 1; 0 is all.
	Share float64 `json:"share,omitempty"`
	// Drain is how long flows that cannot move may go on at the host that gave the VIP
	// away; 0 is a default.
	Drain time.Duration `json:"drain,omitempty"`
}

// EvacuateRequest frees a node of all that is served there.
type EvacuateRequest struct {
	Guard
	Node string `json:"node,omitempty"` // "": the one that is asked
	// To is where its VIPs go; "": each to the node with the same labels that has the
	// fewest flows.
	To    string        `json:"to,omitempty"`
	Drain time.Duration `json:"drain,omitempty"` // as in MigrateRequest
	// Cut ends, by RST, flows that still use the node when Drain is over; without it the
	// evacuation fails then.
	Cut bool `json:"cut,omitempty"`
}

// ReturnRequest ends an evacuation: a node serves again, and the VIPs whose home it is
// come back.
type ReturnRequest struct {
	Guard
	Node  string        `json:"node,omitempty"` // "": the one that is asked
	Drain time.Duration `json:"drain,omitempty"`
	// Stay: VIPs stay where they are; the node only serves again.
	Stay bool `json:"stay,omitempty"`
}

// TakeRequest takes a VIP whose owner is dead, which only an operator can know.
type TakeRequest struct {
	Guard
	VIP string `json:"vip"`
}

// VIPStatus is what a node knows of one VIP.
type VIPStatus struct {
	Name    string       `json:"name"`
	Address netip.Prefix `json:"address"`
	Home    string       `json:"home"`  // the node that owns it when nothing else was said
	Owner   string       `json:"owner"` // the node that answers for it
	Epoch   uint64       `json:"epoch"` // counts the changes of its owner
	// State is owned, moving, guest, elsewhere or silent: here nobody answers for it
	// though it is ours, for the reason Why. Of one that is elsewhere Why says that its owner
	// does not answer.
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	To    string `json:"to,omitempty"` // while it moves
	// LeaseSeconds is how long the kernel here lets it pass without renewal.
	LeaseSeconds float64   `json:"lease_seconds"`
	Since        time.Time `json:"since,omitzero"` // Owner and Epoch are what they are
}

// MoveStatus is what came of a move to another host.
type MoveStatus struct {
	At     time.Time `json:"at"` // when it ended
	By     Author    `json:"by"`
	What   string    `json:"what"`          // migrate, evacuate, return, take
	VIP    string    `json:"vip,omitempty"` // "": flows alone
	From   string    `json:"from"`
	To     string    `json:"to"`
	Result string    `json:"result"` // done, aborted, failed (flows were lost)
	Why    string    `json:"why,omitempty"`
	Move   *Report   `json:"move,omitempty"`
}

// NodeStatus is one node of the cluster as this one sees it.
type NodeStatus struct {
	Name    string            `json:"name"`
	Address string            `json:"address"`
	Self    bool              `json:"self,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Evacuating: it is to be free; its endpoints get nothing new, and no VIP goes there.
	Evacuating bool `json:"evacuating,omitempty"`
	// HeardSeconds is how long ago it answered; below 0: never since this process began.
	HeardSeconds float64 `json:"heard_seconds"`
	Flows        int     `json:"flows"`         // as it said last
	MTU          int     `json:"mtu,omitempty"` // of its device, as it said last
}

// HostResidue is what could not move with a VIP and goes on at the host that gave it
// away.
type HostResidue struct {
	VIP     string         `json:"vip"`
	To      string         `json:"to"` // who owns it now
	Flows   int            `json:"flows"`
	Reasons map[string]int `json:"reasons,omitempty"`
	Until   time.Time      `json:"until"` // they are ended then
}

// UpgradeRequest hands everything over to a new process.
type UpgradeRequest struct {
	Guard
	Binary string `json:"binary,omitempty"` // "": the file this process was started from
	// File is another configuration, which the successor applies before it serves;
	// "": the one in force.
	File string `json:"file,omitempty"`
	// Canary is how long the first flows are watched before the others follow; 0 is
	// a default, below 0 not at all.
	Canary time.Duration `json:"canary,omitempty"`
	// Drain is how long flows that the successor refuses may go on in the old
	// process; 0 is a default.
	Drain time.Duration `json:"drain,omitempty"`
}

// ShiftRequest moves an endpoint's weight gradually.
type ShiftRequest struct {
	Guard
	Backend  string        `json:"backend"`
	Endpoint string        `json:"endpoint"`
	Weight   int           `json:"weight"`
	Over     time.Duration `json:"over"`
	AbortOn  string        `json:"abort_on,omitempty"` // "errors>1%": back to the weight it had
}

// ShiftState is a shift that is under way.
type ShiftState struct {
	Object  string    `json:"object"` // "endpoint/web/a2"
	From    int       `json:"from"`
	To      int       `json:"to"`
	Weight  int       `json:"weight"` // now
	Ends    time.Time `json:"ends"`
	AbortOn string    `json:"abort_on,omitempty"`
	By      Author    `json:"by"`
}

// KillRequest ends flows that a filter wants.
type KillRequest struct {
	Guard
	Filter FlowFilter `json:"filter"`
	ID     string     `json:"id,omitempty"` // this one flow
	// Then is rst (the default) or fin: what was read is sent on, then both sides
	// see an end of file.
	Then      string  `json:"then,omitempty"`
	PerSecond float64 `json:"per_second,omitempty"`
	All       bool    `json:"all,omitempty"` // without a filter nothing is killed unless this says so
}

// KillReport tells how many flows were ended.
type KillReport struct {
	Killed int     `json:"killed"`
	Left   int     `json:"left"` // that still match
	Millis float64 `json:"millis"`
}

// ShedRequest turns away a share of what is new at a backend, for a while.
type ShedRequest struct {
	Guard
	Backend string        `json:"backend"`
	Percent float64       `json:"percent"` // 0 ends it
	As      string        `json:"as,omitempty"`
	For     time.Duration `json:"for,omitempty"` // 0: until it is ended, or the process is
}

// ShedReport tells what is shed now.
type ShedReport struct {
	Backend string    `json:"backend"`
	Percent float64   `json:"percent"`
	Was     float64   `json:"was"`
	As      string    `json:"as,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	Loops   int       `json:"loops"`
	Millis  float64   `json:"effective_ms"`
}

// Event is one thing that happened, for those who watch.
type Event struct {
	// Seq counts events of this node from 1, over upgrades too. A gap is told by an
	// event of kind missed.
	Seq        uint64            `json:"seq"`
	At         time.Time         `json:"at"`
	Kind       string            `json:"kind"` // generation, endpoint, listener, canary, shift, remove, shed, kill, move, upgrade, log, missed
	Generation uint64            `json:"generation"`
	Object     string            `json:"object,omitempty"` // "endpoint/web/a2"
	Text       string            `json:"text"`             // one line for a person
	By         string            `json:"by,omitempty"`
	Fields     map[string]string `json:"fields,omitempty"`
}
