package demo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// identityTime is how long the certificates of a demo are good.
const identityTime = 24 * time.Hour

// Identities makes an authority and a certificate for each name, good for both ends of
// a connection: ca.crt, NAME.crt and NAME.key in dir.
func Identities(dir string, names ...string) error {
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "holdfast demo"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(identityTime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if err := sign(filepath.Join(dir, "ca"), root, root, authority, authority); err != nil {
		return err
	}
	for i, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if err := sign(filepath.Join(dir, name), leaf, root, key, authority); err != nil {
			return err
		}
	}
	return nil
}

// sign writes a certificate, and its key unless that is the authority's own.
func sign(path string, of, by *x509.Certificate, key, authority *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, of, by, key.Public(), authority)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	err = writePEM(path+".crt", "CERTIFICATE", der)
	if err != nil || key == authority {
		return err
	}
	if der, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return writePEM(path+".key", "PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}
