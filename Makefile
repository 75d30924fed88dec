# Every target installs what it lacks (scripts/deps: silent and instant when that is nothing).
#
#   make demo       a real guest through stock virsh, from define to undefine
#   make test       formatting, lints, all tests
#   make run        the daemon in the foreground, below a private root (ROOT=/ for the real directories)
#   make bench      speed beside the floor; beside upstream's libvirtd where it is installed (UPSTREAM=1 installs it)
#   make compat     the tests of the running daemon on libvirt's own, which decides what is expected of ours
#   make compat-corpus   upstream's own test data through our definitions and command line (fetches its source package)
#   make guest      the sample guest that tests and demo boot; make guest-check tries it
#   make fmt lint   what CI checks first
#   make install    PREFIX, DESTDIR as usual; systemd units included

PREFIX ?= /usr/local
DESTDIR ?=
ROOT ?= $(CURDIR)/.build/run
UPSTREAM ?=
CARGO ?= cargo

.PHONY: demo test run bench compat compat-corpus guest guest-check fmt lint licenses install deps-build deps-test

demo: guest
	$(CARGO) build --quiet --locked
	scripts/demo

test: guest lint licenses
	$(CARGO) test --workspace --locked

run: deps-build
	$(CARGO) build --release --locked
	@echo "virsh -c 'qemu+unix:///system?socket=$(ROOT)/run/libvirt/libvirt-sock' list --all"
	exec target/release/ferrovirtd --root $(ROOT)

bench: guest
	$(if $(UPSTREAM),scripts/deps upstream)
	$(CARGO) build --release --locked --workspace --bins
	target/release/ferrovirt-bench

compat: guest
	scripts/deps upstream
	FERROVIRT_TEST_DAEMON=upstream $(CARGO) test --locked --test daemon

compat-corpus: deps-build
	source=$$(scripts/upstream-source) && $(CARGO) run --quiet --locked -p ferrovirt-compat --features corpus --bin ferrovirt-corpus -- $$source

guest: deps-test
	scripts/guest

guest-check: deps-test
	scripts/guest check

fmt:
	$(CARGO) fmt --all

lint: deps-build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked --quiet -- -D warnings

# Licences and sources of dependencies, where cargo-deny is installed; it is a tool of its own, not a dependency.
licenses:
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --offline --locked check licenses bans sources; fi

deps-build:
	@scripts/deps build

deps-test:
	@scripts/deps build test

install: deps-build
	$(CARGO) build --release --locked
	install -D -m 755 target/release/ferrovirtd $(DESTDIR)$(PREFIX)/sbin/ferrovirtd
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in packaging/systemd/*; do \
	    sed 's|@sbindir@|$(PREFIX)/sbin|' $$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done
