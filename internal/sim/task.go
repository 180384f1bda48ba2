package sim

import "iter"

// task is work of the control side: straight code that waits in between, as
// package node's does in goroutines. It only runs when the world steps it, so
// a seed decides where it stands when anything else happens.
type task struct {
	name          string
	next          func() (struct{}, bool)
	stop          func()
	cond          func() bool
	over, running bool
	aside         bool // nothing waits for its end
	yield         func() bool
}

type killed struct{}

func (p *Proc) task(name string, f func(t *task)) *task {
	t := &task{name: name}
	var yield func(struct{}) bool
	t.next, t.stop = iter.Pull(func(y func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		yield = y
		f(t)
	})
	t.cond = func() bool { return true }
	// wait needs the yield of this coroutine.
	t.yield = func() bool { return yield(struct{}{}) }
	p.tasks = append(p.tasks, t)
	return t
}

// step lets the task go on, if what it waits for has come.
func (t *task) step() bool {
	if t.over || !t.cond() {
		return false
	}
	t.running = true
	_, ok := t.next()
	t.running = false
	if !ok {
		t.over = true
	}
	return true
}

// wait returns once cond holds. The task can be killed here.
func (t *task) wait(cond func() bool) {
	t.cond = cond
	if !t.yield() {
		panic(killed{})
	}
}

// kill ends the task where it stands. One that ends its own process comes to
// its end by itself.
func (t *task) kill() {
	if !t.over && !t.running {
		t.over = true
		t.stop()
	}
}
