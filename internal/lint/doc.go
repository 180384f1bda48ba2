// Package lint holds the house rules that no linter knows: which package may
// import which, what a protocol machine may touch, which fields move with a
// flow. Each rule is a function from the parsed source tree to findings. It
// reads files and changes none. The rules run over this repository from the
// tests at its top level; the tests here show each rule a small tree that
// breaks it.
//
// Source is parsed, not listed by the go command: a parser sees the files of
// every build tag, and a rule that a tag can switch off is no rule.
package lint
