package holdfast_test

import (
	"testing"

	"github.com/holdfast-lb/holdfast/internal/lint"
)

// The architecture as a table. Imports point up it, never down. It has rows for
// packages that are planned as well: a package without a row is a failure, so
// that each new one is a decision somebody wrote down here.
var layers = []lint.Layer{
	{Package: "tcprepair"}, // public: save and restore one TCP socket
	// What can be asked of a node: generated messages, service and client.
	{Package: "api/holdfast/v1"},
	{Package: "api/holdfast/v1/holdfastv1connect", Imports: []string{"api/holdfast/v1"}},
	{Package: "internal/frozen"}, // what a flow is, at rest
	{Package: "internal/config"}, // what is wanted
	// Bugs to be found by the simulation; without its build tag it is constants
	// that the compiler removes.
	{Package: "internal/planted"},
	{Package: "internal/frozen/frozentest", Imports: []string{"internal/frozen"}},

	{Package: "internal/h1", Imports: []string{"internal/frozen", "internal/planted"}}, // HTTP/1.x: heads, and the framing of bodies
	{Package: "internal/proxyproto"}, // the header that says whom a proxy speaks for
	{Package: "internal/sock", Imports: []string{"internal/frozen"}},
	{Package: "internal/journal", Imports: []string{"internal/sock", "internal/planted"}}, // generations on disk
	{Package: "internal/netadmin", Imports: []string{"tcprepair"}},
	{Package: "internal/vip"}, // who owns an address
	{Package: "internal/ledger", Imports: []string{"internal/config", "internal/planted"}},
	{Package: "internal/balance", Imports: []string{"internal/config", "internal/ledger"}},
	{Package: "internal/health", Imports: []string{"internal/config", "internal/ledger"}},               // the judge of endpoints
	{Package: "internal/probe", Imports: []string{"internal/config", "internal/health", "internal/h1"}}, // its eyes
	{Package: "internal/supervise", Imports: []string{"internal/sock"}},                                 // who started the process, and keeps its listeners
	{Package: "internal/supervise/supervisetest", Imports: []string{"internal/sock"}},                   // the other end, for tests
	{Package: "internal/resolve"},                                                                       // names by TTL
	{Package: "internal/flow", Imports: []string{
		"internal/h1", "internal/proxyproto", "internal/config", "internal/balance", "internal/ledger", "internal/frozen", "internal/planted"}},
	{Package: "internal/loop", Imports: []string{
		"internal/flow", "internal/h1", "internal/config", "internal/sock", "internal/ledger", "internal/balance", "internal/frozen", "internal/planted"}},
	{Package: "internal/accesslog", Imports: []string{"internal/flow", "internal/config", "internal/sock"}}, // a line for each exchange
	{Package: "internal/move", Imports: []string{"internal/frozen", "internal/planted", "internal/sock"}},
	{Package: "internal/node", Imports: []string{
		"internal/loop", "internal/move", "internal/flow", "internal/balance", "internal/ledger", "internal/config",
		"internal/health", "internal/probe", "internal/resolve", "internal/accesslog", "internal/journal",
		"internal/sock", "internal/frozen", "internal/netadmin", "internal/planted", "internal/vip", "tcprepair"}},
	{Package: "internal/page", Imports: []string{"internal/config", "internal/node"}}, // HTML and SVG of a look at a node
	{Package: "internal/admin/wire"}, // messages of the API <-> the node's types and JSON
	{Package: "internal/admin", Imports: []string{ // sock: the umask of its socket, and who is at its other end
		"api/holdfast/v1", "api/holdfast/v1/holdfastv1connect", "internal/admin/wire",
		"internal/config", "internal/node", "internal/page", "internal/sock"}},

	// The worlds for tests. Nothing above imports them but from its own tests.
	{Package: "internal/sim", Imports: []string{
		"internal/loop", "internal/move", "internal/flow", "internal/balance", "internal/ledger", "internal/config",
		"internal/sock", "internal/frozen", "internal/frozen/frozentest", "internal/netadmin", "internal/planted", "internal/vip", "tcprepair"}},
	{Package: "internal/lab", Imports: []string{"internal/config", "internal/sock", "internal/lab/corpus"}},
	{Package: "internal/lab/corpus"},                                     // raw request streams and what becomes of them, as functions of octets
	{Package: "internal/lab/mainjob", Imports: []string{"internal/lab"}}, // apart: its world needs real users
	{Package: "internal/bench", Imports: []string{"internal/config", "internal/sock"}},
	{Package: "internal/demo"},  // the traffic of the command and of its test
	{Package: "internal/hosts"}, // the network of namespaces of demo --hosts
	{Package: "internal/lint/..."},

	{Package: "."},
	{Package: "cmd/...", Imports: []string{"*"}}, // it wires all
}

// One package knows each library, so that it can be replaced, and so that a
// reader knows where to look. A library without a row may not be used.
var owners = []lint.Owner{
	{Import: "go.yaml.in/yaml/v4", Packages: []string{"internal/config"}},
	{Import: "github.com/spf13/cobra", Packages: []string{"cmd/..."}},
	{Import: "charm.land/bubbletea/v2", Packages: []string{"cmd/holdfast"}}, // the live view of `top`
	{Import: "charm.land/lipgloss/v2", Packages: []string{"cmd/holdfast"}},  // and its colours
	{Import: "github.com/spf13/pflag", Packages: []string{"cmd/..."}},       // cobra's flags; their errors are put in plain words
	{Import: "google.golang.org/protobuf", Packages: []string{"internal/frozen/...", "api/...", "internal/admin/...", "cmd/holdfast"}, Tests: true},
	{Import: "connectrpc.com", Packages: []string{"internal/admin", "cmd/holdfast"}, Tests: true},

	{Import: "github.com/prometheus/client_golang", Packages: []string{"internal/admin"}},
	{Import: "github.com/miekg/dns", Packages: []string{"internal/resolve"}},

	// Links, addresses, rules: those who hold and divert, and those who build
	// networks to test in.
	{Import: "github.com/vishvananda/netlink", Packages: []string{"internal/netadmin", "internal/hosts", "internal/lab", "internal/lab/mainjob", "internal/bench"}},
	{Import: "github.com/vishvananda/netns", Packages: []string{"internal/netadmin", "internal/lab", "internal/bench"}},
	{Import: "github.com/google/nftables", Packages: []string{"internal/netadmin", "internal/lab", "internal/bench"}},

	// The kernel. Tests may make descriptors of their own.
	{Import: "golang.org/x/sys/unix", Packages: kernel, Tests: true},
	{Import: "syscall", Packages: kernel, Tests: true, Open: "SIG"},
	{Import: "unsafe", Packages: kernel, Tests: true}, // tests of sizes

	{Import: "github.com/google/go-cmp", Tests: true},
	{Import: "github.com/santhosh-tekuri/jsonschema/v6", Tests: true}, // holds the schema of the file against a second reader
}

var kernel = []string{"internal/sock", "tcprepair", "internal/netadmin", "internal/hosts", "internal/lab", "internal/lab/mainjob", "internal/bench"}

// Facts come into these as arguments: no clock, no chance, no kernel, no
// goroutine, no log. The planned ones are named as well.
var machines = []string{
	"internal/flow", "internal/balance", "internal/health", "internal/config",
	"internal/h1", "internal/h2", "internal/tlsrec", "internal/proxyproto", "internal/vip",
}

func TestDirection(t *testing.T) {
	report(t, lint.Direction(load(t), lint.Table{Layers: layers, Owners: owners}))
}

func TestMachinesTouchNothing(t *testing.T) {
	report(t, lint.Machines(load(t), machines))
}
