package tcprepair

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

type timer struct{ sum time.Duration }

func (t *timer) time(f func()) {
	at := time.Now()
	f()
	t.sum += time.Since(at)
}

// full is a State with every field set.
func full(v6 bool) *State {
	s := &State{
		Local: netip.MustParseAddrPort("192.0.2.1:443"), Remote: netip.MustParseAddrPort("198.51.100.7:50123"),
		TCP: LastAck, FinUnsent: true, SACK: true, WindowScaling: true, SendScale: 7, RecvScale: 14,
		Timestamps: true, Timestamp: 0xfffffff1, MSS: 1448, ECN: true, SendSeq: 5, RecvSeq: 0xfffffffe,
		Window:    Window{SendWL1: 0xfffffff0, SendWindow: 65536, MaxWindow: 131072, RecvWindow: 70000, RecvWup: 0xfffffffd},
		RecvQueue: []byte("read me"), SendQueue: []byte("write me"), Unsent: 3, OutOfOrder: true,
		RecvBuffer: 131072, SendBuffer: 87040, BufferLock: 3, TOS: 0x88, Mark: 300,
		NoDelay: true, OOBInline: true, KeepAlive: true,
		KeepIdle: 60, KeepInterval: 10, KeepCount: 3, UserTimeout: 30000, Congestion: "bbr",
	}
	if v6 {
		s.Local = netip.MustParseAddrPort("[2001:db8::1]:443")
		s.Remote = netip.MustParseAddrPort("[2001:db8::7]:50123")
	}
	return s
}

func TestCodec(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := full(v6)
		v := reflect.ValueOf(*s)
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Fatalf("field %s of the test's State is not set", v.Type().Field(i).Name)
			}
		}
		b, err := s.AppendBinary([]byte("before"))
		must(t, "AppendBinary", err)
		b = b[len("before"):]
		var got State
		must(t, "UnmarshalBinary", got.UnmarshalBinary(b))
		if !reflect.DeepEqual(&got, s) {
			t.Errorf("got %+v\nwant %+v", got, *s)
		}
		// Cut anywhere, it is refused; so is one octet more.
		for i := range b {
			if err := new(State).UnmarshalBinary(b[:i]); !errors.Is(err, ErrInvalid) {
				t.Errorf("first %d octets: %v", i, err)
			}
		}
		if err := new(State).UnmarshalBinary(append(b, 0)); !errors.Is(err, ErrInvalid) {
			t.Errorf("one octet more: %v", err)
		}
	}
}

// The encoding itself is a promise between releases: what is written now, and
// what the first version wrote.
func TestCodecVersions(t *testing.T) {
	const fixed = "\x09\xe7\x03" +
		"\xc0\x00\x02\x01\xbb\x01" + "\xc6\x33\x64\x07\xcb\xc3" +
		"\x05\x00\x00\x00\xfe\xff\xff\xff\xf1\xff\xff\xff" +
		"\xf0\xff\xff\xff\x00\x00\x01\x00\x00\x00\x02\x00\x70\x11\x01\x00\xfd\xff\xff\xff" +
		"\xa8\x0b\x03\x80\x80\x08\x80\xa8\x05\x3c\x0a\x03\xb0\xea\x01" +
		"\x03bbr"
	const queues = "\x07read me\x08write me"
	s := full(false)
	if got, want := mustAppend(t, s), []byte("\x02\xfe\x03"+fixed+"\x88\xac\x02"+queues); !bytes.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	s.TOS, s.Mark, s.OOBInline = 0, 0, false
	var first State
	must(t, "version 1", first.UnmarshalBinary([]byte("\x01\xfe\x01"+fixed+queues)))
	if !reflect.DeepEqual(&first, s) {
		t.Errorf("version 1: got %+v\nwant %+v", first, *s)
	}
	if err := first.UnmarshalBinary([]byte("\x01\xfe\x03" + fixed + queues)); !errors.Is(err, ErrInvalid) {
		t.Errorf("version 1 with a flag of version 2: %v", err)
	}
}

