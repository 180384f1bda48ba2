package admin

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"
)

// Of connections over TCP: those that are silent are asked whether they live, for
// a watcher may have nothing to say for days.
const (
	pingAfter = 30 * time.Second
	pingTime  = 15 * time.Second
	idleTime  = 10 * time.Minute // without a request
	// apiConnections bounds what strangers may have open: descriptors are for flows.
	apiConnections = 256
)

func protocols(clear bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(!clear)
	p.SetUnencryptedHTTP2(clear)
	return p
}

// openTCP sees that all is there that serving over TCP needs.
func (s *Server) openTCP() error {
	if s.node.APIListener() == nil {
		return nil
	}
	conf, err := s.tlsConfig()
	s.lastTLS.Store(conf)
	return err
}

// renewedTLS is tlsConfig, or what was good last: a mistake in a renewal locks
// nobody out.
func (s *Server) renewedTLS() (*tls.Config, error) {
	conf, err := s.tlsConfig()
	if err == nil {
		s.lastTLS.Store(conf)
		return conf, nil
	}
	last := s.lastTLS.Load()
	if last == nil || s.node.Config().Node.API == nil {
		return nil, err
	}
	s.log.Warn("the API over TCP goes on with the certificates that it had", "error", err)
	return last, nil
}

// serveTCP serves the API over TCP if the configuration wants it.
func (s *Server) serveTCP() {
	l := s.node.APIListener()
	if l == nil || s.tcp != nil {
		return
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		// For each connection, so that files that were renewed are in force.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.renewedTLS() },
	}
	s.tcp = serveOn(&http.Server{
		Handler: http.NewCrossOriginProtection().Handler(s.api), TLSConfig: conf, ReadHeaderTimeout: headTime, MaxHeaderBytes: headMax, IdleTimeout: idleTime,
		Protocols: protocols(false), HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTime},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelInfo), // who comes without a certificate is no trouble of ours
	}, tls.NewListener(&limited{Listener: l, free: make(chan struct{}, apiConnections)}, conf), func(err error) { s.log.Error("the API over TCP failed", "error", err) })
}

// tlsConfig is made of the files of the configuration in force.
func (s *Server) tlsConfig() (*tls.Config, error) {
	a := s.node.Config().Node.API
	if a == nil {
		return nil, errors.New("admin: the API is not served over TCP any more")
	}
	pair, err := tls.LoadX509KeyPair(a.Certificate, a.Key)
	if err != nil {
		return nil, fmt.Errorf("admin: node.admin.api: %w", err)
	}
	pem, err := os.ReadFile(a.Trust)
	if err != nil {
		return nil, fmt.Errorf("admin: node.admin.api: %w", err)
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("admin: node.admin.api: %s has no certificate", a.Trust)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trust,
	}, nil
}

// certificateCaller tells who asks over TCP. Roles are those of the configuration
// in force, so that one that is taken away is gone at the next request.
func (s *Server) certificateCaller(r *http.Request) caller {
	a := s.node.Config().Node.API
	if a == nil || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return caller{name: "nobody"}
	}
	return certified(r.TLS.PeerCertificates[0], a.Roles)
}
