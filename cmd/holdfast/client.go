package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	api "github.com/holdfast-lb/holdfast/api/holdfast/v1"
	"github.com/holdfast-lb/holdfast/api/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-lb/holdfast/internal/admin/wire"
	"github.com/holdfast-lb/holdfast/internal/node"
	"github.com/holdfast-lb/holdfast/internal/sock"
)

// client asks the running holdfast by its API: over its admin socket, or with
// --server over TCP with certificates of both sides.
type client struct {
	api  holdfastv1connect.NodeClient
	http http.Client
	base string // of URLs
	at   string // socket or server, for messages
	json bool
	sent string // name of the file that is sent, in whose place messages name the node's own
}

// serverEnv names a node elsewhere for a whole session of a shell.
const serverEnv = "HOLDFAST_SERVER"

// connectFlags say where the running holdfast is asked.
func connectFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.String("socket", socketDefault(), "admin socket of the running holdfast; $"+socketEnv+" sets the default")
	flags.String("server", os.Getenv(serverEnv), "HOST:PORT of node.admin.api of one elsewhere, instead of --socket; $"+serverEnv+" sets the default")
	flags.String("cert", os.Getenv("HOLDFAST_CERT"), "with --server: file of our certificate")
	flags.String("key", os.Getenv("HOLDFAST_KEY"), "with --server: file of its key")
	flags.String("ca", os.Getenv("HOLDFAST_CA"), "with --server: file of the authority that we trust")
	flags.Bool("json", false, "print JSON: one object in a line, with the API's names")
}

// asking is a verb that asks a running holdfast.
func asking(do func(c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := newClient(cmd)
		if err != nil {
			return err
		}
		return do(c, args)
	}
}

func newClient(c *cobra.Command) (*client, error) {
	text := func(name string) string { s, _ := c.Flags().GetString(name); return s }
	asJSON, _ := c.Flags().GetBool("json")
	server := text("server")
	if server == "" || c.Flags().Changed("socket") {
		return clientOf(text("socket"), asJSON), nil
	}
	for _, name := range []string{"cert", "key", "ca"} {
		if text(name) == "" {
			return nil, &exit{exitUsage, fmt.Errorf("--server wants --cert, --key and --ca, too: over TCP both sides show certificates; --%s is missing", name)}
		}
	}
	pair, err := tls.LoadX509KeyPair(text("cert"), text("key"))
	if err != nil {
		return nil, &exit{exitFailed, fmt.Errorf("--cert %s, --key %s: %w", text("cert"), text("key"), err)}
	}
	pem, err := os.ReadFile(text("ca"))
	if err != nil {
		return nil, &exit{exitFailed, err}
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(pem) {
		return nil, &exit{exitFailed, fmt.Errorf("%s: has no certificate", text("ca"))}
	}
	x := &client{base: "https://" + server, at: server, json: asJSON}
	x.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: trust},
	}
	x.api = holdfastv1connect.NewNodeClient(&x.http, x.base)
	return x, nil
}

// clientOf asks at socket. Each question has a connection of its own: the next
// one may be for a successor.
func clientOf(socket string, asJSON bool) *client {
	c := &client{base: "http://holdfast", at: socket, json: asJSON}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	c.api = holdfastv1connect.NewNodeClient(&c.http, c.base)
	return c
}

// silently is a client that prints nothing by itself.
func (c *client) silently() *client {
	x := *c
	x.json = false
	return &x
}

// within bounds each question.
func (c *client) within(d time.Duration) *client {
	c.http.Timeout = d
	return c
}

// ask asks by one of the API's methods and fills out, a type of the node, with
// the answer. Under --json the answer is printed as well, and told is false.
func ask[Q, A any, P interface {
	*A
	proto.Message
}](c *client, method func(context.Context, *Q) (P, error), q *Q, out any) (told bool, err error) {
	var m P
	err = lasting(repeatable(q), func() (err error) {
		m, err = method(context.Background(), q)
		return err
	})
	if err != nil {
		return false, c.refusal(err)
	}
	if err := wire.From(m, out); err != nil {
		return false, &exit{exitFailed, err}
	}
	if c.json {
		return false, printMessage(m)
	}
	return true, nil
}

// lasting asks until there is an answer of a process that serves: one that has handed
// over to another says so, having done nothing, and one that has ended since says
// nothing. The latter is asked again if that can do no harm.
func lasting(again bool, do func() error) error {
	for deadline := time.Now().Add(silenceMax); ; time.Sleep(waitPoll) {
		err := do()
		if err == nil || time.Now().After(deadline) || !handedOver(err) && !(again && brokenOff(err)) {
			return err
		}
	}
}

// handedOver tells that a process answers which has handed over.
func handedOver(err error) bool {
	return connect.IsWireError(err) && connect.CodeOf(err) == connect.CodeUnavailable
}

// brokenOff tells that somebody was there and went away without an answer.
func brokenOff(err error) bool {
	var dial *net.OpError
	if connect.IsWireError(err) || errors.As(err, &dial) && dial.Op == "dial" {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, sock.Reset) || errors.Is(err, sock.BrokenPipe)
}

// repeatable tells whether a question that has been asked, perhaps, may be asked
// again: it only looks, or has a key.
func repeatable(q any) bool {
	switch q := q.(type) {
	case interface{ GetIdempotencyKey() string }:
		return q.GetIdempotencyKey() != ""
	case interface{ GetReason() string }, *api.BusyRequest:
		return false
	}
	return true
}

