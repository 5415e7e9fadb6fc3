"""seal: encrypt the secrets of a store with a key of this host, and manage that key.

Rules:
1. A step changes the keyring durably, then restarts the services, then changes records. Therefore every process that
   can read a record has the key of this record.
2. With a folder, one run takes all steps. A database can have several authorities: a run takes one step, and prints the
   instruction to copy the keyring to the other authorities.
3. A killed run loses nothing: the next run takes the step that is due.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
)
from pam_totp.cli.files_out import new_file
from pam_totp.cli.printing import count, print_json
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import load_postgres, location
from pam_totp.core.settings import is_database
from pam_totp.pam.login_session import read_site
from pam_totp.store import StoreError, seal_key
from pam_totp.store.keyring import (
    DATABASES,
    KEY_SIZE,
    MAX_KEYRING,
    Keyring,
    KeyringError,
    State,
    key_id,
    parse_keyring,
    serialize_keyring,
)
from pam_totp.system import seal_files
from pam_totp.system.seal_files import PLACES
from pam_totp.system.sealing import OPEN, count_keys, seal_all

INIT, ROTATE, EXPORT, STATUS = "init", "rotate", "export", "status"
_ELSEWHERE = (
    "give the keys to every other authority: 'pam-totp seal export FILE' here, 'pam-totp seal init --key FILE' there"
)
_LOST = (
    f"{seal_key.FILE}: not found, but stores are sealed with the key in this file (put the exported copy back with "
    "'pam-totp seal init --key FILE')"
)
_STEPS = (State.OPENING, State.SEALING, State.SEALED)
_LATER = "run 'pam-totp seal init'"
_RESTART = "restart the running services of pam_totp, because systemd did not: they lack the new key"
_EXPORT_FIRST = "next: 'pam-totp seal export FILE', and keep that file away from this host and its backups"


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "seal",
        run,
        "encrypt the secrets of the store with a key of this host, and manage that key",
        "pam-totp seal init",
        "pam-totp seal export /media/usb/seal-of-db1",
        "pam-totp seal status",
        "pam-totp seal rotate",
        data=True,
    )
    parser.add_argument(
        "what",
        choices=(INIT, ROTATE, EXPORT, STATUS),
        help="init: generate a key, and seal all secrets; rotate: seal them with a new key; export FILE: write the "
        "keys to a file for safekeeping; status: count the records by their keys",
    )
    parser.add_argument("path", nargs="?", metavar="FILE", help="export: the file to create")
    parser.add_argument("--with", dest="place", choices=PLACES, help="init: how the key is stored (file)")
    parser.add_argument(
        "--key",
        metavar="FILE",
        help="init: use the keys of an exported file, after a loss or on another authority",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    if args.what == EXPORT and args.path is None:
        raise CommandError("FILE is required by 'pam-totp seal export'", WRONG_USAGE)
    if args.what != EXPORT and args.path is not None:
        raise CommandError("FILE is an argument of 'pam-totp seal export' only", WRONG_USAGE)
    if args.what != INIT and (args.place is not None or args.key is not None):
        raise CommandError("--with and --key are options of 'pam-totp seal init'", WRONG_USAGE)
    if os.geteuid() != 0:
        raise CommandError("permission denied: only root can use the key (run the command as root)", OUT_OF_REACH)
    if (problem := seal_files.missing_library()) is not None:
        raise CommandError(f"{problem} ({seal_files.HOW_TO_GET})", OUT_OF_REACH)
    args.audit.look_up()
    if args.what == STATUS:
        return _status(args)
    if args.what != INIT:
        _required()
    with seal_files.changing():
        return {INIT: _init, ROTATE: _rotate, EXPORT: _export}[args.what](args)


def _store(args: argparse.Namespace) -> str:
    where = location(args, read_site())
    if is_database(where):
        load_postgres()
    elif not os.path.isdir(where):
        raise CommandError(f"{where}: store not found ('pam-totp enroll' creates it)", OUT_OF_REACH)
    args.audit.store = where
    return where


def _keyring() -> Keyring | None:
    """Return the keyring, or None if no store of this host is sealed."""
    found = seal_key.keyring()
    if found is None and seal_files.note().stores:
        raise CommandError(_LOST, OUT_OF_REACH)
    return found


def _required() -> Keyring:
    found = _keyring()
    if found is None:
        raise CommandError("no store of this host is sealed (see 'pam-totp seal init')", OUT_OF_REACH)
    return found


# ---- init


def _init(args: argparse.Namespace) -> int:
    if args.key is not None:
        return _use_copy(args)
    where = _store(args)
    keyring = _keyring()
    is_new = keyring is None
    keyring = keyring or Keyring(current=os.urandom(KEY_SIZE))
    state = keyring.state_of(where)
    if state is None:
        _require_keys(where, () if is_new else keyring.keys)
        confirm(f"seal all secrets of {where}? Every login and every restore of a backup then requires the key.", args)
    has_others = is_database(where) and _number(where) > 0
    if state is None:
        state = State.OPENING if has_others else State.SEALING
        keyring = _write(args, keyring.with_store(where, state), place=args.place)
    elif state is State.OPENING:
        keyring = _write(args, keyring.with_store(where, state := State.SEALING))
        has_others = True
    else:
        has_others = False
        keyring = _write(args, keyring, place=args.place)  # the file may be a copy that an administrator has put back
    if state is State.OPENING:
        return _report(args, where, keyring, 0, [f"next: {_ELSEWHERE}; then run 'pam-totp seal init' again here"])
    changed = _seal(args, where)
    if has_others:
        return _report(args, where, keyring, changed, [f"next: {_ELSEWHERE}; then run 'pam-totp seal init' again here"])
    if state is not State.SEALED:
        keyring = _write(args, keyring.with_store(where, State.SEALED))
    hints = [] if seal_files.note().is_exported else [_EXPORT_FIRST]
    if is_new and is_database(where):
        hints.append(f"further authorities: {_ELSEWHERE}")
    return _report(args, where, keyring, changed, hints)


def _use_copy(args: argparse.Namespace) -> int:
    """Use the keyring of an exported copy, and return the exit status.

    Change no record, because another authority takes the steps.
    """
    with open(args.key, "rb") as file:
        content = file.read(MAX_KEYRING + 1)
    try:
        copy = parse_keyring(content)
    except KeyringError as e:
        raise CommandError(f"{args.key}: {e}") from None
    own, _ = seal_files.keyring()
    if own is not None and (lost := {key_id(key) for key in own.keys} - {key_id(key) for key in copy.keys}):
        confirm(f"the copy lacks the key {' and '.join(sorted(lost))} of this host. Delete this key?", args)
    copy, open_stores = _for_this_host(copy, own)
    _write(args, copy, place=args.place)
    hints = [f"{name}: not sealed on this host, so it stays open (see 'pam-totp seal --help')" for name in open_stores]
    hints.append("see 'pam-totp seal status'; delete copies that are not kept in a safe place")
    return _report(args, ", ".join(name for name, _ in copy.stores), copy, 0, hints)


def _for_this_host(copy: Keyring, own: Keyring | None) -> tuple[Keyring, list[str]]:
    """Return the keyring of a copy with the stores of this host, and the folders of the copy that are open here.

    A store that is sealed here stays sealed, because the copy may be older. The copy may also name folders of
    another host. Omit such a folder if its secrets are not sealed on this host: a store in the state SEALED refuses
    unsealed secrets.
    """
    known = dict.fromkeys(seal_files.note().stores, State.SEALED) | dict(() if own is None else own.stores)
    others = [name for name, _ in copy.stores if name not in known and name != DATABASES]
    open_stores = [name for name in others if count_keys(name).by_key.keys() == {OPEN}]
    for name in open_stores:
        copy = copy.without_store(name)
    for name, state in known.items():
        given = copy.state_of(name)
        if given is None or _STEPS.index(given) < _STEPS.index(state):
            copy = copy.with_store(name, state)
    return copy, open_stores


def init_for_authority(args: argparse.Namespace, url: str) -> str:
    """Seal the empty database of a new fleet. Return a line about the result.

    Change nothing if the database has records: these records need the steps of `pam-totp seal init`.
    """
    if (problem := seal_files.missing_library()) is not None:
        return f"the secrets are not sealed: {problem} ({seal_files.HOW_TO_GET}; then {_LATER})"
    try:
        with seal_files.changing():
            return _init_for_authority(args, url, _keyring())
    except (StoreError, CommandError) as e:
        return f"the secrets are not sealed: {e}"


def _init_for_authority(args: argparse.Namespace, url: str, keyring: Keyring | None) -> str:
    if keyring is not None and keyring.state_of(url) is not None:
        return f"kept: {seal_key.FILE}"
    from pam_totp.system.database import state_of

    state, problem = state_of(url, None)
    if state is None:
        return f"the secrets are not sealed: reading the database failed: {problem} ({_LATER})"
    if state["version"] is not None and _number(url) > 0:
        return f"the secrets are not sealed: the database has records ({_LATER})"
    _write(args, (keyring or Keyring(current=os.urandom(KEY_SIZE))).with_store(url, State.SEALED))
    return f"created: {seal_key.FILE}, which seals all secrets ({_EXPORT_FIRST})"


def _number(where: str) -> int:
    """Return the number of documents with secrets. Raise CommandError if the store cannot be read."""
    found = count_keys(where)
    if found.problem is not None:
        raise CommandError(found.problem, OUT_OF_REACH)
    return sum(found.by_key.values())


def _require_keys(where: str, keys: Iterable[bytes]) -> None:
    """Raise CommandError if a secret of the store is sealed with another key: a new key would not open it."""
    lost = count_keys(where).by_key.keys() - {OPEN, *map(key_id, keys)}
    if lost:
        remedy = "put the exported copy back with 'pam-totp seal init --key FILE'"
        which = " and ".join(sorted(lost))
        raise CommandError(f"{where} is sealed with the key {which}, which is missing ({remedy})", OUT_OF_REACH)


# ---- rotate


def _rotate(args: argparse.Namespace) -> int:
    keyring = _without_missing(args, _required())
    stores = {name: _place_of(name, args) for name, _ in keyring.stores}
    if unfinished := [name for name, state in keyring.stores if state is not State.SEALED]:
        raise CommandError(f"{unfinished[0]} is not sealed completely (run 'pam-totp seal init' first)")
    is_shared = DATABASES in stores
    again = f"next: {_ELSEWHERE}; then run 'pam-totp seal rotate' again here"
    steps: list[Callable[[Keyring], Keyring]] = []
    if keyring.following is None and keyring.previous is None:
        confirm("seal all secrets with a new key?", args)
        steps.append(lambda ring: _write(args, ring.with_following(os.urandom(KEY_SIZE))))
    if keyring.previous is None:
        steps.append(lambda ring: _write(args, ring.advanced()))
    changed = 0
    for step in steps[:1] if is_shared else steps:
        keyring = step(keyring)
    if keyring.previous is None:  # a database: all authorities need the next key before its first use
        return _report(args, DATABASES, keyring, 0, [again])
    changed = sum(_seal(args, where) for where in stores.values())
    if steps and is_shared:  # all authorities must seal with the new key before the old key is deleted
        return _report(args, DATABASES, keyring, changed, [again])
    old = key_id(keyring.previous)
    for where in stores.values():
        if (left := count_keys(where)).problem is not None or old in left.by_key:
            raise CommandError(
                f"{where}: secrets are still sealed with the old key, which was kept ({left.problem or old})"
            )
    keyring = _write(args, keyring.without_previous())
    hints = [_EXPORT_FIRST] + ([f"then {_ELSEWHERE}"] if is_shared else [])
    return _report(args, ", ".join(stores), keyring, changed, hints)


def _without_missing(args: argparse.Namespace, keyring: Keyring) -> Keyring:
    """Return the keyring with the existing stores only. A folder is missing after its copy to a database."""
    for name, _ in keyring.stores:
        if name != DATABASES and not os.path.isdir(name):
            what = f"{name}: not found. Remove this store from the keyring?"
            confirm(f"{what} Its records cannot be decrypted after the change of the key", args)
            keyring = keyring.without_store(name)
    return keyring


def _place_of(name: str, args: argparse.Namespace) -> str:
    """Return the location of a store in the keyring."""
    if name != DATABASES:
        return name
    where = location(args, read_site())
    if not is_database(where):
        raise CommandError("a database is sealed with this key (name the database with --store)", WRONG_USAGE)
    load_postgres()
    return where


# ---- export, status


def _export(args: argparse.Namespace) -> int:
    keyring = _required()
    content, ids = serialize_keyring(keyring), [key_id(key) for key in keyring.keys]
    what = f"write the keys {', '.join(ids)} to {args.path}?"
    confirm(f"{what} The keys decrypt every stolen backup: keep the file on another host", args)
    args.audit.revealed("seal-export", None, keys=",".join(ids))
    with new_file(args.path) as file:
        file.write(content)
    seal_files.note_export(keyring, content, int(time.time()))
    if args.json:
        print_json({"path": os.path.abspath(args.path), "keys": ids, "digest": seal_files.note().digest})
    else:
        print(f"written: {args.path} (SHA-256 {seal_files.note().digest})")
        print("after a loss of this host: 'pam-totp seal init --key FILE'")
    return DONE


def _status(args: argparse.Namespace) -> int:
    keyring, note = _required(), seal_files.note()
    stores = [(name, state, count_keys(_place_of(name, args))) for name, state in keyring.stores]
    if args.json:
        keys = [key_id(key) for key in keyring.keys]
        shown_stores = [
            {"store": name, "state": state.value, "records": found.by_key, "problem": found.problem}
            for name, state, found in stores
        ]
        print_json({"keys": keys, "place": note.place, "exported": note.is_exported, "stores": shown_stores})
    else:
        print(f"key: {key_id(keyring.current)}, stored as: {note.place}")
        if keyring.following is not None:
            print(f"next key: {key_id(keyring.following)} (run 'pam-totp seal rotate' again)")
        if keyring.previous is not None:
            print(f"old key: {key_id(keyring.previous)} (run 'pam-totp seal rotate' again)")
        print(f"exported: {f'on {note.exported_on}, SHA-256 {note.digest}' if note.is_exported else 'no'}")
        for name, state, found in stores:
            shown = ", ".join(f"{n} with {'no key' if key == OPEN else key}" for key, n in found.by_key.items())
            print(f"{name}: {state.value}; records and tokens in stock: {shown or found.problem or 'none'}")
    known = {key_id(key) for key in keyring.keys}
    is_sound = all(found.problem is None and set(found.by_key) <= known for _, _, found in stores)
    return DONE if is_sound else REFUSED


# ---- common parts


def _write(args: argparse.Namespace, keyring: Keyring, place: str | None = None) -> Keyring:
    """Write and return the keyring. Restart the services, so that they have the keyring before records change."""
    seal_files.write(keyring, place)
    args.audit.changed("seal-keys", keys=",".join(key_id(key) for key in keyring.keys))
    args.services_have_keys = seal_files.restart()
    return keyring


def _seal(args: argparse.Namespace, where: str) -> int:
    """Seal all secrets of a store. Return the number of changes. Raise CommandError if a record cannot be sealed."""
    done = seal_all(where)
    args.audit.store = where
    args.audit.changed("seal", records=done.changed)
    if done.problems:
        left = f"{count(len(done.problems), 'record')} cannot be sealed: {done.problems[0]}"
        raise CommandError(f"{left} (repair or restore each record, and run the command again)", OUT_OF_REACH)
    return done.changed


def _report(args: argparse.Namespace, where: str, keyring: Keyring, changed: int, hints: list[str]) -> int:
    if not args.services_have_keys:
        hints = [*hints, _RESTART]
    if args.json:
        print_json({"store": where, "key": key_id(keyring.current), "sealed": changed, "next": hints})
        return DONE
    print(f"{where}: {count(changed, 'record')} sealed now; key {key_id(keyring.current)}")
    for hint in hints:
        print(hint)
    return DONE
