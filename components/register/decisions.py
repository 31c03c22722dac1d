"""How often a test set has decided about promotions.

Each version that is compared on the same test images is one more draw. Among many, a version that is no better may meet
the rule by chance: the more often a test set has decided, the less its decision says.
"""

import hashlib
from pathlib import Path

from components.register.registry import DECISION, Registry
from components.shared.rows.rows import read_table

TEST_SET = "concord.test_set"  # tag of a version: hash of the test set that decided about it
DECISIONS = "concord.test_set.decisions"  # tag of a version: how many versions that test set has decided about by then


def decisions_on(registry: Registry, number: str, ingest: Path) -> dict[str, str]:
    """The tags of a version that this test set decides about. A version that is decided about again counts once."""
    digest = hash_of_test_set(ingest)
    others = [
        version
        for version in registry.versions()
        if str(version.version) != number and version.tags.get(TEST_SET) == digest and DECISION in version.tags
    ]
    return {TEST_SET: digest, DECISIONS: str(len(others) + 1)}


def hash_of_test_set(ingest: Path) -> str:
    """SHA-256 of images and labels of the test split, in any order."""
    table = read_table(ingest, "test", ["image_sha256", "target"])
    lines = sorted(f"{row['image_sha256']} {row['target']!r}\n" for row in table.to_pylist())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decided(count: str | int) -> str:
    """`has decided about 3 versions of this model`."""
    return f"has decided about {count} version{'' if int(count) == 1 else 's'} of this model"
