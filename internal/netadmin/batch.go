package netadmin

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// batch is one transaction of nf_tables that changes elements of sets, written
// into one buffer and sent by one call. It is what a lot of flows costs on each
// host, so it does without the library, which allocates each attribute and
// waits for an answer to each message. Elements go first: a set that has one
// must lose it before it can have it with another verdict.
type batch struct {
	fd       int
	seq      uint32
	buf      []byte
	msg, lst int // where the message and the list under construction begin
	answer   []byte
}

func openBatch() (*batch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netadmin: nft netlink: %w", err)
	}
	return &batch{fd: fd, answer: make([]byte, 1<<16)}, nil
}

func (b *batch) close() { _ = unix.Close(b.fd) }

// begin starts a transaction.
func (b *batch) begin() {
	b.buf = b.buf[:0]
	b.header(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
}

// header starts a message, struct nlmsghdr and struct nfgenmsg.
func (b *batch) header(kind, flags uint16, family uint8, resource uint16) {
	b.seq++
	b.msg = len(b.buf)
	b.buf = append(b.buf, 0, 0, 0, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, flags)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, b.seq)
	b.buf = append(b.buf, 0, 0, 0, 0, family, 0)
	b.buf = binary.BigEndian.AppendUint16(b.buf, resource)
}

func (b *batch) end() {
	binary.NativeEndian.PutUint32(b.buf[b.msg:], uint32(len(b.buf)-b.msg))
}

// open starts a nested attribute and returns its place for shut.
func (b *batch) open(kind uint16) (at int) {
	at = len(b.buf)
	b.buf = append(b.buf, 0, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind|unix.NLA_F_NESTED)
	return at
}

func (b *batch) shut(at int) {
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
}

func (b *batch) attr(kind uint16, data []byte) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(4+len(data)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, data...)
	b.pad()
}

func (b *batch) text(kind uint16, s string) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(4+len(s)+1))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(append(b.buf, s...), 0)
	b.pad()
}

func (b *batch) pad() {
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

// elements starts a message that adds elements to a set or removes them. The
// list is one attribute, whose length has 16 bits: tuplesPerFlush bounds it.
func (b *batch) elements(s *nftables.Set, add bool) {
	kind, flags := uint16(unix.NFT_MSG_DELSETELEM), uint16(unix.NLM_F_REQUEST)
	if add {
		kind, flags = unix.NFT_MSG_NEWSETELEM, unix.NLM_F_REQUEST|unix.NLM_F_CREATE
	}
	b.header(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, uint8(s.Table.Family), 0)
	b.text(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	b.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	b.lst = b.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

func (b *batch) endElements() {
	b.shut(b.lst)
	b.end()
}

// element is the key of a tuple and, unless it is 0, the number of its way.
func (b *batch) element(t Tuple, number uint32) {
	const listElem, dataValue = 1, 1 // NFTA_LIST_ELEM, NFTA_DATA_VALUE
	e := b.open(listElem)
	k := b.open(unix.NFTA_SET_ELEM_KEY)
	at := len(b.buf)
	b.buf = append(b.buf, 0, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, dataValue)
	b.buf = appendKey(b.buf, t)
	b.shut(at)
	b.shut(k)
	if number != 0 {
		d := b.open(unix.NFTA_SET_ELEM_DATA)
		var n [4]byte
		binary.NativeEndian.PutUint32(n[:], number)
		b.attr(dataValue, n[:])
		b.shut(d)
	}
	b.shut(e)
}

// commit ends the transaction and makes the kernel do it, all or nothing. The
// kernel is done when the call returns, and what it has to say then waits: only
// failures, for no message asks for more.
func (b *batch) commit() error {
	b.header(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	for {
		err := unix.Sendto(b.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	var failed error
	for {
		n, _, err := unix.Recvfrom(b.fd, b.answer, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return failed
		case err != nil:
			return err // what it had to say is lost
		}
		for m := b.answer[:n]; len(m) >= unix.NLMSG_HDRLEN+4; {
			l := int(binary.NativeEndian.Uint32(m))
			if l < unix.NLMSG_HDRLEN+4 || l > len(m) {
				break
			}
			if binary.NativeEndian.Uint16(m[4:]) == unix.NLMSG_ERROR && failed == nil {
				if e := -int32(binary.NativeEndian.Uint32(m[unix.NLMSG_HDRLEN:])); e != 0 {
					failed = unix.Errno(e)
				}
			}
			m = m[min((l+3)&^3, len(m)):]
		}
	}
}
