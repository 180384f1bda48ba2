package netadmin

import (
	"errors"
	"net/netip"
	"time"
)

var errUnfinished = errors.New("netadmin: not in force yet")

// Sending is what is led or forwarded: what is for Addr goes to the host To.
type Sending struct {
	Addr netip.Addr `json:"addr"`
	To   netip.Addr `json:"to"`
}

// Lease is what is left of the leave to answer, or to speak TCP, for an address.
type Lease struct {
	Addr netip.Prefix  `json:"addr"`
	Left time.Duration `json:"left"`
}

// State is what is in force, for who comes later and has to know.
type State struct {
	Fenced    []netip.Prefix   `json:"fenced,omitempty"`
	Owned     []Lease          `json:"owned,omitempty"`
	Guests    []Lease          `json:"guests,omitempty"`
	Learning  []netip.AddrPort `json:"learning,omitempty"`
	Led       []Sending        `json:"led,omitempty"`
	Forwarded []Sending        `json:"forwarded,omitempty"`
	Held      []Tuple          `json:"held,omitempty"`
	Diverted  []Diversion      `json:"diverted,omitempty"`
	Here      []Tuple          `json:"here,omitempty"`
	Steered   *Steering        `json:"steered,omitempty"`
}

// Fence names the movable addresses of this cluster.
func (a *Admin) Fence(addrs []netip.Prefix) error { return errUnfinished }

// Own lets the address pass for the time of a lease, or renews it.
func (a *Admin) Own(p netip.Prefix, lease time.Duration) error { return errUnfinished }

// Disown ends Own at once.
func (a *Admin) Disown(addr netip.Addr) error { return errUnfinished }

// Guest lets TCP of the address pass.
func (a *Admin) Guest(addr netip.Addr, d time.Duration) error { return errUnfinished }

// Announce tells neighbours where the address is.
func (a *Admin) Announce(addr netip.Addr) error { return errUnfinished }

// Learn notes the tuples of SYNs.
func (a *Admin) Learn(on []netip.AddrPort) error { return errUnfinished }

// Handshakes lists those that have begun and are not finished.
func (a *Admin) Handshakes(addr netip.Addr) ([]Tuple, error) { return nil, errUnfinished }

// Lead sends new handshakes to another host.
func (a *Admin) Lead(addr, to netip.Addr) error { return errUnfinished }

// Forward sends all TCP of an address to another host.
func (a *Admin) Forward(addr, to netip.Addr) error { return errUnfinished }

// Here keeps tuples on this host.
func (a *Admin) Here(ts []Tuple) error { return errUnfinished }

// Forget ends all that concerns an address.
func (a *Admin) Forget(addr netip.Addr) error { return errUnfinished }

// State tells what is in force.
func (a *Admin) State() (State, error) { return State{}, errUnfinished }
