"""The source `release`: WebDataset shards with annotations, as the paper's authors publish theirs.

Their hub data set holds `SUBSET/SPLIT/*.tar`, and in the shards a JSON file of problem and solution beside each image;
their repository holds an annotation file a split that names the images. Either is read, from shards or from files.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from components.console import console
from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Faults, Quarantine
from components.ingest.sources.annotations import Annotation, annotation, parse_json, read_annotations
from components.ingest.sources.archives import SUFFIXES, Archives, Member
from components.ingest.sources.folder import split_labels
from components.ingest.sources.labels import Label, OutOfRangeError, parse_image, screened
from components.settings import Release, Settings
from components.shared.io.progress import counted
from components.shared.io.text import shown
from components.shared.rows.rows import SPLITS, Row

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_JSON = 1 << 20  # bytes of one annotation in a shard

# Where an image is, and where its annotation: what an error message names.
Place = tuple[Member | Path, str]


def read_release(
    folder: Path, settings: Settings, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Split and row of every image, train first, each split in a shuffled order that the ids alone decide.

    All annotations and the shards' headers are read and checked in this call; then one image at a time, from where it
    lies. The question is the settings'; where the release asks another, a line says so.

    Args:
        folder: holds the subsets.
        settings: which subset, and its files.
        quarantine: takes the rows that cannot be used; None: any fault is an error.

    Raises:
        ConcordError: more annotations have faults than the quarantine takes, an archive is refused, a split is empty,
            or a file cannot be read.
    """
    release = settings.ingest.release
    assert release is not None  # the settings see to it
    root = _root(folder, release)
    found = sorted(path for path in root.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    archives = Archives(found)
    try:
        reader = _Reader(root, archives)
        if release.train is None:
            reader.read_shards()
        else:
            files = {"train": release.train, "val": release.val, "test": release.test}
            reader.read_files({split: root / name for split, name in files.items() if name is not None})
        reader.compare(settings.task.question)
        members = split_labels(root, reader.usable(quarantine or Quarantine()), settings)
    except BaseException:
        archives.close()
        raise
    return _rows(archives, root, members, reader.places, settings.task.question)


def _rows(
    archives: Archives, root: Path, members: dict[str, list[Label]], places: dict[str, Place], question: str
) -> Iterator[tuple[str, Row]]:
    with archives:
        for split in SPLITS:
            for label in members[split]:
                place, origin = places[label.id]
                try:
                    data = _read(archives, place)
                except OSError as error:
                    words = f"cannot be read ({error.strerror}). Make it readable."
                    raise ConcordError(f"{root}: {origin}: {words}") from None
                yield split, Row(label.id, data, label.target, question, origin)


def _read(archives: Archives, place: Member | Path) -> bytes:
    return archives.read(place) if isinstance(place, Member) else place.read_bytes()


def _root(folder: Path, release: Release) -> Path:
    root = folder / (release.subset or "")
    if not root.resolve().is_relative_to(folder.resolve()):
        raise ConcordError(f"ingest.release.subset: {release.subset} lies outside {folder}; name a folder inside it.")
    if not root.is_dir():
        there = sorted(path.name for path in folder.glob("*/"))[:10]
        raise ConcordError(f"{root}: no such folder. Folders there: {', '.join(there) or 'none'}. Correct it.")
    return root


class _Reader:
    """Reads annotations into labels, finds their images, and takes every fault down.

    Attributes:
        labels: of every annotated image.
        places: label id -> where its image is, and where its annotation.
    """

    def __init__(self, root: Path, archives: Archives) -> None:
        self._root, self._archives = root, archives
        self._asked: Counter[str] = Counter()
        self._used: dict[Member | Path, str] = {}
        self._seen = 0  # annotations, whatever their faults
        self._faults: list[Faults] = []
        self._faults_of: dict[str, Faults] = {}
        self.labels: list[Label] = []
        self.places: dict[str, Place] = {}

    def read_files(self, files: dict[str, Path]) -> None:
        """Annotation files, one a split, that name the images."""
        index = _Index(self._root, self._archives)
        for split, path in files.items():
            if not path.resolve().is_relative_to(self._root.resolve()):
                raise ConcordError(f"ingest.release.{split}: {path.name} lies outside {self._root}.")
            faults = self._faults_in(path)
            for found in counted(read_annotations(path, faults), f"checking {path.name}"):
                self._seen += 1
                if found is None:
                    continue
                origin = f"{path.name}:{found.line}"
                try:
                    self._add(split, found.image, found, index.find(found.image, split), origin, faults)
                except BadValueError as bad:
                    faults.add(found.line, "image", found.image, bad)

    def read_shards(self) -> None:
        """Shards that hold each image's annotation beside it."""
        if not self._archives.paths:
            raise ConcordError(
                f"{self._root}: no shards ({', '.join(f'*{suffix}' for suffix in SUFFIXES)}) in train/ and test/. Put "
                "them there, or name the annotation files: ingest.release.train and test."
            )
        for number, path in enumerate(counted(self._archives.paths, "reading shards")):
            place = path.relative_to(self._root).as_posix()
            splits = _words(place) & set(SPLITS)
            if len(splits) != 1:
                raise ConcordError(f"{path}: of no split. Put it in a folder train, val or test, one of them.")
            self._read_shard(number, place, splits.pop(), self._faults_in(path))

    def usable(self, quarantine: Quarantine) -> list[Label]:
        """The labels; with an open quarantine, of images that decode and with targets in the task's range.

        Raises:
            ConcordError: more annotations have faults than the quarantine takes.
        """
        labels = self.labels
        if quarantine.open:

            def told(label: Label, bad: BadValueError) -> None:
                out = isinstance(bad, OutOfRangeError)
                column, value = ("solution", f"{label.target:g}") if out else ("image", label.id)
                self._faults_of[label.id].add(label.line, column, value, bad)

            labels = screened(labels, quarantine, lambda label: _read(self._archives, self.places[label.id][0]), told)
        quarantine.settle(self._seen, self._faults)
        return labels

    def _faults_in(self, path: Path) -> Faults:
        self._faults.append(Faults(path))
        return self._faults[-1]

    def _read_shard(self, number: int, place: str, split: str, faults: Faults) -> None:
        """One shard; a sample is known by its number in it, where a table's row is known by its line."""
        images: dict[str, list[Member]] = defaultdict(list)
        annotations: dict[str, Member] = {}
        for member in self._archives.members(number):
            key, suffix = posixpath.splitext(member.name)
            if suffix.lower() == ".json":
                annotations[key] = member
            elif suffix.lower() in IMAGES:
                images[key].append(member)
        for line, key in enumerate(dict.fromkeys([*annotations, *images]), start=1):
            self._seen += 1
            try:
                if key not in annotations or len(images[key]) != 1:
                    raise BadValueError("no pair of image and annotation", "pack one image and one .json of one name")
                image = images[key][0]
                found = annotation(self._json(annotations[key]), line, faults, beside=True)
                if found is not None:
                    origin = f"{place}:{image.name}"
                    self._add(split, f"{_stem(place)}/{image.name}", found, image, origin, faults)
            except BadValueError as bad:
                faults.add(line, None, key, bad)

    def _json(self, member: Member) -> object:
        if member.size > MOST_JSON:
            return BadValueError("not JSON", f"it has {member.size:,} bytes, more than an annotation can")
        try:
            return parse_json(self._archives.read(member).decode("utf-8-sig"))
        except UnicodeDecodeError:
            return BadValueError("not JSON", "it is not UTF-8; pack it as UTF-8")

    def _add(self, split: str, id: str, found: Annotation, place: Member | Path, origin: str, faults: Faults) -> None:
        size = place.size if isinstance(place, Member) else 1  # of a file, it has been looked at
        if not size:
            raise BadValueError("empty file", "it has 0 bytes: get it anew or remove the row")
        id = posixpath.normpath(id)
        if (first := self._used.setdefault(place, origin)) is not origin or id in self.places:
            first = self._used[self.places[id][0]] if id in self.places else first
            raise BadValueError("image listed twice", f"{first} has it too; remove one of them")
        self.places[id] = (place, origin if origin.endswith(id) else f"{origin} {id}")
        self._faults_of[id] = faults
        self.labels.append(Label(id, id, found.target, split, found.line))
        self._asked[" ".join(found.question.split())] += 1

    def compare(self, question: str) -> None:
        """Says where the annotations ask another question than the settings."""
        other = [asked for asked, _ in self._asked.most_common() if asked != " ".join(question.split())]
        if other:
            more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
            line = f"note: the release asks {shown(other[0])}{more}; task.question is asked in its place"
            console.print(line, markup=False, soft_wrap=True)


class _Index:
    """Where the image is that an annotation names: in a shard, or a file of its own."""

    def __init__(self, root: Path, archives: Archives) -> None:
        self._root = root
        self._shards = [path.relative_to(root).as_posix() for path in archives.paths]
        self._named: dict[str, list[Member]] = defaultdict(list)
        for number in counted(range(len(archives.paths)), "reading shards"):
            for member in archives.members(number):
                self._named[posixpath.basename(member.name)].append(member)
                # The name that the authors' own script gives the file when it unpacks a shard.
                shard = posixpath.basename(_stem(self._shards[number]))
                self._named[f"{shard}_{posixpath.basename(member.name)}"].append(member)

    def find(self, image: str, split: str) -> Member | Path:
        """The one member that has the image's name, folders before it or not; of several, the split's; else a file.

        Raises:
            BadValueError: there is none, there are several, or the path leaves the folder.
        """
        name = posixpath.normpath(image)
        found = [member for member in self._named.get(posixpath.basename(name), ()) if self._fits(member, name)]
        if len(found) > 1:
            found = [m for m in found if split in _words(f"{self._shards[m.archive]}/{m.name}")]
            if len(found) != 1:
                raise BadValueError("image in several shards", "give images of the same name different folders")
        return found[0] if found else self._root / parse_image(image, str(self._root))

    @staticmethod
    def _fits(member: Member, name: str) -> bool:
        short, long = sorted((f"/{member.name}", f"/{name}"), key=len)
        return long.endswith(short) or posixpath.basename(member.name) != posixpath.basename(name)


def _words(path: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.lower()))


def _stem(shard: str) -> str:
    return next(shard.removesuffix(suffix) for suffix in SUFFIXES if shard.endswith(suffix))
