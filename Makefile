# Every target installs what it lacks (scripts/deps: silent and instant when that is nothing).
#
#   make demo       a real guest through stock virsh, from define to undefine
#   make test       formatting, lints, all tests
#   make run        the daemon in the foreground, below a private root (ROOT=/ for the real directories)
#   make bench      speed beside the floor; beside upstream's libvirtd where it is installed (UPSTREAM=1 installs it, UPDATE=1 writes BENCH.md)
#   make bench-migrate   guests on their way between two daemons, beside QEMU to QEMU by hand and beside libvirt's
#   make soak       a thousand migrations that are disturbed at random moments (ROUNDS, SEED; some minutes, an hour at most)
#   make fuzz       each fuzzer for TIME seconds, from the committed seeds on (needs a nightly compiler; TARGETS="qmp xml")
#   make compat     the same commands on libvirt's own daemon and on ours, every difference in the answers (UPDATE=1 writes the report)
#   make compat-clients   other clients, old and new, on both (UPDATE=1 writes compat/CLIENTS.md)
#   make compat-tests   the tests of the running daemon on libvirt's own, which decides what is expected of ours
#   make compat-corpus   upstream's own test data through our definitions and command line (fetches its source package)
#   make guest      the sample guest that tests and demo boot; make guest-check tries it
#   make fmt lint   what CI checks first
#   make install    PREFIX, DESTDIR as usual; systemd units included (BINARY=FILE installs that one and builds nothing)
#   make deb        a Debian package in .build/deb (DEB=DIR, BINARY=FILE)

PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system
DEB ?= $(CURDIR)/.build/deb
ROOT ?= $(CURDIR)/.build/run
UPSTREAM ?=
ROUNDS ?= 1000
SEED ?= $(shell date +%s)
TIME ?= 60
TARGETS ?= $(notdir $(wildcard fuzz/seeds/*))
export BINARY ?=
CARGO ?= cargo

.PHONY: demo test run bench bench-migrate soak fuzz compat compat-clients compat-tests compat-corpus guest guest-check fmt lint licenses release install deb deps-build deps-test deps-upstream

demo: guest
	$(CARGO) build --quiet --locked
	scripts/demo

test: guest lint licenses
	$(CARGO) test --workspace --locked

run: deps-build
	$(CARGO) build --release --locked
	@echo "virsh -c 'qemu+unix:///system?socket=$(ROOT)/run/libvirt/libvirt-sock' list --all"
	exec target/release/ferrovirtd --root $(ROOT)

bench: $(if $(UPSTREAM),deps-upstream) guest
	$(CARGO) build --release --locked --workspace --bins
	target/release/ferrovirt-bench

bench-migrate: guest
	$(CARGO) build --release --locked --workspace --bins
	target/release/ferrovirt-bench-migrate

soak: guest
	FERROVIRT_SOAK_ROUNDS=$(ROUNDS) FERROVIRT_SOAK_SEED=$(SEED) \
	    timeout 3600 $(CARGO) test --quiet --locked --test daemon migrate_soak -- --nocapture
	FERROVIRT_SOAK_ROUNDS=10000 timeout 3600 $(CARGO) test --quiet --locked --test daemon -- \
	    catalogue::rounds_of_everything catalogue::a_storm catalogue::lookups_that_race --nocapture
	FERROVIRT_SOAK_ROUNDS=200 timeout 3600 $(CARGO) test --quiet --locked --test daemon -- \
	    catalogue::a_daemon_that_is_killed_over_a_define --nocapture
	FERROVIRT_SOAK_ROUNDS=100000 timeout 3600 $(CARGO) test --quiet --locked --test daemon -- \
	    hostile::calls_of_one_client_without_end --nocapture

fuzz:
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	cargo +nightly fuzz build --sanitizer none --codegen-units 16
	for target in $(TARGETS); do \
	    mkdir -p fuzz/corpus/$$target && \
	    cargo +nightly fuzz run --sanitizer none --codegen-units 16 $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
	        -max_total_time=$(TIME) -rss_limit_mb=2048 -timeout=10 || exit 1; done

compat: deps-upstream guest
	$(CARGO) build --quiet --locked --workspace --bins
	target/debug/ferrovirt-compat $(SCENARIOS)

compat-clients: deps-upstream guest
	scripts/deps clients
	$(CARGO) build --quiet --locked --workspace --bins
	target/debug/ferrovirt-compat clients $(CLIENTS)

compat-tests: deps-upstream guest
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

deps-upstream:
	@scripts/deps upstream

release: deps-build
	$(CARGO) build --release --locked --bin ferrovirtd

# Clients look for a daemon under libvirt's names when they start one: links, unless libvirt's own are there.
install: SHARE = $(DESTDIR)$(PREFIX)/share
install: $(if $(BINARY),,release)
	install -D -m 755 $(or $(BINARY),target/release/ferrovirtd) $(DESTDIR)$(PREFIX)/sbin/ferrovirtd
	for name in libvirtd virtqemud; do \
	    link=$(DESTDIR)$(PREFIX)/sbin/$$name; \
	    if [ -e $$link ] && [ ! -L $$link ]; then echo "$$link is not ours, left alone"; \
	    else ln -sf ferrovirtd $$link; fi; done
	install -D -m 644 -t $(SHARE)/polkit-1/actions packaging/polkit/*.policy
	install -D -m 644 packaging/polkit/ferrovirt.rules $(SHARE)/polkit-1/rules.d/60-ferrovirt.rules
	install -D -m 644 -t $(SHARE)/man/man8 packaging/man/ferrovirtd.8
	install -D -m 644 -t $(SHARE)/doc/ferrovirt/examples packaging/examples/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d packaging/sysusers/ferrovirt.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d packaging/tmpfiles/ferrovirt.conf
	install -d -m 711 $(DESTDIR)/var/lib/libvirt/boot $(DESTDIR)/var/lib/libvirt/images
	install -d $(DESTDIR)$(UNITDIR)
	for unit in packaging/systemd/*; do \
	    sed 's|@sbindir@|$(PREFIX)/sbin|' $$unit >$(DESTDIR)$(UNITDIR)/$${unit##*/}; done

# The package lands in $(DEB), built in a tree of links beside it.
deb:
	scripts/deps deb
	rm -rf $(DEB)
	mkdir -p $(DEB)/ferrovirt
	ln -s $(CURDIR)/* $(DEB)/ferrovirt/
	cp -r packaging/debian $(DEB)/ferrovirt/debian
	cd $(DEB)/ferrovirt && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps
