# `make help` lists the targets, from the text after each ##. `make` alone builds.

# The relay starts this interpreter. It is the distribution's: a virtual environment breaks at the next upgrade.
PYTHON  = /usr/bin/python3
CC      = cc
CFLAGS  = -std=c11 -Wall -Wextra -Werror -O2 -fPIC -fvisibility=hidden -fstack-protector-strong -D_FORTIFY_SOURCE=2 \
          -ffile-prefix-map=$(CURDIR)=.
LDFLAGS = -shared -Wl,-z,relro,-z,now
LDLIBS  = -lpam

# Debian packages, by target. The build and the demo need nothing else: no package index, no virtual environment.
NEED_BUILD = gcc libc6-dev libpam0g-dev python3 python3-segno python3-serial
NEED_VENV  = ca-certificates python3-venv
NEED_TEST  = $(NEED_BUILD) $(NEED_VENV) libpam-google-authenticator libpam-modules libpam-oath oathtool openssh-client openssh-server \
             pamtester strace sudo util-linux valgrind zbar-tools
# A browser and what stands in front of the portal: without them, the tests that need them say so and are skipped.
WANT_TEST  = chromium fonts-dejavu-core nginx-light openssl
NEED_TORTURE = $(NEED_TEST) clang libclang-rt-dev
NEED_BENCH = $(NEED_BUILD) $(NEED_VENV) libpam-google-authenticator libpam-oath libpam-python oathtool pamtester util-linux
NEED_LINT  = $(NEED_VENV) mandoc shellcheck
NEED_BOOTED = $(NEED_BUILD) $(NEED_VENV) $(NEED_SYSTEMS) e2fsprogs qemu-system-x86
# To make roots of other systems; python3 runs the tool, before there is a virtual environment.
NEED_SYSTEMS = debian-archive-keyring debootstrap git python3 util-linux
NEED_INSTALL = gcc libc6-dev libpam0g-dev $(if $(strip $(EXTRAS)),ca-certificates python3-venv)

BIN = .venv/bin
# Other accounts take part in tests, and read what is installed there.
PIP = umask 022; $(BIN)/pip install --quiet --disable-pip-version-check
DATA = pam_totp/system/data
RELAY_KNOWS = -DINTERPRETER='"$(PYTHON)"' -DHELPER='"$(CURDIR)/pam_totp/pam/helper.py"' -DBUILDER=$(shell id -u)

.PHONY: demo portal test bench bench-portal cover cover-all fuzz torture requirements audit lint build venv install
.PHONY: uninstall clean help want-test booted systems test-roots
.PHONY: need-build need-venv need-test need-torture need-bench need-lint need-install need-booted need-systems
.DELETE_ON_ERROR:

# The helper and the commands never write byte code: as root, under another user's umask, they must not. It is made here.
build: need-build build/pam_totp.so build/bin/pam-totp build/bin/token-sim  ## the module and the commands, in build
	@$(PYTHON) -m compileall -q pam_totp token_sim

venv: .venv/.made  ## the environment of the tests, in .venv

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build  ## from the button to the login, in under ten seconds
	@$(PYTHON) -m demo

# The portal for a browser of yours, over a folder that goes with it. ARGS=9000 for another port than 8443.
portal: build venv  ## the portal for a browser of yours, over a folder that goes with it (ARGS=PORT)
	@$(BIN)/python -m demo.portal $(ARGS)

# All of the tests on four processes, two to a core, since half the time a test waits; what ARGS names, on one.
PROCESSES = $(if $(strip $(ARGS)),0,4)
SHARED_OUT = --numprocesses $(PROCESSES) --dist worksteal

test: need-test want-test build venv  ## all tests (ARGS=FILE for some)
	$(BIN)/python -m pytest $(SHARED_OUT) $(ARGS)

# The pure core by its own tests; which modules those are, and what is demanded, is in setup.cfg.
cover: need-test build venv  ## the core by its own tests, and how much of it they reach
	$(BIN)/python -m pytest -q tests/core --cov=pam_totp --cov-branch --cov-report=term-missing $(ARGS)

