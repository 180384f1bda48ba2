// Package bench measures what Holdfast costs next to HAProxy and nginx.
//
// One run measures one row: all proxies stand side by side, each in front of
// a backend port of its own, and take turns for several rounds, so that
// whatever else the machine does hits them alike. Proxies are pinned to the
// first CPUs, the load generator and the backend to the one after. The figure
// that counts is the CPU time of the proxy per operation: it says how much
// work a core can do, and it is far steadier than a rate on a shared machine.
//
// The load generator and the backend are this same program, started again
// with a role (see [Child]); each is one thread with one epoll instance and
// raw non-blocking system calls. They check every octet: a wrong one, a lost
// connection or a short count fails the run.
//
// The package owns every process it starts and ends each by its id. It uses
// system calls directly and is no part of the product.
package bench
