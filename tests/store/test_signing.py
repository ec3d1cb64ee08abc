"""Signatures: whose count, where keys lie, and that nothing of an unsigned set is parsed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ct import settings
from ct.errors import Conflict, InvalidSettings, NotFound, Untrusted
from ct.ids import canonical
from ct.store import signing
from ct.store.artifacts import Artifacts
from ct.store.signing import Keys
from tests.services import S3

FILES = {"a": b"one", "b": b"two"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's config folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(signing.VARIABLE, raising=False)
    return tmp_path / "config" / "ct" / "keys"


def put(artifacts: Artifacts) -> str:
    """A signed set."""
    digest = artifacts.put_set(FILES)
    artifacts.sign(digest)
    return digest


def beside(artifacts: Artifacts, digest: str) -> Path:
    """The file of a set's signatures."""
    return Path(f"{artifacts.address(digest)}.sig")


def test_a_laptop_signs_with_a_key_of_its_own_that_nobody_else_can_read(tmp_path: Path, home: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    digest = put(artifacts)
    assert artifacts.get_signed(digest) == FILES
    assert stat.S_IMODE((home / "own").stat().st_mode) == 0o600
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file() and b"own" in path.read_bytes()]
    before = (home / "own").read_bytes()
    artifacts.sign(digest)
    assert (home / "own").read_bytes() == before
    assert len(artifacts.signatures(digest)) == 1, "signing again adds nothing"


def test_a_valid_set_without_a_signature_is_refused_unparsed(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    put(artifacts)
    fake = artifacts.put(b"this is no manifest at all")
    with pytest.raises(Untrusted, match="there is no signature"):
        artifacts.get_signed(fake)
    with pytest.raises(NotFound):
        artifacts.get_signed("0" * 64)


def test_a_signature_holds_for_its_manifest_alone(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    digest = put(artifacts)
    other = artifacts.put_set({"a": b"evil"})
    beside(artifacts, other).write_bytes(beside(artifacts, digest).read_bytes())
    with pytest.raises(Untrusted, match="is wrong"):
        artifacts.get_signed(other)


def test_a_signature_made_for_something_else_does_not_count(tmp_path: Path, home: Path) -> None:
    artifacts = Artifacts(tmp_path)
    digest = artifacts.put_set(FILES)
    signing.make(signing.OWN)
    private = signing._stored(signing.OWN)
    import base64

    bare = canonical({"key": signing.public(private), "signature": base64.b64encode(private.sign(digest.encode())).decode()})
    beside(artifacts, digest).write_text(bare)
    with pytest.raises(Untrusted, match="is wrong"):
        artifacts.get_signed(digest)


@pytest.mark.parametrize("garbage", [b"", b"{}", b"\x00\xff", b"[1]", b'{"key": "ed25519:x", "signature": "!"}', b"[" * 60_000])
def test_garbage_beside_a_manifest_is_no_signature(tmp_path: Path, garbage: bytes) -> None:
    artifacts = Artifacts(tmp_path)
    digest = artifacts.put_set(FILES)
    beside(artifacts, digest).write_bytes(garbage)
    with pytest.raises(Untrusted):
        artifacts.get_signed(digest)
    artifacts.sign(digest)
    assert artifacts.get_signed(digest) == FILES


def test_another_users_signature_counts_once_the_key_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = signing.make()
    monkeypatch.setenv(signing.VARIABLE, str(signing.folder() / signing.key_id(theirs)))
    digest = put(Artifacts(tmp_path / "artifacts"))
    monkeypatch.delenv(signing.VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))  # a replica: public keys only
    with pytest.raises(Untrusted, match=f"the key {signing.key_id(theirs)} is not trusted"):
        Artifacts(tmp_path / "artifacts").get_signed(digest)
    replica = Artifacts(tmp_path / "artifacts", Keys((theirs,)))
    assert replica.get_signed(digest) == FILES
    assert replica.signed_by(digest) == signing.key_id(theirs)
    with pytest.raises(Untrusted, match="holds no private key"):
        replica.keys.sign(digest)
    assert not signing.folder().exists(), "verifying makes no key"


def test_keys_rotate_by_signing_again(tmp_path: Path) -> None:
    old, new = signing.make(), signing.make()
    digest = put(Artifacts(tmp_path, Keys((old,))))
    with pytest.raises(Untrusted):
        Artifacts(tmp_path, Keys((new,))).get_signed(digest)
    Artifacts(tmp_path, Keys((new,))).sign(digest)
    for keys in ((old,), (new,), (old, new)):
        assert Artifacts(tmp_path, Keys(keys)).get_signed(digest) == FILES


def test_a_private_key_that_others_can_read_is_not_used(tmp_path: Path, home: Path) -> None:
    signing.make(signing.OWN)
    (home / "own").chmod(0o644)
    with pytest.raises(Conflict, match="chmod 600"):
        put(Artifacts(tmp_path))


def test_what_the_variable_holds_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.VARIABLE, "half-a-secret")
    with pytest.raises(Untrusted) as found:
        put(Artifacts(tmp_path))
    assert "half-a-secret" not in str(found.value)


def test_two_processes_make_one_key(tmp_path: Path, home: Path) -> None:
    code = "from ct.store import signing; print(signing.make('own'))"
    begun = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ) for _ in range(4)]
    assert len({child.communicate()[0] for child in begun}) == 1
    assert sorted(path.name for path in home.iterdir()) == ["own", "own.pub"]


def test_settings_take_public_keys_and_no_private_one(tmp_path: Path) -> None:
    key = signing.make()
    (tmp_path / "ct.toml").write_text(f'trusted_keys = ["{key}"]\n')
    assert settings.load(tmp_path, {}).trusted_keys == (key,)
    other = signing.make()
    assert settings.load(tmp_path, {"CT_TRUSTED_KEYS": f"{key}, {other}"}).trusted_keys == (key, other)
    assert json.loads(settings.load(tmp_path, {}).model_dump_json())["trusted_keys"] == [key]
    for text in ('trusted_keys = ["abc"]', 'signing_key = "x"'):
        (tmp_path / "ct.toml").write_text(text + "\n")
        with pytest.raises(InvalidSettings):
            settings.load(tmp_path, {})


def test_an_object_store_keeps_signatures_too(s3: S3) -> None:
    artifacts = Artifacts(s3.new())
    digest = artifacts.put_set(FILES)
    with pytest.raises(Untrusted, match="there is no signature"):
        artifacts.get_signed(digest)
    artifacts.sign(digest)
    assert artifacts.get_signed(digest) == FILES
    with pytest.raises(NotFound):
        artifacts.get_signed("0" * 64)


@pytest.mark.parametrize("said", ["k" * 5000, "~nobody-of-that-name/key"])
def test_a_variable_that_can_be_no_file_is_told_without_it(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.VARIABLE, said)
    with pytest.raises(Untrusted, match="neither a private key nor a file") as caught:
        Keys().ready()
    assert said not in str(caught.value)


def test_a_file_that_holds_something_else_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "raw"
    file.write_bytes(b"\xff\xfe" * 16)
    file.chmod(0o600)
    monkeypatch.setenv(signing.VARIABLE, str(file))
    with pytest.raises(Untrusted, match="holds no private key"):
        Keys().ready()


def test_a_home_that_keeps_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(Untrusted, match="no key can be kept in"):
        Keys().ready()
