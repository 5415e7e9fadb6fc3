"""store: prepare a database for the records, and copy the records to it or back."""

from __future__ import annotations

import argparse
import os
import pwd

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.printing import count, print_json
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import ACCOUNT, load_postgres, require_files
from pam_totp.core.settings import DATABASE, DEFAULT_STORE, is_database
from pam_totp.pam.privileges import act_as_account, act_as_owner_of, acting_as_root
from pam_totp.store import Codec, seal_key
from pam_totp.store.postgres_schema import REPLICATION
from pam_totp.system import seal_files, service_network

INIT, COPY = "init", "copy"
NEXT = {  # the next step after a copy; True: the records are in a database now
    True: "set [store] in /etc/pam_totp.toml (see pam_totp.toml(5)), then restart the service; or run 'pam-totp join' "
    "if authorities use this database",
    False: "delete [store] from /etc/pam_totp.toml, then restart the service",
}
USAGE = {INIT: "store init URL", COPY: "store copy FROM TO"}


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "store",
        run,
        "prepare a database for the records, or copy all records to it or back",
        "pam-totp store init postgresql://owner@db1/otp --grant authority",
        f"pam-totp store copy {DEFAULT_STORE} postgresql://owner@db1/otp",
        data=True,
        store=False,
    )
    parser.add_argument("what", choices=USAGE, help="init URL: create the tables; copy FROM TO: copy all records")
    parser.add_argument("place", nargs="+", help=f"folder, or database ({DATABASE}...)")
    parser.add_argument(
        "--replication", choices=REPLICATION, help="init: required replication of each change (synchronous)"
    )
    parser.add_argument("--grant", metavar="ROLE", help="init: role of the database that may use the tables")
    parser.add_argument("--yes", action="store_true", help="copy: do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    places = [place if is_database(place) else os.path.abspath(place) for place in args.place]
    if len(places) != (1 if args.what == INIT else 2):
        raise CommandError(f"wrong number of arguments: must be 'pam-totp {USAGE[args.what]}'", WRONG_USAGE)
    if args.what == INIT:
        return _initialise(args, places[0])
    if args.replication or args.grant:
        raise CommandError("--replication and --grant are options of 'pam-totp store init'", WRONG_USAGE)
    return _copy(args, *places)


def _initialise(args: argparse.Namespace, url: str) -> int:
    if not is_database(url):
        raise CommandError(f"store init requires a URL that begins with {DATABASE}", WRONG_USAGE)
    load_postgres()
    from pam_totp.store.postgres import initialise

    act_as_account(ACCOUNT)
    require_files(url)
    replication = initialise(url, args.replication, args.grant)
    if args.json:
        print_json({"url": url, "replication": replication})
    else:
        print(f"{url}: the tables are ready; required replication: {replication}")
    return DONE


def _copy(args: argparse.Namespace, source: str, target: str) -> int:
    if is_database(source) == is_database(target):
        raise CommandError("one of FROM and TO must be a database, and the other a folder", WRONG_USAGE)
    load_postgres()
    from pam_totp.store.postgres_copy import to_database, to_folder

    args.audit.look_up()
    question = f"copy all records to {target}, and refuse all logins with {source} from then on?"
    confirm(question, args)
    seal_key.hold()
    codec = _codec(source, target)
    if is_database(target):
        folder = source if os.path.isdir(source) else f"{source}.copying"
        if not os.path.isdir(folder):
            raise CommandError(f"{source}: store not found")
        act_as_owner_of(folder)
        require_files(target)
        done = to_database(source, target, acting_as_root, codec)
    else:
        act_as_account(ACCOUNT)
        require_files(source)
        done = to_folder(source, target, _owner(), acting_as_root, codec)
    permitted = source == DEFAULT_STORE and is_database(target) and _permit_network()
    args.audit.store = target
    args.audit.changed("copy", records=done.records)
    if args.json:
        print_json({"from": source, "to": target, "records": done.records, "old": done.old})
    else:
        print(f"{count(done.records, 'record')} copied to {target}")
        print(f"{source} refuses all logins from now on; its records are kept in {done.old}")
        if permitted:
            print(f"{service_network.DROP_IN} permits the network to the service")
        print(f"next: {NEXT[is_database(target)]}")
    return DONE


def _codec(source: str, target: str) -> Codec | None:
    """Return the codec of `source`. Add `target` to the keyring if `source` is sealed."""
    codec = seal_key.codec_of(source)
    if codec is not None and seal_key.codec_of(target) is None:
        if os.geteuid() != 0:
            raise CommandError(f"{source} is sealed (run the command as root, on a host with the key)", OUT_OF_REACH)
        with seal_files.changing():
            keyring = seal_key.keyring()
            if keyring is None or (state := keyring.state_of(source)) is None:
                raise CommandError(f"{source} is sealed, and this host has no key of it", OUT_OF_REACH)
            seal_files.write(keyring.with_store(target, state))
            seal_files.restart()
        seal_key.hold()
    return codec


def _permit_network() -> bool:
    """Permit the network to the service of this host. Return True if a drop-in was written."""
    with acting_as_root():
        return os.geteuid() == 0 and service_network.permit()


def _owner() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        return os.geteuid(), os.getegid()
    return entry.pw_uid, entry.pw_gid
