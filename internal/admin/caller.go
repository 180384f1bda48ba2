package admin

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// caller is who asks, as the connection tells it: a request cannot say so.
type caller struct {
	name string
	role config.Role
	may  bool // has any role
}

// roles says what one must at least be for each method. What is not here is for
// nobody.
var roles = map[string]config.Role{
	holdfastv1connect.NodeStatusProcedure:    config.ReadRole,
	holdfastv1connect.NodeFlowsProcedure:     config.ReadRole,
	holdfastv1connect.NodeEndpointsProcedure: config.ReadRole,
	holdfastv1connect.NodeGetConfigProcedure: config.ReadRole,
	holdfastv1connect.NodeHistoryProcedure:   config.ReadRole,
	holdfastv1connect.NodeWatchProcedure:     config.ReadRole,

	// A configuration that is tried out may name variables of the environment, which
	// the plan then shows.
	holdfastv1connect.NodeDiffProcedure:        config.OperateRole,
	holdfastv1connect.NodeSettleProcedure:      config.OperateRole,
	holdfastv1connect.NodeSetEndpointProcedure: config.OperateRole,
	holdfastv1connect.NodeRemoveProcedure:      config.OperateRole,
	holdfastv1connect.NodeShiftProcedure:       config.OperateRole,
	holdfastv1connect.NodeKillProcedure:        config.OperateRole,
	holdfastv1connect.NodeShedProcedure:        config.OperateRole,
	holdfastv1connect.NodeRebalanceProcedure:   config.OperateRole,
	holdfastv1connect.NodeSetLogProcedure:      config.OperateRole,

	// Who says what is desired says also who may do what, and can have a listener
	// lead to the admin socket.
	holdfastv1connect.NodeApplyProcedure:    config.AdminRole,
	holdfastv1connect.NodeMigrateProcedure:  config.AdminRole,
	holdfastv1connect.NodeEvacuateProcedure: config.AdminRole,
	holdfastv1connect.NodeReturnProcedure:   config.AdminRole,
	holdfastv1connect.NodeTakeProcedure:     config.AdminRole,
	holdfastv1connect.NodeUpgradeProcedure:  config.AdminRole,
	holdfastv1connect.NodeBusyProcedure:     config.AdminRole,

	"/grpc.health.v1.Health/Check":                                   config.ReadRole,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      config.AdminRole,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": config.AdminRole,
}

// requestsMax bounds the requests that are served at once, each of which may have
// a body of bodyMax octets. Watchers are bounded by the node.
const (
	requestsMax = 256
	bodyMax     = 16 << 20
)

type callKey struct{}

// call is a request of the API under way.
type call struct {
	caller
	from  string // address; "" is the socket
	gate  *atomic.Int64
	holds bool   // counts in gate
	after func() // when the answer has been written
}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		panic("admin: a call that did not come through a door")
	}
	return c
}

// identified has next know who asks. Identify tells it by the request.
func (s *Server) identified(next http.Handler, identify func(*http.Request) caller) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{caller: identify(r), gate: &s.underWay}
		if r.TLS != nil {
			c.from = r.RemoteAddr
		}
		defer func() {
			if c.holds {
				c.gate.Add(-1)
			}
			if c.after != nil {
				c.after()
			}
		}()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
	})
}

// admit judges a request before its body is read.
func (s *Server) admit(ctx context.Context, spec connect.Spec, _ connect.Peer, _ http.Header) (context.Context, error) {
	c := callOf(ctx)
	least, known := roles[spec.Procedure]
	if !c.may || !known || c.role < least {
		role := "none"
		if c.may {
			role = c.role.String()
		}
		err := connect.NewError(connect.CodePermissionDenied, fmt.Errorf("admin: %s has the role %s, and %s wants %s", c.name, role, method(spec.Procedure), least))
		if least > config.ReadRole {
			s.audit.note(entry{call: c, method: method(spec.Procedure), err: err})
		}
		return ctx, err
	}
	if spec.Procedure == holdfastv1connect.NodeWatchProcedure {
		return ctx, nil
	}
	if c.gate.Add(1) > requestsMax {
		c.gate.Add(-1)
		return ctx, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("admin: %d requests are under way, which is the most", requestsMax))
	}
	c.holds = true
	return ctx, nil
}

type userKey struct{}

// bySocket tells who is at the other end of the unix socket. Whoever could open
// it may do all.
func bySocket(ctx context.Context, c net.Conn) context.Context {
	name := "unknown"
	if u, ok := c.(*net.UnixConn); ok {
		if uid, err := sock.PeerUser(u); err == nil {
			name = "uid " + strconv.Itoa(uid)
			if who, err := user.LookupId(strconv.Itoa(uid)); err == nil {
				name = who.Username
			}
		}
	}
	return context.WithValue(ctx, userKey{}, caller{name, config.AdminRole, true})
}

func socketCaller(r *http.Request) caller {
	c, _ := r.Context().Value(userKey{}).(caller)
	return c
}

// namesOf are the names that a certificate has, the more telling ones first.
func namesOf(c *x509.Certificate) []string {
	var all []string
	for _, u := range c.URIs {
		all = append(all, u.String())
	}
	all = append(all, c.DNSNames...)
	all = append(all, c.EmailAddresses...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if c.Subject.CommonName != "" {
		all = append(all, c.Subject.CommonName)
	}
	return all
}

// certified gives the role of a certificate: the strongest that one of its names
// has.
func certified(c *x509.Certificate, may map[string]config.Role) caller {
	names := namesOf(c)
	who := caller{name: "a certificate without a name"}
	if len(names) > 0 {
		who.name = names[0]
	}
	for _, name := range names {
		if role, ok := may[name]; ok && (!who.may || role > who.role) {
			who = caller{name, role, true}
		}
	}
	return who
}
