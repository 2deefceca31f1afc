"""The files of the image datasets: where they lie, their sha256 sums, and how their bytes become arrays of grey levels.

A file is read once, and nothing of it is used before the sum of what was read agrees with the pinned one. No archive is
ever unpacked onto the disk: gzip and npz contents are decompressed in memory, up to a bound.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unigen.datachecks import DataError, integer
from unigen.durable import write_whole

__all__ = ["Source", "read"]

# The sums of the official files (whose md5 sums torchvision lists, too) and of the packed binarized MNIST.
_SHA256 = {
    "mnist/train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "mnist/train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "mnist/t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "mnist/t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "fashion_mnist/train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "binarized_mnist/binarized_mnist_packed.npz": "50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5",
}
_TITLES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
    "fashion_mnist": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}
_MOST_BYTES, _SECONDS = 2**26, 60.0  # of one file, before and after decompression; of one answer of a server
_CITATIONS = {
    "digits": "Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, as bundled with scikit-learn",
    "mnist": "LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition",
    "fashion_mnist": "Xiao, Rasul and Vollgraf 2017, Fashion-MNIST: a novel image dataset",
}
_BINARIZED = "static Bernoulli(grey) binarization of MNIST (LeCun et al. 1998), after Salakhutdinov and Murray 2008"


class Source(NamedTuple):
    """The grey levels and labels of the training, validation and test rows.

    Arguments:
        rows: uint8 (N, D) for each split.
        labels: (N,) for each split, or None.
        citation: where they come from.
    """

    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray | None, ...]
    citation: str


def read(name: str, root: str | os.PathLike[str] | None = None, validation: int | None = None) -> Source:
    """Read the files of a dataset from `root`, else from UNIGEN_DATA, else from the cache, else from the network.

    Arguments:
        name: digits, mnist, fashion_mnist or binarized_mnist, also the name of its folder in `root`.
        root: a folder; if it or UNIGEN_DATA is given, nothing is downloaded.
        validation: the number of rows held out from the end of the training rows, by default 10,000, for digits 250.

    Raises:
        ValueError: for a `validation` that the dataset cannot have.
        DataError: if a file is missing, damaged or cannot be downloaded.
    """
    if name == "digits":
        return _read_digits(250 if validation is None else validation)
    if name == "binarized_mnist" and validation not in (None, 10_000):
        raise ValueError(f"{name} has 10000 validation rows, got validation={validation}: leave it unset.")
    folder, remedy = _locate(name, root)
    if name == "binarized_mnist":
        return _draw_binarized(read("mnist")) if folder is None else _read_packed(folder, remedy)
    if folder is None:
        folder = _cache() / _TITLES[name] / "raw"
        remedy = f"delete the folder {folder} and load {name} again"
        for file in (file.split("/")[1] for file in _SHA256 if file.startswith(name + "/")):
            if not (folder / file).is_file():
                _download(folder, name, file)
    # The official files have a header of 16 bytes before images, 8 before labels.
    images = [_idx(folder, name, f"{part}-images-idx3-ubyte.gz", 16, remedy) for part in ("train", "t10k")]
    labels = [_idx(folder, name, f"{part}-labels-idx1-ubyte.gz", 8, remedy) for part in ("train", "t10k")]
    train, test = (image.reshape(-1, 28 * 28) for image in images)
    return _split(train, test, labels[0], labels[1], 10_000 if validation is None else validation, _CITATIONS[name])


def _split(
    train: np.ndarray,
    test: np.ndarray,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    validation: int,
    citation: str,
) -> Source:
    """Hold out the last training rows for validation."""
    cut = len(train) - integer("validation", validation, 0, len(train) - 1, ", so that a training row is left")
    labels = (train_labels[:cut], train_labels[cut:], test_labels)
    return Source((train[:cut], train[cut:], test), labels, citation)


def _read_digits(validation: int) -> Source:
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    # The order of the file follows the writers; one fixed permutation makes the splits alike.
    order = np.random.RandomState(0).permutation(len(digits.data))  # the stream of RandomState is frozen for good
    rows, labels = digits.data.astype(np.uint8)[order], digits.target[order]
    return _split(rows[:-250], rows[-250:], labels[:-250], labels[-250:], validation, _CITATIONS["digits"])


def _locate(name: str, root: str | os.PathLike[str] | None) -> tuple[Path | None, str]:
    """Return the folder of a dataset under a given root, with the remedy for its files, or None without a root."""
    given = os.environ.get("UNIGEN_DATA") or None if root is None else os.fspath(root)
    if given is None:
        return None, ""
    folder = Path(given).expanduser() / name
    remedy = f"put the original files into {folder}, or give no data root (--data-root, UNIGEN_DATA) to download them"
    if not folder.is_dir():
        raise DataError(f"The folder {folder} is not there: {remedy}, or use the dataset 'digits'.")
    return folder, remedy


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unigen"


def _download(folder: Path, name: str, file: str) -> None:
    """Fetch one file of a dataset into a folder; it is written only if its sha256 sum is the pinned one."""
    reasons = []
    for mirror in _MIRRORS[name]:
        try:
            content = _fetch(mirror + file)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {type(error).__name__}")
            continue
        if hashlib.sha256(content).hexdigest() == _SHA256[f"{name}/{file}"]:
            break
        reasons.append(f"{mirror} sent {len(content)} bytes of another sha256 sum")
    else:
        remedy = f"let --data-root or UNIGEN_DATA name a folder that holds {name}/, or use the dataset 'digits'"
        raise DataError(f"{file} of {_TITLES[name]} could not be downloaded ({'; '.join(reasons)}): {remedy}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / file, content)
    except OSError as error:
        raise DataError(
            f"{folder / file} cannot be written ({error.strerror}): let XDG_CACHE_HOME be a folder of yours."
        ) from error


def _fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
        content: bytes = answer.read(_MOST_BYTES + 1)
    return content  # one byte too many has another sum


def _verified(folder: Path, name: str, file: str, remedy: str) -> bytes:
    """Return the bytes of a file whose sha256 sum is the pinned one."""
    path, expected = folder / file, _SHA256[f"{name}/{file}"]
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no file, expected one of sha256 {expected}: {remedy}.")
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise DataError(f"{path} has {size} bytes, expected at most {_MOST_BYTES}, of sha256 {expected}: {remedy}.")
        content = path.read_bytes()
    except OSError as error:
        got = f"cannot be read ({error.strerror or type(error).__name__}), expected a file of sha256 {expected}"
        raise DataError(f"{path} {got}: {remedy}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"{path} ({len(content)} bytes) has sha256 {found}, expected {expected}: {remedy}.")
    return content


def _idx(folder: Path, name: str, file: str, header: int, remedy: str) -> np.ndarray:
    packed = _verified(folder, name, file, remedy)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as unpacked:
            content = unpacked.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{folder / file} is no gzip file ({error}): {remedy}.") from error
    entry = 28 * 28 if "images" in file else 1
    if not header < len(content) <= _MOST_BYTES or (len(content) - header) % entry:
        raise DataError(
            f"{folder / file} holds {len(content)} bytes, expected {header} and a multiple of {entry}: {remedy}."
        )
    return np.frombuffer(content, np.uint8, offset=header).copy()  # a copy can be written to, as torch wants it


def _read_packed(folder: Path, remedy: str) -> Source:
    file = "binarized_mnist_packed.npz"
    content = io.BytesIO(_verified(folder, "binarized_mnist", file, remedy))
    try:
        with zipfile.ZipFile(content) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > _MOST_BYTES:
                raise ValueError(f"{size} bytes")
        with np.load(content, allow_pickle=False) as packed:
            bits = [packed[split] for split in ("train", "valid", "test")]
        # numpy unpacks along an axis into an array of the other memory order, from which gathering rows is slow.
        rows = tuple(np.ascontiguousarray(np.unpackbits(split, axis=1)) for split in bits)
    except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{folder / file} is not the packed file ({type(error).__name__}): {remedy}.") from error
    return Source(rows, (None, None, None), f"{_BINARIZED}; the packed file, its rows shuffled")


def _draw_binarized(mnist: Source) -> Source:
    """Draw a static binarization of MNIST with a fixed seed."""
    stream = np.random.RandomState(0)
    # Bytes 0 .. 254 below a grey level g have probability g / 255, exactly.
    rows = tuple((stream.randint(255, size=x.shape, dtype=np.uint8) < x).view(np.uint8) for x in mnist.rows)
    citation = f"{_BINARIZED}; a draw of our own from MNIST, seed 0"
    return Source(rows, (None, None, None), citation)
