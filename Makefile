# What one types. `make test` is what CI runs; every stage of it can be run
# alone: make unit, make lint, ...
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

BENCH ?= tcp-echo
LAB ?= four-distances
# Long ones first, those that need a processor beside those that wait: `make labs` runs two at a time.
LABS ?= four-distances vanished-peers ledger hostile soak main-job migrate-clients march systemd reload rolling-hosts migrate migrate-march upgrade \
	misbehave tunnel rolling seed-000 durable vtc corpora
FUZZTIME ?= 30000x
SEEDS ?= 200
RELEASE ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# SHORT=1 and SABOTAGE=x become flags of the commands.
short = $(if $(filter-out 0,$(SHORT)),-short)
sabotage = $(if $(SABOTAGE),-sabotage $(SABOTAGE))
# Directories with more of what the labs corpora and vtc have of their own.
more = $(if $(CORPUS),-corpus $(CORPUS)) $(if $(VTC),-vtc $(VTC))
# Many labs in a row share what `make build` made: else each would link the product
# again. BUILT=1 says that it is there. What a lab builds with plants it builds itself.
runlab = $(if $(BUILT),bin/holdfast-lab $(if $(filter march,$(LAB)),,-binary bin/holdfast),go run ./cmd/holdfast-lab)
# In CI a skipped test is a failure unless internal/lint/skips/allowed.txt lists it.
tests = go run ./internal/lint/skips $(if $(CI),-strict)

.PHONY: build deps run test bench lab generate fuzz sim lint \
	format vet current unit race planted labs sabotage previous clean help

build: ## bin/holdfast and the commands that test it, static
	CGO_ENABLED=0 go build -trimpath -o bin/ \
		-ldflags '-X github.com/holdfast-lb/holdfast/internal/node.Release=$(RELEASE)' ./cmd/...

deps: ## the Debian packages that tests, labs and benches need
	@.ci/deps

run: ## servers, Holdfast, clients and live figures on loopback
	@$(MAKE) --no-print-directory build
	bin/holdfast demo || [[ $$? == 130 ]]

comma = ,
bench: ## BENCH=tcp-echo,http-small [SHORT=1] [OUT=docs/benchmarks]: Holdfast beside haproxy and nginx
	@for b in $(subst $(comma), ,$(BENCH)); do
		go run ./cmd/holdfast-bench -row $$b $(short) $(if $(OUT),-out $(OUT))
	done

lab: ## LAB=four-distances [SHORT=1] [SABOTAGE=drop-octet|rst-one|blind-relay|kill] [CORPUS=dir] [VTC=dir]
	@$(runlab) -lab $(LAB) $(short) $(sabotage) $(more) $(LABFLAGS)

# The clone may be shallow, or have no history: internal/lab/previousbuild.go.
previous: ## up to this release from the one before it, down and up again, under load
	@go run ./cmd/holdfast-lab -lab previous -short $(sabotage) $(or $(LABFLAGS),-figures-only)

generate: ## what is made of internal/frozen/frozen.proto and api/holdfast/v1/holdfast.proto
	@$(call protoc,.)

clean: ## what was built here
	rm -rf bin out

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

# -- make test and its stages ------------------------------------------------

STAGES ?= build format vet lint current unit race planted fuzz sim previous labs sabotage bench

# Of the lab, correctness decides here; goals of speed that were missed are
# printed, for machines differ (make lab alone is strict). Each stage runs even when one before it failed: a person wants the whole
# list. Only without a build there is nothing to go on with.
test: ## all of the stages, with a summary; what CI runs
	@if [[ -n "$${CI:-}" ]]; then .ci/deps; fi
	summary=(); failed=0; begin=$$SECONDS
	for stage in $(STAGES); do
		printf '\n== %s\n' "$$stage"; t=$$SECONDS; verdict=ok
		case $$stage in
			labs) args="SHORT=1 LABFLAGS=-figures-only" ;;
			bench) args="SHORT=1 BENCH=tcp-echo,http-small" ;;
			fuzz) args="FUZZTIME=3000x" ;;
			*) args="" ;;
		esac
		$(MAKE) --no-print-directory "$$stage" $$args || { verdict=FAILED; failed=1; }
		summary+=("$$(printf '%-9s %-6s %4d s' "$$stage" "$$verdict" $$((SECONDS - t)))")
		if [[ $$stage == build && $$verdict != ok ]]; then break; fi
	done
	printf '\n== summary, %d s in all\n' $$((SECONDS - begin))
	printf '%s\n' "$${summary[@]}"
	if ((failed)); then echo FAILED; exit 1; fi
	echo ok
