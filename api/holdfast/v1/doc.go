// Package holdfastv1 is the API of a node as messages: generated from
// holdfast.proto, which says what each of them means.
package holdfastv1
