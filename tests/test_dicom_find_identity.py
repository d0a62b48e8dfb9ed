import hashlib
import hmac
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dae3d.errors import Dae3dError
from dae3d.scans.dicom.identity import load_salt, salted


def test_hash_is_the_keyed_one_of_the_text():
    message = (2).to_bytes(8, "big") + b"ab"
    assert salted(b"key", "ab") == hmac.new(b"key", message, hashlib.sha256).hexdigest()[:16]


@given(one=st.lists(st.text(max_size=4), max_size=4), other=st.lists(st.text(max_size=4), max_size=4))
def test_texts_are_told_apart_and_so_are_their_borders(one, other):
    assert (salted(b"key", *one) == salted(b"key", *other)) == (one == other)


def test_own_salt_is_made_once_and_readable_by_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    salt = load_salt(None)
    path = tmp_path / "dae3d" / "salt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(salt) == 64
    assert load_salt(None) == salt == load_salt(path)
    assert [file.name for file in path.parent.iterdir()] == ["salt"]


def test_of_two_processes_that_make_a_salt_both_use_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    other = tmp_path / "dae3d" / "salt"

    def meanwhile(count):
        other.write_text("another process was first\n")
        return "ab" * count

    monkeypatch.setattr("secrets.token_hex", meanwhile)
    assert load_salt(None) == b"another process was first"
    assert list(other.parent.iterdir()) == [other]


def test_own_salt_without_xdg_lies_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    load_salt(None)
    assert (tmp_path / ".config" / "dae3d" / "salt").is_file()


def test_two_users_have_two_salts(tmp_path, monkeypatch):
    salts = set()
    for name in ("a", "b"):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))
        salts.add(load_salt(None))
    assert len(salts) == 2


@pytest.mark.parametrize(("content", "reason"), [(None, "no such file"), (b"short\n", "only 6 bytes")])
def test_salt_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "salt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Dae3dError, match=f"salt: {path}: {reason}"):
        load_salt(path)


def test_given_salt_is_not_made(tmp_path):
    with pytest.raises(Dae3dError):
        load_salt(tmp_path / "salt")
    assert not list(tmp_path.iterdir())


def test_salt_of_any_bytes(tmp_path):
    """An editor's newline at the end is not part of it; white space elsewhere is."""
    path = tmp_path / "salt"
    for content, salt in [
        (b" \n0123456789abcd", b" \n0123456789abcd"),
        (b"0123456789abcdef\n", b"0123456789abcdef"),
        (b"0123456789abcd\n\n", b"0123456789abcd\n"),
    ]:
        path.write_bytes(content)
        assert load_salt(path) == salt
