from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_pictures import SHARD_IMAGES, toy_picture, toy_rows, toy_table, write_toys

from rsna_kit.config import ImageConfig
from rsna_kit.data.shards import open_prepared, read_picture
from rsna_kit.data.writer import ShardWriter
from rsna_kit.runtime.errors import ShardError

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

IMAGE = ImageConfig(height=24, width=16)
COUNT = 40


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    write_toys(tmp_path / "prepared", IMAGE, COUNT)
    return tmp_path / "prepared"


def test_byte_ranges_and_tensorflow_read_the_same_rows(toys: Path) -> None:
    """Twin: one reader parses records, the other trusts recorded offsets."""
    import tensorflow as tf

    prepared = open_prepared(toys)
    names = [str(path) for path in sorted(toys.glob("*.tfrecord"))]
    keys = {"image": tf.string, "image_id": tf.string, "label": tf.float32}
    spec = {name: tf.io.FixedLenFeature((), kind) for name, kind in keys.items()}
    rows = [tf.io.parse_single_example(record, spec) for record in tf.data.TFRecordDataset(names)]
    assert [row["image_id"].numpy().decode() for row in rows] == list(prepared.table["image_id"])
    for row in rows:
        image_id = row["image_id"].numpy().decode()
        decoded = tf.io.decode_png(row["image"]).numpy()[..., 0]
        np.testing.assert_array_equal(read_picture(prepared, image_id), decoded)
        assert prepared.index[image_id].label == row["label"].numpy()


def test_pictures_come_back_as_they_went_in(toys: Path) -> None:
    """Ids keep their leading zeros: pandas would read 00012 as the number 12."""
    prepared = open_prepared(toys, IMAGE)
    for row in prepared.table.itertuples():
        wanted = toy_picture(IMAGE, row.image_id, row.cancer)
        np.testing.assert_array_equal(read_picture(prepared, row.image_id), wanted)
    assert prepared.table.loc[12, ["image_id", "patient_id"]].tolist() == ["00012", "0006"]
    manifest = json.loads((toys / "manifest.json").read_text())
    assert (manifest["images"], manifest["positives"], manifest["failed"], manifest["shards"]) == (40, 8, 0, 3)
    assert manifest["image"] == dataclasses.asdict(IMAGE)
    with pytest.raises(ShardError, match=r"no image '99'.*failures.csv"):
        read_picture(prepared, "99")


