// Package holdfast names the module and holds no code. The command is
// cmd/holdfast; the one package for use by others is tcprepair. The house
// rules, as tests, stand beside this file: direction_test.go says who may
// import what, house_test.go the rest.
package holdfast
