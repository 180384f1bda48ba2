package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// short gives a duration with two or three digits: 3.1 ms, 4.2 s, 2h14m.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + short(-d)
	case d == 0:
		return "0 s"
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f us", float64(d)/float64(time.Microsecond))
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// size gives octets with a unit.
func size(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 {
			if unit == "B" {
				return fmt.Sprintf("%.0f B", n)
			}
			return fmt.Sprintf("%.1f %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f TiB", n)
}

// thousands groups the digits of n: 1,204,118.
func thousands[N int | int64 | uint64](n N) string {
	s := fmt.Sprint(n)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// count gives a number with its noun: 1 listener, 3 listeners.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return thousands(n) + " " + noun + "s"
}

// meant suggests the nearest of the names, or nothing if none is near: within
// two edits, or a third of the length.
func meant(got string, names []string) string {
	best, least := "", max(2, len(got)/3)+1
	for _, name := range names {
		if d := edits(got, name, least); d < least {
			best, least = name, d
		}
	}
	if best == "" || best == got {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// edits counts the insertions, deletions and changes from a to b, if there are
// less than most.
func edits(a, b string, most int) int {
	if diff := len(a) - len(b); diff >= most || -diff >= most {
		return most
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// table is text in columns. Columns whose head begins with > are aligned to
// the right.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// lines gives the head and the rows, without an end of line.
func (t *table) lines() []string {
	width := make([]int, len(t.head))
	for i, h := range t.head {
		width[i] = utf8.RuneCountInString(strings.TrimPrefix(h, ">"))
	}
	for _, row := range t.rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	out := make([]string, 0, len(t.rows)+1)
	for i := range len(t.rows) + 1 {
		row := t.head
		if i > 0 {
			row = t.rows[i-1]
		}
		var line strings.Builder
		for k, cell := range row {
			right := strings.HasPrefix(t.head[k], ">")
			if i == 0 {
				cell = strings.TrimPrefix(cell, ">")
			}
			pad := strings.Repeat(" ", width[k]-utf8.RuneCountInString(cell))
			if k > 0 {
				line.WriteString("  ")
			}
			if right {
				line.WriteString(pad + cell)
			} else {
				line.WriteString(cell + pad)
			}
		}
		out = append(out, strings.TrimRight(line.String(), " "))
	}
	return out
}

// String is the whole table.
func (t *table) String() string { return strings.Join(t.lines(), "\n") + "\n" }
