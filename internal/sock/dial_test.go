package sock

import (
	"net/netip"
	"testing"
)

// An address that is not here is told from one that has no port left.
func TestDialFrom(t *testing.T) {
	l, err := Listen(ListenSpec{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spec := DialSpec{Addr: LocalAddr(l), Source: netip.MustParseAddr("127.0.0.2"), PortMin: 60998, PortMax: 60998} // within ip_local_port_range
	first, _, e := Dial(&spec)
	if e != 0 {
		t.Fatal(e)
	}
	defer first.Close()
	if _, _, e := Dial(&spec); e != NoPort {
		t.Errorf("the only port is in use: %v", e)
	}
	spec.Source = netip.MustParseAddr("192.0.2.77")
	if _, _, e := Dial(&spec); e != NoAddress {
		t.Errorf("the address is not here: %v", e)
	}
}
