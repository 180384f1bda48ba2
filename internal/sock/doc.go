// Package sock is the one place of the data plane that talks to the kernel:
// every system call, every unsafe pointer and every layout of a kernel
// structure stands here. It owns no state of its own; what it hands out is an
// [FD], and whoever holds the FD owns the descriptor.
//
// Two kinds of calls are kept apart. Calls on non-blocking descriptors go
// through RawSyscall: they never sleep, so the Go scheduler need not be told.
// The one call that may sleep, [Poller.Wait] with a timeout, goes through
// Syscall, so that a collection of garbage is never held up by an idle loop.
//
// Functions of the hot path return an [Errno], never an error: converting one
// to an interface allocates. Everywhere else errors name the call and its
// arguments and wrap the Errno.
package sock
