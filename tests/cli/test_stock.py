"""Tests of the commands for the stock: stock import, list and remove, assign, unassign, return, replace --stock."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp, totp
from tests.support.site import ME, Site, fob

KEYS = {f"T-{n}": bytes([n]) * 20 for n in range(1, 5)}
CSV = "serial number;secret key;type\n" + "".join(
    f"{serial};{key.hex()};{'totp' if serial == 'T-4' else 'hotp'}\n" for serial, key in KEYS.items()
)


def code(serial: str, counter: int, count: int = 1) -> str:
    return "".join(hotp(KEYS[serial], counter + i) for i in range(count))


@pytest.fixture
def box(site: Site, tmp_path: Path) -> Site:
    """Return a site with the tokens T-1 to T-4 in stock, as batch `box`."""
    file = tmp_path / "seeds.csv"
    file.write_text(CSV)
    done = site.command("stock", "import", "csv", file, "--batch", "box", "--yes")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.endswith("4 tokens added to the stock, 0 skipped\n")
    return site


def states(site: Site) -> dict[str, tuple[str, str | None]]:
    return {item["serial"]: (item["state"], item["user"]) for item in site.command_json("stock", "list")}


# ---- import, list, remove


def test_no_text_of_a_file_reaches_the_terminal_as_it_is(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "seeds.csv"
    rows = "".join(f"\x1b[2JT-{n};{bytes([n]).hex() * 20};\x1b]0;{kind}\n" for n, kind in enumerate(("hotp", "a"), 1))
    for head in ("serial number;secret key;type\n", "serial number;secret key;type;\x1b[2Jmore\n"):
        file.write_text(head + rows)
        done = site.command("stock", "import", "csv", file, "--yes")
        assert "\x1b" not in done.stdout + done.stderr


def test_an_imported_batch_is_listed_without_keys(box: Site) -> None:
    listed = box.command_json("stock", "list", "--free", "--batch", "box")
    assert [item["serial"] for item in listed] == ["T-1", "T-2", "T-3", "T-4"]
    assert listed[3] == {
        "serial": "T-4",
        "batch": "box",
        "state": "new",
        "user": None,
        "imported": listed[3]["imported"],
        "returned": None,
        "token": listed[3]["token"],
    }
    assert {"type": "totp", "digits": 6, "period": 30, "row_needed": False}.items() <= listed[3]["token"].items()
    assert "secret" not in listed[3]["token"]
    done = box.command("stock", "list")
    assert done.stdout.splitlines()[0].split() == ["SERIAL", "BATCH", "TYPE", "CODES", "STATE", "USER"]
    assert done.stderr == "4 new\n"
    assert box.command("stock", "list", "--batch", "other").stdout == "no token matches\n"
    text = json.dumps(listed) + done.stdout
    assert not any(key.hex() in text for key in KEYS.values())


def test_a_second_import_adds_nothing_and_succeeds(box: Site, tmp_path: Path) -> None:
    box.command("assign", "T-1", ME)
    done = box.command("stock", "import", "csv", tmp_path / "seeds.csv", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"line 2 (T-1): skipped: {ME} has the token with this serial number" in done.stdout
    assert "line 3 (T-2): skipped: already in stock" in done.stdout
    assert done.stderr.endswith("0 tokens added to the stock, 4 skipped\n")


def test_unusable_tokens_are_skipped_with_the_reason(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(serial="S-1"))
    file = tmp_path / "seeds.csv"
    file.write_text(f"serial,secret\nS-1,{'ab' * 20}\nS-2,{'cd' * 20}\nS-3,{'cd' * 8}\n")
    dry = site.command("stock", "import", "csv", file, "--dry-run")
    assert dry.returncode == 1
    assert "1 token would be added to the stock, 2 skipped" in dry.stderr
    assert states(site) == {}
    result = site.command("stock", "import", "csv", file, "--yes", "--json")
    found = {each["serial"]: (each["code"], each["reason"]) for each in json.loads(result.stdout)["tokens"]}
    assert found["S-1"] == ("serial-taken", f"{ME} has the token with this serial number")
    assert found["S-2"] == ("added", None)
    assert found["S-3"][0] == "invalid"
    assert states(site) == {"S-2": ("new", None)}
    file.write_text(f"serial,secret\ns2,{'ef' * 20}\n")
    again = site.command("stock", "import", "csv", file, "--yes")
    assert again.returncode == 1
    assert again.stdout == "line 2 (s2): skipped: another token in stock has this serial number\n"


def test_a_dry_run_and_an_invalid_file_change_nothing(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "seeds.csv"
    file.write_text(CSV)
    done = site.command("stock", "import", file, "--dry-run")
    assert done.returncode == 0
    assert done.stderr.endswith("4 tokens would be added to the stock, 0 skipped\n")
    file.write_text("serial,secret\nS-1,not a key!\n")
    done = site.command("stock", "import", "csv", file, "--yes")
    assert done.returncode == 1
    assert "nothing was imported" in done.stderr
    assert states(site) == {}


def test_a_removed_token_is_gone(box: Site) -> None:
    assert box.command("stock", "remove", "t1", stdin="n\n").returncode == 1
    done = box.command("stock", "remove", "t1", "--yes")
    assert (done.returncode, done.stdout) == (0, "T-1 removed from the stock\n")
    done = box.command("stock", "remove", "T-1", "--yes")
    assert done.returncode == 1
    assert done.stderr == (
        "pam-totp: the token with the serial number T-1 is not in stock; nothing was changed "
        "(see 'pam-totp stock list --free')\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("stock", "import"),
        ("stock", "import", "csv"),
        ("stock", "list", "T-1"),
        ("stock", "list", "--yes"),
        ("stock", "remove"),
        ("stock", "remove", "T-1", "--batch", "b"),
        ("stock", "import", "csv", "-", "--free"),
        ("stock", "import", "csv", "-", "--batch", " b"),
        ("stock", "import", "csv", "-", "--key-file", "k"),
        ("stock", "nosuch"),
        ("assign", "T-1"),
        ("return",),
        ("replace", "--lost", "T-1", "T-2"),
        ("replace", "--stock", "T-1"),
        ("replace", "--stock", "T-1", "T-2", "--digits", "8"),
        ("replace", "--stock", "T-1", "T-2", "--secret-stdin"),
    ],
)
def test_wrong_usage_has_exit_status_2(site: Site, words: tuple[str, ...]) -> None:
    assert site.command(*words).returncode == 2


# ---- assign, unassign, return


def test_a_token_is_assigned_confirmed_and_returned(box: Site, way: str) -> None:
    done = box.command("assign", "t-1", ME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ME} now has the token T-1 under the name token; the token is unconfirmed")
    assert not box.gets_in(code("T-1", 0)), "codes of an unconfirmed token are refused"
    assert box.command_json("list", "--serial", "T-1")[0]["user"] == ME
    wrong = box.command("assign", "T-1", ME, "--confirm", stdin="000000\n" * 3)
    assert (wrong.returncode, "3 answers were wrong; nothing was changed" in wrong.stderr) == (1, True)
    confirmed = box.command_json("assign", "T-1", ME, "--confirm", stdin=f"{code('T-1', 0)}\n")
    assert (confirmed["serial"], confirmed["confirmed"]) == ("T-1", True)
    assert box.gets_in(code("T-1", 1))
    assert states(box)["T-1"] == ("assigned", ME)
    assert box.command("unassign", "T-1").returncode == 1
    asked = box.command("return", "T-1", stdin="n\n")
    assert asked.returncode == 1 and "cancelled" in asked.stderr
    done = box.command("return", "T-1", "--yes")
    assert (done.returncode, done.stdout) == (0, f"{ME} no longer has the token T-1; it is in stock\n")
    assert not box.gets_in(code("T-1", 2))
    assert states(box)["T-1"] == ("returned", None)
    refused = box.command("assign", "T-1", ME, "--confirm", stdin=f"{code('T-1', 1)}\n{code('T-1', 0, 2)}\n\n")
    assert refused.returncode == 1 and "two codes in a row" in refused.stderr
    again = box.command("assign", "T-1", ME, "--confirm", stdin=f"{code('T-1', 2, 2)}\n")
    assert again.returncode == 0, again.stderr
    assert box.gets_in(code("T-1", 4))


def test_an_unconfirmed_token_is_unassigned(box: Site) -> None:
    box.command("assign", "T-1", ME, "--name", "blue fob")
    assert box.record().tokens[0].name == "blue fob"
    refused = box.command("return", "T-1", "--yes")
    assert refused.returncode == 1 and "use 'pam-totp unassign T-1'" in refused.stderr
    done = box.command("unassign", "T-1")
    assert (done.returncode, done.stdout) == (0, f"{ME} no longer has the token T-1; it is in stock\n")
    assert states(box)["T-1"] == ("new", None)
    refused = box.command("unassign", "T-1")
    assert refused.returncode == 1 and "no user has a token with the serial number T-1" in refused.stderr


def test_a_token_of_another_user_is_refused_and_the_user_named(box: Site) -> None:
    box.command("assign", "T-1", "zoe")
    refused = box.command("assign", "T-1", ME)
    assert refused.returncode == 1
    assert "zoe has the token with the serial number T-1; nothing was changed" in refused.stderr
    refused = box.command("enroll", ME, "--serial", "t2", "--secret-stdin", "--yes", stdin=f"hex:{'ab' * 20}\n")
    assert refused.returncode == 1
    assert "is in stock; nothing was changed (assign it with 'pam-totp assign t2 USER')" in refused.stderr


def test_a_vendors_file_cannot_enrol_a_token_in_stock(box: Site, tmp_path: Path) -> None:
    for more in (["--dry-run"], []):
        done = box.command("import", "csv", tmp_path / "seeds.csv", "--user", ME, "--yes", "--serial", "T-1", *more)
        assert done.returncode == 1
        assert "skipped: the token is in stock (see 'pam-totp assign')" in done.stdout
    assert states(box)["T-1"] == ("new", None)


# ---- replace


def test_a_token_from_the_stock_replaces_a_users_token(box: Site, way: str) -> None:
    box.command("assign", "T-1", ME, "--name", "fob", "--confirm", stdin=f"{code('T-1', 0)}\n")
    done = box.command("replace", "--stock", "T-1", "T-2", stdin=f"000000\n{code('T-2', 0)}\n")
    assert (done.returncode, done.stdout) == (0, f"{ME}: token 'fob' is now T-2; T-1 is in stock\n")
    assert "wrong answer (enter a code from this token)" in done.stderr
    assert states(box) == {
        "T-1": ("returned", None),
        "T-2": ("assigned", ME),
        "T-3": ("new", None),
        "T-4": ("new", None),
    }
    assert not box.gets_in(code("T-1", 1))
    assert box.gets_in(code("T-2", 1))


def test_a_lost_token_is_removed_with_its_key(box: Site) -> None:
    box.command("assign", "T-1", ME, "--confirm", stdin=f"{code('T-1', 0)}\n")
    answer = totp(KEYS["T-4"], int(time.time()))
    done = box.command("replace", "--stock", "T-1", "T-4", "--lost", stdin=f"{answer}\n")
    assert (done.returncode, done.stdout) == (0, f"{ME}: token 'token' is now T-4; T-1 is removed, with its key\n")
    assert "T-1" not in states(box)
    assert not any(KEYS["T-1"].hex() in path.read_text() for path in box.store.rglob("*") if path.is_file())


def test_a_replacement_that_fails_changes_nothing(box: Site) -> None:
    box.command("assign", "T-1", ME, "--confirm", stdin=f"{code('T-1', 0)}\n")
    before = states(box)
    for words, reason in (
        (("T-1", "T-9"), "the token with the serial number T-9 is not in stock"),
        (("T-9", "T-2"), "no user has a token with the serial number T-9"),
        (("T-1", "T-1"), f"{ME} has the token with the serial number T-1"),
    ):
        refused = box.command("replace", "--stock", *words, stdin="123456\n")
        assert refused.returncode == 1 and reason in refused.stderr, refused.stderr
    assert box.command("replace", "--stock", "T-1", "T-2", stdin="000000\n" * 3).returncode == 1
    assert states(box) == before


def test_replace_takes_a_token_named_like_a_serial_number(box: Site) -> None:
    box.enrol(fob(name="T-1"))
    done = box.command("replace", ME, "T-1", "--secret-stdin", "--yes", stdin=f"hex:{'ab' * 20}\n")
    assert (done.returncode, done.stdout) == (0, f"{ME}: token 'T-1' has a new key; codes of the old key are refused\n")
    assert states(box)["T-1"] == ("new", None)


# ---- tokens in stock and other commands


def test_an_export_has_the_users_tokens_only(box: Site, tmp_path: Path) -> None:
    box.command("assign", "T-1", ME, "--confirm", stdin=f"{code('T-1', 0)}\n")
    assert box.command("export", "--all", "--format", "json", "--output", tmp_path / "all").returncode == 0
    assert [path.name for path in (tmp_path / "all").iterdir()] == [ME]
    assert '"T-1"' in (tmp_path / "all" / ME).read_text()


def test_a_removed_user_s_token_leaves_the_stock(box: Site) -> None:
    box.command("assign", "T-1", ME)
    assert box.command("remove", ME, "--all", "--yes").returncode == 0
    assert "T-1" not in states(box)
