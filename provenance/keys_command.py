"""`provenance keys`: make, list, rotate and publish the keys that sign stamps."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from provenance.keys import (
    ED25519,
    HMAC,
    KeysError,
    KeySet,
    new_key,
    parse_key_set,
    render_key_set,
    service_of,
    version_of,
)

EXIT_USAGE: Final = 2
ALGORITHM_NAMES: Final = {"hmac": HMAC, "ed25519": ED25519}

_EPILOG: Final = """\
A stamp says who made a call; signed, it proves it. A service signs with the newest of its keys in the file that PROVENANCE_KEYS, or
instrument(keys=...), names; `provenance verify --keys FILE` verifies with every key in its file. Keys in Vault (vault://HOST/MOUNT/KEY in
the place of a file) are made and rotated there.

  hmac     one secret, which the service and whoever verifies share: 1 us a call. Give each service a file of its own, and
           `provenance verify` the file that has all of them.
  ed25519  the service alone can sign, and what `provenance keys public` prints is enough to verify: 40 us a call.

examples:
  provenance keys new checkout --file keys.json
  provenance keys rotate checkout --file keys.json        services that watch the file sign with the new key within a second
  provenance keys rotate checkout --file keys.json --keep 2
  provenance keys public --file keys.json > public.json

Rotate where it is verified first, then where it is signed: an old key goes on verifying until --keep drops it.

exit codes: 0 done, 2 usage, or a file that cannot be read or written
"""


def main(argv: Sequence[str]) -> int:
    """Run one of the four; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        match options.action:
            case "new":
                _add(options.file, options.service, options.algorithm, must_be_new=True, keep=None)
            case "rotate":
                _add(options.file, options.service, options.algorithm, must_be_new=False, keep=options.keep)
            case "list":
                _list(_read(options.file))
            case "public":
                print(render_key_set(_read(options.file), public=True), end="")
    except (OSError, UnicodeDecodeError, KeysError) as error:
        print(f"provenance keys: {options.file}: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _read(path: Path) -> KeySet:
    return parse_key_set(path.read_text())


def _add(path: Path, service: str, algorithm: str | None, *, must_be_new: bool, keep: int | None) -> None:
    keys = _read(path) if path.exists() else KeySet({})
    newest = keys.newest_version(service)
    if must_be_new and newest:
        message = f"{service!r} has keys already; for a new version of them: provenance keys rotate {service}"
        raise KeysError(message)
    if not must_be_new and not newest:
        message = f"no key of {service!r} to rotate; for its first: provenance keys new {service}"
        raise KeysError(message)
    own = [key for key in keys.by_kid.values() if service_of(key.kid) == service]
    chosen = ALGORITHM_NAMES[algorithm] if algorithm else own[-1].algorithm if own else HMAC
    key = new_key(service, newest + 1, chosen)
    dropped = set()
    if keep is not None:
        dropped = {old.kid for old in own if version_of(old.kid) <= newest + 1 - keep}
    kept = [old for old in keys.by_kid.values() if old.kid not in dropped]
    _write(path, render_key_set(KeySet.of([*kept, key])))
    print(key.kid)


def _write(path: Path, text: str) -> None:
    """At once or not at all, because services read it meanwhile; only the owner may read it."""
    handle, name = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:  # mkstemp's mode is 0600
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path.resolve())
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _list(keys: KeySet) -> None:
    for key in keys.by_kid.values():
        print(f"{key.kid}\t{key.algorithm}\t{'signs and verifies' if key.can_sign else 'verifies'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provenance keys",
        description="Make, list, rotate and publish the keys that sign stamps: JSON Web Key Sets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="new|list|rotate|public")
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--file", type=Path, required=True, help="the JWKS file")
    service = argparse.ArgumentParser(add_help=False)
    service.add_argument("service", metavar="SERVICE", help="the service's name, as its spans' service.name says it")
    service.add_argument("--algorithm", choices=ALGORITHM_NAMES, help="hmac or ed25519 (default: as before, else hmac)")
    actions.add_parser("new", parents=[service, file], help="a service's first key; makes the file where there is none")
    rotate = actions.add_parser("rotate", parents=[service, file], help="a new version of a service's key")
    rotate.add_argument("--keep", type=_positive, metavar="N", help="keep the newest N of its keys (default: all)")
    actions.add_parser("list", parents=[file], help="the keys, without their secrets")
    actions.add_parser("public", parents=[file], help="print the public halves of the Ed25519 keys")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
