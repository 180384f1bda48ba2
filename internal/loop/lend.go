package loop

import "github.com/holdfast-lb/holdfast/internal/sock"

// While descriptors are lent another process has duplicates of a loop's sockets, to
// serve them later. Nothing changes for a flow; but a close says nothing to the peer
// as long as there is a duplicate, and leaves what watches the socket behind. So
// meanwhile a socket is ended before it is closed, and its cookie is told, that the
// duplicate be closed, too.

// Lend lists the descriptors of all legs, with a flow or idle, and begins that each
// close has its full effect at once, whoever has duplicates. do is called at once; nil:
// the sockets came from somebody who still has descriptors, so nobody asks what was
// Dropped. To be called between turns.
func (l *Loop) Lend(do func(fds []sock.FD)) {
	l.lent, l.tells = true, do != nil
	if do == nil {
		return
	}
	fds := make([]sock.FD, 0, 2*l.Load()+l.idle.n)
	l.each(func(_ uint32, s *slot) { fds = append(fds, s.client.fd) })
	for _, chunk := range l.table.legs.chunks {
		for k := range chunk {
			if b := &chunk[k]; b.live && b.fd >= 0 {
				fds = append(fds, b.fd)
			}
		}
	}
	do(fds)
}

// EndLending ends it: no other process has a duplicate.
func (l *Loop) EndLending() { l.lent, l.tells, l.dropped = false, false, nil }

// Dropped are the cookies of the sockets that were closed since Lend, or since it was
// asked last; the caller's. Among them are those of sockets that have come since.
func (l *Loop) Dropped() []uint64 {
	d := l.dropped
	l.dropped = nil
	return d
}

// close ends a leg that is watched, or may be. Negative descriptors are none.
func (l *Loop) close(fd sock.FD) {
	if !l.lent || fd < 0 {
		l.k.Close(fd)
		return
	}
	l.drop(fd)
	l.k.CloseLent(fd)
}

// closeReset is close by RST.
func (l *Loop) closeReset(fd sock.FD) {
	if !l.lent || fd < 0 {
		l.k.CloseReset(fd)
		return
	}
	l.drop(fd)
	l.k.CloseResetLent(fd)
}

// drop takes a socket out of the poller, where its entry would outlive the
// descriptor, and notes that it ends.
func (l *Loop) drop(fd sock.FD) {
	_ = l.k.Unwatch(fd) // it may not be watched yet
	if !l.tells {
		return
	}
	if c, err := l.k.Cookie(fd); err == nil {
		l.dropped = append(l.dropped, c)
	}
}
