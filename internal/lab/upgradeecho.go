package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stageEcho is the stage of a re-executed program that is the ends of a few
// flows on which a word goes to and fro each millisecond. They are apart from
// all other traffic, and each has a thread of its own: what they see late, was
// late.
const stageEcho = "echo"

const (
	echoWord  = 16 // octets of a word
	echoEvery = time.Millisecond
	// echoPatience ends a flow whose word does not come back.
	echoPatience = 10 * time.Second
)

// echoSide is the clients of the echo flows. Its exported methods are called
// over a unix socket.
type echoSide struct {
	flows []*echoFlow

	mu    sync.Mutex // guards what follows
	delay Histogram  // since it was asked last
	fault []string
}

// echoFlow is one flow. Its thread writes worst, who asks takes it.
type echoFlow struct {
	fd    int
	key   uint64
	sent  atomic.Uint64
	worst atomic.Int64 // the longest that a word took
}

// EchoReport tells what was since it was asked last.
type EchoReport struct {
	Words  uint64
	Delay  ReloadDelay     // from when a word was sent until it was back
	Worst  []time.Duration // of each flow
	Faults []string        // since the beginning
}

// Look reports, and begins anew.
func (e *echoSide) Look(_ bool, r *EchoReport) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := &e.delay
	r.Delay = ReloadDelay{h.N, h.Quantile(0.5), h.Quantile(0.99), h.Quantile(0.999), h.Max}
	e.delay = Histogram{}
	for _, f := range e.flows {
		r.Worst = append(r.Worst, time.Duration(f.worst.Swap(0)))
		r.Words += f.sent.Load()
	}
	r.Faults = e.fault
	return nil
}

func (e *echoSide) fail(i int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fault = append(e.fault, fmt.Sprintf("%s echo flow %d: %s", time.Now().Format("15:04:05.000"), i, errorText(err)))
}

// blocking makes a socket that its thread may wait in.
func blocking(fd int) error {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	t := unix.NsecToTimeval(int64(echoPatience))
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t)
}

func (f *echoFlow) dial(to netip.AddrPort) error {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f.fd = fd
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return fmt.Errorf("connect %v: %w", to, err)
	}
	return blocking(fd)
}

// word is the n-th of a flow: no two are the same.
func (f *echoFlow) word(n uint64) (b [echoWord]byte) {
	binary.BigEndian.PutUint64(b[:], n)
	binary.BigEndian.PutUint64(b[8:], mix(f.key+n*golden))
	return b
}

// readFull reads all of b; the end of file is an error.
func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		b = b[n:]
	}
	return nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// run sends words until something is wrong. There is one out, or the next one
// is due within a millisecond: no pause is longer than what the worst word took
// and that millisecond.
func (e *echoSide) run(f *echoFlow) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with the flow
	due := time.Now()
	for n := uint64(1); ; n++ {
		due = due.Add(echoEvery)
		for left := time.Until(due); left > 0; left = time.Until(due) {
			t := unix.NsecToTimespec(int64(left))
			_ = unix.Nanosleep(&t, nil)
		}
		want, began := f.word(n), time.Now()
		if began.After(due.Add(echoEvery)) {
			due = began // what was due meanwhile is not made up for
		}
		if err := writeFull(f.fd, want[:]); err != nil {
			return fmt.Errorf("word %d: %w", n, err)
		}
		var got [echoWord]byte
		if err := readFull(f.fd, got[:]); err != nil {
			return fmt.Errorf("word %d: %w", n, err)
		}
		if got != want {
			return fmt.Errorf("word %d: %x came back for %x", n, got, want)
		}
		took := time.Since(began)
		f.sent.Store(n)
		if int64(took) > f.worst.Load() {
			f.worst.Store(int64(took))
		}
		e.mu.Lock()
		e.delay.Add(took)
		e.mu.Unlock()
	}
}

// echoServe sends back what comes, a thread for each connection.
func echoServe(addr string, out io.Writer) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	lis, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = unix.SetsockoptInt(lis, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := errors.Join(unix.Bind(lis, sockaddr(at)), unix.Listen(lis, 64)); err != nil {
		return fmt.Errorf("lab: echo: listen %v: %w", at, err)
	}
	if _, err := fmt.Fprintf(out, "ready: %d\n", os.Getpid()); err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept4(lis, unix.SOCK_CLOEXEC)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return fmt.Errorf("lab: echo: accept: %w", err)
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		go func() { // ends with the connection
			runtime.LockOSThread()
			defer func() { _ = unix.Close(fd) }()
			var b [4096]byte
			for {
				n, err := unix.Read(fd, b[:])
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if n <= 0 || err != nil || writeFull(fd, b[:n]) != nil {
					return
				}
			}
		}()
	}
}

// echoMain is either end: "serve ADDRESS", or "call SOCKET ADDRESS FLOWS SEED".
func echoMain(args []string, out io.Writer) error {
	if len(args) == 2 && args[0] == "serve" {
		return echoServe(args[1], out)
	}
	if len(args) != 5 || args[0] != "call" {
		return fmt.Errorf("lab: echo: %q", args)
	}
	to, err := netip.ParseAddrPort(args[2])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[4], 10, 64)
	if err != nil {
		return err
	}
	e := &echoSide{}
	for i := range n {
		f := &echoFlow{key: mix(seed + uint64(i)*golden)}
		if err := f.dial(to); err != nil {
			return fmt.Errorf("lab: echo: %w", err)
		}
		e.flows = append(e.flows, f)
	}
	for i, f := range e.flows {
		go func() { // ends with the flow, or with the process
			e.fail(i, e.run(f))
		}()
	}
	tell, err := net.Listen("unix", args[1])
	if err != nil {
		return err
	}
	s := rpc.NewServer()
	if err := s.RegisterName("Echo", e); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "ready: %d\n", os.Getpid()); err != nil {
		return err
	}
	s.Accept(tell)
	return errors.New("lab: echo: the socket is closed")
}
