# `make help` lists the targets, from the text after each ##. `make` alone builds.

# The interpreter that the relay starts: the distribution's, because an upgrade of Python breaks a virtual environment.
PYTHON  = /usr/bin/python3
CC      = cc
CFLAGS  = -std=c11 -Wall -Wextra -Werror -O2 -fPIC -fvisibility=hidden -fstack-protector-strong -D_FORTIFY_SOURCE=2 \
          -ffile-prefix-map=$(CURDIR)=.
LDFLAGS = -shared -Wl,-z,relro,-z,now
LDLIBS  = -lpam

# Debian packages, by target. The build and the demo need no package index.
NEED_BUILD = gcc libc6-dev libpam0g-dev python3 python3-segno python3-serial
NEED_VENV  = ca-certificates python3-venv
NEED_TEST  = $(NEED_BUILD) $(NEED_VENV) libpam-google-authenticator libpam-modules libpam-oath oathtool openssh-client openssh-server \
             e2fsprogs pamtester strace sudo util-linux valgrind xfsprogs zbar-tools
# Packages for a browser, fail2ban, the proxy and certificates of the portal, a database, and the demo of a fleet. Tests that
# need a missing package are skipped. The tests make their own database clusters, and do not use the cluster that
# Debian's package makes.
WANT_TEST  = chromium-headless-shell fail2ban fonts-dejavu-core iproute2 nginx-light openssl postgresql python3-aiohttp python3-psycopg
# Other ssh clients, and their locales: a separate list, because not every system has the browser. Tests that need a missing
# package are skipped.
WANT_SSH   = locales putty-tools python3-paramiko
# `make` does not install these packages, because some of them start servers, and some supported systems lack caddy. Tests
# that need a missing package are skipped:
# - patroni, etcd-server and etcd-client: a failover by Patroni
# - prometheus: alert rules and metrics, by promtool
# - freeradius, freeradius-rest, freeradius-utils, libpam-radius-auth and radsecproxy: RADIUS
# - caddy: the portal behind Caddy
NEED_TORTURE = $(NEED_TEST) clang libclang-rt-dev
NEED_BENCH = $(NEED_BUILD) $(NEED_VENV) e2fsprogs libpam-google-authenticator libpam-oath libpam-python oathtool util-linux xfsprogs
NEED_FLEET = $(NEED_BUILD) iproute2 openssh-client openssh-server openssl postgresql python3-aiohttp python3-psycopg util-linux
NEED_LINT  = $(NEED_VENV) mandoc shellcheck
NEED_BOOTED = $(NEED_BUILD) $(NEED_VENV) $(NEED_SYSTEMS) e2fsprogs qemu-system-x86 swtpm
# `make systems` makes roots of other systems with these packages. python3 runs tests.systems without a virtual environment.
NEED_SYSTEMS = debian-archive-keyring debootstrap git python3 util-linux
NEED_INSTALL = gcc libc6-dev libpam0g-dev $(if $(strip $(EXTRAS)),ca-certificates python3-venv)

BIN = .venv/bin
# Tests run programs under other accounts, which must be able to read the installed packages.
PIP = umask 022; $(BIN)/pip install --quiet --disable-pip-version-check
DATA = pam_totp/system/data
DJANGOS = 4.2 5.2 newest
RELAY_DEFINES = -DINTERPRETER='"$(PYTHON)"' -DHELPER='"$(CURDIR)/pam_totp/pam/helper.py"' -DBUILDER=$(shell id -u)

.PHONY: demo portal test bench bench-database bench-fleet bench-footprint bench-portal cover cover-all fuzz torture requirements audit lint texts
.PHONY: build venv test-setup install fleet-demo want-root uninstall clean help want-test booted systems test-roots
.PHONY: test-django $(DJANGOS:%=build/django/%)
.PHONY: need-build need-fleet need-venv need-test need-torture need-bench need-lint need-install need-booted need-systems
.DELETE_ON_ERROR:

# `build` compiles the byte code. The helper and the commands must not write byte code, because they may run as root with
# a user's umask.
build: need-build build/pam_totp.so build/bin/pam-totp build/bin/token-sim  ## build the module and the commands, in build
	@$(PYTHON) -m compileall -q pam_totp token_sim

venv: .venv/.made  ## make the Python environment of the tests, in .venv

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build  ## show logins with a simulated token (a few seconds)
	@$(PYTHON) -m demo

fleet-demo: want-root need-fleet build  ## show a fleet of hosts with a database, as root (a minute)
	@$(PYTHON) -m demo.fleet

