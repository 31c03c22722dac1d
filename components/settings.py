"""params.yaml as strict, frozen types. Every key is declared here; an unknown key is an error that names it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from components.errors import ConcordError
from components.s3_address import S3Address, is_s3, parse_location
from components.shared.scoring.answers import unwritable
from components.strict import Positive, Share, Strict, read_yaml, validated

COMMIT = re.compile(r"[0-9a-f]{40}")  # of a hub's model or data set; branches and tags may move
HUB_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
# Sections that say how steps run and cannot change a result: no step runs again for a change in them.
WITHOUT_EFFECT = ("launcher",)
READER = "reader.json"  # in an exported model folder: `Reader` as JSON

# Of a task. Every model is judged by the probability of each; the memory grows with the square of their count.
MAX_NUMBERS = 11_000
# A tag of a chat template or tokenizer, such as <image>, <|vision_start|> or <end_of_utterance>.
_TAG = re.compile(r"<[^<>\s]+>")
# The registry refuses / and :, and names are parts of addresses (models:/NAME@ALIAS) and of search filters.
_MODEL_NAME = re.compile(r"\w([\w .-]*[\w.-])?")
_MODEL_NAME_LENGTH = 256
_MODEL_NAME_RULE = f"which has letters, digits, spaces and . _ - only, and at most {_MODEL_NAME_LENGTH} characters"

RewardName = Literal["ccc", "mae", "mse", "pearson", "crps"]


def _without_tilde(path: str) -> str:
    """Refuses `~`, which DVC and other machines read as a folder of that name."""
    if path == "~" or path.startswith("~/"):
        raise ValueError(f"`~` is not replaced in a params file. Write the whole path: {Path(path).expanduser()}")
    return path


LocalPath = Annotated[str, AfterValidator(_without_tilde)]


class Task(Strict):
    """What is read off an image: the question, the unit, the range and the step of the answer."""

    question: str = Field(min_length=1, description="without tags such as <image>: the chat template adds them")
    unit: str
    low: float = Field(description="lowest answer, a whole multiple of resolution")
    high: float = Field(description="highest answer")
    resolution: float = Field(gt=0, description="the step in which labels come: 1 for whole years, 0.1 for tenths")
    bin_width: float = Field(gt=0, description="labels are counted in bins this wide; a multiple of resolution")
    many: Positive = Field(description="many-shot: more training samples than this in the label's bin")
    few: Positive = Field(description="few-shot: fewer than this")
    grey_bits: int | None = Field(
        ge=8,
        le=16,
        description="bits that 16-bit grey images use, such as 12; null: as many as each file says",
    )

    @field_validator("question")
    @classmethod
    def _plain_text(cls, question: str) -> str:
        if not question.strip() or not question.isprintable():
            raise ValueError("write a question in printable characters, on one line")
        if tag := tag_in(question):
            raise ValueError(f"{tag} is a special token, which the chat template adds itself; write plain text")
        return question

    @model_validator(mode="after")
    def _coherent(self) -> "Task":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if reason := unwritable(self.low, self.high, self.resolution):
            raise ValueError(f"numbers from {self.low} to {self.high} in steps of {self.resolution}: {reason}")
        if (numbers := round((self.high - self.low) / self.resolution) + 1) > MAX_NUMBERS:
            raise ValueError(
                f"{numbers:,} numbers from low ({self.low}) to high ({self.high}) in steps of {self.resolution}, more "
                f"than {MAX_NUMBERS:,}: the model's probability of each is computed. Choose a coarser resolution (then "
                "labels are rounded to it if validate.severity.target_on_step is warning), or narrow the range"
            )
        steps = self.bin_width / self.resolution
        if steps < 1 or abs(steps - round(steps)) > 1e-6:
            raise ValueError(f"bin_width ({self.bin_width}) must be a whole multiple of resolution ({self.resolution})")
        if self.few > self.many:
            raise ValueError(f"few ({self.few}) must not exceed many ({self.many})")
        return self


def tag_in(question: str) -> str | None:
    """The first tag such as <image> in a question, which a tokenizer would not read as text; None if there is none."""
    found = _TAG.search(question)
    return found and found[0]


class Hub(Strict):
    """A data set on the Hugging Face hub, at one commit."""

    id: str = Field(pattern=f"^(?:{HUB_ID.pattern})$")
    revision: str = Field(pattern=f"^{COMMIT.pattern}$", description="the commit: 40 hexadecimal digits")


class Release(Strict):
    """The paper's own release: which of its data sets, and where the annotations are."""

    subset: str | None = Field(description="folder below ingest.path: agedb, imdb_wiki, ...; null: ingest.path itself")
    train: str | None = Field(
        description="annotation file there; null: annotations are in train/*.tar, beside the images"
    )
    val: str | None = Field(description="the same; the release has none")
    test: str | None
    hub: Hub | None = Field(description="where `data ensure` fetches the release from; null: it is fetched already")

    @model_validator(mode="after")
    def _whole(self) -> "Release":
        if (self.train is None) != (self.test is None) or (self.val is not None and self.train is None):
            raise ValueError("train and test are both annotation files or both null; val needs them")
        return self


