package corpus

import (
	"fmt"
	"strings"
)

// SmuggledTarget begins the target of a request that only a deceived reader
// sees.
const SmuggledTarget = "/smuggled"

// Ambiguous says why a stream that a proxy sent to a backend does not mean the
// same to everybody; "" if it does.
func Ambiguous(forwarded []byte) string { return ambiguous(readers(), forwarded) }

func ambiguous(readers []reader, forwarded []byte) string {
	var all []Reading
	for _, r := range readers {
		all = append(all, read(r, forwarded))
	}
	for i := range all {
		if why := controls(forwarded, &all[i]); why != "" {
			return why
		}
	}
	// Each with each: one that refuses agrees with everybody.
	for i := range all {
		for k := range all[:i] {
			if why := disagree(&all[k], &all[i]); why != "" {
				return why
			}
		}
	}
	return ""
}

// Smuggled says which reader finds a request in what a proxy forwarded that
// the client has not sent, by the letter, as a request of its own; "" if none
// does. The proxy itself may be the one who was deceived: then all readers
// agree.
func Smuggled(forwarded, sent []byte) string {
	open := map[string]bool{}
	asked := Strict(sent)
	for _, m := range asked.Messages {
		open[m.Target] = true
	}
	for _, r := range readers() {
		for _, m := range read(r, forwarded).Messages {
			if strings.HasPrefix(m.Target, SmuggledTarget) && !open[m.Target] {
				return fmt.Sprintf("%s sees %s", r.name(), m.Target)
			}
		}
	}
	return ""
}

// controls finds a control octet in what the reader takes for a head.
func controls(b []byte, r *Reading) string {
	at := 0
	for _, m := range r.Messages {
		if at+m.Size > len(b) {
			break
		}
		if why := control(b[at : at+m.Head]); why != "" {
			return r.Reader + ": " + why
		}
		at += m.Size
	}
	if r.End == InHead || r.End == Unreadable {
		head, _, _ := strings.Cut(string(b[min(at, len(b)):]), "\r\n\r\n")
		if why := control([]byte(head + "\r\n\r\n")); why != "" {
			return r.Reader + ": " + why
		}
	}
	return ""
}

// control finds an octet below SP, or DEL, that is neither HTAB nor part of
// CRLF.
func control(head []byte) string {
	for i, c := range head {
		pair := c == '\r' && i+1 < len(head) && head[i+1] == '\n' || c == '\n' && i > 0 && head[i-1] == '\r'
		if c < ' ' && c != '\t' && !pair || c == 0x7f {
			return fmt.Sprintf("octet %#02x in a head", c)
		}
	}
	return ""
}

// disagree says in what two readings differ. Who refuses a message does not
// misunderstand it, but what came before is compared.
func disagree(a, b *Reading) string {
	name := a.Reader + " and " + b.Reader + ": "
	for i := range min(len(a.Messages), len(b.Messages)) {
		if why := differ(&a.Messages[i], &b.Messages[i]); why != "" {
			return fmt.Sprintf("%smessage %d: %s", name, i+1, why)
		}
	}
	switch {
	case a.End == Unreadable && len(a.Messages) <= len(b.Messages), b.End == Unreadable && len(b.Messages) <= len(a.Messages):
		return ""
	case len(a.Messages) != len(b.Messages):
		return fmt.Sprintf("%s%d messages, and %d", name, len(a.Messages), len(b.Messages))
	case a.End != b.End:
		return fmt.Sprintf("%sends %v, and %v", name, a.End, b.End)
	}
	return ""
}
