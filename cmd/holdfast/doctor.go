package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/netadmin"
	"github.com/holdfast-lb/holdfast/internal/node"
)

func doctorCommand() *cobra.Command {
	var file, name string
	asJSON := false
	c := &cobra.Command{
		Use:   "doctor -c FILE",
		Short: "Say what this host lacks for moves between hosts, and what that costs",
		Long: "Probes this host: what it finds missing, what that costs, and what helps, a line each. As root it\n" +
			"probes more. Exit status: 0 all is there, 1 something is missing; warnings do not count.",
		Args: wants(0, 1, "one FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			file, err := given("doctor", file, args)
			if err != nil {
				return err
			}
			if err := beNode("doctor", name); err != nil {
				return err
			}
			if file, err = filepath.Abs(file); err != nil {
				return &exit{exitFailed, err}
			}
			text, err := os.ReadFile(file)
			if err != nil {
				return &exit{exitFailed, err}
			}
			conf, warnings, err := config.Parse(file, text, os.LookupEnv)
			if err != nil {
				return failed(err)
			}
			socket := conf.Node.AdminSocket
			if c.Flags().Changed("socket") {
				socket, _ = c.Flags().GetString("socket")
			}
			return examine(conf, warnings, socket, asJSON)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	nodeFlag(c, &name)
	c.Flags().BoolVar(&asJSON, "json", false, "one object a line")
	return c
}

func examine(c *config.Config, warnings config.Warnings, socket string, asJSON bool) error {
	var all []netadmin.Finding
	if c.Cluster == nil {
		all = append(all, netadmin.Finding{What: "cluster", Verdict: netadmin.Costs, Says: "the file has no cluster section", Cost: "nothing moves between hosts, and no privilege is needed", Fix: "docs/operate.md has an example"})
	} else {
		x := netadmin.Examination{Device: c.Cluster.Device, Self: c.Cluster.Listen.Addr(), Peers: map[string]netip.AddrPort{}, Socket: netadminPath(c),
			FirstPort: c.Cluster.SourcePortFirst, LastPort: c.Cluster.SourcePortLast}
		for name, at := range c.Cluster.Peers {
			if name != c.Node.Name {
				x.Peers[name] = at
			}
		}
		all = netadmin.Examine(x)
		known, mine := identity(c, time.Now())
		all = append(all, known...)
		if mine != nil {
			all = append(all, strangers(c, mine)...)
		}
		var nodes []node.NodeStatus
		s, err := clientOf(socket, false).status()
		if err == nil {
			nodes = s.Nodes
		}
		all = append(append(all, sizes(nodes, err)...), staying(c)...)
	}
	for _, w := range warnings {
		all = append(all, netadmin.Finding{What: "file", Verdict: netadmin.Costs, Says: w.String()})
	}
	missing := 0
	for _, f := range all {
		if f.Verdict == netadmin.Missing {
			missing++
		}
		if asJSON {
			line, err := json.Marshal(f)
			if err != nil {
				return &exit{exitFailed, err}
			}
			fmt.Println(string(line))
			continue
		}
		fmt.Println(findingLine(f))
	}
	if missing > 0 {
		return &exit{code: exitFailed}
	}
	return nil
}

func findingLine(f netadmin.Finding) string {
	text := fmt.Sprintf("%-8s %s: %s", f.Verdict, f.What, f.Says)
	if f.Cost != "" {
		text += "\n         costs: " + f.Cost
	}
	if f.Fix != "" {
		text += "\n         fix: " + f.Fix
	}
	return text
}

// staying names what of the file cannot move to another host.
func staying(c *config.Config) (all []netadmin.Finding) {
	var plain []string
	for _, l := range c.SortedListeners() {
		switch {
		case l.Movable:
		case l.VIP.Addr().IsUnspecified():
			all = append(all, netadmin.Finding{What: "listener " + l.Ref.Name, Verdict: netadmin.Costs, Says: fmt.Sprintf("takes connections at every address (%v)", l.VIP), Cost: "its flows stay on their host, and end with it", Fix: "a listener on a VIP of vips"})
		default:
			plain = append(plain, l.Ref.Name)
		}
	}
	if len(plain) > 0 {
		slices.Sort(plain)
		all = append(all, netadmin.Finding{What: "listeners", Verdict: netadmin.Good, Says: strings.Join(plain, ", ") + " stay on their host, for they are on no VIP"})
	}
	return all
}