class Ingest(Strict):
    """Where the rows come from and how they are split."""

    source: Literal["gauges", "folder", "agedb", "imdb-wiki", "bone-age", "imdb-movie", "release"]
    path: LocalPath = Field(description="the folder that holds the raw input, or s3://bucket/prefix; DVC hashes it")
    csv: str | None = Field(
        description="the table in that folder: .csv, .tsv, .jsonl or .parquet; data/*.parquet names several; null: the "
        "rows are the image files, and pattern reads their paths"
    )
    image_column: str
    target_column: str
    id_column: str | None = Field(description="null: the image column")
    image_folder: str | None = Field(description="below the table's folder; null: that folder")
    pattern: str | None = Field(
        description="regular expression that is searched in each image's path; its named groups are further columns"
    )
    release: Release | None = Field(description="only for source: release, whose annotations replace the table")
    split: Literal["balanced", "given", "given-test", "subject"] = Field(description="gauges bring their own: given")
    split_column: str | None = Field(description="for split: given and given-test; its values are train, val, test")
    subject_column: str | None = Field(description="person or device that an image shows; null: unknown")
    max_per_label: Positive = Field(description="balanced: rows of a label that go to val, and to test, at most")
    max_quarantined: Share = Field(description="share of rows that may be set aside; 0: any bad row ends the step")
    shard_mb: Positive = Field(le=256, description="size limit of one Parquet shard")
    image_size: Positive = Field(description="gauges: side of the rendered image in pixels")

    @field_validator("path")
    @classmethod
    def _address(cls, path: str) -> str:
        if isinstance(parse_location(path), S3Address) and not path.startswith("s3://"):
            raise ValueError("DVC reads s3:// only; write s3://bucket/prefix")
        return path

    @field_validator("pattern")
    @classmethod
    def _expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _split_named(self) -> "Ingest":
        if self.source == "gauges" and self.split != "given":
            raise ValueError(f"source: gauges brings its own splits, so split: {self.split} must be split: given")
        if self.source == "gauges" and self.subject_column:
            raise ValueError("source: gauges has no subjects: subject_column must be null")
        if self.source == "release" and self.subject_column:
            raise ValueError("source: release has no columns, and so no subjects: subject_column must be null")
        if self.csv is None and self.source not in ("folder", "release"):
            raise ValueError(f"source: {self.source} has a table: csv must name it")
        if self.pattern is not None and self.source != "folder":
            raise ValueError(f"source: {self.source} reads no columns from paths: pattern must be null")
        if self.csv is None and self.pattern is None and self.source == "folder":
            raise ValueError("csv: null needs pattern, a regular expression with the group (?P<target>...)")
        if self.split == "subject" and not self.subject_column:
            raise ValueError("split: subject needs subject_column, the person or device that an image shows")
        if self.source == "gauges" and self.max_quarantined:
            raise ValueError("source: gauges draws its rows and quarantines none: max_quarantined must be 0")
        if is_s3(self.path) and self.release and self.release.hub:
            raise ValueError("path: nothing is fetched from a hub into a bucket: release.hub must be null")
        if (self.source == "release") != (self.release is not None):
            raise ValueError("source: release and the section ingest.release go together")
        if self.source != "release" and self.split in ("given", "given-test") and not self.split_column:
            raise ValueError(f"split: {self.split} needs split_column, the column that holds train, val or test")
        return self


