# hpcr. `make demo` shows the main job, `make test` runs the tests; both install
# what they need from Debian's packages. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
root := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
cd := cd '$(root)' &&

ARCH ?= amd64
TIER ?= core
RUN ?= .
FUZZTIME ?= 5s
export GOFLAGS := -buildvcs=false
# Without ARCH on the command line, tests take amd64 and what s390x alone shows.
archs := $(if $(filter command line environment,$(origin ARCH)),$(ARCH),amd64 s390x)
# The plug-ins of containerd that the guest has no use for; tests build the same.
tags := no_btrfs no_devmapper no_zfs no_cri no_systemd no_tracing no_rdt netgo osusergo urfave_cli_no_docs grpcnotrace

.PHONY: help deps build test race lint fuzz-smoke vm demo bench image repro sbom check soak

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' '$(root)/Makefile' | sed -E 's/:[^#]*##/\t/' | expand -t 14
	@echo 'Variables: ARCH=amd64|s390x  RUN=regexp  TIER=core|full  FUZZTIME=5s'

deps: ## install what builds and tests need (Debian packages, as root)
	@$(cd) go run ./initramfs/deps $(archs)

build: ## build the host tool and both architectures' guest binaries
	@$(cd) mkdir -p build
	@$(cd) CGO_ENABLED=0 go build -trimpath -o build/hpcrctl ./cmd/hpcrctl
	@$(cd) for a in amd64 s390x; do mkdir -p build/$$a; for p in hpcr hpcr-init hpcr-disk; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$a go build -trimpath -tags '$(tags)' -ldflags '-s -w -buildid=' -o build/$$a/$$p ./cmd/$$p; done; done

# A process's memory is measured without the detector, which takes most of it.
race: deps ## unit tests with the race detector, in random order
	@$(cd) go test -race -shuffle=on -tags '$(tags)' -timeout 20m ./...
	@$(cd) go test -tags '$(tags)' -run '^TestAppletMemory$$' ./agent/boot

lint: ## vet and staticcheck, both flavours, both architectures, and the host tool on macOS
	@$(cd) test -z "$$(gofmt -l agent cmd contract disk initramfs network test)" || { echo 'gofmt wants to change files' >&2; exit 1; }
	@$(cd) for a in amd64 s390x; do for f in '' dev; do GOARCH=$$a go vet -tags "$(tags) $$f vm guest" ./...; done; done
	@$(cd) go tool staticcheck -tags '$(tags) dev vm guest' ./...
	@$(cd) CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/hpcrctl

test: race vm ## everything that gates a change: unit tests, then guests of the core tier

vm: deps build ## boot the scenarios of a tier: RUN=regexp TIER=core|full
	@$(cd) HPCR_ARCHS='$(archs)' HPCR_TIER='$(TIER)' go test -tags 'vm $(tags)' -count=1 -timeout $(if $(filter full,$(TIER)),180m,80m) -v ./test -run '$(RUN)'
	@$(cd) test '$(RUN)' != . || HPCR_ARCHS='$(archs)' HPCR_TIER='$(TIER)' go test -tags 'vm $(tags)' -count=1 -p 1 -timeout 60m \
	  -run '^(TestReproducible|TestImage|TestGuest|TestPanic|TestHung|TestBadArgument|TestInGuests|TestHostileDisks|TestPowerCutsInGuests)' ./initramfs ./initramfs/qemu ./disk
	@$(cd) test '$(RUN) $(TIER)' != '. full' || HPCR_TIER=full go test -count=1 -timeout 40m -run '^TestEveryBit$$' ./disk/luks2

image: deps build ## a dev image under build/$ARCH, with keys made on the first run
	@$(cd) test -e build/$(ARCH)/keys/contract.key || build/hpcrctl keys new --out build/$(ARCH)/keys
	@$(cd) build/hpcrctl image build --arch $(ARCH) --keys build/$(ARCH)/keys --dev --out build/$(ARCH)/image

demo: deps build ## the main job, shown: contract, disk, container, health, twice
	@$(cd) go run ./test/demo -arch $(ARCH)

bench: deps build ## start to ready by phase, memory, sizes; writes build/bench.json
	@$(cd) go run ./test/bench -arch $(ARCH)

repro: deps build ## build the keyless base twice, by two users in different surroundings, and compare
	@$(cd) HPCR_ARCHS='$(archs)' go test -tags 'vm $(tags)' -count=1 -timeout 60m -v ./initramfs -run Repro

sbom: image ## what is in the image, as SPDX
	@$(cd) cat build/$(ARCH)/image/sbom.spdx.json

fuzz-smoke: ## each fuzz target for FUZZTIME
	@$(cd) go run ./test/fuzzall -time $(FUZZTIME)

check: lint race fuzz-smoke ## what a release needs: lint, race, fuzz, every scenario
	@$(MAKE) -C '$(root)' vm TIER=full

soak: deps build ## what takes hours: the full tier again and again, with long outages, until stopped or failed
	@$(cd) while HPCR_SOAK=1 HPCR_ARCHS='$(archs)' HPCR_TIER=full go test -tags 'vm $(tags)' -count=1 -timeout 0 ./test -run '$(RUN)'; do :; done
