package tcprepair_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// A connection is saved, forgotten and restored within one process. Between
// hosts, the encoded state travels, and the packets are diverted meanwhile.
func Example() {
	client, fd := pair()
	fmt.Fprint(client, "hello")

	state, err := tcprepair.Save(fd)
	if err != nil {
		log.Fatal(err)
	}
	wire, err := state.AppendBinary(nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := tcprepair.Discard(fd); err != nil { // the point of no return
		log.Fatal(err)
	}

	// The other side.
	var moved tcprepair.State
	if err := moved.UnmarshalBinary(wire); err != nil {
		log.Fatal(err)
	}
	fd, err = tcprepair.Restore(&moved, tcprepair.Options{Inject: tcprepair.InjectRaw})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := tcprepair.GoLive(fd, &moved); err != nil {
		log.Fatal(err)
	}

	buf := make([]byte, 16)
	n, err := unix.Read(fd, buf)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("restored socket read %q\n", buf[:n])
	if _, err := unix.Write(fd, []byte("hello again")); err != nil {
		log.Fatal(err)
	}
	unix.Close(fd)
	n, err = client.Read(buf)
	fmt.Printf("client read %q, %v\n", buf[:n], err)
	// Output:
	// restored socket read "hello"
	// client read "hello again", <nil>
}

// The process that owns the connections needs no privilege: here, functions stand
// for the messages by which it passes descriptors to a helper that has it.
func ExampleRestoreOn() {
	// The helper's whole part.
	toggle := tcprepair.SetRepair
	open := func(p tcprepair.SocketSpec) (int, error) { return p.Open() }

	client, fd := pair()
	fmt.Fprint(client, "hello")
	if errs := tcprepair.EnterRepair([]int{fd}, toggle); errs != nil {
		log.Fatal(errs[0])
	}
	state, err := tcprepair.Save(fd)
	if err != nil {
		log.Fatal(err)
	}
	if err := tcprepair.Discard(fd); err != nil {
		log.Fatal(err)
	}

	options := tcprepair.Options{Inject: tcprepair.InjectRaw}
	if fd, err = open(state.Spec(options)); err != nil {
		log.Fatal(err)
	}
	if err := tcprepair.RestoreOn(fd, state, options); err != nil {
		log.Fatal(err)
	}
	lot := []tcprepair.Socket{{FD: fd, State: state}}
	tcprepair.GoLiveAll(lot, toggle)
	if lot[0].Err != nil {
		log.Fatal(lot[0].Err)
	}
	fmt.Println("live, octets that did not fit yet:", len(lot[0].Rest))
	unix.Close(fd)
	// Output: live, octets that did not fit yet: 0
}

// A move that is called off: the other side could not, or something arrived
// although it should have been held.
func ExampleResume() {
	client, fd := pair()
	defer unix.Close(fd)
	state, err := tcprepair.Save(fd)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(client, "nobody held this back")
	buf := make([]byte, 64)
	for {
		if err = tcprepair.Verify(fd, state); err != nil {
			break
		}
	}
	fmt.Println("to be discarded:", !errors.Is(err, tcprepair.ErrMoved))
	if err := tcprepair.Resume(fd); err != nil {
		log.Fatal(err)
	}
	n, err := unix.Read(fd, buf)
	fmt.Printf("resumed socket read %q, %v\n", buf[:n], err)
	// Output:
	// to be discarded: false
	// resumed socket read "nobody held this back", <nil>
}

// What cannot be moved says why, and whether to try again in a moment.
func ExampleUnsupported() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		log.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		log.Fatal(err)
	}
	_, err = tcprepair.Save(fd)
	var no *tcprepair.Unsupported
	if errors.As(err, &no) {
		fmt.Println(no.What, "- again:", no.Retry)
		fmt.Println(no.Why)
	}
	// Output:
	// LISTEN - again: false
	// listeners are opened anew; accept what waits, then move those connections
}

// Many connections, one State: its queues' memory is used again and again.
func ExampleSaveTo() {
	var state tcprepair.State
	var wire []byte
	for _, text := range []string{"one", "another"} {
		client, fd := pair()
		fmt.Fprint(client, text)
		if err := tcprepair.SaveTo(&state, fd, tcprepair.SaveOptions{}); err != nil {
			log.Fatal(err)
		}
		var err error
		if wire, err = state.AppendBinary(wire[:0]); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q to be read, less than 100 octets on the wire: %v\n", state.RecvQueue, len(wire) < 100)
		if err := tcprepair.Discard(fd); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// "one" to be read, less than 100 octets on the wire: true
	// "another" to be read, less than 100 octets on the wire: true
}

// pair makes a connection over loopback. Its accepted end is a descriptor outside
// the runtime's poller, which knows nothing of moves.
func pair() (client net.Conn, fd int) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false) // an MPTCP socket cannot be saved
	ln, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp4", ln.Addr().String()); err != nil {
		log.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		log.Fatal(err)
	}
	file, err := accepted.(*net.TCPConn).File()
	if err != nil {
		log.Fatal(err)
	}
	if fd, err = unix.Dup(int(file.Fd())); err != nil {
		log.Fatal(err)
	}
	file.Close()
	accepted.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		log.Fatal(err)
	}
	return client, fd
}
