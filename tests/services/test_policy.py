"""Tests of `pam-totp policy`: it shows the effective settings of a service and their sources."""

from __future__ import annotations

import json
import os
import tempfile

import pytest

from pam_totp.cli import main
from pam_totp.pam.privileges import OVERFLOW_ID
from tests.services.namespace import Machine
from tests.support.site import ME, Site, codes

SITE_FILE = """
[policy]
look_ahead = 3
lock_after = 7
[service.sshd]
look_ahead = 4
prompt = "Code, please: "
"""
MANUAL = " (see pam_totp(8))"


def test_every_setting_names_its_source(site: Site) -> None:
    site.config.write_text(SITE_FILE)
    shown = site.command_json("policy", "sshd", "--config", site.config, "--", "window=2", "use_first_pass")
    assert shown["look_ahead"] == {"value": 4, "from": f"{site.config} [service.sshd]"}
    assert shown["lock_after"] == {"value": 7, "from": f"{site.config} [policy]"}
    assert shown["window"] == {"value": 2, "from": "argument"}
    assert shown["first_pass"] == {"value": "use_first_pass", "from": "argument"}
    assert shown["resync_window"] == {"value": 1000, "from": "default"}
    assert shown["store"] == {"value": "/var/lib/pam_totp", "from": "default"}


def test_another_service_has_its_own_settings(site: Site) -> None:
    site.config.write_text(SITE_FILE)
    shown = site.command_json("policy", "another", "--config", site.config)
    assert shown["look_ahead"]["value"] == 3
    assert shown["prompt"] == {"value": "One-time code: ", "from": "default"}


def test_a_member_shows_its_authorities_and_no_policy(site: Site) -> None:
    site.config.write_text('[member]\nauthorities = ["otp1:8443", "otp2:8443"]\n[service.sshd]\nnullok = true\n')
    shown = site.command_json("policy", "sshd", "--config", site.config, "--", "echo")
    assert shown["authorities"] == {"value": "otp1:8443 otp2:8443", "from": f"{site.config} [member]"}
    assert shown.keys().isdisjoint({"look_ahead", "lock_after", "store", "secret"})
    assert (shown["nullok"]["value"], shown["echo"]["value"]) == (True, True)
    assert shown["decided_by"] == "authorities"
    text = site.command("policy", "sshd", "--config", site.config, "--", "echo").stdout
    assert "The authorities decide on every answer, by [policy] and [service] of their site files." in text
    local = site.command_json("policy", "sshd", "--config", site.config, "--", "store=/otp", "look_ahead=5")
    assert (local["look_ahead"]["value"], local["decided_by"]) == (5, "this host")
    assert "authorities" in local["others"]["settings"], "programs of other accounts ask the authorities"
    refused = site.command("policy", "sshd", "--config", site.config, "--", "look_ahead=5")
    assert "look_ahead: not allowed on a member" in refused.stderr


def test_an_argument_overrides_the_site_file(site: Site) -> None:
    site.config.write_text(SITE_FILE)
    shown = site.command_json("policy", "sshd", "--config", site.config, "--", "look_ahead=0")
    assert shown["look_ahead"] == {"value": 0, "from": "argument"}


def test_without_json_the_output_is_a_table(site: Site) -> None:
    site.config.touch(0o644)
    done = site.command("policy", "sshd", "--config", site.config, "--", "nullok")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["SETTING", "VALUE", "FROM"]
    assert ["nullok", "yes", "argument"] in rows
    assert ["secret", "-", "default"] in rows


def test_a_setting_that_would_deny_logins_is_reported(site: Site) -> None:
    site.config.touch(0o644)
    done = site.command("policy", "sshd", "--config", site.config, "--", "look_ahead=101")
    assert (done.returncode, done.stderr) == (
        1,
        f"pam-totp: look_ahead: must be a whole number from 0 to 100{MANUAL}\n",
    )
    done = site.command("policy", "sshd", "--config", site.config, "--", "nosuch=1")
    assert (done.returncode, done.stderr) == (1, f"pam-totp: unknown argument 'nosuch'{MANUAL}\n")
    site.config.write_text("[polcy]\n")
    done = site.command("policy", "sshd", "--config", site.config)
    assert done.returncode == 1
    assert "unknown table 'polcy'" in done.stderr


def test_verify_obeys_the_site_file(site: Site) -> None:
    site.enrol()
    site.config.write_text("[policy]\nlook_ahead = 2\n")
    assert site.command("verify", ME, codes(3), "--config", site.config).returncode == 1
    assert site.command("verify", ME, codes(2), "--config", site.config).returncode == 0


@pytest.mark.parametrize("words", [["policy", "sshd"], ["verify", ME, codes(0)], ["serve"], ["portal"]])
def test_a_named_site_file_must_exist(site: Site, words: list[str]) -> None:
    site.enrol()
    done = site.command(*words, "--config", site.config)
    said = f"pam-totp: {site.config}: no such file or directory (check the name)\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", said)
    assert site.counter() == 0


def test_an_unreadable_site_file_is_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    me = os.geteuid()
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        os.chmod(file.name, 0)
        os.seteuid(me or OVERFLOW_ID)
        try:
            status = main(["policy", "sshd", "--config", file.name, "--", "nullok"])
        finally:
            os.seteuid(me)
    remedy = "run the command as root, or as the owner of that folder"
    assert (status, *capsys.readouterr()) == (3, "", f"pam-totp: {file.name}: permission denied ({remedy})\n")


def test_after_the_site_file_is_deleted_the_defaults_apply(site: Site) -> None:
    site.enrol()
    site.config.write_text("[policy]\nlook_ahead = 0\n")
    site.start()
    site.configure(way="socket")
    assert not site.gets_in(codes(1))
    site.config.unlink()
    assert site.gets_in(codes(1))


def test_policy_reads_the_arguments_in_the_service_file(machine: Machine) -> None:
    machine.write("/etc/pam_totp.toml", SITE_FILE)
    machine.write("/etc/pam.d/part", machine.module_line("look_ahead=1 [prompt=A code: ]") + "\n")
    machine.write("/etc/pam.d/sshd", "auth required pam_unix.so\n@include part\n")
    done = machine.pam_totp("policy", "sshd", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["look_ahead"] == {"value": 1, "from": "argument"}
    assert shown["prompt"] == {"value": "A code: ", "from": "argument"}
    assert shown["lock_after"] == {"value": 7, "from": "/etc/pam_totp.toml [policy]"}
    done = machine.pam_totp("policy", "sshd", "--json", "--", "look_ahead=2")
    assert json.loads(done.stdout)["look_ahead"]["value"] == 2
    machine.write("/etc/pam.d/sshd", "auth required pam_unix.so\n")
    done = machine.pam_totp("policy", "sshd", "--json")
    assert (done.returncode, done.stderr) == (0, "pam-totp: sshd: the stack does not use the module\n")
    assert json.loads(done.stdout)["look_ahead"]["value"] == 4
    done = machine.pam_totp("policy", "nosuch", "--json")
    said = "pam-totp: unknown service nosuch: libpam would use 'other' (see /etc/pam.d)\n"
    assert (done.returncode, done.stderr) == (0, said)
    machine.write("/etc/pam.d/sshd", machine.module_line("look_ahead=1000") + "\n")
    done = machine.pam_totp("policy", "sshd")
    assert (done.returncode, done.stdout) == (1, ""), "a setting that would deny logins is an error"
