package config

import (
	"fmt"
	"strings"
	"testing"
)

// services is a file as a provider of n services has it.
func services(n int) string {
	var s strings.Builder
	s.WriteString("node: { name: services, admin: { socket: \"${HOLDFAST_SOCKET:-/run/holdfast/admin.sock}\" } }\nlisteners:\n")
	for i := range n {
		fmt.Fprintf(&s, "  s%d: { vip: \"127.0.0.1:%d\", protocol: http, backend: s%d }\n", i, 20000+i, i)
	}
	s.WriteString("backends:\n")
	for i := range n {
		fmt.Fprintf(&s, "  s%d: { check: { tcp: {}, interval: 5s }, endpoints: [ { name: a, address: \"127.0.0.1:9001\" } ] }\n", i)
	}
	return s.String()
}

func change5(src string, turn int) string {
	for i := range 5 {
		n := (turn*7 + i*13) % 1000
		old := fmt.Sprintf("  s%d: { check: { tcp: {}, interval: 5s }, endpoints: [ { name: a, address: \"127.0.0.1:9001\" } ] }\n", n)
		src = strings.Replace(src, old, strings.Replace(old, "9001\" }", fmt.Sprintf("9001\", weight: %d }", turn%900+1), 1), 1)
	}
	return src
}

func BenchmarkParseServices(b *testing.B) {
	src := []byte(services(1000))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse("f", src, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadCold(b *testing.B) {
	src := []byte(services(1000))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Read("f", src, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadUnchanged(b *testing.B) {
	src := []byte(services(1000))
	d, _, _ := Read("f", src, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if d, _, err = Read("f", src, nil, d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadChanged5(b *testing.B) {
	src := services(1000)
	d, _, _ := Read("f", []byte(src), nil, nil)
	var files [8][]byte
	for i := range files {
		files[i] = []byte(change5(src, i+1))
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		next, _, err := Read("f", files[n%8], nil, d)
		if err != nil {
			b.Fatal(err)
		}
		d = next
	}
}

// A weight, on a document that has others already.
func BenchmarkPatchWeight(b *testing.B) {
	for _, edits := range []int{0, 100} {
		b.Run(fmt.Sprint(edits), func(b *testing.B) {
			d, _, err := Read("f", []byte(services(1000)), nil, nil)
			if err != nil {
				b.Fatal(err)
			}
			for i := range edits {
				if d, err = d.Patch(Patch{Object: fmt.Sprintf("endpoint/s%d/a", i), Field: "weight", Value: "7"}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				if d, err = d.Patch(Patch{Object: "endpoint/s700/a", Field: "weight", Value: fmt.Sprint(n%99 + 1)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A reload under 100 edits: five services changed in the file.
func BenchmarkRebase100(b *testing.B) {
	src := services(1000)
	d, _, err := Read("f", []byte(src), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 100 {
		if d, err = d.Patch(Patch{Object: fmt.Sprintf("endpoint/s%d/a", i), Field: "weight", Value: "7"}); err != nil {
			b.Fatal(err)
		}
	}
	var files [8][]byte
	for i := range files {
		files[i] = []byte(change5(src, i+1))
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		base, _, err := Read("f", files[n%8], nil, d)
		if err != nil {
			b.Fatal(err)
		}
		if d, _, err = base.Rebase(d.Patches()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDiffChanged5(b *testing.B) {
	src := services(1000)
	d, _, _ := Read("f", []byte(src), nil, nil)
	next, _, _ := Read("f", []byte(change5(src, 1)), nil, d)
	b.ReportAllocs()
	for b.Loop() {
		if Diff(d.Config(), next.Config()).Empty() {
			b.Fatal("nothing")
		}
	}
}