# Both packages, by all tests, in every process that they start, helpers and services included, and relay.c by its own:
# below 90 % it fails. ARGS=--help says more.
cover-all: need-test want-test build venv  ## all of it by all tests, and how much of it they reach
	$(BIN)/python -m tests.measure $(SHARED_OUT) $(ARGS)

# Ours beside the peers, in one run. ARGS="--rounds 50" and the like: see --help.
bench: need-bench build venv  ## logins, ours beside other modules
	$(BIN)/python -m tests.bench $(ARGS)

# People who all sign in to the portal at once. ARGS=50 for fifty of them.
bench-portal: need-test want-test build venv  ## many people who sign in to the portal at once
	$(BIN)/python -m tests.web.bench $(ARGS)

# The parsers under a coverage-guided fuzzer, for a while; what it found is kept, and part of `make test`.
SECONDS = 60
fuzz: build venv  ## the parsers under a fuzzer (SECONDS=60)
	$(PIP) $(LOCKED) --requirement tests/requirements-fuzz.txt
	$(BIN)/python -m tests.fuzz $(SECONDS)

# The long form of what tests/torture does in short within `make test`, then the fuzzer; ends with all figures.
MINUTES = 60
torture: need-torture build venv  ## an hour of races, crashes and hostile callers (MINUTES=60)
	$(PIP) $(LOCKED) --requirement tests/requirements-fuzz.txt
	$(BIN)/python -m tests.torture $(MINUTES) $(ARGS)

# In a virtual machine, without KVM: some three minutes, and the first time some more, for the system in build/booted.
booted: need-booted build venv  ## the units under a systemd that boots, as root
	PAM_TOTP_BOOTED=1 $(BIN)/python -m pytest -p no:xdist --verbose tests/booted $(ARGS)

# In bare roots of Debian 12, Debian 13 and Ubuntu 24.04, which debootstrap makes in build/systems: an hour. ARGS=--help
# lists the parts. Without ARGS, the roots themselves are tested first.
systems: need-systems $(if $(strip $(ARGS)),,test-roots)  ## demo and tests on every system, for root and for a user
	@$(PYTHON) -m tests.systems $(ARGS)

test-roots: need-systems build venv  ## tests of the bare roots themselves, as root
	PAM_TOTP_SYSTEMS=1 $(BIN)/python -m pytest -p no:xdist --quiet tests/systems/test_roots.py

