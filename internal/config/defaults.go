package config

import "time"

// What holds for keys that the file leaves out. Keys that are not here have
// the zero value of their field as default, or must be given.
const (
	defaultNodeName    = "node"
	defaultAdminSocket = "/run/holdfast/admin.sock"

	defaultIdleTimeout = 10 * time.Minute
	defaultBacklog     = 4096
	// A peer that vanished is found after 10 s + 4 * 3 s = 22 s without a sign
	// of it; one that does not acknowledge, after 20 s.
	defaultKeepaliveIdle     = 10 * time.Second
	defaultKeepaliveInterval = 3 * time.Second
	defaultKeepaliveCount    = 4
	defaultUserTimeout       = 20 * time.Second

	defaultConnectTimeout = 5 * time.Second
	defaultRetryMax       = 2
	defaultQueueMax       = 1000
	defaultQueueTime      = 10 * time.Second

	defaultAnswerTimeout = 60 * time.Second
	defaultIdleMax       = 64
	defaultIdleTime      = 30 * time.Second

	defaultHeadMax          = 16 << 10
	defaultLineMax          = 8 << 10 // or what a head may have, if that is less
	defaultFieldsMax        = 100
	defaultHeaderTimeout    = 10 * time.Second
	defaultBodyTimeout      = 30 * time.Second
	defaultKeepaliveTimeout = 60 * time.Second
	defaultTunnelTimeout    = time.Hour

	defaultShare = 1
	// The method stays, and nobody remembers the answer.
	defaultRedirectStatus = 307
	defaultType           = "text/plain; charset=utf-8"

	defaultBits4, defaultBits6 = 32, 64 // one address; one network of a customer

	defaultCookiePath = "/"
	defaultEntryAge   = time.Hour
	defaultEntries    = 100_000

	// A dead endpoint is found after 2 s and two fast intervals.
	defaultCheckInterval = 2 * time.Second
	defaultFastInterval  = 500 * time.Millisecond // or the interval, if that is less
	defaultCheckTimeout  = time.Second
	defaultRise          = 2
	defaultFall          = 3
	defaultCheckMethod   = "GET"
	defaultCheckPath     = "/"
	defaultAgentInterval = 2 * time.Second

	defaultConsecutive = 5
	defaultLeast       = 20
	defaultWindow      = 10 * time.Second
	defaultEjectTime   = 10 * time.Second
	defaultEjectMax    = 5 * time.Minute
	defaultEjectShare  = 50

	defaultBreakerRate = 50
	defaultBreakerOpen = 5 * time.Second
	defaultProbes      = 3

	defaultLogTo   = logStdout
	defaultDNSPort = 53
)

// What a gateway answers when it got nothing good from behind: RFC 9110,
// sections 15.6.3 to 15.6.5.
var defaultEjectStatuses = []StatusRange{{502, 504}}

var defaultCheckStatuses = []StatusRange{{200, 299}}
