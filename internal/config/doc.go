// Package config is the desired state of a node: what its file says, with
// every default filled in, every name resolved and every bound checked.
//
// [Parse] turns the text of a file into a [Config], or into all faults of the
// file at once, each with its line and column. [Diff] compares two configs and
// gives a [Plan], which is printed for a person and followed by a node.
//
// What flows refer to are immutable, versioned objects: [Listener], [Backend]
// and [Endpoint]. A version is made from contents alone, so the same object in
// two generations, in two processes and on two hosts has the same [Ref].
// Objects travel with flows in a canonical form, see [Listener.Encode] and
// [DecodeObject].
//
// The package is a machine: no clock, no files, no sockets, no environment.
// Whoever calls Parse brings the text, and a function for ${NAME}. Nothing
// here may be changed after it was made; all of it may be read by any number
// of goroutines.
package config
