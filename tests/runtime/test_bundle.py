"""Bundles: what is written opens, what is damaged is named, and a failed write leaves nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from omnic.errors import BundleError, InputError
from omnic.runtime import bundle as bundles
from omnic.runtime.bundle import open_bundle
from omnic.runtime.bundle_write import BundleWriter, check_destination
from omnic.runtime.manifest import checksum, json_schemas


def test_round_trip(tmp_path, write, leftovers):
    written = write(tmp_path / "b")
    opened = open_bundle(tmp_path / "b", verify=True)
    assert opened.manifest.files == written.manifest.files
    assert opened.manifest.model_copy(update={"checksum": ""}) == written.manifest.model_copy(update={"checksum": ""})
    assert sorted(opened.manifest.files) == ["model.onnx", "module.ir", "tokenizer/tokenizer.json", "weights.bin"]
    assert opened.entry.read_bytes() == b"program"
    assert opened.json("tokenizer/tokenizer.json") == {"a": 1}
    assert opened.parity is None
    assert opened.bytes() == sum(p.stat().st_size for p in (tmp_path / "b").rglob("*") if p.is_file()) - (
        tmp_path / "b" / "manifest.json"
    ).stat().st_size
    assert leftovers(tmp_path) == ["b"]
    assert open_bundle(tmp_path / "b" / "manifest.json").path == tmp_path / "b"


def test_files_of_other_writers_are_found_and_hashed(tmp_path, manifest):
    with BundleWriter(tmp_path / "b") as writer:
        writer.path("model.onnx").write_bytes(b"one")
        writer.path("deep/er/file").write_bytes(b"two")
        writer.copy("copied", __file__)
        writer.commit(manifest)
    opened = open_bundle(tmp_path / "b", verify=True)
    assert opened.file("copied").read_bytes() == Path(__file__).read_bytes()
    assert opened.text("deep/er/file") == "two"
    with pytest.raises(BundleError, match="the bundle has no file 'nothing'"):
        opened.file("nothing")


@pytest.mark.parametrize("name", ["model.onnx", "module.ir", "tokenizer/tokenizer.json", "weights.bin"])
def test_a_flipped_byte_is_named(tmp_path, name, write):
    write(tmp_path / "b")
    path = tmp_path / "b" / name
    for at in range(path.stat().st_size):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError) as caught:
            open_bundle(tmp_path / "b")
        assert caught.value.message == f"{path}: its SHA-256 is not the one in manifest.json; the file is damaged"
        data[at] ^= 1
        path.write_bytes(data)
    open_bundle(tmp_path / "b")


def test_every_flipped_byte_of_the_manifest_is_found(tmp_path, write):
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 4
        if json_equal(data, whole):
            continue  # another white space is no other manifest
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            open_bundle(tmp_path / "b")


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_truncated_or_missing_file_is_named(tmp_path, write):
    write(tmp_path / "b", b"x" * 100)
    path = tmp_path / "b" / "weights.bin"
    path.write_bytes(b"x" * 99)
    with pytest.raises(BundleError, match=r"weights\.bin: 99 bytes, 100 were written"):
        open_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(BundleError, match=r"the bundle has no file 'weights\.bin'"):
        open_bundle(tmp_path / "b")


def test_large_files_are_hashed_on_request(tmp_path, monkeypatch, write):
    monkeypatch.setattr(bundles, "HASH_LIMIT", 60)
    write(tmp_path / "b", b"x" * 100)
    (tmp_path / "b" / "weights.bin").write_bytes(b"x" * 99 + b"y")
    open_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=r"weights\.bin: its SHA-256"):
        open_bundle(tmp_path / "b", verify=True)
    (tmp_path / "b" / "model.onnx").write_bytes(b"Program")
    with pytest.raises(BundleError, match=r"model\.onnx: its SHA-256"):
        open_bundle(tmp_path / "b")


def test_a_newer_schema_says_so(tmp_path, write):
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    body = json.loads(path.read_text())
    body |= {"schema_version": 2, "omnic": "3.0", "new_field": 1}
    path.write_text(json.dumps(body))
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path / "b")
    assert caught.value.message == f"{path}: schema version 2; this omnic reads up to 1"
    assert "upgrade omnic (the bundle was written by 3.0)" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema_version": "x"}, "schema_version"),
        ({"executable": {"kind": "onnx"}}, "executable.entry"),
        ({"surplus": 1}, "surplus"),
        ({"files": {"../out": {"bytes": 1, "sha256": "0" * 64}}}, "not a path inside the bundle"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "not a path inside the bundle"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, change, message, write):
    write(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    body = json.loads(path.read_text()) | change
    body["checksum"] = checksum(body)
    path.write_text(json.dumps(body))
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "b")


def test_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="no such bundle"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"not a bundle, it has no manifest\.json"):
        open_bundle(tmp_path)
    for text in ("", "[]", "\xff"):
        (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(BundleError, match="the file is damaged"):
            open_bundle(tmp_path)


def test_an_existing_bundle(tmp_path, write, leftovers):
    out = tmp_path / "b"
    write(out)
    before = out.stat().st_ino
    write(out)
    assert out.stat().st_ino == before, "the same content is left as it is"
    with pytest.raises(InputError, match=r"holds a bundle of other content \(tiny for onnx\)") as caught:
        write(out, b"other")
    assert caught.value.hint == "replace it with --force, or choose another folder with -o"
    assert open_bundle(out).file("weights.bin").read_bytes() == b"weights"
    write(out, b"other", force=True)
    assert open_bundle(out).file("weights.bin").read_bytes() == b"other"
    assert leftovers(tmp_path) == ["b"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("empty", [False, True])
def test_a_file_system_that_takes_no_folders_is_refused_before_any_work(tmp_path, monkeypatch, empty):
    out = Path("/proc/x")
    if empty:  # the destination is there, but nothing can be put beside it
        out = tmp_path / "b"
        out.mkdir()

        def refuse(**options):
            raise OSError(errno.ENOENT, "No such file or directory")

        monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(InputError) as caught:
        check_destination(out)
    assert caught.value.message == f"{out}: no folder can be made in {out.parent}: No such file or directory"
    assert caught.value.hint == "choose another folder with -o"


def test_the_same_inputs_may_replace_without_force(tmp_path, write):
    write(tmp_path / "b", key="k1")
    write(tmp_path / "b", b"timing differs", key="k1")
    assert open_bundle(tmp_path / "b").file("weights.bin").read_bytes() == b"timing differs"
    with pytest.raises(InputError, match="other content"):
        check_destination(tmp_path / "b", key="k2")
    check_destination(tmp_path / "b", key="k2", force=True)


def test_a_damaged_bundle_is_replaced_with_force_only(tmp_path, write):
    write(tmp_path / "b", key="k")
    (tmp_path / "b" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="holds a bundle that cannot be read"):
        write(tmp_path / "b", key="k")
    write(tmp_path / "b", key="k", force=True)
    open_bundle(tmp_path / "b")


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path, write):
    out = tmp_path / "home"
    out.mkdir()
    write(out)  # an empty folder may be used
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    for force in (False, True):
        with pytest.raises(InputError, match="holds files and is no bundle"):
            write(other, force=force)
    assert (other / "thesis.txt").read_text() == "years"
    with pytest.raises(InputError, match="is a file"):
        write(other / "thesis.txt", force=True)


def test_a_link_is_written_through(tmp_path, write):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    open_bundle(tmp_path / "real")


def test_leaving_without_commit_leaves_nothing(tmp_path, leftovers):
    with pytest.raises(RuntimeError), BundleWriter(tmp_path / "b") as writer:
        writer.data("model.onnx", b"x")
        raise RuntimeError
    with BundleWriter(tmp_path / "b") as writer:
        writer.data("model.onnx", b"x")
    assert leftovers(tmp_path) == []


def test_an_unfinished_bundle_opens_for_its_own_parity_only(tmp_path, manifest):
    with BundleWriter(tmp_path / "b") as writer:
        writer.data("model.onnx", b"x")
        preview = writer.preview(manifest)
        assert preview.entry.read_bytes() == b"x"
        assert open_bundle(preview.path, unfinished=True).manifest.model == "tiny"
        with pytest.raises(BundleError, match="what an interrupted compile left"):
            open_bundle(preview.path)
        writer.json("parity.json", {"ok": True})
        assert writer.commit(manifest).parity == {"ok": True}


def test_the_committed_schemas_are_the_generated_ones(repository):
    for name, schema in json_schemas().items():
        committed = json.loads((repository / "runtime" / "data" / name).read_text())
        assert committed == schema, "run: python -m omnic.runtime.manifest"


def test_a_manifest_fits_its_schema(tmp_path, repository, write):
    import jsonschema

    write(tmp_path / "b")
    schema = json.loads((repository / "runtime" / "data" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "b" / "manifest.json").read_text()), schema)