.ONESHELL:

format: ## gofmt finds nothing to do
	@wrong=$$(git ls-files -co --exclude-standard '*.go' 2>/dev/null | xargs -r gofmt -l || gofmt -l .)
	if [[ -n $$wrong ]]; then echo "not formatted; run gofmt -w:"; echo "$$wrong"; exit 1; fi

vet: ## go vet
	go vet ./...
	go vet -tags planted ./...

lint: ## golangci-lint, pinned in tools/golangci
	@go tool -modfile=tools/golangci/go.mod golangci-lint run ./...

# Some tests count the kernel's segments and watch its timers: those run alone.
# $(1) are flags. Most tests wait for something and need no processor, so more packages
# than processors run at once; the long ones begin, and sim, which never waits, is the first.
alone = ./tcprepair
long = sim netadmin node lab
define each_test
	{ set +e; failed=0
	$(if $(alone),go test -timeout 300s -p 1 $(1) -json $(alone) || failed=1)
	go test -timeout 300s -p 4 $(1) -json $$(go list $(long:%=./internal/%) ./cmd/holdfast ./... | \
		awk '!seen[$$0]++' | grep -vE '/tcprepair$$$(2)') || failed=1
	exit $$failed; } | $(tests)
endef

unit: ## every test
	@$(call each_test,)

# Packages of one goroutine, tests included (house_test.go holds it), have nothing
# to race. Nor has tcprepair, whose tests race with the kernel's timers: that slower
# ones find more.
single = flow health config h1 proxyproto sim vip
race: alone =
race: ## every test under the race detector that has goroutines
	@export CGO_ENABLED=1
	$(call each_test,-race -short,|/internal/($(subst $(eval) ,|,$(strip $(single))))$$)

# Generators that make code are those of go.mod, so that they and their runtimes
# cannot drift; the one of the OpenAPI document is pinned in a module of its own.
# $(1) is the directory to write to, as if it were the top of the module.
define protoc
	go_plugin="$$(go tool -n protoc-gen-go)"
	protoc --plugin=protoc-gen-go="$$go_plugin" \
		--go_out=$(1) --go_opt=paths=source_relative internal/frozen/frozen.proto
	mkdir -p $(1)/api/holdfast/v1
	protoc --plugin=protoc-gen-go="$$go_plugin" \
		--plugin=protoc-gen-connect-go="$$(go tool -n protoc-gen-connect-go)" \
		--plugin=protoc-gen-connect-openapi="$$(go tool -modfile=tools/openapi/go.mod -n protoc-gen-connect-openapi)" \
		-I api -I api/include \
		--go_out=$(1)/api --go_opt=paths=source_relative \
		--connect-go_out=$(1)/api --connect-go_opt=paths=source_relative,simple \
		--connect-openapi_out=$(1)/api --connect-openapi_opt=base=api/openapi-base.yaml,path=holdfast/v1/openapi.yaml,with-proto-names,allow-get \
		holdfast/v1/holdfast.proto
endef

# Generated files as they are committed.
generated = internal/frozen/frozen.pb.go api/holdfast/v1/holdfast.pb.go \
	api/holdfast/v1/holdfastv1connect/holdfast.connect.go api/holdfast/v1/openapi.yaml

# The header names the release of protoc; that line alone may differ.
current: ## the committed generated code is what the generators make
	@if ! command -v protoc >/dev/null; then
		echo "no protoc here: run make deps"; [[ -z "$${CI:-}" ]]; exit
	fi
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT
	$(call protoc,"$$fresh")
	for f in $(generated); do
		diff -I '^//.*protoc  *v' "$$f" "$$fresh/$$f" || { echo "$$f is not current: run make generate"; exit 1; }
	done

# A number of inputs and no time: when a time is over go test calls what is still being
# minimized a failure ("context deadline exceeded", and no input to show for it), and only
# for a time does it set that deadline (internal/fuzz, CoordinateFuzzing). An input of a
# whole flow that moves takes as long as ten others.
fuzz: ## FUZZTIME=30000x: every fuzz target in turn
	@targets=$$(go test -list '^Fuzz' ./... | awk '/^Fuzz/ {names[++n]=$$1} /^ok/ {for (i=1; i<=n; i++) print $$2, names[i]; n=0}')
	[[ -n $$targets ]] || { echo "no fuzz target found"; exit 1; }
	while read -r package name; do
		much=$(FUZZTIME)
		if [[ $$name == *FlowMoves && $$much == *0x ]]; then much=$${much%0x}x; fi
		echo "-- $$name in $$package, $$much"
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime "$$much" -fuzzminimizetime 50x "$$package" </dev/null
	done <<<"$$targets"

