package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

// netadminLeft is how long a privileged process that run has started waits for
// another client when the last one has gone in order.
const netadminLeft = 3 * time.Second

// keptEnv says to this program, run anew, that another process of it begins it again when it
// is killed.
const keptEnv = "HOLDFAST_NETADMIN_KEPT"

func netadminCommand() *cobra.Command {
	var file, name, socket string
	var as string
	child := false
	c := &cobra.Command{
		Use:   "netadmin -c FILE",
		Short: "Run the one privileged process that moves between hosts need",
		Long: "Changes the kernel's rules, addresses and sockets for the process that serves, which itself needs no\n" +
			"privilege: for the addresses that move by the file, and for no others. It needs CAP_NET_ADMIN. It outlives\n" +
			"the process that serves; after its own end the rules stay, leases of addresses run out by themselves, and\n" +
			"the next one takes over what is left. run starts one where none answers; packaging/ has a unit for it.",
		Args: wants(0, 1, "one FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := given("netadmin", file, args)
			if err != nil {
				return err
			}
			if err := beNode("netadmin", name); err != nil {
				return err
			}
			if child && os.Getenv(keptEnv) == "" {
				err := netadmin.Keep(keptEnv+"=1", slog.New(slog.NewTextHandler(os.Stderr, nil)))
				if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
					return &exit{code: max(exitFailed, ended.ExitCode())} // why it has said itself
				}
				return err
			}
			uid, err := userID(as)
			if err != nil {
				return &exit{exitUsage, fmt.Errorf("netadmin: --user: %w", err)}
			}
			if err := beNetadmin(file, socket, uid, child); err != nil {
				return failed(err)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	nodeFlag(c, &name)
	c.Flags().StringVar(&socket, "at", "", "the socket; by default cluster.netadmin of the file")
	c.Flags().StringVar(&as, "user", "0", "the `user`, beside root, whose process is served: a name or a number")
	c.Flags().BoolVar(&child, "child", false, "begin again when killed; end, and clean up, when the process that serves has ended in order")
	return c
}

func userID(name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil && id >= 0 {
		return id, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(u.Uid)
}

// clusterOf reads the file; a Config without a cluster is nil.
func clusterOf(file string) (*config.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, _, err := config.Parse(file, text, os.LookupEnv)
	if err != nil || c.Cluster == nil {
		return nil, err
	}
	return c, nil
}

// netadminPath is where the privileged process of this node is. Nodes with admin
// sockets of their own on one machine have privileged processes of their own.
func netadminPath(c *config.Config) string {
	if admin := c.Node.AdminSocket; admin != defaultSocket && c.Cluster.Netadmin == config.DefaultNetadmin {
		return filepath.Join(filepath.Dir(admin), "net"+filepath.Base(admin))
	}
	return c.Cluster.Netadmin
}

func beNetadmin(file, socket string, uid int, child bool) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := clusterOf(file)
	if err != nil {
		return err
	}
	if c == nil {
		return fmt.Errorf("%s has no cluster section, so nothing moves between hosts", file)
	}
	if socket == "" {
		socket = netadminPath(c)
	}
	if may, err := netadmin.Privileged(); err != nil || !may {
		return errors.Join(err, errors.New("CAP_NET_ADMIN is missing: begin it as root, or see packaging/holdfast-netadmin.service"))
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	l, err := netadmin.Listen(socket, uid)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	setup := netadmin.Config{Device: c.Cluster.Device, Log: log}
	if t := c.Cluster.Tunnel; t.ID != 0 {
		setup.Tunnel = &netadmin.Tunnel{Local: c.Cluster.Listen.Addr(), ID: int(t.ID), Port: int(t.Port)}
	}
	a, err := netadmin.Adopt(setup)
	if err != nil {
		return err
	}
	s := netadmin.NewServer(a, uid, rightsFrom(file, c, uid, log), log)
	if child {
		s.LeftTime = netadminLeft
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends when l is closed
	fmt.Printf("ready: device %s, socket %s, pid %d\n", c.Cluster.Device, socket, os.Getpid())
	forsaken := s.Forsaken()
	if !child {
		forsaken = nil
	}
	clean := false
	select {
	case <-signals:
		// Who serves goes on, and the next privileged process takes over; without
		// clients nobody needs what is in force.
		clean = !s.Busy()
	case <-forsaken:
		clean = true
	case err := <-served:
		return err
	}
	_ = l.Close()
	s.Close()
	<-served
	if clean {
		return a.Close()
	}
	log.Info("what is in force stays for the process that serves, until the next privileged one comes")
	return nil
}

// renounced says to this program, run anew, that it has given its privilege up.
const renouncedEnv = "HOLDFAST_RENOUNCED"

// privileged sees to the privileged process of a node in a cluster, and gives this
// process's own privilege up: then it returns only with an error, and the
// program begins anew. path is that process's socket, "" without a cluster.
func privileged(file string) (path string, err error) {
	c, err := clusterOf(file)
	if err != nil || c == nil {
		return "", nil // what is wrong with the file is said by who reads it next
	}
	path = netadminPath(c)
	may, err := netadmin.Privileged()
	if err != nil {
		return "", err
	}
	client, err := netadmin.Dial(path)
	switch {
	case err == nil:
		_ = client.Close()
	case errors.Is(err, netadmin.ErrOtherNetwork):
		return "", fmt.Errorf("%w; give each node its own cluster.netadmin", err)
	case errors.Is(err, netadmin.ErrTurnedAway):
		return "", fmt.Errorf("%w\nits rules stay while it is begun anew, and no flow notices: systemctl restart holdfast-netadmin; one that run started: kill -KILL and its process id, and its parent begins it again; after SIGTERM nobody does", err)
	case !may:
		return "", fmt.Errorf("%w\nmoves between hosts need a privileged process: holdfast netadmin -c %s, as root or with CAP_NET_ADMIN (packaging/holdfast-netadmin.service); or run this as root, which starts one itself", err, file)
	default:
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		args := []string{"netadmin", "--child", "--at", path, "-c", file, "--user", strconv.Itoa(os.Geteuid())}
		if err := netadmin.Spawn(args, path, path+".log"); err != nil {
			return "", err
		}
	}
	if !may || os.Getenv(node.InheritEnv) != "" || os.Getenv(renouncedEnv) != "" {
		return path, nil
	}
	return "", netadmin.Renounce(append(os.Environ(), renouncedEnv+"=1"))
}
