package sock

import (
	"net/netip"
	"testing"
)

// A listener on an address that this host has not, for it may get it later, is
// opened with FreeBind and not without.
func TestListenWhereTheAddressIsNotYet(t *testing.T) {
	for _, at := range []string{"192.0.2.77:0", "[2001:db8::77]:0"} {
		s := ListenSpec{Addr: netip.MustParseAddrPort(at), Backlog: 1}
		if fd, err := Listen(s); err == nil {
			fd.Close()
			t.Errorf("%s: a listener was opened on an address that is not here", at)
		}
		s.FreeBind = true
		fd, err := Listen(s)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		if got := LocalAddr(fd).Addr(); got != s.Addr.Addr() {
			t.Errorf("%s: listens on %v", at, got)
		}
		fd.Close()
	}
}
