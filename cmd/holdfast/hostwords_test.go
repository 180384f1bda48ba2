package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-lb/holdfast/internal/node"
)

func init() { scenes["words"] = wordsScene }

// What holds a node that is to be free, and a VIP whose owner hangs, is named with what to do
// about it, and that does it.
func TestWordsOfHosts(t *testing.T) { playsScene(t, "words") }

// says wants words in what a verb prints, and that it fails or does not.
func (n *vipNode) says(fails bool, args []string, words ...string) error {
	out, err := n.verb(args...)
	if fails != (err != nil) {
		return fmt.Errorf("%s: %v: error %v, want one: %t\n%s", n.name, args, err, fails, out)
	}
	if err != nil {
		out = err.Error()
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			return fmt.Errorf("%s: %v: %q is not in\n%s", n.name, args, word, out)
		}
	}
	return nil
}

// wordsScene does what leaves an operator in want of words.
func wordsScene(s *vipScene) error {
	n1, n3 := s.at("n1"), s.at("n3")
	// All flows go on to the server on n1, from n3.
	if err := s.until("n3 heard of by n1", func() bool {
		status, err := n1.client.status()
		return err == nil && !slices.ContainsFunc(status.Nodes, func(x node.NodeStatus) bool { return x.HeardSeconds < 0 || x.MTU != 1500 })
	}); err != nil {
		return err
	}
	held := fmt.Sprintf("%d flows on n3 with app/a1 here (on n3: holdfast flows kill --endpoint app/a1 --yes)", sceneFlows)
	if err := n1.says(true, []string{"evacuate", "--drain", "100ms"}, "n1 is not free after 100ms", held, "--cut", "n1 serves again"); err != nil {
		return err
	}
	if err := s.owned("n3"); err != nil {
		return err
	}
	if err := s.fine("an evacuation in vain", sceneLease/2); err != nil {
		return err
	}
	s.dead = 1 << 20 // from here on flows are ended, and so are those that come after them
	if err := n3.says(false, []string{"evacuate", "--node", "n1", "--drain", "100ms", "--cut"}, "n1 is free", fmt.Sprintf("%d ended by --cut", sceneFlows)); err != nil {
		return err
	}
	if err := n3.says(false, []string{"return", "--node", "n1", "--stay"}, "n1 is back"); err != nil {
		return err
	}

	pid := n3.pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	if err := s.until("a word of the owner that hangs", func() bool {
		v := n1.vip()
		return v.State == "elsewhere" && strings.Contains(v.Why, "n3 owned it last") && strings.Contains(v.Why, "holdfast vips take "+hostsVIP)
	}); err != nil {
		return err
	}
	if err := n1.says(true, []string{"migrate", "--vip", hostsVIP, "--to", "n1"}, "n3 has not answered for ", "n3 did not answer within ", "holdfast vips take "+hostsVIP); err != nil {
		return err
	}
	return n1.says(false, []string{"vips", "take", hostsVIP, "--yes"}, hostsVIP+" is on n1")
}
