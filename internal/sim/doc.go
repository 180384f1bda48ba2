// Package sim is a deterministic world for tests: a simulated network and
// kernel under real loops, ledgers and frozen flows, all stepped by one
// goroutine in an order that a seed decides. Clients and servers exchange
// octets of which each is predictable; reloads, moves between loops, upgrades,
// migrations, crashes and faults are ordinary events. After each turn checkers
// look at the whole world, which no test on a real kernel can do.
//
// The kernel gives readiness as epoll does: edges when something arrives,
// "writable" only after a write fell short. That it is like Linux in this is
// itself tested (conformance_test.go): one table of scripts runs on both.
package sim
