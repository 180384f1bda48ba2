package config

import (
	"errors"
	"fmt"
	"regexp"
	"time"
)

// intBound is a range of integers, both ends included.
type intBound struct{ min, max int }

func (b intBound) check(n int) error {
	if n < b.min || n > b.max {
		return fmt.Errorf("must be %d to %d", b.min, b.max)
	}
	return nil
}

// durationBound is a range of durations, both ends included.
type durationBound struct {
	min, max time.Duration
	zero     string        // what 0s means; "" if 0s is not allowed
	grain    time.Duration // the kernel counts in these; 0 is any
}

func (b durationBound) check(d time.Duration) error {
	if d == 0 && b.zero != "" {
		return nil
	}
	if d < b.min || d > b.max {
		if b.zero != "" {
			return fmt.Errorf("must be %s to %s, or 0s for %s", durationText(b.min), durationText(b.max), b.zero)
		}
		return fmt.Errorf("must be %s to %s", durationText(b.min), durationText(b.max))
	}
	if b.grain != 0 && d%b.grain != 0 {
		return fmt.Errorf("must be a multiple of %s", durationText(b.grain))
	}
	return nil
}

// sizeBound is a range of octets, both ends included.
type sizeBound struct {
	min, max uint64
	zero     string // what 0 means; "" if 0 is not allowed
}

func (b sizeBound) check(n uint64) error {
	switch {
	case n >= b.min && n <= b.max, n == 0 && b.zero != "":
		return nil
	case b.zero != "":
		return fmt.Errorf("must be %s to %s, or 0 for %s", sizeText(b.min), sizeText(b.max), b.zero)
	}
	return fmt.Errorf("must be %s to %s", sizeText(b.min), sizeText(b.max))
}

// The bounds of the file, which hold for decoded objects as well.
var (
	loopsBound       = intBound{1, 256}
	connectionsBound = intBound{0, 10_000_000}
	backlogBound     = intBound{1, 65535} // the kernel clamps to net.core.somaxconn
	retryBound       = intBound{0, 16}
	queueBound       = intBound{0, 1_000_000}
	// include/net/tcp.h: MAX_TCP_KEEPCNT.
	keepaliveCountBound = intBound{1, 127}

	idleTimeoutBound    = durationBound{min: time.Millisecond, max: 365 * 24 * time.Hour, zero: "never"}
	connectTimeoutBound = durationBound{min: time.Millisecond, max: time.Hour}
	queueTimeBound      = durationBound{min: time.Millisecond, max: time.Hour}
	// include/net/tcp.h: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, both in seconds.
	keepaliveIdleBound     = durationBound{min: time.Second, max: 32767 * time.Second, zero: "off", grain: time.Second}
	keepaliveIntervalBound = durationBound{min: time.Second, max: 32767 * time.Second, grain: time.Second}
	userTimeoutBound       = durationBound{min: time.Millisecond, max: 24 * time.Hour, zero: "the kernel's default", grain: time.Millisecond}

	// Offsets into a head are 16 bits, and it is held in one block of 16 KiB
	// with room for so many fields: internal/h1.
	lineBound   = sizeBound{min: 256, max: 16 << 10}
	headBound   = sizeBound{min: 1 << 10, max: 16 << 10}
	fieldsBound = intBound{1, 128}
	bodyBound   = sizeBound{min: 1, max: 1 << 50, zero: "no bound"}
	statusBound = intBound{200, 599}
	weightBound = intBound{0, 1000}
	idleBound   = intBound{0, 10_000}

	headerTimeoutBound    = durationBound{min: time.Millisecond, max: time.Hour}
	bodyTimeoutBound      = durationBound{min: time.Millisecond, max: 24 * time.Hour}
	keepaliveTimeoutBound = durationBound{min: time.Millisecond, max: 24 * time.Hour, zero: "one request for each connection"}
	tunnelTimeoutBound    = durationBound{min: time.Millisecond, max: 365 * 24 * time.Hour, zero: "never"}
	answerTimeoutBound    = durationBound{min: time.Millisecond, max: 24 * time.Hour}
	idleTimeBound         = durationBound{min: time.Millisecond, max: time.Hour, zero: "no reuse"}

	portBound = intBound{1, 65535}

	// A rate is at most one in 100 ns, so that the time between two is no less
	// than what a clock tells apart.
	rateBound  = intBound{1, 10_000_000}
	burstBound = intBound{1, 10_000_000}
	bits4Bound = intBound{1, 32}
	bits6Bound = intBound{1, 128}

	slowStartBound = durationBound{min: 100 * time.Millisecond, max: 24 * time.Hour, zero: "at once"}
	panicBound     = intBound{0, 100}
	// Less than a fair part for each would leave some without any.
	loadBound   = intBound{101, 1000}
	budgetBound = intBound{0, 100}

	// RFC 6265bis, section 5.5: user agents keep no cookie for longer than 400 days.
	cookieAgeBound = durationBound{min: time.Second, max: 400 * 24 * time.Hour, zero: "as long as the browser runs", grain: time.Second}
	entryAgeBound  = durationBound{min: time.Second, max: 365 * 24 * time.Hour}
	// An entry has some 100 octets.
	entriesBound = intBound{1, 10_000_000}

	checkIntervalBound = durationBound{min: 10 * time.Millisecond, max: 24 * time.Hour}
	checkTimeoutBound  = durationBound{min: time.Millisecond, max: 10 * time.Minute}
	checkCountBound    = intBound{1, 100}
	answerStatusBound  = intBound{100, 599}

	consecutiveBound  = intBound{0, 1_000_000}
	failureRateBound  = intBound{0, 100}
	breakerRateBound  = intBound{1, 100}
	leastBound        = intBound{1, 1_000_000}
	windowBound       = durationBound{min: 100 * time.Millisecond, max: time.Hour}
	ejectTimeBound    = durationBound{min: 100 * time.Millisecond, max: 24 * time.Hour}
	ejectShareBound   = intBound{1, 100}
	breakerOpenBound  = durationBound{min: 100 * time.Millisecond, max: time.Hour}
	breakerProbeBound = intBound{1, 1000}

	memoryBound = sizeBound{min: 64 << 20, max: 1 << 50, zero: "no bound"}
)