@pytest.mark.parametrize("name", ["shard-00001.tfrecord", "shard-00001.json", "table.csv"])
def test_a_damaged_or_missing_file_is_refused_by_name(toys: Path, name: str) -> None:
    content = bytearray((toys / name).read_bytes())
    content[len(content) // 2] ^= 1
    (toys / name).write_bytes(content)
    with pytest.raises(ShardError, match=f"{name}: damaged.*Run prepare again"):
        open_prepared(toys)
    (toys / name).unlink()
    with pytest.raises(ShardError, match=f"{name}: missing"):
        open_prepared(toys)
    (toys / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"manifest.json: no such file. Run prepare"):
        open_prepared(toys)


def test_images_of_another_section_or_recipe_are_refused(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShardError, match=r"height=24.*expected.*height=32"):
        open_prepared(toys, ImageConfig(height=32, width=16))
    monkeypatch.setattr("rsna_kit.config.IMAGE_RECIPE_VERSION", -1)
    with pytest.raises(ShardError, match="another version of the image recipe"):
        open_prepared(toys, IMAGE)


def test_a_picture_with_a_broken_head_names_shard_and_image(toys: Path) -> None:
    prepared = open_prepared(toys)
    entry = prepared.index["00003"]
    with open(toys / entry.shard, "r+b") as file:
        file.seek(entry.offset)
        file.write(b"\0\0\0\0")
    with pytest.raises(ShardError, match=r"shard-00000.tfrecord: image 00003 .* is damaged"):
        read_picture(prepared, "00003")


def test_failed_images_are_listed_and_have_no_row(tmp_path: Path) -> None:
    table = toy_table(10)
    writer = ShardWriter(tmp_path, IMAGE, table)
    failure = {"image_id": "00004", "stage": "decode", "reason": "cut, off"}
    writer.write(0, toy_rows(IMAGE, table[:3]), [failure])
    with pytest.raises(ShardError, match="4 images in shards, expected the 10 of the table"):
        writer.finish()
    writer.write(0, toy_rows(IMAGE, table.drop(index=4)), [failure])
    assert not writer.complete(0, list(table["image_id"]))  # the file may have been mended: it is tried again
    assert writer.finish()["failed"] == 1
    assert "00004" not in set(open_prepared(tmp_path).table["image_id"])
    assert (tmp_path / "failures.csv").read_text() == 'image_id,stage,reason\n00004,decode,"cut, off"\n'


def test_a_run_killed_inside_a_shard_leaves_the_shards_before_it(tmp_path: Path) -> None:
    """os._exit stands for SIGKILL: no finally clause runs, buffers are lost."""
    code = (
        "import os; from pathlib import Path; import sys; sys.path.insert(0, sys.argv[2])\n"
        "from toy_pictures import *\n"
        "image, table = ImageConfig(height=24, width=16), toy_table(40)\n"
        "writer = ShardWriter(Path(sys.argv[1]), image, table)\n"
        "writer.write(0, toy_rows(image, table[:16]), [])\n"
        "def dying():\n"
        "    for number, row in enumerate(toy_rows(image, table[16:32])):\n"
        "        if number == 5: os._exit(9)\n"
        "        yield row\n"
        "writer.write(1, dying(), [])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], capture_output=True)
    assert done.returncode == 9, done.stderr
    table = toy_table(COUNT)
    writer = ShardWriter(tmp_path, IMAGE, table)
    ids = [list(table["image_id"][start : start + SHARD_IMAGES]) for start in (0, 16, 32)]
    assert [writer.complete(number, ids[number]) for number in range(3)] == [True, False, False]
    for number in (1, 2):
        writer.write(number, toy_rows(IMAGE, table[table["image_id"].isin(ids[number])]), [])
    writer.finish()
    assert len(open_prepared(tmp_path).table) == COUNT
    assert not list(tmp_path.glob("*tmp*"))


def test_a_shard_is_made_again_when_it_no_longer_fits(toys: Path) -> None:
    table = toy_table(COUNT)
    ids = list(table["image_id"][:SHARD_IMAGES])
    assert ShardWriter(toys, IMAGE, table).complete(0, ids)
    assert not ShardWriter(toys, IMAGE, table).complete(0, ids[:-1])
    assert not ShardWriter(toys, ImageConfig(height=24, width=16, margin=0.1), table).complete(0, ids)
    assert not ShardWriter(toys, IMAGE, table.assign(cancer=1 - table["cancer"])).complete(0, ids)
    (toys / "shard-00000.tfrecord").write_bytes(b"")
    assert not ShardWriter(toys, IMAGE, table).complete(0, ids)


def test_same_pictures_same_bytes(tmp_path: Path) -> None:
    first, second = write_toys(tmp_path / "a", IMAGE, 20), write_toys(tmp_path / "b", IMAGE, 20)
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()
    assert first.data_fingerprint == second.data_fingerprint
    assert first.data_fingerprint != write_toys(tmp_path / "c", IMAGE, 21).data_fingerprint


def test_reading_loads_no_tensorflow(toys: Path) -> None:
    """A machine with JAX alone trains from shards that another machine wrote."""
    code = (
        "import sys; from pathlib import Path\n"
        "from rsna_kit.data.shards import open_prepared, read_picture\n"
        "from rsna_kit.data.batches import Pictures, picture_stream\n"
        "prepared = open_prepared(Path(sys.argv[1]))\n"
        "print(sum(len(batch) for batch in picture_stream(Pictures(prepared), list(prepared.index), 16)))\n"
        "assert not {'tensorflow', 'keras', 'albumentations'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(toys)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "40\n"), done.stderr
