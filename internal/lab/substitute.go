package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Direct is no balancer: clients connect to the doors. It shows what the
// traffic itself costs and that it is right.
type Direct struct{ At *Host }

// Start does nothing.
func (d Direct) Start(context.Context) error { return nil }

// Move cannot.
func (d Direct) Move(context.Context, Label) (*MoveReport, error) {
	return nil, fmt.Errorf("lab: there is no balancer to move anything")
}

// Serving names no process.
func (d Direct) Serving() Place { return Place{Host: d.At} }

// Status gives none.
func (d Direct) Status(context.Context) (*Status, error) { return nil, nil }

// Logs is empty.
func (d Direct) Logs() string { return "" }

// HAProxy is Debian's, a balancer whose every flow is right as long as nothing
// moves: the lab must find nothing wrong with it then.
type HAProxy struct {
	At       *Host
	Services []Service

	process *Process
}

// Start runs it.
func (b *HAProxy) Start(ctx context.Context) error {
	var s strings.Builder
	s.WriteString("global\n  maxconn 5000\n  nbthread 2\n")
	s.WriteString("defaults\n  mode tcp\n  timeout connect 30m\n  timeout client 1h\n  timeout server 1h\n  timeout queue 30m\n  option splice-auto\n")
	for _, v := range b.Services {
		fmt.Fprintf(&s, "listen %s\n  bind %v\n", v.Name, v.VIP)
		if v.HTTP {
			s.WriteString("  mode http\n  timeout http-request 1h\n  timeout http-keep-alive 1h\n  timeout tunnel 1h\n")
		}
		fmt.Fprintf(&s, "  server s1 %v", v.To)
		if v.Slots > 0 {
			fmt.Fprintf(&s, " maxconn %d", v.Slots)
		}
		s.WriteString("\n")
	}
	return b.run(ctx, s.String())
}

// run starts it with a configuration and waits until it listens.
func (b *HAProxy) run(ctx context.Context, text string) error {
	file := filepath.Join(b.At.world.Dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	var err error
	// -db keeps it in the foreground.
	b.process, err = b.At.Start("haproxy", nil, "/usr/sbin/haproxy", "-db", "-f", file)
	if err != nil {
		return err
	}
	return awaitListeners(ctx, b.At, b.process, b.Services)
}

// awaitListeners waits until connects to the services succeed.
func awaitListeners(ctx context.Context, h *Host, p *Process, services []Service) error {
	for _, s := range services {
		for {
			if yes, _ := h.Listens(s.VIP); yes {
				break
			}
			if p.Ended() {
				return fmt.Errorf("lab: %s ended:\n%s", p.Name, p.Tail(20))
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("lab: %s does not listen at %v", p.Name, s.VIP)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

// Move restarts nothing: this haproxy is here for runs without moves.
func (b *HAProxy) Move(context.Context, Label) (*MoveReport, error) {
	return nil, fmt.Errorf("lab: haproxy is here to stand still")
}

// Serving says where it runs.
func (b *HAProxy) Serving() Place { return Place{Host: b.At, PID: b.process.Pid} }

// Status gives none.
func (b *HAProxy) Status(context.Context) (*Status, error) { return nil, nil }

// Logs is what it wrote.
func (b *HAProxy) Logs() string { return b.process.Tail(30) }

// Blind is the sabotage blind-relay: no half-close, and a move is a restart.
type Blind struct {
	At       *Host
	Services []Service

	process *Process
	runs    int
}

// Start runs the relay, which is this program in another stage.
func (b *Blind) Start(ctx context.Context) error {
	argv := []string{"/proc/self/exe"}
	for _, s := range b.Services {
		argv = append(argv, fmt.Sprintf("%v=%v", s.VIP, s.To))
	}
	b.runs++
	var err error
	b.process, err = b.At.Start(fmt.Sprintf("blind-%d", b.runs), []string{stageEnv + "=" + stageBlind}, argv...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	return b.process.WaitLine(ctx, "ready:")
}

// Move is a restart, at every distance.
func (b *Blind) Move(ctx context.Context, d Label) (*MoveReport, error) {
	b.process.Kill()
	if err := b.Start(ctx); err != nil {
		return nil, err
	}
	return &MoveReport{Distance: d.String(), PID: b.process.Pid}, nil
}

// Serving says where it runs.
func (b *Blind) Serving() Place { return Place{Host: b.At, PID: b.process.Pid} }

// Status gives none.
func (b *Blind) Status(context.Context) (*Status, error) { return nil, nil }

// Logs is what the last run wrote.
func (b *Blind) Logs() string { return b.process.Tail(10) }