Severity = Literal["error", "warning"]


class Severities(Strict):
    """What happens if an expectation is not met: an error stops the run, a warning is reported.

    Row schema, ids, finite targets and decodable images are always errors: no later step could work without them.
    """

    target_in_range: Severity
    target_on_step: Severity
    image_mode: Severity = Field(description="stored as 8-bit grey, palette or RGB; others are converted")
    image_size: Severity
    images_in_two_splits: Severity
    near_duplicates: Severity
    images_with_two_targets: Severity
    subjects_in_two_splits: Severity
    train_imbalance: Severity
    val_imbalance: Severity
    test_imbalance: Severity
    test_unseen: Severity = Field(description="test labels that do not occur in train")
    test_rows_many: Severity
    test_rows_medium: Severity
    test_rows_few: Severity
    label_drift: Severity = Field(description="against the data that the champion was trained on")
    image_size_drift: Severity
    image_mode_drift: Severity


class Drift(Strict):
    """How far the data may differ from the champion's training data, in population stability indices."""

    max_labels: float = Field(gt=0, description="limit for the labels of a split")
    max_images: float = Field(gt=0, description="limit for the sizes, and for the modes, of the images")


class Validate(Strict):
    """Limits for the splits."""

    min_imbalance: float = Field(ge=1, description="train: largest over smallest label bin, at least")
    max_test_imbalance: float = Field(ge=1, description="test: share of its fullest bin over the mean share, at most")
    max_val_imbalance: float = Field(ge=1, description="the same for val")
    max_unseen: Share = Field(description="test: share of rows whose label does not occur in train, at most")
    min_rows_per_shot: Positive = Field(description="test: images in each shot group, at least")
    min_side: Positive = Field(description="shorter side of an image in pixels, at least")
    near_bits: Annotated[int, Field(ge=0, le=16)] = Field(
        description="images are near duplicates if their perceptual hashes differ in at most this many of 256 bits"
    )
    drift: Drift | None = Field(description="null: no comparison with the champion's data")
    severity: Severities

    @property
    def drift_is_error(self) -> bool:
        """Whether drift from the champion's training data stops the run."""
        severities = (self.severity.label_drift, self.severity.image_size_drift, self.severity.image_mode_drift)
        return self.drift is not None and "error" in severities


class TinyModel(Strict):
    """An Idefics3 (SmolVLM's architecture) built from its config, with random weights and its own tokenizer."""

    image_size: Positive
    patch_size: Positive
    pixel_shuffle: Positive
    vision_width: Positive
    vision_layers: Positive
    text_width: Positive
    text_layers: Positive
    heads: Positive


class Lora(Strict):
    """A low-rank adapter, trained in place of the weights and stored beside them."""

    r: Positive
    alpha: Positive
    dropout: Share
    targets: str | list[str] = Field(description="module names, or all-linear")


class Model(Strict):
    """The vision-language model that training starts from."""

    name: LocalPath = Field(description="tiny, a hub id, or a local folder")
    revision: str | None = Field(
        description="the commit of a hub model (40 hexadecimal digits), or the content hash of a local folder, which "
        "the steps that load it check; null: tiny"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        description="of the computation; trained weights are float32, also where they are stored. With lora, the "
        "frozen weights have this dtype"
    )
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    compile: bool = Field(description="torch.compile in training")
    max_pixels: Positive | None = Field(description="larger images are scaled down; null: the processor's own limit")
    freeze_vision: bool
    lora: Lora | None
    tiny: TinyModel | None

    @model_validator(mode="after")
    def _whole(self) -> "Model":
        if self.name == "tiny" and self.tiny is None:
            raise ValueError("name: tiny needs the section model.tiny")
        if self.name == "tiny" or Path(self.name).is_dir():
            return self
        if not HUB_ID.fullmatch(self.name):
            raise ValueError(f"name: {self.name} is neither a local folder nor a hub id (OWNER/NAME)")
        if not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"name: {self.name} is not a local folder, so it needs a revision: the hub commit to use, 40 "
                f"hexadecimal digits, found {self.revision}. Branches and tags may move"
            )
        return self


