package netadmin

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offloadsOff makes eth0 send single segments with checksums in them.
func offloadsOff() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// ETHTOOL_STXCSUM, SGSO, STSO, SGRO (include/uapi/linux/ethtool.h).
	for _, cmd := range []uint32{0x17, 0x24, 0x1f, 0x2c} {
		value := [2]uint32{cmd, 0} // struct ethtool_value
		var ifr struct {           // struct ifreq
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(ifr.name[:], "eth0")
		ifr.data = unsafe.Pointer(&value)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
		runtime.KeepAlive(&value)
		if errno != 0 {
			return errno
		}
	}
	return nil
}