const (
	// endpointsMax is for one backend, with what its names resolve to.
	endpointsMax = 16384
	addressesMax = 256 // of one name

	routesMax   = 1000 // of one listener
	sharesMax   = 64   // backends of one route
	prefixesMax = 1024 // of one list of networks
	wordsMax    = 256  // hosts or methods of one route
	pairsMax    = 64   // fields, or names of the query, that one route matches
	editsMax    = 64   // fields that a route changes in requests, and as many in responses

	// What a route adds to a head has to fit behind it into a block.
	editOctetsMax = 4 << 10
	// An answer of our own is made in one block with its head.
	respondMax = 8 << 10

	tokenMax = 256
	valueMax = 4 << 10
	pathMax  = 4 << 10
	hostMax  = 253 // RFC 1035, section 2.3.4, without the length and the root
	regexMax = 1 << 10

	statusesMax  = 64  // ranges of one list
	checkSendMax = 512 // octets that a check sends, or waits for
	serversMax   = 8   // that resolve names
	zoneMax      = 63
	// secretMin keeps keys from being guessed: 16 letters and digits have 95 bits.
	secretMin, secretMax = 16, 256
	// stepsMax bounds the instructions of a compiled expression, for each octet
	// of a path may be held against each: 16 KiB are some 0.2 s then, at worst.
	stepsMax = 1000

	// sourcePortMin: lower ports are for services and need a capability.
	sourcePortMin = 1024

	// unixPathMax is sun_path of sockaddr_un without the final zero: unix(7).
	unixPathMax = 107
	// deviceMax is IFNAMSIZ without the final zero: netdevice(7).
	deviceMax = 15
)

// Words and prefixes of the file.
const (
	loopsAuto  = "auto"
	wordOff    = "off"
	wordOn     = "on"
	sourceVIP  = "vip"
	unixPrefix = "unix:"
)

const namePattern = `^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`

var nameForm = regexp.MustCompile(namePattern)

// CheckName tells what is wrong with the name of a node or of an object.
func CheckName(name string) error { return checkName(name) }

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return errors.New("not a name: 1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit")
	}
	return nil
}
