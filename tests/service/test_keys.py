"""Keys: shown once, kept as a hash, allowed for some things, over when they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.cli.main import invoke
from tunesmith.service.errors import ApiError
from tunesmith.service.keys import SCOPES, USUAL, allows, check_key, create_key, list_keys, revoke_key
from tunesmith.service.settings import ServeSettings
from tunesmith.service.store import open_store
from tunesmith.service.store.nouns import Key
from tunesmith.service.store.sql import SqlStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store, _ = open_store(ServeSettings(home=tmp_path))
    yield store
    store.close()


def test_a_secret_opens_its_key_and_is_kept_nowhere(store: SqlStore, tmp_path: Path) -> None:
    key, secret = create_key(store, "laptop")
    other, _ = create_key(store, "laptop")
    assert secret.startswith("sk-ts-") and len(secret) > 40 and key.scopes == USUAL and other.id != key.id
    for given in (secret, f"Bearer {secret}", f"bearer   {secret} "):
        assert check_key(store, given) == key
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key.id.encode() in kept and secret.encode() not in kept and secret[6:].encode() not in kept


@pytest.mark.parametrize("given", ["", "sk-ts-", "x", "é\ud800\0", "Bearer", "a" * 10_000, "sk-ts-" + "a" * 43])
def test_another_secret_opens_nothing(store: SqlStore, given: str) -> None:
    create_key(store, "laptop")
    with pytest.raises(ApiError) as told:
        check_key(store, given)
    assert (told.value.status, told.value.code) == (401, "invalid_api_key")
    assert given[10:] not in told.value.message or len(given) <= 10


def test_a_longer_secret_with_the_same_beginning_opens_nothing(store: SqlStore) -> None:
    _, secret = create_key(store, "laptop")
    for given in (secret + "x", secret[:-1], secret.swapcase(), secret + " x"):
        with pytest.raises(ApiError, match="Incorrect API key"):
            check_key(store, given)


def test_a_revoked_key_is_over_for_good(store: SqlStore) -> None:
    key, secret = create_key(store, "laptop")
    revoked = revoke_key(store, key.id, now=7)
    assert revoked is not None and revoked.revoked_at == 7
    with pytest.raises(ApiError, match="was revoked") as told:
        check_key(store, secret)
    assert told.value.status == 401 and secret not in told.value.message
    assert revoke_key(store, key.id, now=9) == revoked and revoke_key(store, "key_none") is None
    assert list_keys(store) == (revoked,)


def test_a_key_expires_at_its_second(store: SqlStore) -> None:
    key, secret = create_key(store, "laptop", expires_at=1_000)
    assert check_key(store, secret, now=999) == key
    with pytest.raises(ApiError, match="has expired"):
        check_key(store, secret, now=1_000)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("read",), {"read"}),
        (("infer",), {"infer"}),
        (("train",), {"train", "read"}),
        (("admin",), {"read", "infer", "train", "admin"}),
        (("infer", "read"), {"infer", "read"}),
        (("infer", "train"), {"infer", "train", "read"}),
    ],
)
def test_what_a_scope_includes(store: SqlStore, scopes: tuple[str, ...], allowed: set[str]) -> None:
    key, _ = create_key(store, "laptop", scopes)
    assert {scope for scope in SCOPES if allows(key, scope)} == allowed
    assert not allows(key, "everything")


def test_a_scope_that_does_not_exist_is_refused(store: SqlStore) -> None:
    with pytest.raises(ValueError, match="write"):
        create_key(store, "laptop", ("read", "write"))
    with pytest.raises(ValueError):
        create_key(store, "laptop", ())
    assert store.count(Key) == 0


def test_the_command_makes_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(tmp_path / "home")
    assert invoke(["keys", "list", "--home", home]) == 2
    assert "--home" in capsys.readouterr().err and not Path(home).exists()
    assert invoke(["keys", "create", "laptop", "--home", home]) == 0
    secret = capsys.readouterr().out.strip()
    assert invoke(["keys", "create", "app", "--scope", "infer", "--days", "3", "--home", home, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["scopes"] == ["infer"] and made["secret"].startswith("sk-ts-") and "digest" not in made
    assert made["expires_at"] - made["created_at"] in (3 * 86_400, 3 * 86_400 - 1)

    store, _ = open_store(ServeSettings(home=Path(home)))
    assert check_key(store, secret).name == "laptop"
    assert invoke(["keys", "revoke", made["id"], "--home", home]) == 0
    with pytest.raises(ApiError, match="was revoked"):
        check_key(store, made["secret"])
    store.close()

    capsys.readouterr()
    assert invoke(["keys", "list", "--home", home, "--json"]) == 0
    listed = capsys.readouterr().out
    assert [one["state"] for one in json.loads(listed)["keys"]] == ["valid", "revoked"]
    assert secret not in listed and "digest" not in listed
    assert invoke(["keys", "revoke", "key_none", "--home", home]) == 2
    assert invoke(["keys", "create", "x", "--scope", "write", "--home", home]) == 2


@pytest.mark.parametrize("wrong", [[""], ["a\nb"], ["a\x1b[31m"], ["x" * 101], ["x", "--days", "99999999999"]])
def test_a_key_that_nobody_could_list_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert invoke(["keys", "create", *wrong, "--home", str(tmp_path / "home")]) == 2
    assert "a bug" not in capsys.readouterr().err and not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert invoke(["keys", "create", "x", "--home", str(tmp_path / "file" / "home")]) != 0
    told = capsys.readouterr().err
    assert "the home folder cannot be used: not a directory" in told and "a bug" not in told