class Launcher(Strict):
    """How the training steps are started. It cannot change a result."""

    num_processes: Positive = Field(description="ranks; if above 1, a training step starts them itself")
    sharding: Literal["none", "full"] = Field(
        description="full: weights, gradients and optimizer are divided over the ranks (FSDP); none: each has all (DDP)"
    )
    config: LocalPath | None = Field(
        description="an accelerate config file (DeepSpeed, other FSDP); null: as `sharding` says, on this machine"
    )
    loader_workers: int = Field(ge=0, description="processes per rank that prepare batches; 0: the rank itself")
    checkpoint_minutes: float = Field(gt=0, description="longest time without a checkpoint, in which a kill loses work")

    @model_validator(mode="after")
    def _one_way(self) -> "Launcher":
        if self.sharding != "none" and self.config is not None:
            raise ValueError(f"sharding: {self.sharding} and config: {self.config} both divide the weights; set one")
        return self


class Augment(Strict):
    """Random changes of an image that keep its label valid. Each value is the largest change."""

    rotate: float = Field(ge=0, le=180, description="degrees")
    shift: Share = Field(description="share of the side")
    zoom: Share = Field(description="share of the side")
    light: Share = Field(description="brightness and contrast")
    noise: Share = Field(description="standard deviation of pixel noise, of the full scale")


class Sft(Strict):
    """The warm start: teacher forcing on the answer's tokens until validation MAE stops improving."""

    seed: int
    max_steps: Positive
    batch_size: Positive
    accumulation: Positive
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    adam_beta2: float = Field(gt=0, lt=1)
    eval_every: Positive = Field(description="steps between two evaluations of validation MAE, and between checkpoints")
    eval_rows: Positive = Field(description="validation images of one evaluation")
    patience: Positive = Field(
        description="evaluations without a better validation MAE before training ends, once answers are clearly better "
        "than the best constant"
    )
    no_skill: Severity = Field(
        description="if training ends without answers that are clearly better than the best constant on validation"
    )
    gradient_checkpointing: bool
    augment: Augment


class Recent(Strict):
    """Anchors of earlier steps in the comparison set."""

    inputs: Positive = Field(description="how many anchors, at most")
    steps: Positive = Field(description="age limit in optimizer steps: older anchors come from an outdated policy")


class Vllm(Strict):
    """Sampling of answers by vLLM."""

    mode: Literal["colocate", "server"] = Field(description="on the training GPUs, or in a `vllm serve` process")
    memory: float = Field(gt=0, le=1, description="colocate: share of each GPU's memory")
    host: str = Field(description="server: its host")
    port: Annotated[int, Field(gt=0, le=65535)] = Field(description="server: its port")