lint: need-lint venv  ## code style, types, plain words, shell scripts, manuals
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.words
	shellcheck .ci/run .ci/need $(DATA)/install $(DATA)/uninstall
	shellcheck --shell=bash $(DATA)/pam-totp.bash
	mandoc -Tlint -Wwarning $(DATA)/*.[158]

want-test:
	@[ "$$(id -u)" -ne 0 ] || .ci/need $(WANT_TEST) || echo "make: no browser to be had: the tests that need one are skipped"

need-build need-venv need-test need-torture need-bench need-lint need-install need-booted need-systems: need-%:
	@.ci/need $(NEED_$(shell echo $* | tr a-z A-Z))

# The lock has everything that its packages need, so pip resolves nothing: a newer release changes no installation.
LOCKED = --no-deps --require-hashes --only-binary=:all:

.venv/.made: setup.cfg pyproject.toml tests/requirements.txt | need-venv
	umask 022; $(PYTHON) -m venv --clear .venv
	$(PIP) $(LOCKED) --requirement tests/requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/pip --disable-pip-version-check check
	touch $@

# Newer versions of all that, for every Python that is tested: uv resolves for those that are not on this machine, too.
# The same version for all of them, with the hashes of every file that the index has; a version without a wheel for one
# of them fails, and needs a bound in setup.cfg. Look at the difference, and commit it.
PYTHONS = 3.11 3.12 3.13
UV = build/uv/bin/uv --quiet --system-certs
RESOLVE = $(UV) pip compile --upgrade --universal --python $(PYTHON) --python-version $(firstword $(PYTHONS)) \
          --fork-strategy fewest --only-binary=:all: --generate-hashes --no-annotate --no-emit-index-url \
          --no-emit-find-links --custom-compile-command 'make requirements'
requirements: | need-venv  ## newer versions of what the tests use
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

# What is known against the versions in it. Status 3: the package index that is asked here does not tell.
audit: .venv/.made  ## what is known against those versions
	$(PYTHON) -m venv build/pip-audit
	build/pip-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@$(BIN)/python -m tests.audit build/pip-audit/bin/pip-audit

build/pam_totp.so: pam_totp/pam/relay.c Makefile | need-build
	mkdir -p build
	$(CC) $(CFLAGS) $(CPPFLAGS) $(RELAY_KNOWS) -o $@ $< $(LDFLAGS) $(LDLIBS)

# The command line on the distribution's interpreter and this folder, with what .venv has of optional packages.
build/bin/pam-totp build/bin/token-sim: build/bin/%: pam_totp/system/data/command Makefile
	@mkdir -p build/bin
	@echo "writing $@"
	@sed -e 's|@PYTHON@|$(PYTHON)|' -e 's|@LIB@|$(CURDIR)|' -e 's|@EXTRAS@|$(CURDIR)/.venv|' -e 's|@NAME@|$*|' \
	    -e 's|@PACKAGE@|$(subst -,_,$*)|' $< >$@
	@chmod 755 $@

# Where an installation goes. DESTDIR puts all of it below another folder, for packages. EXTRAS=qr,serial makes a
# virtual environment for what commands can use beyond the standard library; Debian's own packages are found without.
PREFIX = /usr/local
PAMDIR = $(firstword $(wildcard /usr/lib/$(shell $(CC) -print-multiarch)/security /usr/lib64/security))
EXTRAS =
# Set by packages alone: the folder of a version's code, and the folder of token_sim.
RELEASE =
SIM =
PLACES = DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' PAMDIR='$(PAMDIR)' PYTHON='$(PYTHON)' EXTRAS='$(EXTRAS)' RELEASE='$(RELEASE)' SIM='$(SIM)'
# An installed relay knows the installed helper, and trusts root alone.
INSTALLED_RELAY_KNOWS = -DINTERPRETER='"$(PYTHON)"' -DHELPER='"$(PREFIX)/lib/pam_totp/pam_totp/pam/helper.py"'

install: need-install  ## puts it in place, as root (EXTRAS=qr,serial,... PREFIX= DESTDIR=)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(CC) $(CFLAGS) $(CPPFLAGS) $(INSTALLED_RELAY_KNOWS) -o "$$scratch/pam_totp.so" pam_totp/pam/relay.c $(LDFLAGS) $(LDLIBS) && \
	$(PLACES) RELAY="$$scratch/pam_totp.so" $(DATA)/install

uninstall:  ## takes it away again, but for the secrets
	@$(PLACES) $(DATA)/uninstall

# For the system that builds them, from a copy of this tree.
NEED_DEB = build-essential debhelper dh-python libpam0g-dev po-debconf python3
.PHONY: deb deb-test need-deb need-deb-lint

deb: need-deb  ## Debian packages, in build/deb
	@packaging/build build/deb

# In bare roots of Debian 12 and 13 and Ubuntu 24.04, which the first run makes. ARGS="-k bookworm" for one of them.
deb-test: need-systems venv  ## the packages' life on three systems, as root
	PAM_TOTP_PACKAGES=1 $(BIN)/python -m pytest -p no:xdist --verbose tests/systems/test_packages.py $(ARGS)

lint: need-deb-lint
need-deb-lint: need-lint
	shellcheck --exclude=SC1091 packaging/build $(foreach script,config postinst postrm prerm,packaging/debian/*.$(script))

need-deb:
	@.ci/need $(NEED_DEB)

clean:  ## removes what was built here
	rm -rf build .venv *.egg-info