want-root:
	@[ "$$(id -u)" -eq 0 ] || { echo "make: root is required, because the demo makes namespaces (run 'sudo make fleet-demo')" >&2; exit 1; }

# The portal listens on port 8443. ARGS=9000 selects another port.
portal: build venv  ## run the portal for your browser, with a temporary store (ARGS=PORT)
	@$(BIN)/python -m demo.portal $(ARGS)

# The tests run in five processes, because tests spend much time waiting. With ARGS, the tests run in one process.
PROCESSES = $(if $(strip $(ARGS)),0,5)
SHARED_OUT = --numprocesses $(PROCESSES) --dist worksteal
# Tests of this machine's installation rather than of the code. These tests run make, pip and the demos.
SETUP_TESTS = tests/install tests/setup tests/demo

test: need-test want-test build venv $(if $(strip $(ARGS)),,build/tests.made)  ## run the tests of the code (ARGS=FILE for some tests)
	$(BIN)/python -m pytest $(SHARED_OUT) $(or $(strip $(ARGS)),$(SETUP_TESTS:%=--ignore=%))

test-setup: need-test want-test build venv build/tests.made  ## run the tests of installation, doctor, packages and demos
	$(BIN)/python -m pytest $(SHARED_OUT) $(SETUP_TESTS)

# The byte code of the tests, with the assertions as pytest rewrites them. Otherwise, each process would compile all tests,
# in each run if PYTHONDONTWRITEBYTECODE is set. An error here appears again in `make test`.
TESTS = $(sort $(wildcard tests/*.py tests/*/*.py))
build/tests.made: $(TESTS) tests/requirements.txt | build venv
	@echo "compiling the tests"
	@printf '%s\n' $(foreach path,$(TESTS),$(if $(findstring /test_,$(path)),$(path))) | \
	    PYTHONDONTWRITEBYTECODE= xargs -n 60 -P 4 $(BIN)/python -m pytest -p no:cacheprovider --collect-only -qq \
	    >/dev/null 2>&1 || true
	@touch $@

# setup.cfg lists the measured modules, and the required coverage.
cover: need-test build venv  ## run the tests of the core, and measure their coverage
	$(BIN)/python -m pytest -q tests/core --cov=pam_totp --cov-branch --cov-report=term-missing $(ARGS)

# `cover-all` measures relay.c, and pam_totp and token_sim in every process that the tests start, including helpers and
# services. The target fails if the coverage is below 90 %. ARGS=--help lists the options.
cover-all: need-test want-test build venv  ## run all tests, and measure the coverage of all code
	$(BIN)/python -m tools.coverage $(SHARED_OUT) $(ARGS)

# ARGS=--help lists the options of the benchmark. Example: ARGS="--rounds 50".
bench: need-bench build venv  ## measure logins by pam_totp and by other modules, as root
	$(BIN)/python -m tools.bench $(ARGS)

# valgrind counts the instructions and cache lines of a login. Other programs on the machine do not change these counts.
bench-footprint: need-test build venv  ## count the instructions and cache lines of one login
	$(BIN)/python -m tools.bench.footprint $(ARGS)

# ARGS=--help lists the options. The database takes 4 GB of /var/tmp.
bench-database: need-test want-test build venv  ## measure a million users in PostgreSQL, as root
	$(BIN)/python -m tools.bench.database $(ARGS)

# ARGS=--help lists the options.
bench-fleet: need-test want-test build venv  ## measure logins at a member of a fleet, and an authority, as root
	$(BIN)/python -m tools.bench.fleet $(ARGS)

# ARGS=50 sets the number of users.
bench-portal: need-test want-test build venv  ## measure many users who sign in to the portal at once, as root
	$(BIN)/python -m tools.bench.portal $(ARGS)

# Coverage guides the fuzzer. KEEP=1 adds new inputs to tests/fuzz/corpus, which `make test` reads. An input that
# shows a defect is written to build/fuzz.
SECONDS = 60
KEEP =
fuzz: build venv  ## run the parsers under a fuzzer (SECONDS=60, KEEP=1)
	$(PIP) $(LOCKED) --requirement tests/requirements-fuzz.txt
	$(BIN)/python -m tests.fuzz $(SECONDS) $(if $(strip $(KEEP)),--keep)

# `torture` runs the long form of tests/torture (`make test` runs the short form), then the fuzzer. `torture` prints
# all results at the end.
MINUTES = 60
torture: need-torture build venv  ## run races, crashes and hostile callers for an hour (MINUTES=60)
	$(PIP) $(LOCKED) --requirement tests/requirements-fuzz.txt
	$(BIN)/python -m tests.torture $(MINUTES) $(ARGS)

