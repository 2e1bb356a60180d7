"""Defines the content of a report: the numbers, how they were made, and the paper's with all differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from videollama2 import __version__
from videollama2.eval.coverage import QuestionCount, Supplement
from videollama2.eval.items import PUBLISHED
from videollama2.eval.report.metrics import Metric
from videollama2.eval.report.paper_numbers import PaperComparison, PaperNumber, paper_number
from videollama2.eval.samples import Sample

SCHEMA_VERSION = 1
PUBLISHED_NEW_TOKENS = 2048
PUBLISHED_DTYPE = "float16"


@dataclass(frozen=True)
class Header:
    """The head of a report, which says how the numbers were made.

    The first eight fields have no defaults, because without them a number cannot be compared with another; None says
    that a value is not known.

    Attributes:
        revision: revision of the model; see :mod:`videollama2.checkpoints.fingerprint`.
        frames: number of frames per video.
        generation: how answers were sampled, and their largest length.
        judge: see ``describe_judge``; None if answers are not judged.
        questions: how many questions of how many were asked.
        supplements: further material in prompts, with the number of videos for which it existed.
        settings: options of the benchmark that change the questions.
    """

    benchmark: str
    model: str
    revision: str | None
    dtype: str | None
    frames: int | None
    generation: Mapping[str, Any] | None
    protocol: str
    judge: Mapping[str, Any] | None
    model_base: str | None = None
    quantization: str | None = None
    device: str | None = None
    attention: str | None = None
    configuration_hash: str | None = None
    questions: QuestionCount | None = None
    supplements: Sequence[Supplement] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def heading(self, model: str | None = None) -> str:
        """Return a title with the benchmark, its options that change the questions, and the model."""
        options = [f"{name} {value}" for name, value in self.settings.items() if value is not None]
        return f"{', '.join([self.benchmark, *options])} · {model or self.model}"

    def to_json(self) -> dict[str, Any]:
        """Return the head of ``results.json``, in which the settings are fields like the others."""
        return {
            "benchmark": self.benchmark,
            "model": self.model,
            "model_base": self.model_base,
            "revision": self.revision,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "device": self.device,
            "attention": self.attention,
            "frames": self.frames,
            "generation": self.generation and dict(self.generation),
            "protocol": self.protocol,
            "judge": self.judge and dict(self.judge),
            "configuration_hash": self.configuration_hash,
            "questions": self.questions and self.questions.to_json(),
            "supplements": [each.to_json() for each in self.supplements],
            **self.settings,
        }


@dataclass(frozen=True)
class Problem:
    """A question without an answer or without a verdict, and why."""

    id: str
    group: str
    problem: str


@dataclass(frozen=True)
class Report:
    """The content of ``results.json``, and the benchmark's ``own_table`` for the Markdown file.

    ``submissions`` are the names of submission files.
    """

    header: Header
    metrics: Sequence[Metric]
    problems: Sequence[Problem] = ()
    submissions: Sequence[str] = ()
    own_table: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``results.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "project_version": __version__,
            **self.header.to_json(),
            "submissions": list(self.submissions),
            "metrics": [metric.to_json() for metric in self.metrics],
            "problems": [vars(problem) for problem in self.problems],
        }


def build_report(
    header: Header,
    samples: Sequence[Sample],
    metrics: Sequence[Metric],
    submissions: Sequence[str] = (),
    own_table: str = "",
) -> Report:
    """Return a report of metrics, with the paper's numbers beside them and a list of all questions that failed."""
    compared = [replace(metric, paper=compare_with_paper(header, metric)) for metric in metrics]
    problems = [Problem(each.id, each.group, why) for each in samples if (why := _problem(each))]
    return Report(header, compared, problems, submissions, own_table)


def compare_with_paper(header: Header, metric: Metric) -> PaperComparison | None:
    """Return the paper's number for this model, with every difference between the measurements, or None."""
    subtitles = bool(header.settings.get("subtitles"))
    number = paper_number(header.model, header.benchmark, metric.name, subtitles)
    if number is None:
        return None
    differs = [
        *([number.note] if number.note else []),
        *_asked_differences(header, metric),
        *_answering_differences(header, number),
        *_judge_differences(header),
    ]
    return PaperComparison(number.value, number.source, differs)


def _asked_differences(header: Header, metric: Metric) -> list[str]:
    """Return differences in the questions asked and in the reading of answers."""
    differs = [] if metric.protocol == PUBLISHED else [f"protocol {metric.protocol} instead of {PUBLISHED}"]
    if header.questions and (part := header.questions.part()):
        differs.append(part)
    for name, count in (
        ("missing or unreadable media", metric.counts.missing_media),
        ("failed answers", metric.counts.failed),
        ("answers without a verdict", metric.counts.judge_failed),
        ("videos without a sound track", metric.counts.silent),
    ):
        if count:
            differs.append(f"{count:,} {name} of {metric.counts.total:,}")
    for name, value in header.settings.items():
        if value is not None and value != PUBLISHED:
            differs.append(f"{name.replace('_', ' ')} {value}")
    return [*differs, *(each.text() for each in header.supplements if each.is_short)]


def _answering_differences(header: Header, number: PaperNumber) -> list[str]:
    """Return differences in the way the model was run."""
    differs = []
    if number.frames is not None and header.frames != number.frames:
        differs.append(f"{header.frames or 'an unknown number of'} frames instead of {number.frames}")
    if header.quantization:
        differs.append(f"weights quantised to {header.quantization}")
    elif header.dtype not in (None, PUBLISHED_DTYPE):
        differs.append(f"computed in {header.dtype} instead of {PUBLISHED_DTYPE}")
    if header.generation is None:
        return [*differs, "it is not known how answers were generated"]
    over = header.generation.get("frames_over", "index")
    if over != "index":
        differs.append("one frame per second" if over == "fps" else "frames spread over time, not over their numbers")
    temperature = header.generation.get("temperature") or 0.0
    if temperature != number.temperature:
        differs.append(f"temperature {temperature:g} instead of {number.temperature:g}")
    longest = header.generation.get("max_new_tokens")
    if longest not in (None, PUBLISHED_NEW_TOKENS):
        differs.append(f"answers of at most {longest:,} tokens instead of {PUBLISHED_NEW_TOKENS:,}")
    return differs


def _judge_differences(header: Header) -> list[str]:
    """Return differences in the way answers were judged."""
    if not header.judge:
        return []
    from videollama2.eval.judging.rubrics import PUBLISHED_SAMPLING

    differs = []
    version = rubric_version(header.judge)
    if version != PUBLISHED:
        differs.append(f"rubric {version} instead of {PUBLISHED}")
    if header.judge.get("kind") == "local":
        return [*differs, "judged by matching texts, not by a language model"]
    for name, value in PUBLISHED_SAMPLING.items():
        if header.judge.get(name) != value:
            differs.append(f"the judge's {name} is {header.judge.get(name)} instead of {value}")
    return differs


def rubric_version(judge: Mapping[str, Any]) -> Any:
    """Return the version of the judge's rubrics."""
    rubric = judge.get("rubric")
    return rubric.get("version") if isinstance(rubric, Mapping) else rubric


def _problem(sample: Sample) -> str | None:
    if sample.error:
        return sample.error
    return f"judge: {sample.judge.error}" if sample.judge and sample.judge.error else None
