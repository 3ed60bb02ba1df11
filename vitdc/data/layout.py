"""What the folders around images mean, by their names: classes, splits, wrappers, or nothing.

Only names are looked at, so folders, buckets and DVC are read alike. Names of splits are
recognised with what people put around them: `seg_train`, `TestImages`, `val2017`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, NamedTuple

from vitdc.errors import InputError
from vitdc.names import listed

Role = Literal["train", "validation", "test", "predict", "part"]
Side = Literal["train", "test"]
Path = Sequence[str]  # the parts of a relative path

MAX_LISTED = 5  # names of folders in a message

# What file servers, operating systems and programs keep beside files; names in lower case.
LEFTOVERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
        *("__macosx", "network trash folder", "temporary items", "~snapshot", "__pycache__"),
        *("thumbnails", "_thumbnails", "_thumbs", "mlruns", "mlartifacts"),
    )
)
RESULTS = ("artifact.json", "clusters.csv")  # what a folder with results of vitdc holds

UNLABELLED = frozenset(
    (
        *("unlabelled", "unlabeled", "nolabel", "nolabels", "unknown", "unsorted", "unassigned"),
        *("unclassified", "uncategorised", "uncategorized", "unannotated"),
    )
)
ROLES: dict[str, Role] = {
    r"train(ing)?|trn|trainval": "train",
    r"val|valid|validation|dev|devel|development": "validation",
    r"test|testing|tst|eval|evaluation|(hold|held)out": "test",
    r"pred|predict|predictions?|inference": "predict",
    r"folds?|splits?|parts?|batch|subset|shard": "part",
}
SAYS_NOTHING = r"images?|imgs?|pictures?|photos?|pics?|set|data|dataset|samples?|jpe?g|png|raw|all"
SPLIT_NAME = re.compile(
    "|".join(f"(?P<{role}>({words})({SAYS_NOTHING})*)" for words, role in ROLES.items())
)
NEUTRAL = re.compile(f"({SAYS_NOTHING})+")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\dA-Za-z_]+")


class Reading(NamedTuple):
    """What the folders say about N images.

    Attributes:
        classes: N names of classes, None where there is none.
        sides: N sides of a given split; None where it is to be drawn.
        groups: N names of what must not straddle a split that is drawn; None where nothing must.
        stray: Positions of images beside the folders of classes, which may be a mistake.
        left_out: Positions of the images that are to be left out.
        said: What a person should know about it, one sentence each.
    """

    classes: list[str | None]
    sides: list[Side] | None
    groups: Sequence[Hashable] | None
    stray: list[int]
    left_out: list[int]
    said: list[str]


class _Found(NamedTuple):
    """Folders that are no classes.

    Attributes:
        roles: Name of every folder -> what it is.
        level: Where in a path they stand.
        class_level: Where the classes stand; may be deeper in some of the folders.
    """

    roles: dict[str, Role]
    level: int
    class_level: int


# --- what is never a class -----------------------------------------------------------------------


def leftovers(names: Iterable[str]) -> dict[str, str]:
    """The files in folders that nobody put images into -> the name of that folder."""
    names = list(names)
    folders = {name.rpartition("/")[0] for name in names}
    results = [
        {name.rpartition("/")[0] for name in names if name.endswith(f"/{file}")} for file in RESULTS
    ]
    own = set.intersection(*results)
    reason = {folder: _leftover(folder, own) for folder in folders}
    return {name: part for name in names if (part := reason[name.rpartition("/")[0]])}


def _leftover(folder: str, own: set[str]) -> str:
    path = ""
    for part in folder.split("/"):
        path = f"{path}/{part}" if path else part
        if is_leftover(part) or path in own:
            return part
    return ""


def is_leftover(folder: str) -> bool:
    """Whether a folder of that name holds no images of its owner."""
    return folder.startswith(".") or folder.lower() in LEFTOVERS


def is_unlabelled(folder: str) -> bool:
    """Whether the name of a folder says that its images have no label."""
    return re.sub(r"[\W_]", "", folder).lower() in UNLABELLED


# --- splits --------------------------------------------------------------------------------------


def role_of(name: str) -> tuple[Role, tuple[str, ...]] | None:
    """What split a name stands for, and the words beside it; None if it stands for none.

    >>> role_of("seg_train2"), role_of("ValImages"), role_of("trains")
    (('train', ('seg',)), ('validation', ()), None)
    """
    joined = re.sub(r"(?i)(hold|held)[-_ ]?out", r"\1out", name)
    words = [word.lower() for word in WORD.findall(joined)]
    matches = [match for word in words if (match := SPLIT_NAME.fullmatch(word))]
    matches = [match for match in matches if not match["part"]] or matches  # train_split
    if len(matches) != 1:
        return None
    role: Role = next(role for role in ROLES.values() if matches[0][role])
    others = (w for w in words if not (SPLIT_NAME.fullmatch(w) or NEUTRAL.fullmatch(w)))
    return role, tuple(others)


def _is_neutral(name: str) -> bool:
    """Whether a folder around all images says nothing about them: `train`, `images`."""
    found = role_of(name)
    words = [word.lower() for word in WORD.findall(name)]
    return found[1] == () if found else bool(words) and all(map(NEUTRAL.fullmatch, words))


def read_folders(
    names: Sequence[str], *, split: Literal["auto", "folders", "random"], location: str
) -> Reading:
    """Find out what the folders of images mean.

    Args:
        names: N relative paths.
        split: As `data.split`.
        location: For messages.

    Raises:
        InputError: Splits are asked for, and no folder looks like one.
    """
    paths = [name.split("/") for name in names]
    start = _unwrap(paths)
    said = []
    if start:
        said.append(f"went into {'/'.join(paths[0][:start])}/, which holds all images")
    found = _splits_by_name(paths, start) or _classes_around_splits(paths, start)
    if found is None and (same := _same_inside(paths, start)):
        shown = f"{_list(same[0])} hold the same sub-folders ({_list(same[1])})"
        if split == "folders":
            found = _Found(dict.fromkeys(same[0], "part"), start, start + 1)
        else:
            said.append(
                f"{shown}; {_list(same[0])} are taken for the classes. If they are not, but the"
                " sub-folders are, set data.split=folders"
            )
    if found is None:
        if split == "folders":
            folders = _folders(paths, start)
            shown = f" ({_list(folders)})" if folders else ""
            raise InputError(
                f"{location}: data.split: folders, but no folders look like splits"
                f"{shown}; name them train and test, or give every"
                " image its split in a table (data.labels_file)"
            )
        classes = [_class(path, start) for path in paths]
        stray = _stray(paths, classes, [""] * len(paths), {"": start})
        return Reading(classes, None, None, stray, [], said)
    return _apply(paths, found, drawn=split == "random", said=said)


def _unwrap(paths: Sequence[Path]) -> int:
    """How many folders lie around everything else."""
    start = 0
    while len({path[start] for path in paths}) == 1 and all(len(p) > start + 1 for p in paths):
        only, has_images = paths[0][start], any(len(path) == start + 2 for path in paths)
        if is_unlabelled(only) or (has_images and not _is_neutral(only)):
            break
        start += 1
    return start


def _folders(paths: Sequence[Path], level: int) -> list[str]:
    """Names of the folders at a level that may be classes or splits."""
    found = {path[level] for path in paths if len(path) > level + 1}
    return sorted(name for name in found if not is_unlabelled(name))


def _splits_by_name(paths: Sequence[Path], level: int) -> _Found | None:
    folders = _folders(paths, level)
    roles = _roles(folders)
    if roles is None:
        return None
    if set(roles.values()) == {"part"} and not _same_inside(paths, level):
        return None
    if len(folders) == 1 and not any(is_unlabelled(path[level]) for path in paths):
        return None  # a class, or _unwrap had gone into it
    return _Found(roles, level, level + 1)


def _roles(folders: Sequence[str]) -> dict[str, Role] | None:
    """What splits the folders are; None unless all are, and are called alike."""
    found = {folder: role_of(folder) for folder in folders}
    if not found or not all(found.values()):
        return None
    named = {folder: each for folder, each in found.items() if each}
    beside = {words for _, words in named.values()} - {()}
    roles = {folder: role for folder, (role, _) in named.items()}
    if len(beside) > 1 or set(roles.values()) == {"predict"}:
        return None
    if "part" in roles.values() and len(set(roles.values())) > 1:
        return None
    return roles


def _classes_around_splits(paths: Sequence[Path], level: int) -> _Found | None:
    """Splits in every class: `cats/train`, `cats/test`, `dogs/train`."""
    inner = [path for path in paths if not is_unlabelled(path[level])]
    if not inner or any(len(path) <= level + 2 for path in inner):
        return None
    roles = _roles(_folders(inner, level + 1))
    if roles is None or len({*roles.values()} - {"predict", "part"}) < 2:
        return None
    return _Found(roles, level + 1, level)


def _same_inside(paths: Sequence[Path], level: int) -> tuple[list[str], list[str]] | None:
    """Folders that all hold the same sub-folders, two or more, and no image beside them."""
    inside = defaultdict(set)
    for path in paths:
        if len(path) <= level + 1:
            return None
        if not is_unlabelled(path[level]):
            inside[path[level]].add(path[level + 1] if len(path) > level + 2 else "")
    if len(inside) < 2:
        return None
    first, *others = inside.values()
    if len(first) < 2 or "" in first or any(other != first for other in others):
        return None
    return sorted(inside), sorted(first)


def _apply(paths: Sequence[Path], found: _Found, *, drawn: bool, said: list[str]) -> Reading:
    """Read classes and sides, where the folders at a level are splits."""
    level, roles = found.level, found.roles
    deeper = _wrapped_splits(paths, found)
    classes: list[str | None] = []
    left_out, of_folder = [], []
    for position, path in enumerate(paths):
        folder = path[level] if len(path) > level + 1 else ""
        of_folder.append(folder)
        classes.append(_class(path, found.class_level + deeper.get(folder, 0)))
        if roles.get(folder) == "predict":
            left_out.append(position)
    levels = {folder: found.class_level + deeper.get(folder, 0) for folder in ("", *roles)}
    stray = _stray(paths, classes, of_folder, levels)
    counts = Counter(of_folder)
    if left_out:
        names = [folder for folder, role in roles.items() if role == "predict"]
        said.append(f"left out {len(left_out)} images to predict ({_list(names)})")
    if set(roles.values()) == {"part"}:
        if drawn:
            return Reading(classes, None, None, stray, left_out, said)
        said.append(
            f"{_list(list(roles))} are no classes: each stays whole on one side of the split"
            " (data.split=random draws from all images)"
        )
        return Reading(classes, None, of_folder, stray, left_out, said)
    sides = _sides(roles)
    by_side = {
        side: [f for f in roles if sides.get(f) == side and counts[f]] for side in ("train", "test")
    }
    if drawn or not all(by_side.values()):
        names = [folder for folder in roles if roles[folder] != "predict"]
        said.append(f"{_list(names)} are splits, not classes; the split is drawn from all of them")
        return Reading(classes, None, None, stray, left_out, said)
    said.append(
        f"split by folders: {_list(by_side['train'])} for training, {_list(by_side['test'])} for"
        " testing (data.split=random draws another)"
    )
    given = [sides.get(folder, "train") for folder in of_folder]
    return Reading(classes, given, None, stray, left_out, said)


def _sides(roles: dict[str, Role]) -> dict[str, Side]:
    """Validation images are tested with where there are no others, else they are trained on."""
    sides: dict[Role, Side] = {
        "train": "train",
        "test": "test",
        "validation": "train" if "test" in roles.values() else "test",
    }
    return {folder: sides[role] for folder, role in roles.items() if role in sides}


def _wrapped_splits(paths: Sequence[Path], found: _Found) -> dict[str, int]:
    """How many folders more lie around the classes of a split: `seg_train/seg_train`."""
    if found.class_level < found.level:
        return {}
    of_folder = defaultdict(list)
    for path in paths:
        if len(path) > found.level + 1:
            of_folder[path[found.level]].append(path[found.level :])
    deeper = {}
    for folder, inner in of_folder.items():
        depth = 0
        while len({path[depth + 1] for path in inner}) == 1 and all(
            len(path) > depth + 2 for path in inner
        ):
            only = inner[0][depth + 1]
            if only != folder and not _is_neutral(only):
                break
            depth += 1
        deeper[folder] = depth
    return deeper


def _class(path: Path, level: int) -> str | None:
    """The folder at a level, if it is a class."""
    if len(path) <= level + 1 or any(map(is_unlabelled, path[: level + 1])):
        return None
    return path[level]


def _stray(
    paths: Sequence[Path],
    classes: Sequence[str | None],
    of_folder: Sequence[str],
    levels: dict[str, int],
) -> list[int]:
    """Positions of images that lie beside class folders, in the whole or in a split."""
    with_classes = {f for f, name in zip(of_folder, classes, strict=True) if name is not None}
    with_classes |= {""} if with_classes else set()
    return [
        position
        for position, (path, folder) in enumerate(zip(paths, of_folder, strict=True))
        if folder in with_classes and folder in levels and len(path) == levels[folder] + 1
    ]


def _list(names: Sequence[str]) -> str:
    return listed(names, MAX_LISTED)