# `booted` runs virtual machines without KVM for about half an hour. The first run also makes their systems in build/booted.
booted: need-booted build venv  ## test the units on a booted machine with systemd, as root
	PAM_TOTP_BOOTED=1 $(BIN)/python -m pytest -p no:xdist --verbose tests/booted $(ARGS)

# `systems` uses bare roots of Debian 12, Debian 13 and Ubuntu 24.04, which debootstrap makes in build/systems. `systems`
# takes an hour. ARGS=--help lists the options, which select systems, accounts and steps. Without ARGS, `test-roots` runs
# first.
systems: need-systems $(if $(strip $(ARGS)),,test-roots)  ## run demo and tests on each system, as root and as a user
	@$(PYTHON) -m tests.systems $(ARGS)

test-roots: need-systems build venv  ## test the tool that makes bare roots, as root
	PAM_TOTP_SYSTEMS=1 $(BIN)/python -m pytest -p no:xdist --quiet tests/systems/test_roots.py

# `texts` finds the marked texts, and keeps the translations. ARGS=it adds Italian. docs/translating.md has the steps.
texts: venv  ## update the portal's translations after a change of a text (ARGS=it)
	@$(BIN)/python -m tools.texts $(ARGS)

# `test-django` makes environments in build/django, and installs pam_totp there by the steps of docs/web.md. The newest Django
# may need the newest Python of this machine.
NEWEST_PYTHON = $(firstword $(foreach minor,16 15 14 13 12,$(shell python3.$(minor) -c 'import sys; print(sys.executable)' 2>&-)) $(PYTHON))
test-django: need-test build venv $(DJANGOS:%=build/django/%)  ## test new projects of Django 4.2, 5.2 and the newest
	PAM_TOTP_DJANGO='$(DJANGOS)' $(BIN)/python -m pytest -p no:xdist --verbose tests/django/test_fresh_project.py $(ARGS)

$(DJANGOS:%=build/django/%): build/django/%: | need-venv
	rm -rf $@ && mkdir -p $@/source
	cp -r pam_totp token_sim setup.cfg pyproject.toml README.md LICENSE MANIFEST.in $@/source
	umask 022; $(if $(filter newest,$*),$(NEWEST_PYTHON),$(PYTHON)) -m venv $@
	umask 022; $@/bin/pip install --quiet --disable-pip-version-check '$@/source[django]' 'Django$(if $(filter newest,$*),,~=$*.0)'

