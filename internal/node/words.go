package node

// count is a number of things in words: 1 flow, 2 flows.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return thousands(n) + " " + noun + "s"
}

// plainError is an error in other words than its own, for people; what it is stays.
type plainError struct {
	text  string
	cause error
}

func (e *plainError) Error() string { return e.text }

func (e *plainError) Unwrap() error { return e.cause }
