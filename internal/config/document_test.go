package config

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Every key of the parser stands in the document for operators, as code.
func TestEveryKeyIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, part := range strings.Split(string(text), "\n## ")[1:] {
		name, body, _ := strings.Cut(part, "\n")
		sections[name] = body
	}
	for section, groups := range map[string]map[string][]string{
		"node": {"node.": nodeKeys, "node.admin.": {"socket"}},
		"listeners": {
			"": listenerKeys, "keepalive.": keepaliveKeys, "proxyProtocol.": proxyKeys,
			"http.": httpKeys, "http.limits.": httpLimitsKeys, "http.timeouts.": httpTimeoutsKeys,
			"routes[].": routeKeys, "routes[].match.": matchKeys, "routes[].match.path.": pathKeys,
			"routes[].match.header.NAME.": valueKeys, "routes[].backends[].": weightedKeys,
			"routes[].redirect.": redirectKeys, "routes[].respond.": respondKeys, "routes[].rewrite.": rewriteKeys,
			"routes[].headers.": headersKeys, "routes[].headers.request.": editKeys,
		},
		"backends": {"": backendKeys, "retry.": {"max"}, "limits.": limitsKeys, "reuse.": reuseKeys, "endpoints[].": endpointKeys},
		"cluster":  {"cluster.": clusterKeys, "cluster.identity.": identityKeys},
	} {
		if !slices.Contains(rootKeys, section) {
			t.Errorf("%s is no section of the file", section)
		}
		for prefix, keys := range groups {
			for _, key := range keys {
				// A key that has keys of its own is documented by them.
				if name := "`" + prefix + key; !strings.Contains(sections[section], "| "+name+"` |") && !strings.Contains(sections[section], "| "+name+".") {
					t.Errorf("%s: no row for %s%s", section, prefix, key)
				}
			}
		}
	}
	for _, section := range rootKeys {
		if sections[section] == "" {
			t.Errorf("no section %s", section)
		}
	}
}

// A configuration in the document is one that a reader will copy.
func TestDocumentParses(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("no configuration found")
	}
	for _, block := range blocks {
		src, _, _ := strings.Cut(block, "```")
		if _, warnings, err := Parse("docs/configuration.md", []byte(src), nil); err != nil || len(warnings) > 0 {
			t.Errorf("%s\n%v\n%v", src, err, warnings)
		}
	}
}
