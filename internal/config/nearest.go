package config

import (
	"slices"
	"strings"
)

// elsewhere has what others call a thing, in lower case without marks, with our
// words for it: who comes from there has it in his fingers.
var elsewhere = map[string][]string{
	"frontend": {"listeners"}, "frontends": {"listeners"}, "servers": {"endpoints", "listeners"}, "server": {"endpoints", "address"},
	"upstream": {"backend", "backends"}, "upstreams": {"backends"}, "pool": {"backend", "backends"}, "pools": {"backends"},
	"defaultbackend": {"backend"}, "usebackend": {"backend"}, "service": {"backend"}, "services": {"backends"}, "target": {"backend", "address"},
	"global": {"node"}, "log": {"accessLog"}, "logs": {"accessLog"}, "logging": {"accessLog"}, "logformat": {"format"},
	"bind": {"vip", "listen"}, "listen": {"vip"}, "address": {"vip", "path", "listen"}, "addr": {"address", "vip", "listen"}, "mode": {"protocol"}, "rules": {"routes"}, "locations": {"routes"},
	"maxconn": {"connections", "connectionsMax", "connectionsPerEndpoint"}, "maxconns": {"connections", "connectionsMax", "connectionsPerEndpoint"}, "maxconnections": {"connections", "connectionsMax", "connectionsPerEndpoint"},
	"members": {"endpoints"}, "nodes": {"endpoints"}, "targets": {"endpoints"}, "hosts": {"endpoints", "host"}, "instances": {"endpoints"},
	"ip": {"address"}, "url": {"path", "address"}, "uri": {"path"}, "algorithm": {"balance"}, "lbpolicy": {"balance"}, "loadbalancing": {"balance"},
	"health": {"check"}, "healthcheck": {"check"}, "healthchecks": {"check"}, "probe": {"check"}, "outlierdetection": {"eject"}, "circuitbreaker": {"breaker"},
	"persistence": {"sticky"}, "affinity": {"sticky"}, "sessionaffinity": {"sticky"}, "inter": {"interval"}, "period": {"interval"}, "retries": {"retry", "max"}, "attempts": {"max"}, "tries": {"max"},
	"healthythreshold": {"rise"}, "unhealthythreshold": {"fall"}, "statuses": {"status"}, "code": {"status"}, "expectedstatus": {"status"}, "codes": {"status"},
	"ratelimit": {"rate"}, "ttl": {"maxAge"}, "expires": {"maxAge"}, "whitelist": {"allow"}, "allowlist": {"allow"}, "blacklist": {"deny"}, "denylist": {"deny"}, "blocklist": {"deny"},
	"resolvers": {"dns"}, "nameservers": {"dns"}, "threads": {"loops"}, "nbthread": {"loops"}, "workers": {"loops"}, "file": {"to"}, "output": {"to"}, "stats": {"metrics"},
	"statedir": {"state"}, "datadir": {"state"}, "storage": {"state"}, "journal": {"state"}, "watch": {"watchFile"}, "autoreload": {"watchFile"},
	"cert": {"certificate"}, "ca": {"trust"}, "cafile": {"trust"}, "clientca": {"trust"}, "privatekey": {"key"},
	"users": {"roles"}, "permissions": {"roles"}, "rbac": {"roles"}, "acl": {"roles"}, "level": {"roles"},
	"root": {"admin"}, "superuser": {"admin"}, "write": {"operate"}, "rw": {"operate"}, "operator": {"operate"}, "readonly": {"read"}, "viewer": {"read"}, "ro": {"read"},

	"leastconn": {"least"}, "leastconnections": {"least"}, "leastrequest": {"least"}, "rr": {"round-robin"}, "wrr": {"round-robin"}, "static": {"round-robin"},
	"error": {"connect"}, "connectfailure": {"connect"}, "iphash": {"maglev"}, "consistent": {"maglev"}, "ringhash": {"maglev"}, "sourcehash": {"maglev"}, "hash": {"maglev"}, "ewma": {"p2c"}, "tunnel": {"tcp"},
}

// nearest gives the word of known that wrong was probably meant to be, or ""
// if none is near: at most 2 slips, or a third of a long word, and at most one
// in a word so short that two would make any word of it.
func nearest(wrong string, known []string) string {
	for _, word := range elsewhere[folded(wrong)] {
		if slices.Contains(known, word) {
			return word
		}
	}
	const longest = 64 // distance is quadratic, and no word of ours is longer
	if len(wrong) > longest {
		return ""
	}
	best, bestSlips := "", 0
	for _, word := range known {
		limit := max(2, len(word)/3)
		if min(len(word), len(wrong)) <= 3 {
			limit = 1
		}
		if max(len(word)-len(wrong), len(wrong)-len(word)) > limit {
			continue
		}
		slips := distance(strings.ToLower(wrong), strings.ToLower(word))
		if slips > limit {
			continue
		}
		if best == "" || slips < bestSlips || slips == bestSlips && word < best {
			best, bestSlips = word, slips
		}
	}
	return best
}

// distance counts the slips between a and b: an octet too many, one missing,
// one wrong, or two neighbours exchanged.
func distance(a, b string) int {
	// Three rows of the table suffice: row[i][j] is the distance between the
	// first i octets of a and the first j of b.
	var before, above []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, above, row = above, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			wrong := 1
			if a[i-1] == b[j-1] {
				wrong = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+wrong)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