class Grpo(Strict):
    """GRPO with a batch-level reward, from the warm start."""

    seed: int
    estimator: Literal["sampled", "means", "policy"] = Field(
        description="of the gradient. sampled: from sampled answers, as in GRPO. means and policy sample nothing: they "
        "take the probability of every number, for the reward of each input's mean or for the whole policy gradient"
    )
    reward: RewardName
    balance: float = Field(
        ge=0, le=1, description="means: the part of the training prior that the loss puts back, and so trains away"
    )
    steps: Positive
    prompts: Positive = Field(description="B: inputs of one step over all ranks and accumulations")
    generations: Annotated[int, Field(ge=2)] = Field(description="G: answers sampled per input")
    accumulation: Positive = Field(description="micro-batches of one step")
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    beta: float = Field(ge=0, description="weight of the KL to the warm start; 0 keeps no reference model")
    temperature: float = Field(gt=0)
    reward_weight: float = Field(gt=0)
    format_weight: float = Field(ge=0, description="sampled: of the reward for a valid answer")
    mass_weight: float = Field(ge=0, description="means: of -log of the probability of all numbers together")
    recent: Recent | None = Field(description="null: only the step's own inputs are compared")
    advantage: Literal["group", "batch", "none"] = Field(description="what advantages are divided by")
    checkpoint_every: Positive = Field(description="steps between checkpoints; each is judged on validation images")
    eval_rows: Positive = Field(description="validation images of one evaluation; the best checkpoint is kept")
    no_signal: Severity = Field(
        description="if no answer of the whole training is valid, or its rewards never differ: nothing could be learned"
    )
    gradient_checkpointing: bool
    vllm: Vllm | None = Field(description="null: the trained model samples its answers itself")
    augment: Augment

    @model_validator(mode="after")
    def _coherent(self) -> "Grpo":
        if self.estimator != "sampled" and self.vllm:
            raise ValueError(f"estimator: {self.estimator} samples no answers: vllm must be null")
        if self.estimator == "policy" and self.reward == "crps":
            raise ValueError("estimator: policy has no reward crps, which scores a whole distribution; use means")
        if self.prompts == 1 and self.reward in ("ccc", "pearson") and self.recent is None:
            raise ValueError(
                f"prompts: the reward {self.reward} compares the inputs of a step over all ranks and accumulations; "
                "of 1 alone it is always 0, and nothing would be learned. Raise prompts, or set recent"
            )
        if self.estimator != "means" and self.balance:
            raise ValueError(f"estimator: {self.estimator} cannot put back the prior: balance must be 0")
        return self

    @property
    def method(self) -> str:
        """Name of the training, as shown to users."""
        reward = self.reward.upper()
        if self.estimator == "means":
            balance = f", balance {self.balance:g}" if self.balance else ""
            return f"{'' if reward == 'CRPS' else 'expected '}{reward}{balance}"
        sampled = "CCC-GRPO" if reward == "CCC" else f"GRPO ({reward})"
        return sampled if self.estimator == "sampled" else f"exact {sampled}"


class Answer(Strict):
    """How a number is read from a model. No training depends on it."""

    source: Literal["distribution", "text"] = Field(
        alias="from", description="the probability of every number, or the greedy text, as published"
    )
    statistic: Literal["median", "mean", "mode"] = Field(description="of the distribution")
    balance: Literal["auto"] | Annotated[float, Field(ge=0, le=1.2)] = Field(
        description="part of the training prior that is divided out; auto: chosen on validation images"
    )
    coverage: float = Field(ge=0.5, lt=1, description="of the intervals, in each shot group")


class Reader(Strict):
    """What a stored model needs to know beside its weights to read numbers off images."""

    task: Task
    answer: Answer = Field(description="its balance is a number where it reads from the distribution")
    dtype: Literal["float32", "bfloat16"] = Field(description="of the computation")
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    batch_size: Positive = Field(description="images that are read at once")

    @model_validator(mode="before")
    @classmethod
    def _without_grey_bits(cls, stored: Any) -> Any:
        """Models that were stored before there was `task.grey_bits` read images as null says."""
        if isinstance(stored, Mapping) and isinstance(task := stored.get("task"), Mapping):
            return {**stored, "task": {"grey_bits": None, **task}}
        return stored


class Evaluate(Strict):
    """Evaluation on the test set."""

    batch_size: Positive
    max_unreadable: Share = Field(description="largest share of test images that cannot be read; they are left out")
    bootstrap: Positive
    seed: int