lint: need-lint venv  ## check code style, types, plain words, shell scripts, manuals
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.words
	shellcheck .ci/run .ci/need $(DATA)/install $(DATA)/uninstall
	shellcheck --shell=bash $(DATA)/pam-totp.bash
	mandoc -Tlint -Wwarning $(DATA)/*.[158]

want-test:
	@[ "$$(id -u)" -ne 0 ] || .ci/need $(WANT_TEST) || echo "make: skipping the tests with a browser or PostgreSQL: a package cannot be installed"
	@[ "$$(id -u)" -ne 0 ] || .ci/need $(WANT_SSH) || echo "make: skipping the tests with plink or paramiko: a package cannot be installed"

need-build need-venv need-test need-torture need-bench need-lint need-install need-booted need-systems need-fleet: need-%:
	@.ci/need $(NEED_$(shell echo $* | tr a-z A-Z))

# The lock files list all dependencies. pip installs exactly the listed versions, even if a package has a newer
# release.
LOCKED = --no-deps --require-hashes --only-binary=:all:

.venv/.made: setup.cfg pyproject.toml tests/requirements.txt | need-venv
	umask 022; $(PYTHON) -m venv --clear .venv
	$(PIP) $(LOCKED) --requirement tests/requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/pip --disable-pip-version-check check
	touch $@

# uv resolves the requirements for each tested Python, even if that Python is missing on this machine. The lock files have
# one version of each package, with the hashes of all its files. `requirements` fails if a locked version has no wheel for
# a tested Python: exclude the version in setup.cfg. Review the difference of the lock files, and commit them.
PYTHONS = 3.11 3.12 3.13
UV = build/uv/bin/uv --quiet --system-certs
RESOLVE = $(UV) pip compile --upgrade --universal --python $(PYTHON) --python-version $(firstword $(PYTHONS)) \
          --fork-strategy fewest --only-binary=:all: --generate-hashes --no-annotate --no-emit-index-url \
          --no-emit-find-links --custom-compile-command 'make requirements'
requirements: | need-venv  ## update the lock files of the test packages
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet --disable-pip-version-check --upgrade 'uv>=0.13'
	$(PYTHON) $(DATA)/extras.py test,lint >build/test.in
	$(PYTHON) $(DATA)/extras.py fuzz >build/fuzz.in
	$(RESOLVE) --output-file build/requirements.txt build/test.in
	$(RESOLVE) --output-file build/requirements-fuzz.txt build/fuzz.in
	for python in $(PYTHONS); do for lock in requirements requirements-fuzz; do \
	    $(UV) pip install --dry-run --target build/none --python-version $$python $(LOCKED) --requirement build/$$lock.txt \
	        || exit 1; \
	done; done
	mv build/requirements.txt build/requirements-fuzz.txt tests

# Exit status 3 means that the configured package index publishes no advisories.
audit: .venv/.made  ## look up security advisories on the locked packages
	$(PYTHON) -m venv build/pip-audit
	build/pip-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@$(BIN)/python -m tools.audit build/pip-audit/bin/pip-audit

build/pam_totp.so: pam_totp/pam/relay.c Makefile | need-build
	mkdir -p build
	$(CC) $(CFLAGS) $(CPPFLAGS) $(RELAY_DEFINES) -o $@ $< $(LDFLAGS) $(LDLIBS)

# The commands in build/bin use the distribution's interpreter, the code in this folder, and the optional packages of .venv.
build/bin/pam-totp build/bin/token-sim: build/bin/%: pam_totp/system/data/command Makefile
	@mkdir -p build/bin
	@echo "writing $@"
	@sed -e 's|@PYTHON@|$(PYTHON)|' -e 's|@LIB@|$(CURDIR)|' -e 's|@EXTRAS@|$(CURDIR)/.venv|' -e 's|@NAME@|$*|' \
	    -e 's|@PACKAGE@|$(subst -,_,$*)|' $< >$@
	@chmod 755 $@

# Locations of an installation. DESTDIR= puts all files below another folder, for packages. EXTRAS=qr,serial makes a
# virtual environment for optional packages of the commands. Packages of the distribution need no EXTRAS.
PREFIX = /usr/local
PAMDIR = $(firstword $(wildcard /usr/lib/$(shell $(CC) -print-multiarch)/security /usr/lib64/security))
EXTRAS =
# Only packages set RELEASE, the folder of a version's code, and SIM, the folder of token_sim.
RELEASE =
SIM =
PLACES = DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' PAMDIR='$(PAMDIR)' PYTHON='$(PYTHON)' EXTRAS='$(EXTRAS)' RELEASE='$(RELEASE)' SIM='$(SIM)'
# An installed relay starts the installed helper, and does not trust the account that built the relay.
INSTALLED_RELAY_DEFINES = -DINTERPRETER='"$(PYTHON)"' -DHELPER='"$(PREFIX)/lib/pam_totp/pam_totp/pam/helper.py"'

install: need-install  ## install pam_totp and token_sim, as root (EXTRAS=qr,serial,... PREFIX= DESTDIR=)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(CC) $(CFLAGS) $(CPPFLAGS) $(INSTALLED_RELAY_DEFINES) -o "$$scratch/pam_totp.so" pam_totp/pam/relay.c $(LDFLAGS) $(LDLIBS) && \
	$(PLACES) RELAY="$$scratch/pam_totp.so" $(DATA)/install

uninstall:  ## remove the installation, but keep the secrets
	@$(PLACES) $(DATA)/uninstall

# `deb` builds the packages from a copy of this tree. The packages fit only the system on which `make deb` runs.
NEED_DEB = build-essential debhelper dh-python libpam0g-dev po-debconf python3
.PHONY: deb deb-test need-deb need-deb-lint

deb: need-deb  ## build Debian packages, in build/deb
	@packaging/build build/deb

# `deb-test` uses bare roots of Debian 12, Debian 13 and Ubuntu 24.04, which the first run makes. ARGS="-k bookworm" selects
# one system.
deb-test: need-systems venv  ## test the packages on three systems, as root
	PAM_TOTP_PACKAGES=1 $(BIN)/python -m pytest -p no:xdist --verbose tests/systems/test_packages.py $(ARGS)

lint: need-deb-lint
need-deb-lint: need-lint
	shellcheck --exclude=SC1091 packaging/build $(foreach script,config postinst postrm prerm,packaging/debian/*.$(script))

need-deb:
	@.ci/need $(NEED_DEB)

clean:  ## delete build, .venv and *.egg-info
	rm -rf build .venv *.egg-info
