package sock

import (
	"bytes"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lossy names the counters of the kernel that grow when connections or segments
// are lost and no call says so (include/uapi/linux/snmp.h; the names are those of
// /proc/net/netstat and /proc/net/snmp). Never written to.
var Lossy = [...]string{
	"ListenOverflows", "ListenDrops", "TCPReqQFullDrop", "EmbryonicRsts", "TCPAbortOnMemory",
	"TCPAbortOnData", "TCPAbortOnClose", "TCPAbortOnTimeout", "AttemptFails", "EstabResets", "OutRsts",
}

var lossy = func() map[string]int {
	m := map[string]int{}
	for i, name := range Lossy {
		m[name] = i
	}
	return m
}()

// Losses are the values of [Lossy] in one network namespace, since that was made.
type Losses [len(Lossy)]uint64

// Since tells by how much each counter has grown since before; those that have not
// are left out.
func (x *Losses) Since(before *Losses) map[string]uint64 {
	grown := map[string]uint64{}
	for i, n := range x {
		if n > before[i] {
			grown[Lossy[i]] = n - before[i]
		}
	}
	return grown
}

// LossReader reads [Losses] by one call for each of the kernel's two files, and
// allocates nothing. It is not safe for two at once.
type LossReader struct {
	files [2]FD
	room  []byte
}

// lossRoom holds either file: the longer one has some 130 counters of up to 20
// digits, and their names.
const lossRoom = 16 << 10

// OpenLosses opens the counters of this process's network namespace.
func OpenLosses() (*LossReader, error) {
	r := &LossReader{files: [2]FD{NoFD, NoFD}, room: make([]byte, lossRoom)}
	for i, path := range []string{"/proc/self/net/netstat", "/proc/self/net/snmp"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("sock: open %s: %w", path, err)
		}
		r.files[i] = born(uintptr(fd))
	}
	return r, nil
}

// Close gives the files back.
func (r *LossReader) Close() {
	for i := range r.files {
		r.files[i].Close()
		r.files[i] = NoFD
	}
}

// Read fills x. A counter that this kernel does not have stays 0.
func (r *LossReader) Read(x *Losses) error {
	*x = Losses{}
	for _, fd := range r.files {
		// A read from the start is made of counters of one moment (fs/seq_file.c).
		n, _, e := syscall.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(r.room))), uintptr(len(r.room)), 0, 0, 0)
		if e != 0 {
			return fmt.Errorf("sock: read the kernel's counters: %w", e)
		}
		parseLosses(r.room[:n], x)
	}
	return nil
}

// parseLosses reads pairs of lines: the first names what the second one counts.
func parseLosses(text []byte, x *Losses) {
	for len(text) > 0 {
		var names, values []byte
		names, text = cutLine(text)
		values, text = cutLine(text)
		for len(names) > 0 && len(values) > 0 {
			var name, value []byte
			name, names, _ = bytes.Cut(names, blank)
			value, values, _ = bytes.Cut(values, blank)
			if i, ok := lossy[string(name)]; ok {
				x[i] = decimal(value)
			}
		}
	}
}

var blank, newline = []byte(" "), []byte("\n")

func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, newline)
	return line, rest
}

// decimal reads a number without a sign; what is none is 0.
func decimal(b []byte) (n uint64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}
