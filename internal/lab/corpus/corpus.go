// Package corpus holds raw request streams that two readers may understand
// differently, readers of several minds, and the judgement of what a proxy
// makes of such a stream: what it forwards must mean the same to all readers,
// and every answer must belong to its own request.
//
// All of it is a function of octets: nothing here does I/O. The streams in
// testdata are made by [Generate] from the grammar of RFC 9110 and 9112 and
// from nothing else.
package corpus

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Want is what a proxy has to do with a stream.
type Want string

// The wants. Either leaves the choice to the proxy: to refuse, or to forward
// something that has one meaning.
const (
	Either Want = ""
	Serve  Want = "serve"  // nothing is wrong with it: every request is answered by the backend
	Refuse Want = "refuse" // its last request must not reach the backend
)

// Vector is one stream, as a client sends it.
type Vector struct {
	ID     string `json:"id"`
	Octets []byte `json:"b64"`
	Want   Want   `json:"want,omitempty"`
}

// File is one file of vectors.
type File struct {
	Name    string // without .jsonl
	Vectors []Vector
}

//go:embed testdata/*.jsonl
var own embed.FS

// Own gives the streams of this package.
func Own() ([]File, error) {
	sub, err := fs.Sub(own, "testdata")
	if err != nil {
		return nil, err
	}
	return Load(sub)
}

// Load reads all *.jsonl at the top of fsys: one object with id and b64 a line.
func Load(fsys fs.FS) ([]File, error) {
	names, err := fs.Glob(fsys, "*.jsonl")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("corpus: no *.jsonl there")
	}
	var files []File
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		f := File{Name: strings.TrimSuffix(path.Base(name), ".jsonl")}
		lines := bufio.NewScanner(bytes.NewReader(b))
		lines.Buffer(nil, 16<<20)
		for n := 1; lines.Scan(); n++ {
			var v Vector
			if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
				return nil, fmt.Errorf("corpus: %s, line %d: %w", name, n, err)
			}
			if v.ID == "" || !slices.Contains([]Want{Either, Serve, Refuse}, v.Want) {
				return nil, fmt.Errorf("corpus: %s, line %d: id %q, want %q", name, n, v.ID, v.Want)
			}
			f.Vectors = append(f.Vectors, v)
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("corpus: %s: %w", name, err)
		}
		files = append(files, f)
	}
	return files, nil
}

// Marshal writes vectors as Load reads them.
func Marshal(vectors []Vector) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	for _, v := range vectors {
		if err := e.Encode(v); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
