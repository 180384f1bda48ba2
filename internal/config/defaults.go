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

	defaultWeight = 1
	// The method stays, and nobody remembers the answer.
	defaultRedirectStatus = 307
	defaultType           = "text/plain; charset=utf-8"
)
