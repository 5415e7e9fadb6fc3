# make demo | test | fuzz | bench | lint | build | install | uninstall        (see README.md)

# The relay starts this interpreter, so it is the distribution's: a virtual environment would die with an upgrade.
PYTHON  = /usr/bin/python3
CC      = cc
CFLAGS  = -std=c11 -Wall -Wextra -Werror -O2 -fPIC -fvisibility=hidden -fstack-protector-strong -D_FORTIFY_SOURCE=2
LDFLAGS = -shared -Wl,-z,relro,-z,now
LDLIBS  = -lpam

NEED_BUILD = ca-certificates gcc libc6-dev libpam0g-dev python3-venv
NEED_TEST  = $(NEED_BUILD) libpam-google-authenticator libpam-modules libpam-oath oathtool openssh-client openssh-server \
             pamtester strace sudo util-linux zbar-tools
NEED_LINT  = $(NEED_BUILD) shellcheck

BIN = .venv/bin
RELAY_KNOWS = -DINTERPRETER='"$(PYTHON)"' -DHELPER='"$(CURDIR)/pam_totp/pam/helper.py"' -DBUILDER=$(shell id -u)

.PHONY: demo test fuzz lint build clean need-build need-test need-lint
.DELETE_ON_ERROR:

build: need-build .venv/.made build/pam_totp.so

demo: build
	@$(BIN)/python -m tests.demo

test: need-test build
	$(BIN)/python -m pytest $(ARGS)

lint: need-lint build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck .ci/run .ci/need

need-build need-test need-lint: # The importers under a coverage-guided fuzzer, for a while. No part of `make test`.
SECONDS = 60
fuzz: build
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.fuzz_formats $(SECONDS)

need-%:
	@.ci/need $(NEED_$(shell echo $* | tr a-z A-Z))

# Byte code is made here because the helper never writes any: as root under a stranger's umask it must not.
.venv/.made: setup.cfg pyproject.toml | need-build
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	$(PYTHON) -m compileall -q pam_totp
	touch $@

build/pam_totp.so: pam_totp/pam/relay.c Makefile | need-build
	mkdir -p build
	$(CC) $(CFLAGS) $(CPPFLAGS) $(RELAY_KNOWS) -o $@ $< $(LDFLAGS) $(LDLIBS)

clean:
	rm -rf build .venv *.egg-info