func TestCodecRefuses(t *testing.T) {
	for what, spoil := range map[string]func(s *State){
		"no addresses":           func(s *State) { s.Local = netip.AddrPort{} },
		"mixed families":         func(s *State) { s.Local = netip.MustParseAddrPort("[::1]:1") },
		"mapped address":         func(s *State) { s.Local = netip.MustParseAddrPort("[::ffff:1.2.3.4]:1") },
		"unspecified address":    func(s *State) { s.Remote = netip.MustParseAddrPort("0.0.0.0:1") },
		"port 0":                 func(s *State) { s.Remote = netip.AddrPortFrom(s.Remote.Addr(), 0) },
		"SYN_SENT":               func(s *State) { s.TCP = SynSent },
		"no state":               func(s *State) { s.TCP = 0 },
		"FIN unsent, not closed": func(s *State) { s.TCP = Established },
		"unsent before FIN":      func(s *State) { s.FinUnsent = false },
		"scale":                  func(s *State) { s.SendScale = 15 },
		"scale without option":   func(s *State) { s.WindowScaling = false },
		"no MSS":                 func(s *State) { s.MSS = 0 },
		"unsent beyond queue":    func(s *State) { s.Unsent = 9 },
		"data in FIN_WAIT2":      func(s *State) { s.TCP, s.FinUnsent, s.Unsent = FinWait2, false, 0 },
		"TOS with ECN":           func(s *State) { s.TOS = 1 },
		"buffer lock":            func(s *State) { s.BufferLock = 4 },
		"buffer":                 func(s *State) { s.RecvBuffer = 1<<30 + 1 },
		"long name":              func(s *State) { s.Congestion = strings.Repeat("x", 16) },
		"control in name":        func(s *State) { s.Congestion = "a\x00b" },
		"window":                 func(s *State) { s.Window.MaxWindow = 1 },
		"wl1":                    func(s *State) { s.Window.SendWL1 = s.RecvSeq + s.Window.RecvWindow + 1 },
		"wup":                    func(s *State) { s.Window.RecvWup = s.RecvSeq + 1 },
		"queue":                  func(s *State) { s.RecvQueue = make([]byte, MaxQueue+1) },
	} {
		s := full(false)
		must(t, "check", s.check())
		spoil(s)
		if _, err := s.AppendBinary(nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: AppendBinary: %v", what, err)
		}
		if _, err := Restore(s, Options{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Restore: %v", what, err)
		}
	}
	b := mustAppend(t, full(false))
	for what, spoil := range map[string]func(b []byte) []byte{
		"version": func(b []byte) []byte { b[0] = 3; return b },
		"flag":    func(b []byte) []byte { b[2] |= 0x80; return b },
		"long varint": func(b []byte) []byte {
			i := bytes.Index(b, []byte("\x07read me"))
			return append(append(append([]byte(nil), b[:i]...), 0x87, 0x00), b[i+1:]...)
		},
	} {
		s := *full(true)
		if err := s.UnmarshalBinary(spoil(bytes.Clone(b))); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
		if !reflect.DeepEqual(&s, full(true)) {
			t.Errorf("%s: changed although refused", what)
		}
	}
}

// String is what ends up in logs.
func TestStringShowsNoOctets(t *testing.T) {
	if s := full(false).String(); strings.Contains(s, "me") {
		t.Error(s)
	}
}

// FuzzUnmarshalBinary: whatever is accepted is valid and has one encoding.
func FuzzUnmarshalBinary(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		f.Add(mustAppend(f, full(v6)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		if err := s.UnmarshalBinary(b); err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if b[0] == 1 {
			return // no longer written
		}
		again, err := s.AppendBinary(nil)
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%x\nencodes as\n%x, %v", b, again, err)
		}
	})
}