class Register(Strict):
    """The model registry and the promotion rule."""

    model: str | None = Field(min_length=1, description="registered model name; null: the experiment's")
    promote: bool = Field(description="false: register as challenger and stop there")
    max_unparseable: Share = Field(description="largest share of a champion's unparseable answers, or of 1 - mass")
    max_different: Share = Field(description="largest share of test images that may be read otherwise than by evaluate")
    tolerance_all: float = Field(ge=0, description="how much worse than the champion's overall MAE may be, in units")
    tolerance_many: float = Field(ge=0, description="the same for many-shot MAE")
    bootstrap: Positive
    seed: int

    @field_validator("model")
    @classmethod
    def _model_name(cls, name: str | None) -> str | None:
        if name is not None and not is_model_name(name):
            raise ValueError(f"{name!r} cannot name a registered model, {_MODEL_NAME_RULE}")
        return name


def is_model_name(name: str) -> bool:
    """Whether the registry, its addresses and its search filters take this name of a model."""
    return len(name) <= _MODEL_NAME_LENGTH and _MODEL_NAME.fullmatch(name) is not None


class Settings(Strict):
    """One experiment, written out: params.yaml."""

    experiment: str = Field(min_length=1, max_length=256, description="MLflow experiment")
    task: Task
    ingest: Ingest
    validation: Validate = Field(alias="validate")  # pydantic has a method of that name
    model: Model
    launcher: Launcher
    sft: Sft
    grpo: Grpo
    answer: Answer
    evaluate: Evaluate
    registry: Register = Field(alias="register")  # so has ABCMeta

    @property
    def registered_model(self) -> str:
        """Name of the registered model."""
        return self.registry.model or self.experiment

    @field_validator("experiment")
    @classmethod
    def _experiment_name(cls, name: str) -> str:
        if name != name.strip() or not name.isprintable():
            raise ValueError("write a name in printable characters, without spaces around it")
        return name

    @model_validator(mode="after")
    def _registrable(self) -> "Settings":
        if self.registry.model is None and not is_model_name(self.experiment):
            message = f"experiment: {self.experiment!r} cannot name the registered model, {_MODEL_NAME_RULE}."
            raise ValueError(f"{message} Change it, or set register.model")
        return self

    @model_validator(mode="after")
    def _shardable(self) -> "Settings":
        if self.launcher.sharding == "none":
            return self
        for key, asked, reason in (
            ("model.lora", self.model.lora, "is for training all weights; an adapter needs little memory"),
            ("model.compile", self.model.compile, "does not go together with compiled models"),
            ("grpo.vllm", self.grpo.vllm, "gathers the weights in pieces, and vLLM needs all of them"),
        ):
            if asked:
                raise ValueError(
                    f"launcher.sharding: {self.launcher.sharding} {reason}. Set it to none, or switch {key} off"
                )
        return self

    def reader(self, balance: float | None = None) -> Reader:
        """How the models of this experiment are read.

        Args:
            balance: what `answer.balance: auto` came to; None: as in the settings.
        """
        return Reader(
            task=self.task,
            answer=self.answer if balance is None else self.answer.model_copy(update={"balance": balance}),
            dtype=self.model.dtype,
            attention=self.model.attention,
            batch_size=self.evaluate.batch_size,
        )


def load_settings(path: Path, sections: Mapping[str, str] | None = None) -> Settings:
    """Reads and checks a params file.

    Args:
        path: params.yaml or another file like it.
        sections: section name -> JSON that replaces the section; Kubeflow's pipeline inputs come this way.

    Raises:
        ConcordError: the file is missing, is not YAML, or has a wrong key or value; every error is reported with its
            key.
    """
    raw = read_yaml(path, "Give the params file with --params FILE.", "sections (experiment, task, ingest, ...)")
    if "cluster" in raw:
        raise ConcordError(
            f"{path}: cluster: the settings of the cluster have a file of their own. Move the section there, without "
            "the key `cluster`, and name the file with --cluster FILE or CONCORD_CLUSTER. The default is "
            "pipelines/clusters/default.yaml."
        )
    try:
        raw |= {name: json.loads(content) for name, content in (sections or {}).items()}
    except json.JSONDecodeError as error:
        raise ConcordError(f"a section of the settings is not valid JSON: {error}: {error.doc[:80]!r}") from None
    return validated(Settings, raw, path)
