// Package lab tries Holdfast on real kernels: hosts are network namespaces on
// one bridge, balancers are real processes, and each octet of the traffic is
// predictable, so that one lost, doubled, reordered or foreign octet is found
// at its offset.
//
// A lab is a named scenario with figures that must hold (see labs). It runs
// in namespaces of its own (Enter), as root or not, and leaves nothing behind.
// The layers, each usable by other labs:
//
//   - world.go, host.go, process.go: the machines and what runs on them;
//   - octets.go, kind.go, flow.go, end.go, engine.go: the traffic, two epoll
//     loops, one at the clients and one at the servers, in this process;
//   - balancer.go and what follows: the product, and substitutes that show
//     whether the lab can tell good from bad;
//   - figures.go, pause.go, stall.go: what was measured, judged against goals.
//
// The lab never trusts the product alone. That a move took place is read from
// the kernel: which process and which host hold the sockets.
package lab
