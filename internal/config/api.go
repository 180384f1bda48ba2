package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v4"
)

// API is where the API is served over TCP, to those whose certificate says that
// they may use it. It is immutable, maps included.
type API struct {
	Listen netip.AddrPort
	// Certificate, Key and Trust are absolute paths of PEM files. They are not
	// read here. Trust signed the certificates of those who come.
	Certificate, Key, Trust string
	// Roles says what they may do, by the common name of the certificate or one
	// of its alternative names; who is not there may do nothing. There is one.
	Roles map[string]Role
}

// Role is what somebody may do. Each one includes those before it.
type Role uint8

const (
	ReadRole    Role = iota // look
	OperateRole             // change what flows meet
	AdminRole               // replace the process, and all else
)

var roleWords = []string{"read", "operate", "admin"}

// String gives the word of the file for r.
func (r Role) String() string { return word(roleWords, uint8(r), "role") }

// SortedRoles gives all who have a role, in order.
func (a *API) SortedRoles() []string { return slices.Sorted(maps.Keys(a.Roles)) }

const (
	rolesMax    = 1000
	roleNameMax = 255 // octets
)

var apiKeys = []string{"listen", "certificate", "key", "trust", "roles"}

// NoState is the value of [Node.State] that keeps none.
const NoState = "none"

func checkState(s string) error {
	if s == NoState {
		return nil
	}
	if err := checkFilePath(s); err != nil {
		return fmt.Errorf("%w, or %s", err, NoState)
	}
	return nil
}

// api reads the section node.admin.api.
func (s *section) api() *API {
	a := new(API)
	if s.require("listen", "10.0.0.5:7444") {
		a.Listen = s.addrPort("listen", true)
	}
	for i, path := range []*string{&a.Certificate, &a.Key, &a.Trust} {
		key := identityKeys[i]
		if s.require(key, "/etc/holdfast/"+key+".pem") {
			*path = s.checked(key, "", checkFilePath)
		}
	}
	if s.require("roles", "{ deploy.example.org: operate }") {
		a.Roles = s.roles("roles")
	}
	return a
}

func (s *section) roles(key string) map[string]Role {
	all := make(map[string]Role)
	names := &section{r: s.r, path: join(s.path, key), values: make(map[string]*yaml.Node), out: s.r.mappingOut(true)}
	s.keep(key, names.out)
	entries := s.r.mapping(s.values[key], names.path, "{ deploy.example.org: operate }")
	for _, e := range entries {
		name := e.key.Value
		if err := checkRoleName(name); err != nil {
			s.r.fail(at(e.key), names.path, "%q: %v", clip(name), err)
		}
		names.values[name] = e.value
		all[name] = Role(names.choice(name, uint8(ReadRole), roleWords))
	}
	switch n := s.values[key]; {
	case len(entries) > rolesMax:
		s.fail(key, "%d of them; at most %d are taken", len(entries), rolesMax)
	case len(entries) == 0 && n.Kind == yaml.MappingNode:
		s.fail(key, "is empty, so nobody may do anything; leave out the section api, or name somebody")
	}
	return all
}

// checkRoleName wants what a certificate may hold as a name.
func checkRoleName(name string) error {
	if name == "" || len(name) > roleNameMax || !isPrintable(name) {
		return errors.New("not a name of a certificate: 1 to 255 octets that can be printed, as in deploy.example.org or spiffe://example.org/deploy")
	}
	return nil
}

func (a *API) equal(o *API) bool {
	if a == nil || o == nil {
		return a == o
	}
	return a.Listen == o.Listen && a.Certificate == o.Certificate && a.Key == o.Key && a.Trust == o.Trust && maps.Equal(a.Roles, o.Roles)
}

// String gives all of a on one line, "off" if it is nil.
func (a *API) String() string {
	if a == nil {
		return "off"
	}
	text := fmt.Sprintf("%v certificate %s key %s trust %s roles {", a.Listen, a.Certificate, a.Key, a.Trust)
	for i, name := range a.SortedRoles() {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(" %s: %v", printable(name), a.Roles[name])
	}
	return text + " }"
}
