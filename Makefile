# What a target needs from Debian is installed first, where it is missing.

PACKAGES_RUN  = qemu-system-x86 qemu-utils qemu-block-extra iproute2 nftables git ca-certificates
PACKAGES_DEMO = $(PACKAGES_RUN) busybox-static kmod e2fsprogs
PACKAGES_TEST = $(PACKAGES_DEMO) gcc libc6-dev libiscsi-bin tgt fio openssh-client gnupg
PACKAGES_LINT = shellcheck

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# The race detector costs the guests nothing: they are not in the test's
# process. `make test RACE=` goes without, and without a C compiler.
RACE = -race

# Two packages at a time: a guest without hardware acceleration keeps a core
# busy while it boots.
# -count=1: the end-to-end tests build the program themselves, which the test
# cache does not see.
TEST = go run ./internal/testcount -- -count=1 $(RACE) -p 2 -timeout 20m
PKG  = ./...

SHELL_SCRIPTS = .ci/run demo/demo $(wildcard scripts/*)

.DEFAULT_GOAL = help
.PHONY: help setup build demo demo-down test bench soak lint clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install the Debian packages that the tests need
	@scripts/install-packages $(PACKAGES_TEST)

build: ## build bin/reconciler
	@go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/reconciler ./cmd/reconciler

demo: ## bring up a VM on an iSCSI disk from a Git commit, and change it
	@scripts/install-packages $(PACKAGES_DEMO)
	@$(MAKE) --no-print-directory build
	@demo/demo up

demo-down: ## stop all that the demo started and remove its files
	@demo/demo down

# The forge takes minutes to build on a new machine: it is begun at once, and the
# tests that need it wait for it.
test: setup ## run the tests (PKG=./spec/... for some)
	@go run ./internal/testbed/build -forge & $(TEST) $(PKG); result=$$?; wait; exit $$result

bench: setup ## measure what docs/performance.md reports (BENCH='-run host -short' for less)
	@go run ./internal/bench $(BENCH)

soak: setup ## crash the agent and the target hundreds of times (hours)
	@RECONCILER_SOAK=1 go test -tags soak -run 'Soak|UnderLoad' -p 1 -timeout 3h -v $(PKG)

lint: ## gofmt, vet, staticcheck, go mod tidy, shell scripts
	@scripts/install-packages $(PACKAGES_LINT)
	@scripts/lint $(SHELL_SCRIPTS)

clean: ## remove what was built
	@rm -rf bin
