package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// word gives the word for a number, or what with the number.
func word(words []string, i uint8, what string) string {
	if int(i) < len(words) {
		return words[i]
	}
	return fmt.Sprintf("%s(%d)", what, i)
}

// fromWord is the reverse of word.
func fromWord(words []string, s string) (uint8, error) {
	if i := slices.Index(words, s); i >= 0 {
		return uint8(i), nil
	}
	return 0, fmt.Errorf("%q is not one of %s", clip(s), strings.Join(words, ", "))
}

// printable gives s for a message, in quotes if that needs them.
func printable(s string) string {
	if s == "" || strings.Contains(s, " ") || !isPrintable(s) {
		return strconv.Quote(clip(s))
	}
	return clip(s)
}

// isPrintable: s may be part of a line of text as it is.
func isPrintable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

// clip shortens what a peer or a file wrote, for messages.
func clip(s string) string {
	const runesMax = 64
	n := 0
	for i := range s {
		if n++; n > runesMax {
			return s[:i] + "..."
		}
	}
	return s
}
