package flow

import (
	"strconv"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
	"github.com/holdfast-lb/holdfast/internal/h1"
)

// The answers that no backend gives. They have no Date: there is no clock here
// (RFC 9110, section 6.6.1).

// said is what a person is told by an answer, beside its reason.
func said(status int) string {
	switch status {
	case 400:
		return "this is no valid request"
	case 404:
		return "nothing is served here"
	case 408:
		return "the request took too long to arrive"
	case 413:
		return "the request has more content than is taken here"
	case 414:
		return "the request's target is too long"
	case 417:
		return "what the request expects is not known here"
	case 429:
		return "too many requests; try again later"
	case 431:
		return "the request's fields are too many or too long"
	case 500:
		return "the request could not be handled"
	case 501:
		return "the request needs what is not known here"
	case 502:
		return "the server broke off or gave no valid response"
	case 503:
		return "no server is ready"
	case 504:
		return "the server took too long to respond"
	case 505:
		return "this version of HTTP is not spoken here"
	}
	panic("flow: no answer has status " + strconv.Itoa(status))
}

// appendAnswer appends an answer of ours to a client that speaks HTTP/1.minor.
// Status is 400, 404, 408, 413, 414, 417, 431, 500 to 505. To a HEAD request
// it has no content, but its length.
func appendAnswer(dst []byte, status int, head, close bool, minor uint8) []byte {
	return appendFailure(dst, status, 0, head, close, minor)
}

// appendLimited appends the answer to a client that may ask again after a while
// (RFC 6585, section 4).
func appendLimited(dst []byte, wait time.Duration, head, close bool, minor uint8) []byte {
	return appendFailure(dst, 429, wait, head, close, minor)
}

func appendFailure(dst []byte, status int, wait time.Duration, head, close bool, minor uint8) []byte {
	sentence, why := said(status), reason(status)
	dst = appendStatus(dst, status, why)
	if wait > 0 {
		// In whole seconds (RFC 9110, section 10.2.3): none would be too early.
		dst = append(dst, "Retry-After: "...)
		dst = strconv.AppendInt(dst, int64((wait-1)/time.Second)+1, 10)
		dst = append(dst, '\r', '\n')
	}
	dst = append(dst, "Content-Type: text/plain\r\nCache-Control: no-store\r\n"...)
	// "503 ", ": " and the line's end stand around the two.
	dst = appendLength(dst, 4+len(why)+2+len(sentence)+1)
	dst = appendConnection(dst, minor, close, false)
	dst = append(dst, '\r', '\n')
	if head {
		return dst
	}
	dst = strconv.AppendUint(dst, uint64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, why...)
	dst = append(dst, ": "...)
	dst = append(dst, sentence...)
	return append(dst, '\n')
}

// appendRedirect appends the answer to h that rd makes. Where nobody names a
// host, which only happens in HTTP/1.0, the place is relative to the client's.
// scheme is the one by which the client came.
func appendRedirect(dst []byte, h *h1.Head, rd *config.Redirect, scheme string, close bool, minor uint8) []byte {
	dst = appendStatus(dst, rd.Status, reason(rd.Status))
	dst = append(dst, "Location: "...)
	dst = appendPlace(dst, h, rd, scheme)
	dst = append(dst, "\r\nContent-Length: 0\r\n"...)
	dst = appendConnection(dst, minor, close, false)
	return append(dst, '\r', '\n')
}

// appendPlace appends the URI that rd and the request h make. With another
// scheme the port of the request means nothing and is left out.
func appendPlace(dst []byte, h *h1.Head, rd *config.Redirect, scheme string) []byte {
	host := h.Authority.Of(h.Octets)
	if rd.Scheme != "" && rd.Scheme != scheme {
		scheme, host = rd.Scheme, withoutPort(host)
	}
	path := pathOf(h)
	if path == nil {
		path = rootPath
	}
	if rd.Host == "" && len(host) == 0 {
		if rd.Path == "" && len(path) > 1 && path[1] == '/' {
			// Two slashes would begin a host (RFC 3986, section 4.2).
			dst = append(dst, "/."...)
		}
	} else {
		dst = append(dst, scheme...)
		dst = append(dst, "://"...)
		if rd.Host != "" {
			dst = append(dst, rd.Host...)
		} else {
			dst = append(dst, host...)
		}
	}
	if rd.Path == "" {
		dst = append(dst, path...)
	} else {
		for i := range len(rd.Path) {
			dst = appendPathOctet(dst, rd.Path[i])
		}
	}
	if hasQuery(h) {
		dst = append(dst, '?')
		dst = append(dst, h.Query.Of(h.Octets)...)
	}
	return dst
}

// appendRespond appends what rs says. To a HEAD request it has no content, but
// its length; 204 and 304 never have any (RFC 9110, section 8.6).
func appendRespond(dst []byte, rs *config.Respond, head, close bool, minor uint8) []byte {
	dst = appendStatus(dst, rs.Status, reason(rs.Status))
	empty := rs.Status == 204 || rs.Status == 304
	if !empty {
		if rs.Type != "" {
			dst = append(dst, "Content-Type: "...)
			dst = append(dst, rs.Type...)
			dst = append(dst, '\r', '\n')
		}
		dst = appendLength(dst, len(rs.Body))
	}
	dst = appendConnection(dst, minor, close, false)
	dst = append(dst, '\r', '\n')
	if head || empty {
		return dst
	}
	return append(dst, rs.Body...)
}

func appendLength(dst []byte, n int) []byte {
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendUint(dst, uint64(n), 10)
	return append(dst, '\r', '\n')
}

// reason gives the phrase for a status (RFC 9110, section 15; RFC 6585), or
// none.
func reason(status int) string {
	switch status {
	case 200:
		return "OK"
	case 201:
		return "Created"
	case 202:
		return "Accepted"
	case 203:
		return "Non-Authoritative Information"
	case 204:
		return "No Content"
	case 205:
		return "Reset Content"
	case 206:
		return "Partial Content"
	case 300:
		return "Multiple Choices"
	case 301:
		return "Moved Permanently"
	case 302:
		return "Found"
	case 303:
		return "See Other"
	case 304:
		return "Not Modified"
	case 307:
		return "Temporary Redirect"
	case 308:
		return "Permanent Redirect"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 402:
		return "Payment Required"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 406:
		return "Not Acceptable"
	case 407:
		return "Proxy Authentication Required"
	case 408:
		return "Request Timeout"
	case 409:
		return "Conflict"
	case 410:
		return "Gone"
	case 411:
		return "Length Required"
	case 412:
		return "Precondition Failed"
	case 413:
		return "Content Too Large"
	case 414:
		return "URI Too Long"
	case 415:
		return "Unsupported Media Type"
	case 416:
		return "Range Not Satisfiable"
	case 417:
		return "Expectation Failed"
	case 421:
		return "Misdirected Request"
	case 422:
		return "Unprocessable Content"
	case 426:
		return "Upgrade Required"
	case 428:
		return "Precondition Required"
	case 429:
		return "Too Many Requests"
	case 431:
		return "Request Header Fields Too Large"
	case 451:
		return "Unavailable For Legal Reasons"
	case 500:
		return "Internal Server Error"
	case 501:
		return "Not Implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Gateway Timeout"
	case 505:
		return "HTTP Version Not Supported"
	case 511:
		return "Network Authentication Required"
	}
	return ""
}