sim: ## SEEDS=200: the deterministic world, one history for each seed
	@go test -count=1 -json -run '^TestSeeds$$' ./internal/sim -seeds $(SEEDS) | $(tests)

planted: ## the tests find each bug that was put in on purpose, see docs/planted-bugs.md
	@go test -timeout 300s -count=1 -tags planted -run '^TestPlanted' -json ./internal/sim ./internal/flow ./internal/ledger ./internal/journal ./internal/loop ./internal/node | $(tests)

# Two labs run at a time, each in namespaces of its own; what one says is printed when it
# has ended.
labs: ## LABS="...": every lab
	@$(MAKE) --no-print-directory build
	outs=$$(mktemp -d); trap 'rm -rf "$$outs"' EXIT
	one() {
		local l=$$1 flags="$(LABFLAGS)" t=$$SECONDS verdict=ok
		if [[ $$l == main-job || $$l == migrate-clients ]]; then # all of its figures are of correctness; its servers change their users
			flags=
			if ((EUID != 0)); then verdict=skipped; echo "it needs root" >"$$outs/$$l"; [[ -z "$${CI:-}" ]] || touch "$$outs/bad"; fi
		fi
		if [[ $$verdict == ok ]]; then
			$(MAKE) --no-print-directory lab LAB=$$l BUILT=1 LABFLAGS="$$flags" >"$$outs/$$l" 2>&1 || { verdict=FAILED; touch "$$outs/bad"; }
		fi
		{ flock 9; echo "-- $$l: $$verdict, $$((SECONDS - t)) s"; cat "$$outs/$$l"; } 9>"$$outs/printing"
	}
	n=0
	for l in $(LABS); do
		one $$l &
		if ((++n >= 2)); then wait -n || true; fi
	done
	wait
	[[ ! -e $$outs/bad ]]

# A lab that cannot fail shows nothing. With each sabotage it must come to a
# verdict, and a figure of correctness must be false: that it was slow, or
# could not go on, does not count.
# A name before a colon is another lab than the first one.
SABOTAGES = drop-octet rst-one blind-relay kill \
	corpora:blind-relay corpora:drop-octet corpora:kill vtc:blind-relay vtc:kill rolling:kill ledger:drop-octet misbehave:drop-octet \
	reload:skip-apply reload:kill durable:forget upgrade:kill upgrade:old-stays \
	systemd:kill systemd:no-store \
	migrate:drop-octet migrate:rst-one migrate:kill migrate:two-answer
# They run three at a time: nothing of them is judged by the clock.
sabotage: ## each sabotage of the lab is noticed
	@$(MAKE) --no-print-directory build
	outs=$$(mktemp -d); trap 'rm -rf "$$outs"' EXIT
	one() {
		local lab=$(LAB) how=$$1 out=$$outs/$$1 flags=-figures-only
		if [[ $$1 == *:* ]]; then lab=$${1%%:*}; how=$${1##*:}; fi
		if $(MAKE) --no-print-directory lab LAB=$$lab BUILT=1 SHORT=1 SABOTAGE=$$how LABFLAGS=$$flags >"$$out" 2>&1; then
			if grep -q '^NOT SHOWN' "$$out"; then echo "-- $$1: the lab cannot run here"; return; fi
			echo "-- $$1: NOT NOTICED"; tail -n 20 "$$out"; touch "$$outs/bad"; return
		fi
		local failures
		failures=$$(sed -nE 's/^\{.*"failures":\[(.*)\],"figures_hold":.*$$/\1/p' "$$out")
		if [[ -z $$failures || $$failures == *'"the run: '* ]]; then
			echo "-- $$1: the lab broke instead of judging:"; tail -n 20 "$$out"; touch "$$outs/bad"
		else
			echo "-- $$1: noticed: $$failures" | cut -c1-160
		fi
	}
	n=0
	for s in $(SABOTAGES); do
		one $$s &
		if ((++n >= 3)); then wait -n || true; fi
	done
	wait
	[[ ! -e $$outs/bad ]]

