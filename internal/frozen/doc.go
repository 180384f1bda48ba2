// Package frozen is the portable form of a flow: its schema (frozen.proto),
// its codec, and its refusals. It knows nothing of how a flow behaves; it
// refuses what it does not fully know, since a field that is silently dropped
// is an octet that is silently lost.
package frozen
