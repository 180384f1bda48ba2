package config

import (
	"testing"
	"time"
)

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abc", 0},
		{"abc", "abd", 1},
		{"abc", "ab", 1},
		{"ab", "abc", 1},
		{"vpi", "vip", 1},
		{"endponts", "endpoints", 1},
		{"kitten", "sitting", 3},
		{"saturday", "sunday", 3},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestNearest(t *testing.T) {
	for _, c := range []struct{ wrong, want string }{
		{"vpi", "vip"},
		{"vi", "vip"},
		{"max", ""},
		{"v", ""},
		{"", ""},
		{"protokol", "protocol"},
		{"protocoll", "protocol"},
		{"idle_timeout", "idleTimeout"},
		{"connection-max", "connectionsMax"},
		{"timeout", ""},
		{"weight", ""},
	} {
		if got := nearest(c.wrong, listenerKeys); got != c.want {
			t.Errorf("%q: got %q, want %q", c.wrong, got, c.want)
		}
	}
	if got := nearest("web3", []string{"web2", "web1"}); got != "web1" {
		t.Errorf("of two that are equally near: got %q, want the first by name", got)
	}
}

func TestExpand(t *testing.T) {
	for _, c := range []struct {
		in, want string
		expanded bool
	}{
		{"", "", false},
		{"plain", "plain", false},
		{"$DB2 $ $$ }", "$DB2 $ $$ }", false},
		{"${DB2}", "10.0.0.32", true},
		{"${DB2}:${COUNT}", "10.0.0.32:4", true},
		{"a${EMPTY}b", "ab", true},
		{"${EMPTY:-x}", "x", true},
		{"${UNSET:-}", "", true},
		{"${UNSET:-a:-b}", "a:-b", true},
		{"${DB2:-x}", "10.0.0.32", true},
		{"${AGAIN}", "${DB2}", true},
	} {
		got, expanded, err := expand(c.in, lookup)
		if got != c.want || expanded != c.expanded || err != nil {
			t.Errorf("%q: got %q, %v, %v, want %q, %v", c.in, got, expanded, err, c.want, c.expanded)
		}
	}
	if _, _, err := expand("${DB2}", nil); err == nil {
		t.Error("without lookup a variable is set")
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                             "0s",
		250 * time.Millisecond:        "250ms",
		10 * time.Second:              "10s",
		10 * time.Minute:              "10m",
		20 * time.Hour:                "20h",
		90 * time.Second:              "1m30s",
		time.Hour + time.Second:       "1h0m1s",
		time.Hour + 10*time.Minute:    "1h10m",
		8760 * time.Hour:              "8760h",
		1500 * time.Microsecond:       "1.5ms",
		100*time.Hour + 5*time.Second: "100h0m5s",
	} {
		if got := durationText(d); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if back, err := parseDuration(durationText(d)); err != nil || back != d {
			t.Errorf("%s: read back as %v, %v", want, back, err)
		}
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Kind(0).String(), "none"},
		{EndpointKind.String(), "endpoint"},
		{Kind(9).String(), "kind(9)"},
		{AdoptFlows.String(), "adopt"},
		{Change(9).String(), "change(9)"},
		{Least.String(), "least"},
		{Balance(9).String(), "balance(9)"},
		{HTTP.String(), "http"},
		{Protocol(9).String(), "protocol(9)"},
		{BothFields.String(), "both"},
		{RemoveField.String(), "remove"},
		{ProxyV2.String(), "v2"},
		{Ref{ListenerKind, "pg", 0x1f3a}.String(), "listener/pg@0000000000001f3a"},
		{(Problem{File: "f", Line: 1, Column: 2, Text: "x"}).String(), "f:1:2: x"},
		{(Warnings{{"f", 1, 2, "", "x"}, {"f", 3, 4, "a.b", "y"}}).String(), "f:1:2: warning: x\nf:3:4: warning: a.b: y"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}
