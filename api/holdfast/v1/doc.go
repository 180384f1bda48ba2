// Package holdfastv1 is the API of a node as messages: generated from
// holdfast.proto, which says what each of them means.
package holdfastv1

import _ "embed" // the document

// OpenAPI is the document of the API's plain JSON form, in YAML.
//
//go:embed openapi.yaml
var OpenAPI []byte
