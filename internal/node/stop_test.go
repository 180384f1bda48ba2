package node

import (
	"testing"
	"time"
)

// A second signal ends the process while an upgrade is under way that does not
// end, and so does the end of the grace time.
func TestStopDuringAChange(t *testing.T) {
	vip, server := free(t), echo(t)
	r := start(t, yaml(vip, server, "", ""))
	c := dial(t, vip)
	says(t, c, "hello")
	r.change.Lock() // as Upgrade does until the new process has answered
	defer r.change.Unlock()
	r.names.tell()
	hurry := make(chan struct{})
	close(hurry)
	never := make(chan struct{})
	ended := make(chan int)
	go func() {
		ended <- r.Drain(time.Hour, hurry, nil)
		ended <- r.Drain(time.Millisecond, never, nil)
		r.Stop()
		ended <- 0
	}()
	for _, want := range []int{1, 1, 0} {
		select {
		case left := <-ended:
			if left != want {
				t.Errorf("%d flows are left, want %d", left, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it waits for the change")
		}
	}
}
