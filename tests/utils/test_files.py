"""Files are written whole or not at all."""

import numpy as np
import pytest

from sepstop.utils.files import load_arrays, pack_arrays, write_atomically, write_or_warn


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"first", b"second, longer", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_no_trace(tmp_path):
    """The old file stays, and so does whatever lies in the way."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"new")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "not bytes")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_failed_write_can_be_a_warning_that_points_to_the_caller(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "below"
    with pytest.warns(RuntimeWarning, match=f"^sepstop: could not write {path}: ") as caught:
        write_or_warn(path, b"")
    assert caught[0].filename == __file__
    with pytest.raises(OSError, match="file"):
        write_atomically(path, b"")


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_come_back_by_name(tmp_path, compress):
    arrays = {"points": np.arange(6.0).reshape(2, 3), "outputs": np.array("none"), "5": [1, 2]}
    write_atomically(tmp_path / "a.npz", pack_arrays(arrays, compress))
    found = load_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        assert np.array_equal(array, arrays[name])


def test_archives_that_can_not_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "nowhere.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    np.savez(tmp_path / "pickle.npz", steps=np.array([print], dtype=object))
    for name in ("torn", "pickle"):
        with pytest.raises(ValueError, match=rf"expected an \.npz file at .*{name}\.npz: "):
            load_arrays(tmp_path / f"{name}.npz")
