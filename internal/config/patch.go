package config

// Patch is one change of the desired state that is not a change of the file: of
// one object, or of one field of it.
type Patch struct {
	// Object is "node", "accessLog", "cluster", "listener/NAME", "backend/NAME",
	// "endpoint/BACKEND/NAME" or "route/LISTENER/NAME".
	Object string `json:"object"`
	// Field is a key of the object, with dots: "weight", "check.interval"; "" is
	// the whole object.
	Field string `json:"field,omitempty"`
	// Value is YAML, which JSON is, too.
	Value string `json:"value,omitempty"`
	// Delete takes the object away, or gives the field its default.
	Delete bool `json:"delete,omitempty"`
	// Before is the name of the route before which a new one is put; "" puts it
	// last, "*" first.
	Before string `json:"before,omitempty"`
}
