package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-lb/holdfast/internal/config"
)

// certify writes an identity of that serial number, signed by itself.
func certify(t *testing.T, c *config.Cluster, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"n1"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		c.Certificate: {Type: "CERTIFICATE", Bytes: der}, c.Trust: {Type: "CERTIFICATE", Bytes: der}, c.Key: {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(name+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil { // as whoever renews them does
			t.Fatal(err)
		}
	}
}

// A certificate that was renewed is shown in the next conversation, by who begins it and by who
// is asked; files that do not fit together change nothing and are complained of once.
func TestIdentityIsReadAnew(t *testing.T) {
	dir := t.TempDir()
	c := &config.Cluster{Certificate: filepath.Join(dir, "n1.crt"), Key: filepath.Join(dir, "n1.key"), Trust: filepath.Join(dir, "ca.crt")}
	var x identity
	complaints := 0
	now := func() *tls.Config {
		t.Helper()
		conf, err := x.of(c, func(error) { complaints++ })
		if err != nil {
			t.Fatal(err)
		}
		return conf
	}
	if _, err := x.of(c, nil); err == nil {
		t.Fatal("no file at all is an identity")
	}
	certify(t, c, 1)
	server := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return now(), nil }}
	shows := func() (there, here int64) {
		t.Helper()
		near, far := net.Pipe()
		defer func() { _, _ = near.Close(), far.Close() }()
		taken := tls.Server(far, server)
		ended := make(chan error, 1)
		go func() { ended <- taken.Handshake() }() // ends with the handshake
		conf := now().Clone()
		conf.ServerName = "n1"
		begun := tls.Client(near, conf)
		if err := begun.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		return begun.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), taken.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	want := func(serial int64) {
		t.Helper()
		if there, here := shows(); there != serial || here != serial {
			t.Errorf("who is asked shows %d, who asks %d, want %d", there, here, serial)
		}
	}
	want(1)
	if first, again := now(), now(); first != again {
		t.Error("files that are the same are read again")
	}
	certify(t, c, 2)
	want(2)
	if err := os.WriteFile(c.Key, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(2)
	want(2)
	if complaints != 1 {
		t.Errorf("%d complaints of one mistake", complaints)
	}
	certify(t, c, 3)
	want(3)
}

// Of lines that are the same one is written in a minute, with the number of the others; of too
// many that are not, one as well.
func TestRepeats(t *testing.T) {
	var r repeats
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	want := func(line string, after time.Duration, times int, due bool) {
		t.Helper()
		if k, is := r.due(line, at.Add(after)); k != times || is != due {
			t.Errorf("%q after %v: due %t, %d not written; want %t, %d", line, after, is, k, due, times)
		}
	}
	want("a", 0, 0, true)
	want("a", time.Second, 0, false)
	want("b", time.Second, 0, true)
	want("a", 59*time.Second, 0, false)
	want("a", time.Minute, 2, true)
	want("a", 2*time.Minute, 0, true)
	lines := 0
	for i := range 10 * repeatsMax {
		if _, due := r.due(strings.Repeat("x", i+2), at.Add(2*time.Minute)); due {
			lines++
		}
	}
	if lines > repeatsMax || len(r.seen) > repeatsMax+1 {
		t.Errorf("%d lines in one moment, %d are remembered", lines, len(r.seen))
	}
}
