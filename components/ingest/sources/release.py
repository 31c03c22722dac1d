"""The source `release`: reads the formats in which the paper's authors publish their data.

Their data set on the hub has WebDataset shards `SUBSET/SPLIT/*.tar`, with a JSON file of problem and solution beside
each image. Their repository has one annotation file per split, which names the images. Both formats are read; images
that an annotation file names may be in shards or be separate files.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from components.console import console
from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Quarantine, TableErrors
from components.ingest.sources.annotations import Annotation, parse_annotation, parse_json, read_annotations
from components.ingest.sources.archives import SUFFIXES, Archives, Member
from components.ingest.sources.folder import split_labels
from components.ingest.sources.image_files import parse_image
from components.ingest.sources.labels import Label, OutOfRangeError, drop_unusable_labels
from components.settings import Release, Settings
from components.shared.io.progress import with_progress
from components.shared.io.text import quoted
from components.shared.rows.rows import SPLITS, Row

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_JSON_BYTES = 1 << 20  # of one annotation in a shard

# Where an image is stored, and the origin of its annotation, for error messages.
ImageSource = tuple[Member | Path, str]


def read_release(
    folder: Path, settings: Settings, *, quarantine: Quarantine | None = None
) -> Iterator[tuple[str, Row]]:
    """Yields split and row of every image: train first, each split in a shuffled order that depends only on the ids.

    The call itself reads and checks all annotations and the shards' headers. Iterating then reads one image at a time,
    in place. The question comes from the settings; if the release has another one, a note is printed.

    Args:
        folder: contains the subsets.
        settings: name of the subset and of its files.
        quarantine: takes rows with errors; None: any error ends the step.

    Raises:
        ConcordError: more annotations have errors than the quarantine takes, an archive is refused, a split is empty,
            or a file cannot be read.
    """
    release = settings.ingest.release
    assert release is not None  # the settings require it for this source
    root = _subset_folder(folder, release)
    archives = Archives(_archive_paths(root))
    try:
        reader = _ReleaseReader(root, archives)
        if release.train is None:
            reader.read_shards()
        else:
            files = {"train": release.train, "val": release.val, "test": release.test}
            reader.read_files({split: root / name for split, name in files.items() if name is not None})
        reader.note_other_question(settings.task.question)
        labels, read = reader.usable_labels(quarantine or Quarantine()), partial(_read, archives, root, reader.images)
        members = split_labels(root, labels, settings, read)
    except BaseException:
        archives.close()
        raise
    return _rows(archives, members, reader.images, read, settings.task.question)


def _rows(
    archives: Archives,
    members: dict[str, list[Label]],
    images: dict[str, ImageSource],
    read: Callable[[Label], bytes],
    question: str,
) -> Iterator[tuple[str, Row]]:
    with archives:
        for split in SPLITS:
            for label in members[split]:
                yield split, Row(label.id, read(label), label.target, question, images[label.id][1])


def _read(archives: Archives, root: Path, images: dict[str, ImageSource], label: Label) -> bytes:
    image, origin = images[label.id]
    try:
        return _read_image(archives, image)
    except OSError as error:
        raise ConcordError(f"{root}: {origin}: cannot be read ({error.strerror}). Make it readable.") from None


def _read_image(archives: Archives, image: Member | Path) -> bytes:
    return archives.read(image) if isinstance(image, Member) else image.read_bytes()


def _archive_paths(root: Path) -> list[Path]:
    """All archives below the folder.

    Raises:
        ConcordError: one is no file, such as a link to nothing; without it, rows would be missing.
    """
    paths = sorted(path for path in root.rglob("*") if path.name.endswith(SUFFIXES) and not path.is_dir())
    for path in paths:
        if not path.is_file():
            raise ConcordError(f"{path}: not a file, or a link to nothing. Download it again, or move it away.")
    return paths


def _subset_folder(folder: Path, release: Release) -> Path:
    root = folder / (release.subset or "")
    if not root.resolve().is_relative_to(folder.resolve()):
        raise ConcordError(f"ingest.release.subset: {release.subset} is outside {folder}; name a folder inside it.")
    if not root.is_dir():
        names = sorted(path.name for path in folder.glob("*/"))[:10]
        raise ConcordError(
            f"{root}: no such folder. Folders there: {', '.join(names) or 'none'}. Correct ingest.release.subset."
        )
    return root


class _ReleaseReader:
    """Reads annotations into labels, finds their images, and records all errors.

    Attributes:
        labels: of every annotated image.
        images: label id -> where its image is stored, and the origin of its annotation.
    """

    def __init__(self, root: Path, archives: Archives) -> None:
        self._root, self._archives = root, archives
        self._questions: Counter[str] = Counter()
        self._origins: dict[Member | Path, str] = {}  # image -> its annotation
        self._count = 0  # annotations, with or without errors
        self._errors: list[TableErrors] = []
        self._errors_of: dict[str, TableErrors] = {}  # label id -> errors of its file
        self.labels: list[Label] = []
        self.images: dict[str, ImageSource] = {}

    def read_files(self, files: dict[str, Path]) -> None:
        """Reads annotation files, one per split, that name the images."""
        index = _ImageIndex(self._root, self._archives)
        for split, path in files.items():
            if not path.resolve().is_relative_to(self._root.resolve()):
                raise ConcordError(f"ingest.release.{split}: {path.name} is outside {self._root}.")
            if path.exists() and not path.is_file():
                raise ConcordError(f"{path}: not a file. Correct ingest.release.{split}.")
            errors = self._errors_in(path)
            for annotation in with_progress(read_annotations(path, errors), f"checking {path.name}"):
                self._count += 1
                if annotation is None:
                    continue
                origin = f"{path.name}:{annotation.line}"
                try:
                    image = index.find(annotation.image, split)
                    self._add(split, annotation.image, annotation, image, origin, errors)
                except BadValueError as bad:
                    errors.add(annotation.line, "image", annotation.image, bad)

    def read_shards(self) -> None:
        """Reads shards that contain each image with its annotation."""
        if not self._archives.paths:
            raise ConcordError(
                f"{self._root}: no shards ({', '.join(f'*{suffix}' for suffix in SUFFIXES)}) in train/ and test/. Put "
                "them there, or name the annotation files: ingest.release.train and test."
            )
        for number, path in enumerate(with_progress(self._archives.paths, "reading shards")):
            shard = path.relative_to(self._root).as_posix()
            splits = _path_words(shard) & set(SPLITS)
            if len(splits) != 1:
                raise ConcordError(f"{path}: its path names no split, or several. Put it in train/, val/ or test/.")
            self._read_shard(number, shard, splits.pop(), self._errors_in(path))

    def usable_labels(self, quarantine: Quarantine) -> list[Label]:
        """The labels; an enabled quarantine takes those with a broken image or a target outside the task's range.

        Raises:
            ConcordError: more annotations have errors than the quarantine takes.
        """
        labels = self.labels
        if quarantine.enabled:

            def report(label: Label, bad: BadValueError) -> None:
                out_of_range = isinstance(bad, OutOfRangeError)
                column, value = ("solution", f"{label.target:g}") if out_of_range else ("image", label.id)
                self._errors_of[label.id].add(label.line, column, value, bad)

            def read(label: Label) -> bytes:
                return _read_image(self._archives, self.images[label.id][0])

            labels = drop_unusable_labels(labels, quarantine, read, report)
        quarantine.add(self._count, self._errors)
        return labels

    def _errors_in(self, path: Path) -> TableErrors:
        self._errors.append(TableErrors(path))
        return self._errors[-1]

    def _read_shard(self, number: int, shard: str, split: str, errors: TableErrors) -> None:
        """Reads one shard; the number of a sample in the shard serves as its line."""
        images: dict[str, list[Member]] = defaultdict(list)
        annotations: dict[str, Member] = {}
        for member in self._archives.members(number):
            key, suffix = posixpath.splitext(member.name)
            if suffix.lower() == ".json":
                annotations[key] = member
            elif suffix.lower() in IMAGE_SUFFIXES:
                images[key].append(member)
        for line, key in enumerate(dict.fromkeys([*annotations, *images]), start=1):
            self._count += 1
            try:
                if key not in annotations or len(images[key]) != 1:
                    raise BadValueError(
                        "no pair of image and annotation", "pack one image and one .json file of the same name"
                    )
                image = images[key][0]
                annotation = parse_annotation(self._json(annotations[key]), line, errors, in_shard=True)
                if annotation is not None:
                    origin = f"{shard}:{image.name}"
                    self._add(split, f"{_stem(shard)}/{image.name}", annotation, image, origin, errors)
            except BadValueError as bad:
                errors.add(line, None, key, bad)

    def _json(self, member: Member) -> object:
        if member.size > MAX_JSON_BYTES:
            return BadValueError("not JSON", f"it has {member.size:,} bytes, more than {MAX_JSON_BYTES:,}")
        try:
            return parse_json(self._archives.read(member).decode("utf-8-sig"))
        except UnicodeDecodeError:
            return BadValueError("not JSON", "it is not UTF-8; pack it as UTF-8")

    def _add(
        self, split: str, id: str, annotation: Annotation, image: Member | Path, origin: str, errors: TableErrors
    ) -> None:
        if isinstance(image, Member) and not image.size:  # `parse_image` has checked the size of a file
            raise BadValueError("empty file", "it has 0 bytes: download it again or remove the row")
        id = posixpath.normpath(id)
        if (first := self._origins.setdefault(image, origin)) is not origin or id in self.images:
            first = self._origins[self.images[id][0]] if id in self.images else first
            raise BadValueError("image listed twice", f"{first} has it too; remove one of them")
        self.images[id] = (image, origin if origin.endswith(id) else f"{origin} {id}")
        self._errors_of[id] = errors
        self.labels.append(Label(id, id, annotation.target, split, annotation.line))
        self._questions[" ".join(annotation.question.split())] += 1

    def note_other_question(self, question: str) -> None:
        """Prints a note if the annotations ask another question than the settings."""
        settings_question = " ".join(question.split())
        others = [asked for asked, _ in self._questions.most_common() if asked != settings_question]
        if others:
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            message = f"note: the release asks {quoted(others[0])}{more}; task.question is used instead"
            console.print(message, markup=False, soft_wrap=True)


class _ImageIndex:
    """Finds the image that an annotation names, in a shard or as a separate file."""

    def __init__(self, root: Path, archives: Archives) -> None:
        self._root = root
        self._shards = [path.relative_to(root).as_posix() for path in archives.paths]
        self._members: dict[str, list[Member]] = defaultdict(list)  # by file name
        for number in with_progress(range(len(archives.paths)), "reading shards"):
            for member in archives.members(number):
                self._members[posixpath.basename(member.name)].append(member)
                # The authors' script gives the file this name when it unpacks a shard.
                shard = posixpath.basename(_stem(self._shards[number]))
                self._members[f"{shard}_{posixpath.basename(member.name)}"].append(member)

    def find(self, image: str, split: str) -> Member | Path:
        """The shard member with the image's name, with or without its folders; of several, that of the split.

        If no member has the name, the image is a file below the root folder.

        Raises:
            BadValueError: there is no such image, there are several, or the path is outside the folder.
        """
        name = posixpath.normpath(image)
        members = [member for member in self._members.get(posixpath.basename(name), ()) if self._matches(member, name)]
        if len(members) > 1:
            members = [m for m in members if split in _path_words(f"{self._shards[m.archive]}/{m.name}")]
            if len(members) != 1:
                raise BadValueError("image in several shards", "put images of the same name in different folders")
        return members[0] if members else self._root / parse_image(image, str(self._root))

    @staticmethod
    def _matches(member: Member, name: str) -> bool:
        short, long = sorted((f"/{member.name}", f"/{name}"), key=len)
        return long.endswith(short) or posixpath.basename(member.name) != posixpath.basename(name)


def _path_words(path: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.lower()))


def _stem(shard: str) -> str:
    return next(shard.removesuffix(suffix) for suffix in SUFFIXES if shard.endswith(suffix))