// printMessage prints an answer as one line of JSON.
func printMessage(m proto.Message) error {
	b, err := wire.JSON{}.Marshal(m)
	if err == nil {
		_, err = os.Stdout.Write(b)
	}
	if err != nil {
		return &exit{exitFailed, err}
	}
	return nil
}

// refusal makes an error of a call one with an exit code, in words that say what
// to do.
func (c *client) refusal(err error) error {
	var said *connect.Error
	if !errors.As(err, &said) {
		return &exit{exitFailed, err}
	}
	if !connect.IsWireError(err) {
		return &exit{exitFailed, c.silent(err)}
	}
	if c.json {
		_ = json.NewEncoder(os.Stdout).Encode(problemLine{said.Code().String(), said.Message()}) // it is told below, too
	}
	code, text := exitRefused, "refused: "
	switch said.Code() {
	case connect.CodeInvalidArgument:
		return &exit{code, errors.New(text + c.named(plainly(said)))}
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeDataLoss, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeUnavailable:
		code, text = exitFailed, ""
	case connect.CodeUnimplemented:
		code, text = exitFailed, "that Holdfast is of another release and does not know this: "
	case connect.CodeAborted:
		return &exit{code, fmt.Errorf("%s%s\nsee what has changed: holdfast config diff --since N; then say it again with --expect of the generation in force", text, plainly(said))}
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return &exit{code, fmt.Errorf("%s%s\nroles stand in node.admin.api.roles of the configuration", text, plainly(said))}
	case connect.CodeResourceExhausted:
		return &exit{code, fmt.Errorf("%s%s\nnothing has changed: try again", text, plainly(said))}
	}
	return &exit{code, errors.New(text + plainly(said))}
}

// inside are the names of packages that errors, and the causes in them, begin with;
// they tell people nothing. Of those that are keys of the file, too, a cause may speak.
var inside = regexp.MustCompile(`^(?:(?:admin|node|config|frozen|journal|loop|sock|move|netadmin|tcprepair|vip|health|supervise): )+|(: )(?:(?:frozen|journal|sock|move|netadmin|tcprepair): )+`)

// placed is how a line about a file begins: with the file's name and a place in it.
var placed = regexp.MustCompile(`(?m)^(/.*?):(\d+:\d+: )`)

// named gives lines about the file that was sent its name. The node knows its
// text alone, and calls it by the name of its own.
func (c *client) named(text string) string {
	if c.sent == "" {
		return text
	}
	return placed.ReplaceAllStringFunc(text, func(head string) string {
		return c.sent + ":" + placed.FindStringSubmatch(head)[2]
	})
}

// plainly is what an error says.
func plainly(err *connect.Error) string { return plainText(err.Message()) }

// problemLine is what --json prints instead of an answer: what the API says.
type problemLine struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// silent says why nobody answers, and what to do about it.
func (c *client) silent(err error) error {
	var dial *net.OpError
	unreached := errors.As(err, &dial) && dial.Op == "dial" // no such file, or nobody listens there
	var cause *os.SyscallError
	if errors.As(err, &cause) {
		err = cause.Err // without the request that nobody has typed
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: it answers only its owner; ask as the user that runs holdfast", c.at, err)
	case unreached && strings.HasPrefix(c.base, "https:"):
		return fmt.Errorf("no holdfast answers at %s: %w\n--server wants what node.admin.api.listen says there", c.at, err)
	case unreached:
		return fmt.Errorf("no holdfast answers at %s: %w\nstart one with: holdfast run -c FILE; name another socket with --socket or $%s",
			c.at, err, socketEnv)
	}
	var call *connect.Error
	if errors.As(err, &call) {
		return fmt.Errorf("no answer from %s: %s", c.at, call.Message())
	}
	return fmt.Errorf("no answer from %s: %w", c.at, err)
}

func (c *client) status() (*node.Status, error) {
	var s node.Status
	if _, err := ask(c.silently(), c.api.Status, &api.StatusRequest{}, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// endpointList is the answer of the method Endpoints.
type endpointList struct {
	Endpoints []node.EndpointState `json:"endpoints"`
}

func (c *client) endpoints() ([]node.EndpointState, error) {
	var all endpointList
	_, err := ask(c.silently(), c.api.Endpoints, &api.EndpointsRequest{}, &all)
	return all.Endpoints, err
}

// flowList is the answer of the method Flows.
type flowList struct {
	Flows []node.FlowStatus `json:"flows"`
}

func (c *client) flows(q *api.FlowsRequest) ([]node.FlowStatus, error) {
	var all flowList
	_, err := ask(c.silently(), c.api.Flows, q, &all)
	return all.Flows, err
}

// guarded are the flags that every write has.
type guarded struct {
	reason, key string
	expect      uint64
}

func (g *guarded) register(c *cobra.Command) {
	c.Flags().StringVar(&g.reason, "reason", "", "why, for history and audit log")
	c.Flags().Uint64Var(&g.expect, "expect", 0, "refuse unless this generation is in force")
	c.Flags().StringVar(&g.key, "idempotency-key", "", "sent again with the same one it has no further effect")
}

// guard is what they say. Without a key it has one of its own, so that it can be sent
// again should the process that is asked hand over to another.
func (g *guarded) guard() node.Guard {
	key := g.key
	if key == "" {
		key = "once-" + rand.Text()
	}
	return node.Guard{Author: node.Author{Reason: g.reason}, Expect: g.expect, Key: key}
}
