# Everything a person or a machine does with this repository. `make help` lists
# it. demo and test do all their own set-up on a fresh Debian or Ubuntu machine
# that has Go; a second run finds it done.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOBUILD  = CGO_ENABLED=0 go build -trimpath -buildvcs=false
GUEST    = internal/guest/embedded/crownest-guest
GENERATED = api docs sdk

.PHONY: help deps build guest templates test bench demo lint fmt generate check-generated clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the missing Debian or Ubuntu packages (nothing to do: under a second)
	@tools/deps.sh

build: guest ## build bin/crownest, static, with the guest inside
	@$(GOBUILD) -ldflags "-s -w -X crownest.dev/crownest/internal/version.Version=$(VERSION)" -o bin/crownest ./cmd/crownest

# The guest is embedded into the server, so it comes first. Go rebuilds it only
# when its sources changed, and leaves equal bytes to hit the build cache.
guest:
	@mkdir -p $(dir $(GUEST))
	@$(GOBUILD) -ldflags "-s -w -X main.build=$(VERSION)" -o $(GUEST) ./cmd/crownest-guest

templates: deps build ## build the template images that are not there yet
	@tools/as-root.sh bin/crownest templates build

test: deps build ## run the whole test suite, each step timed
	@tools/test.sh

bench: deps build ## run the benchmarks with the peers in the same run
	@CGO_ENABLED=0 CROWNEST_BIN="$(CURDIR)/bin/crownest" go run -trimpath -exec "$(CURDIR)/tools/as-root.sh" ./bench

demo: deps build ## the main job from end to end, on real isolation
	@tools/as-root.sh tools/demo.sh

lint: guest ## vet and lint
	@tools/lint.sh

fmt: ## format the Go code
	@gofmt -w $$(git ls-files -co --exclude-standard '*.go')

generate: guest ## write the generated files anew
	@go generate ./...

check-generated: guest ## fail if a generated file is not up to date
	@before=$$(tools/digest.sh $(GENERATED)); go generate ./...; after=$$(tools/digest.sh $(GENERATED)); \
	if ! changed=$$(diff <(echo "$$before") <(echo "$$after")); then \
		echo "generated files were out of date; make generate has now written:"; echo "$$changed"; exit 1; fi

clean: ## remove what the build made
	@rm -rf bin $(GUEST)
