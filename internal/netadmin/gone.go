package netadmin

import "time"

// Watch begins to watch the privileged process, which is pid: gone is closed when that ends,
// or the client is closed. What is not in the rules of the kernel its successor has to
// be told: ports to steer, and which addresses are routed.
func (c *Client) Watch() (pid int, gone <-chan struct{}, err error) {
	ch, err := c.dial()
	if err != nil {
		return 0, nil, err
	}
	if err := ch.conn.SetDeadline(time.Time{}); err != nil {
		c.lose(ch)
		return 0, nil, err
	}
	ended := make(chan struct{})
	go func() { // ends with the connection, which Close closes
		defer close(ended)
		_, _, fds, _ := ch.receive() // nothing comes that was not asked for
		closeAll(fds)
		c.lose(ch)
	}()
	return ch.pid, ended, nil
}
