package tcprepair_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"golang.org/x/sys/unix"

	"github.com/holdfast-lb/holdfast/tcprepair"
)

// A connection is saved, forgotten and restored within one process. Between
// hosts, the encoded state travels, and the packets are diverted meanwhile.
func Example() {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false) // an MPTCP socket cannot be saved
	ln, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(client, "hello")

	// A descriptor outside the runtime's poller, which knows nothing of moves.
	file, err := accepted.(*net.TCPConn).File()
	if err != nil {
		log.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		log.Fatal(err)
	}
	file.Close()

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
	accepted.Close()

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
